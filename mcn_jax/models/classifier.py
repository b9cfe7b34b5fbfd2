"""What the networks have in common: their arguments, the way in, and the dense layers."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mcn_jax.layers import Affine, example_dropout, expand_input


class Outputs(NamedTuple):
    """What every model returns.

    logits: [N, classes].
    features: [N, Y, X, C], the last convolution's after batch norm and ReLU, before pooling; the
        center loss is taken of them.
    """

    logits: jax.Array
    features: jax.Array


class Classifier(nn.Module):
    """Convolutions, which a subclass defines; then dense, ReLU, dropout, dense.

    MCN, U-MCN and ordinary CNN differ in the `conv` argument alone, but that an ordinary CNN takes
    the image as it is (`input_planes`).

    Attributes:
        conv: makes a convolution from its number of output maps: `MCConv`, `Conv`, or a partial.
        widths: output feature maps, of what the subclass says.
        num_classes: number of logits.
        planes: K.
        input_planes: how the image becomes maps of K planes, see `expand_input`; None leaves it
            as it is, for ordinary convolutions.
        dense_features: width of the hidden dense layer.
        dropout_rate: before the last dense layer.
        axis_name: of the mapped axis that batch statistics are reduced over; None for none.
        folded_batch_norm: batch norm is the affine map that it is in inference, its statistics
            inside: parameters `scale` and `offset`, no training.
        dtype: of the computation.
        param_dtype: of parameters and batch statistics.
    """

    conv: Callable[..., nn.Module]
    widths: tuple[int, ...]
    num_classes: int
    planes: int = 4
    input_planes: str | None = "copy"
    dense_features: int = 1024
    dropout_rate: float = 0.5
    axis_name: str | None = None
    folded_batch_norm: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool = False, dropout_keys: jax.Array | None = None
    ) -> Outputs:
        """Args:
        images: [N, Y, X, C], normalised.
        train: use the batch's statistics, and dropout.
        dropout_keys: [N] random keys, needed when training with dropout.
        """
        x = images.astype(self.dtype)
        if self.input_planes is not None:
            x = expand_input(x, self.input_planes, self.planes)
        features, x = self.convolutions(x, self._batch_norm(train))
        x = nn.relu(self._dense(self.dense_features, "dense_1")(x))
        if train and self.dropout_rate:
            if dropout_keys is None:
                raise ValueError("training with dropout needs dropout_keys, one an example")
            x = example_dropout(x, dropout_keys, self.dropout_rate)
        logits = self._dense(self.num_classes, "dense_2")(x)
        return Outputs(logits, features)

    def convolutions(
        self, x: jax.Array, batch_norm: Callable[..., nn.Module]
    ) -> tuple[jax.Array, jax.Array]:
        """Everything before the dense layers.

        Args:
            x: [N, Y, X, C], the image or its maps.
            batch_norm: makes a batch norm from its name.

        Returns:
            (features [N, Y', X', C'] as in `Outputs`, what the dense layers take [N, F]).
        """
        raise NotImplementedError

    def _batch_norm(self, train: bool) -> Callable[..., nn.Module]:
        if self.folded_batch_norm:
            return functools.partial(Affine, dtype=self.dtype, param_dtype=self.param_dtype)
        return functools.partial(
            nn.BatchNorm,
            use_running_average=not train,
            momentum=0.9,
            axis_name=self.axis_name,
            use_fast_variance=False,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )

    def _dense(self, features: int, name: str) -> nn.Module:
        return nn.Dense(
            features,
            kernel_init=nn.initializers.he_normal(),
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name=name,
        )
