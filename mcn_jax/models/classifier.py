"""The base class of the networks: their arguments, the image input, and the output."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mcn_jax.layers.batch_norm import MOMENTUM, Affine, BatchNorm
from mcn_jax.layers.conv import ordinary_conv
from mcn_jax.layers.planes import expand_input
from mcn_jax.layers.pooling import POOLINGS, Pooling, PoolingOptions
from mcn_jax.models.heads import HEADS, HeadContext, example_dropout


class Outputs(NamedTuple):
    """The output of every network.

    Attributes:
        logits: [N, classes].
        features: [N, Y, X, C], the last convolution's output after batch norm and ReLU, before
            pooling. The center loss is computed from them. Without a ReLU before the head, they
            are not rectified, and pooled if batch norm follows pooling.
    """

    logits: jax.Array
    features: jax.Array


class Classifier(nn.Module):
    """Convolutions, which a subclass defines, and a head.

    MCN, U-MCN and ordinary CNN only differ in `conv`, except that an ordinary CNN takes the image
    without expansion (`input_planes=None`).

    Attributes:
        conv: makes a convolution from its number of output maps, see `Family.make`.
        widths: output feature maps; the subclass says of which layers.
        num_classes: number of logits.
        planes: K, channels per feature map.
        input_planes: how the image is expanded to maps of K planes, see `expand_input`; None keeps
            the image, for ordinary convolutions.
        first_conv: makes the first convolution, which takes the image; None takes `conv`.
        pointwise_conv: makes convolutions of 1x1 pixels, for networks that have them; None makes
            ordinary ones.
        relu: whether a ReLU precedes every other convolution. The head follows a ReLU, too, unless
            it begins with a layer of this kind, see `Head.of_family`.
        pooling: how images get smaller, a name in `POOLINGS`.
        strides: of the pooling layers; the subclass says where they are.
        pooling_options: settings of the pooling layers.
        pooled_sizes: sizes Y1, X1, Y2, X2, ... after each pooling layer with learned strides; empty
            for those of the initial strides.
        head: from features to logits, a name in `HEADS`.
        dense_features: width of the hidden layers of a head that has any.
        dropout_rate: share of elements that dropout sets to zero; head and subclass say where.
        axis_name: name of the mapped axis over which batch statistics are averaged, or None.
        deployed: whether the network is for inference from a file. Batch norm is then an affine map
            with parameters `scale` and `offset`, and `conv` makes deployed modules of the families.
        dtype: dtype of the computation.
        param_dtype: dtype of parameters and batch statistics.
    """

    conv: Callable[..., nn.Module]
    widths: tuple[int, ...]
    num_classes: int
    planes: int = 4
    input_planes: str | None = "copy"
    first_conv: Callable[..., nn.Module] | None = None
    pointwise_conv: Callable[..., nn.Module] | None = None
    relu: bool = True
    pooling: str = "strided"
    strides: tuple[int, ...] = ()
    pooling_options: PoolingOptions = PoolingOptions()
    pooled_sizes: tuple[int, ...] = ()
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
        """Computes logits and features.

        Args:
            images: [N, Y, X, C], normalised.
            train: whether to use the batch's statistics, and dropout.
            dropout_keys: [N] random keys, needed for training with dropout.
        """
        x = images.astype(self.dtype)
        if self.input_planes is not None:
            x = expand_input(x, self.input_planes, self.planes)
        batch_norm = self._batch_norm(train)
        dropout = functools.partial(self._dropout, dropout_keys, train)
        features, maps = self.convolutions(x, batch_norm, dropout)
        context = HeadContext(
            num_classes=self.num_classes,
            dense_features=self.dense_features,
            vector=self.vector,
            conv=self.conv,
            relu=self.relu,
            batch_norm=batch_norm,
            deployed=self.deployed,
            dropout=dropout,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        return Outputs(HEADS[self.head].apply(context, maps), features)

    def convolutions(
        self,
        x: jax.Array,
        batch_norm: Callable[..., nn.Module],
        dropout: Callable[..., jax.Array],
    ) -> tuple[jax.Array, jax.Array]:
        """Computes everything before the head.

        Args:
            x: [N, Y, X, C], the image or its maps.
            batch_norm: makes a batch norm from its name.
            dropout: (x [N, ...], place=number) -> x with dropout, in training. Every place has its
                own number from 1; the head's place is 0.

        Returns:
            Features [N, Y', X', C'] as in `Outputs`, and the head's input [N, Y'', X'', C'].
        """
        raise NotImplementedError

    def vector(self, maps: jax.Array) -> jax.Array:
        """Turns maps [N, Y'', X'', C'] into the input [N, F] of a dense layer."""
        raise NotImplementedError

    def _dropout(
        self, keys: jax.Array | None, train: bool, x: jax.Array, place: int = 0
    ) -> jax.Array:
        if not train or not self.dropout_rate:
            return x
        if keys is None:
            raise ValueError("training with dropout needs dropout_keys, one per example")
        if place:
            keys = jax.vmap(lambda key: jax.random.fold_in(key, place))(keys)
        return example_dropout(x, keys, self.dropout_rate)

    @property
    def stem_conv(self) -> Callable[..., nn.Module]:
        """Makes the first convolution."""
        return self.conv if self.first_conv is None else self.first_conv

    @property
    def relu_before_head(self) -> bool:
        """Whether a ReLU precedes the head."""
        return self.relu or not HEADS[self.head].of_family

    @property
    def pointwise(self) -> Callable[..., nn.Module]:
        """Makes a convolution of 1x1 pixels, if it is called with `kernel_size` 1."""
        if self.pointwise_conv is not None:
            return self.pointwise_conv
        make = ordinary_conv(deployed=self.deployed, dtype=self.dtype, param_dtype=self.param_dtype)
        return functools.partial(make, planes=self.planes)

    @property
    def pooling_kind(self) -> Pooling:
        """The way that images get smaller."""
        return POOLINGS[self.pooling]

    def pooling_layer(self, number: int) -> Callable[[jax.Array], jax.Array] | None:
        """Makes a pooling layer, counted from 1; None if its stride is one for good."""
        stride, kind = self.strides[number - 1], self.pooling_kind
        if stride == 1 and not kind.learns_strides:
            return None
        size = self.pooled_sizes[2 * number - 2 : 2 * number]
        name = f"pooling_{number}"
        return kind.layer(stride, (size[0], size[1]) if size else None, self.pooling_options, name)

    def pooled(self, x: jax.Array, number: int) -> jax.Array:
        """Applies a pooling layer to [N, Y, X, C]; see `pooling_layer`."""
        layer = self.pooling_layer(number)
        return x if layer is None else layer(x)

    def _batch_norm(self, train: bool) -> Callable[..., nn.Module]:
        if self.deployed:
            return functools.partial(Affine, dtype=self.dtype, param_dtype=self.param_dtype)
        return functools.partial(
            BatchNorm,
            use_running_average=not train,
            momentum=MOMENTUM,
            axis_name=self.axis_name,
            use_fast_variance=False,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
