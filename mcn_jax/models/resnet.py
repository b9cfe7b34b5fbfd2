"""Residual networks for small images, with basic or bottleneck blocks (He et al. 2016a, 2016b).

Known networks, with `planes` 1, `conv` "conv" and the head "linear":

    network          block       blocks         widths                   shortcut
    ResNet-18        basic       2, 2, 2, 2     64, 64, 128, 256, 512    projection
    ResNet-34        basic       3, 4, 6, 3     64, 64, 128, 256, 512    projection
    ResNet-50        bottleneck  3, 4, 6, 3     64, 64, 128, 256, 512    projection
    ResNet-101       bottleneck  3, 4, 23, 3    64, 64, 128, 256, 512    projection
    ResNet-20        basic       3, 3, 3        16, 16, 32, 64           zeros
    ResNet-110       basic       18, 18, 18     16, 16, 32, 64           zeros

The stem is a 3x3 convolution with stride 1, and nothing is pooled after it. So images of 32x32
pixels keep their size in the first stage, unless `strides` says otherwise.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mcn_jax.config import ModelConfig
from mcn_jax.errors import InputError, require, require_one_of
from mcn_jax.layers.pooling import POOLINGS
from mcn_jax.layers.table import LAYERS
from mcn_jax.models.classifier import Classifier
from mcn_jax.models.halving import check_sizes
from mcn_jax.models.wide_resnet import with_channels

# Names for config.model.shortcut, for a block whose input has another shape than its output:
# options A and B of He et al. 2016a. "zeros" drops pixels and appends maps of zeros; "projection"
# is a 1x1 convolution.
SHORTCUTS = ("zeros", "projection")


class Layer(NamedTuple):
    """A convolution of a block.

    Attributes:
        kernel_size: in pixels; convolutions of one pixel are those of `Classifier.pointwise`.
        expansion: output maps, as a multiple of the block's width.
        strided: whether it has the strides of the block.
    """

    kernel_size: int
    expansion: int
    strided: bool


# Names for config.model.block.
BLOCKS = {
    "basic": (Layer(3, 1, True), Layer(3, 1, False)),
    "bottleneck": (Layer(1, 1, False), Layer(3, 1, True), Layer(1, 4, False)),
}


class ResNet(Classifier):
    """Stem, stages of residual blocks, and the head.

    The first block of every stage but the first halves the image, rounding up. Strided convolutions
    pad one zero on each side, as in PyTorch. With another pooling than "strided", convolutions keep
    the size of images, and a pooling layer follows the one that would be strided. The shortcut
    applies the same layer before its projection.

    With `preactivation`, batch norm and ReLU precede each convolution of a block, and follow the
    last block. Shortcuts take the block's input as it is, and a projection has no batch norm.
    Otherwise they follow each convolution, and the last ReLU of a block follows the addition.

    A head with dense layers takes the global average of the maps.

    Attributes:
        widths: maps of the stem and of each stage; a bottleneck block has four times as many
            output maps.
        strides: after the stem, and of the first block of each stage but the first.
        blocks: number of blocks of each stage.
        block: a name in `BLOCKS`.
        shortcut: a name in `SHORTCUTS`.
        preactivation: the order of a block's layers.

    For the other attributes see `Classifier`.
    """

    head: str = "linear"
    blocks: tuple[int, ...] = (2, 2, 2, 2)
    block: str = "basic"
    shortcut: str = "projection"
    preactivation: bool = False

    def convolutions(
        self,
        x: jax.Array,
        batch_norm: Callable[..., nn.Module],
        dropout: Callable[..., jax.Array],
    ) -> tuple[jax.Array, jax.Array]:
        """Computes everything before the head; see `Classifier`."""
        del dropout
        stem_strides = self.strides[0] if self.pooling_kind.by_convolutions else 1
        stem_padding = {"padding": "CENTERED"} if stem_strides > 1 else {}
        x = self.stem_conv(self.widths[0], strides=stem_strides, name="stem", **stem_padding)(x)
        if not self.pooling_kind.by_convolutions:
            x = self.pooled(x, 1)
        if not self.preactivation:
            x = batch_norm(name="batch_norm_stem", relu=True)(x)
        make = functools.partial(
            PreactivationBlock if self.preactivation else Block,
            conv=functools.partial(self.conv, padding="CENTERED"),
            pointwise=self.pointwise,
            batch_norm=batch_norm,
            layers=BLOCKS[self.block],
            shortcut=self.shortcut,
            relu=self.relu,
        )
        for stage, (width, blocks) in enumerate(
            zip(self.widths[1:], self.blocks, strict=True), start=1
        ):
            for block in range(1, blocks + 1):
                strides, pool = 1, None
                if stage > 1 and block == 1:
                    if self.pooling_kind.by_convolutions:
                        strides = self.strides[stage - 1]
                    else:
                        pool = self.pooling_layer(stage)
                name = f"stage_{stage}_block_{block}"
                x = make(width=width, strides=strides, pool=pool, planes=self.planes, name=name)(x)
        if self.preactivation:
            x = batch_norm(name="batch_norm", relu=self.relu_before_head)(x)
        return x, x

    def vector(self, maps: jax.Array) -> jax.Array:
        """Returns the global average of each map's channels."""
        return jnp.mean(maps, axis=(1, 2))


