"""Wide residual networks with pre-activation basic blocks (the paper's Fig. 4(c)).

All convolutions are 3x3, because a 1x1 kernel "does not propagate any M-filter information" (Sec.
3.1). So shortcuts have no weights.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mcn_jax.config import ModelConfig
from mcn_jax.errors import InputError
from mcn_jax.layers.pooling import POOLINGS, average_pool, max_pool
from mcn_jax.models.classifier import Classifier
from mcn_jax.models.halving import check_sizes


class Stem(NamedTuple):
    """The layers before the first stage.

    Attributes:
        strides: strides of the convolution.
        pools: whether 2x2 max-pooling follows it.
    """

    strides: int
    pools: bool


STEMS = {"cifar": Stem(strides=1, pools=False), "imagenet": Stem(strides=2, pools=True)}


class WideResNet(Classifier):
    """Stem, three stages of basic blocks, batch norm and ReLU, followed by the head.

    The first block of every stage but the first halves the image. With another pooling than
    "strided", its convolution keeps the size and a pooling layer follows it; the shortcut applies
    the same layer. A head with dense layers takes the global average of the maps.

    Attributes:
        widths: output maps of the stem and of each stage, not decreasing.
        strides: after the stem, and of the first block of each stage but the first.
        depth: depth as the paper counts it, see `blocks_per_stage`.
        stem: a name in `STEMS`.

    For the other attributes see `Classifier`.
    """

    dense_features: int = 512
    depth: int = 20
    stem: str = "cifar"

    def convolutions(
        self,
        x: jax.Array,
        batch_norm: Callable[..., nn.Module],
        dropout: Callable[..., jax.Array],
    ) -> tuple[jax.Array, jax.Array]:
        """Computes everything before the head; see `Classifier`."""
        del dropout
        if self.stem not in STEMS:
            raise ValueError(f"stem={self.stem!r} must be one of {', '.join(STEMS)}")
        stem, blocks = STEMS[self.stem], blocks_per_stage(self.depth)
        by_convolutions = self.pooling_kind.by_convolutions
        stem_strides = stem.strides * (self.strides[0] if by_convolutions else 1)
        x = self.stem_conv(self.widths[0], strides=stem_strides, name="stem")(x)
        if stem.pools:
            x = max_pool(x, 2)
        if not by_convolutions:
            x = self.pooled(x, 1)
        for stage, width in enumerate(self.widths[1:], start=1):
            for block in range(1, blocks + 1):
                strides, pool = 1, None
                if stage > 1 and block == 1:
                    if by_convolutions:
                        strides = self.strides[stage - 1]
                    else:
                        pool = self.pooling_layer(stage)
                x = Block(
                    conv=self.conv,
                    batch_norm=batch_norm,
                    out_maps=width,
                    strides=strides,
                    pool=pool,
                    relu=self.relu,
                    name=f"stage_{stage}_block_{block}",
                )(x)
        features = batch_norm(name="batch_norm", relu=self.relu_before_head)(x)
        return features, features

    def vector(self, maps: jax.Array) -> jax.Array:
        """Returns the global average of each map's channels."""
        return jnp.mean(maps, axis=(1, 2))


class Block(nn.Module):
    """Residual block: twice batch norm, ReLU and 3x3 convolution, added to the input.

    The input is averaged over windows as large as the strides, or passes through the pooling layer.
    Zeros are appended for additional maps.

    Attributes:
        conv: makes a convolution, see `Classifier`.
        batch_norm: makes a batch norm from its name.
        out_maps: output maps of both convolutions.
        relu: whether a ReLU precedes each convolution.
        strides: strides of the first convolution, in y and x.
        pool: a pooling layer in place of the strides, or None.
    """

    conv: Callable[..., nn.Module]
    batch_norm: Callable[..., nn.Module]
    out_maps: int
    relu: bool = True
    strides: int = 1
    pool: Callable[[jax.Array], jax.Array] | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [N, Y, X, C] to [N, Y / strides, X / strides, channels of the convolution]."""
        y = self.batch_norm(name="batch_norm_1", relu=self.relu)(x)
        y = self.conv(self.out_maps, strides=self.strides, name="conv_1")(y)
        if self.pool is not None:
            y = self.pool(y)
        y = self.batch_norm(name="batch_norm_2", relu=self.relu)(y)
        y = self.conv(self.out_maps, name="conv_2")(y)
        carried = average_pool(x, self.strides) if self.pool is None else self.pool(x)
        return y + with_channels(carried, y.shape[-1])


def with_channels(x: jax.Array, channels: int) -> jax.Array:
    """Appends channels of zeros to x, up to `channels` in total.

    Map g consists of channels g*K to g*K + K - 1, so whole maps are appended.
    """
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, channels - x.shape[-1])))


def blocks_per_stage(depth: int) -> int:
    """Returns (depth - 4) / 6 or (depth - 2) / 6, whichever is an integer.

    The paper's networks of 28 and 34 layers follow the first formula, the network of 20 layers the
    second.

    Raises:
        ValueError: if neither is a positive integer; the error names the nearest depths.
    """
    if _is_depth(depth):
        return (depth - 2) // 6  # also right for depths 6n + 4: (6n + 4 - 2) // 6 = n
    below = [d for d in range(depth - 3, depth) if _is_depth(d)]
    above = [d for d in range(max(depth, 7) + 1, max(depth, 7) + 4) if _is_depth(d)]
    nearest = " and ".join(map(str, (*below[-1:], above[0])))
    raise ValueError(
        f"depth={depth} must be 6n + 2 or 6n + 4, where n >= 1 is the number of blocks per stage;"
        f" nearest: {nearest}"
    )


def _is_depth(depth: int) -> bool:
    return depth >= 8 and depth % 6 in (2, 4)


def usual_strides(model: ModelConfig) -> tuple[int, ...]:
    """Returns the strides of the pooling layers if the config names none."""
    return (1,) + (2,) * (len(model.widths) - 2)


def check(model: ModelConfig) -> None:
    """Raises InputError unless the network can be built."""
    if len(model.widths) != 4:
        raise InputError(
            f"config.model.widths={model.widths} must be the four widths of a wide_resnet: stem,"
            " stage 1, stage 2, stage 3"
        )
    if list(model.widths) != sorted(model.widths):
        raise InputError(
            f"config.model.widths={model.widths} must not decrease in a wide_resnet, whose"
            " shortcuts append maps of zeros and cannot drop maps"
        )
    try:
        blocks_per_stage(model.depth)
    except ValueError as error:
        raise InputError(f"config.model.{error}") from error


def check_image_size(model: ModelConfig, height: int, width: int) -> None:
    """Raises InputError unless strides divide height and width, or pooling layers can take them."""
    stem = STEMS[model.stem]
    strides = model.strides or usual_strides(model)
    unit = stem.strides * (2 if stem.pools else 1)
    if not POOLINGS[model.pooling].by_convolutions:
        check_sizes(model, strides, (height // unit, width // unit))
    else:
        unit *= math.prod(strides)
    if height % unit or width % unit:
        size = -(-max(height, width) // unit) * unit
        raise InputError(
            f"images of {height}x{width} pixels do not fit a wide_resnet with"
            f" config.model.stem={model.stem!r}, which needs multiples of {unit}; set"
            f" config.data.image_size={size}"
        )
