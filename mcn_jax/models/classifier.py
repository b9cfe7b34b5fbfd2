"""What the networks have in common: their arguments, the way in, and the way out."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mcn_jax.layers.batch_norm import Affine
from mcn_jax.layers.planes import expand_input
from mcn_jax.layers.pooling import POOLINGS, Pooling
from mcn_jax.models.heads import HEADS, HeadContext


class Outputs(NamedTuple):
    """What every model returns.

    logits: [N, classes].
    features: [N, Y, X, C], the last convolution's after batch norm and ReLU, before pooling; the
        center loss is taken of them.
    """

    logits: jax.Array
    features: jax.Array


class Classifier(nn.Module):
    """Convolutions, which a subclass defines, and a head.

    MCN, U-MCN and ordinary CNN differ in the `conv` argument alone, but that an ordinary CNN takes
    the image as it is (`input_planes`).

    Attributes:
        conv: makes a convolution from its number of output maps, see `Family.make`.
        widths: output feature maps, of what the subclass says.
        num_classes: number of logits.
        planes: K.
        input_planes: how the image becomes maps of K planes, see `expand_input`; None leaves it
            as it is, for ordinary convolutions.
        pooling: how images are halved, a name in `POOLINGS`.
        head: from features to logits, a name in `HEADS`.
        dense_features: head "dense": width of the hidden layer.
        dropout_rate: head "dense": before the last layer.
        axis_name: of the mapped axis that batch statistics are reduced over; None for none.
        deployed: for inference from a file. Batch norm is the affine map that it becomes, with
            parameters `scale` and `offset`, and `conv` makes the families' deployed modules.
        dtype: of the computation.
        param_dtype: of parameters and batch statistics.
    """

    conv: Callable[..., nn.Module]
    widths: tuple[int, ...]
    num_classes: int
    planes: int = 4
    input_planes: str | None = "copy"
    pooling: str = "strided"
    head: str = "dense"
    dense_features: int = 1024
    dropout_rate: float = 0.5
    axis_name: str | None = None
    deployed: bool = False
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
        batch_norm = self._batch_norm(train)
        features, maps = self.convolutions(x, batch_norm)
        context = HeadContext(
            num_classes=self.num_classes,
            dense_features=self.dense_features,
            dropout_rate=self.dropout_rate,
            vector=self.vector,
            batch_norm=batch_norm,
            deployed=self.deployed,
            train=train,
            dropout_keys=dropout_keys,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        return Outputs(HEADS[self.head].apply(context, maps), features)

    def convolutions(
        self, x: jax.Array, batch_norm: Callable[..., nn.Module]
    ) -> tuple[jax.Array, jax.Array]:
        """Everything before the head.

        Args:
            x: [N, Y, X, C], the image or its maps.
            batch_norm: makes a batch norm from its name.

        Returns:
            (features [N, Y', X', C'] as in `Outputs`, what the head takes [N, Y'', X'', C']).
        """
        raise NotImplementedError

    def vector(self, maps: jax.Array) -> jax.Array:
        """What a dense layer takes [N, F] of the maps [N, Y'', X'', C']."""
        raise NotImplementedError

    @property
    def halving(self) -> Pooling:
        """How images are halved."""
        return POOLINGS[self.pooling]

    def _batch_norm(self, train: bool) -> Callable[..., nn.Module]:
        if self.deployed:
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