class _Residual(nn.Module):
    """What both orders of layers have in common.

    Attributes:
        conv: makes a convolution, see `Classifier`.
        pointwise: makes a convolution of one pixel.
        batch_norm: makes a batch norm from its name.
        layers: the convolutions.
        width: maps of the block, see `Layer`.
        planes: channels per feature map.
        shortcut: a name in `SHORTCUTS`.
        relu: whether a ReLU precedes each convolution of `conv`.
        strides: by which the image's height and width are divided.
        pool: a pooling layer in place of the strides, or None.
    """

    conv: Callable[..., nn.Module]
    pointwise: Callable[..., nn.Module]
    batch_norm: Callable[..., nn.Module]
    layers: tuple[Layer, ...]
    width: int
    planes: int
    shortcut: str
    relu: bool
    strides: int
    pool: Callable[[jax.Array], jax.Array] | None = None

    def convolved(self, x: jax.Array, number: int) -> jax.Array:
        """Applies a convolution of the block, counted from 1, and the pooling layer after it."""
        layer = self.layers[number - 1]
        y = (self.pointwise if layer.kernel_size == 1 else self.conv)(
            layer.expansion * self.width,
            kernel_size=layer.kernel_size,
            strides=self.strides if layer.strided else 1,
            name=f"conv_{number}",
        )(x)
        return self.pool(y) if self.pool is not None and layer.strided else y

    def carried(self, x: jax.Array) -> jax.Array:
        """Applies the shortcut to [N, Y, X, C], without a batch norm."""
        maps, strides = self.layers[-1].expansion * self.width, self.strides
        projects = self.projects(x)
        if self.pool is not None:
            x = self.pool(x)
        if projects:
            return self.pointwise(maps, kernel_size=1, strides=strides, name="projection")(x)
        return with_channels(x[:, ::strides, ::strides], maps * self.planes)

    def projects(self, x: jax.Array) -> bool:
        """Returns whether the shortcut of [N, Y, X, C] is a projection."""
        channels = self.layers[-1].expansion * self.width * self.planes
        changes_size = self.strides > 1 or self.pool is not None
        changes_shape = changes_size or x.shape[-1] != channels
        return changes_shape and self.shortcut == "projection"


class Block(_Residual):
    """Convolutions, each followed by batch norm and all but the last by a ReLU; sum; ReLU."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [N, Y, X, C] to [N, ceil(Y / strides), ceil(X / strides), channels]."""
        y = x
        for number in range(1, len(self.layers) + 1):
            last = number == len(self.layers)
            y = self.convolved(y, number)
            y = self.batch_norm(name=f"batch_norm_{number}", relu=not last)(y)
        shortcut = self.carried(x)
        if self.projects(x):
            shortcut = self.batch_norm(name="batch_norm_projection", relu=False)(shortcut)
        return nn.relu(y + shortcut)


class PreactivationBlock(_Residual):
    """Batch norm, ReLU and convolution, several times; added to the input."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [N, Y, X, C] to [N, ceil(Y / strides), ceil(X / strides), channels]."""
        y = x
        for number, layer in enumerate(self.layers, start=1):
            relu = self.relu or layer.kernel_size == 1
            y = self.batch_norm(name=f"batch_norm_{number}", relu=relu)(y)
            y = self.convolved(y, number)
        return y + self.carried(x)


def usual_strides(model: ModelConfig) -> tuple[int, ...]:
    """Returns the strides of the pooling layers if the config names none."""
    return (1,) + (2,) * (len(model.blocks) - 1)


def check(model: ModelConfig) -> None:
    """Raises InputError unless the network can be built."""
    require_one_of("model.block", model.block, BLOCKS)
    require_one_of("model.shortcut", model.shortcut, SHORTCUTS)
    if len(model.widths) != len(model.blocks) + 1 or len(model.widths) < 2:
        raise InputError(
            f"config.model.widths={model.widths} must be the widths of the stem and of as many"
            f" stages as config.model.blocks={model.blocks}"
        )
    if min(model.blocks) < 1:
        raise InputError(f"config.model.blocks={model.blocks} must each be at least 1 block")
    expansion = BLOCKS[model.block][-1].expansion
    maps = [model.widths[0], *(expansion * width for width in model.widths[1:])]
    require(
        model.shortcut != "zeros" or maps == sorted(maps),
        "model.widths",
        model.widths,
        "must not decrease with config.model.shortcut='zeros', which appends maps of zeros and"
        " cannot drop maps; use config.model.shortcut=projection",
    )
    require(
        model.preactivation or not LAYERS[model.conv].takes_signs,
        "model.conv",
        model.conv,
        "takes the signs of its input, which are mostly positive after a ReLU; set"
        " config.model.preactivation=True",
    )


def check_image_size(model: ModelConfig, height: int, width: int) -> None:
    """Raises InputError unless the pooling layers can take the images; strided convolutions can."""
    if not POOLINGS[model.pooling].by_convolutions:
        check_sizes(model, model.strides or usual_strides(model), (height, width))
