"""Densely connected networks for small images (Huang et al. 2017).

DenseNet-121 has `blocks` (6, 12, 24, 16), `growth` 32, `widths` (64,), `planes` 1, and the head
"linear". Its stem is a 3x3 convolution with stride 1 here, without batch norm, ReLU and pooling.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from mcn_jax.config import ModelConfig
from mcn_jax.errors import InputError, require
from mcn_jax.layers.pooling import POOLINGS, Pooling
from mcn_jax.models.classifier import Classifier
from mcn_jax.models.halving import check_sizes

BOTTLENECK = 4  # maps of the 1x1 convolution of a block, as a multiple of the growth


class DenseNet(Classifier):
    """Stem, stages of dense blocks with a transition between stages, batch norm, ReLU and the head.

    A transition is batch norm, ReLU, 1x1 convolution to half of the maps, rounded down, and a
    pooling layer. With the pooling "strided" this is the average of 2x2 pixels, as published; an
    odd last row or column is dropped.

    A head with dense layers takes the global average of the maps.

    Attributes:
        widths: maps of the stem, a single number.
        blocks: number of blocks of each stage.
        growth: maps that each block appends.

    For the other attributes see `Classifier`.
    """

    head: str = "linear"
    blocks: tuple[int, ...] = (6, 12, 24, 16)
    growth: int = 32

    def convolutions(
        self,
        x: jax.Array,
        batch_norm: Callable[..., nn.Module],
        dropout: Callable[..., jax.Array],
    ) -> tuple[jax.Array, jax.Array]:
        """Computes everything before the head; see `Classifier`."""
        del dropout
        (maps,) = self.widths
        x = self.stem_conv(maps, name="stem")(x)
        for stage, blocks in enumerate(self.blocks, start=1):
            for block in range(1, blocks + 1):
                x = Block(
                    conv=self.conv,
                    pointwise=self.pointwise,
                    batch_norm=batch_norm,
                    growth=self.growth,
                    relu=self.relu,
                    name=f"stage_{stage}_block_{block}",
                )(x)
                maps += self.growth
            if stage < len(self.blocks):
                maps //= 2
                x = batch_norm(name=f"batch_norm_transition_{stage}", relu=True)(x)
                x = self.pointwise(maps, kernel_size=1, name=f"transition_{stage}")(x)
                x = self.pooled(x, stage)
        x = batch_norm(name="batch_norm", relu=self.relu_before_head)(x)
        return x, x

    @property
    def pooling_kind(self) -> Pooling:
        """The way that images get smaller."""
        return POOLINGS["average" if self.pooling == "strided" else self.pooling]

    def vector(self, maps: jax.Array) -> jax.Array:
        """Returns the global average of each map's channels."""
        return jnp.mean(maps, axis=(1, 2))


class Block(nn.Module):
    """Appends maps: twice batch norm, ReLU and convolution, of 1x1 and of 3x3 pixels.

    The 1x1 convolution has 4 * growth maps. The new maps come before those of the input.

    Attributes:
        conv: makes a convolution, see `Classifier`.
        pointwise: makes a convolution of one pixel.
        batch_norm: makes a batch norm from its name.
        growth: number of new maps.
        relu: whether a ReLU precedes the 3x3 convolution.
    """

    conv: Callable[..., nn.Module]
    pointwise: Callable[..., nn.Module]
    batch_norm: Callable[..., nn.Module]
    growth: int
    relu: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [N, Y, X, C] to [N, Y, X, channels of the new maps + C]."""
        y = self.batch_norm(name="batch_norm_1", relu=True)(x)
        y = self.pointwise(BOTTLENECK * self.growth, kernel_size=1, name="conv_1")(y)
        y = self.batch_norm(name="batch_norm_2", relu=self.relu)(y)
        y = self.conv(self.growth, name="conv_2")(y)
        return jnp.concatenate([y, x], axis=-1)


def usual_strides(model: ModelConfig) -> tuple[int, ...]:
    """Returns the strides of the pooling layers if the config names none."""
    return (2,) * (len(model.blocks) - 1)


def check(model: ModelConfig) -> None:
    """Raises InputError unless the network can be built."""
    if len(model.widths) != 1:
        raise InputError(
            f"config.model.widths={model.widths} must be the single width of a densenet's stem,"
            " such as 64"
        )
    if min(model.blocks, default=0) < 1:
        raise InputError(
            f"config.model.blocks={model.blocks} must name at least one stage, each with at least"
            " 1 block"
        )
    require(model.growth >= 1, "model.growth", model.growth, "must be at least 1 map")


def check_image_size(model: ModelConfig, height: int, width: int) -> None:
    """Raises InputError unless a pixel is left in the last stage."""
    size = min(height, width)
    if model.pooling == "strided" and not model.strides and not size >> (len(model.blocks) - 1):
        raise InputError(
            f"config.model.blocks={model.blocks} has too many stages for images of {size} pixels,"
            " which each stage but the last halves; use fewer stages or larger images"
        )
    check_sizes(model, model.strides or usual_strides(model), (height, width))
