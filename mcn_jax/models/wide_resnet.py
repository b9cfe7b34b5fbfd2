"""Wide residual networks with pre-activation basic blocks (the paper's Fig. 4(c)).

All convolutions are 3x3, because a 1x1 kernel "does not propagate any M-filter information" (Sec.
3.1). So shortcuts have no weights.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mcn_jax.config import ModelConfig
from mcn_jax.errors import InputError
from mcn_jax.layers.pooling import Pooling, max_pool_2x2
from mcn_jax.models.classifier import Classifier


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

    The first block of every stage but the first halves the image. A head with dense layers takes
    the global average of the maps.

    Attributes:
        widths: output maps of the stem and of each stage, not decreasing.
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
        x = self.stem_conv(self.widths[0], strides=stem.strides, name="stem")(x)
        if stem.pools:
            x = max_pool_2x2(x)
        for stage, width in enumerate(self.widths[1:], start=1):
            for block in range(1, blocks + 1):
                x = Block(
                    conv=self.conv,
                    batch_norm=batch_norm,
                    out_maps=width,
                    strides=2 if stage > 1 and block == 1 else 1,
                    pooling=self.halving,
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

    The input passes through `Pooling.shortcut`, and zeros are appended for additional maps.

    Attributes:
        conv: makes a convolution, see `Classifier`.
        batch_norm: makes a batch norm from its name.
        out_maps: output maps of both convolutions.
        pooling: how the image is halved.
        relu: whether a ReLU precedes each convolution.
        strides: strides of the first convolution, in y and x.
    """

    conv: Callable[..., nn.Module]
    batch_norm: Callable[..., nn.Module]
    out_maps: int
    pooling: Pooling
    relu: bool = True
    strides: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [N, Y, X, C] to [N, Y / strides, X / strides, channels of the convolution]."""
        y = self.batch_norm(name="batch_norm_1", relu=self.relu)(x)
        y = self.pooling.convolution(self.conv, self.out_maps, self.strides, "conv_1")(y)
        y = self.batch_norm(name="batch_norm_2", relu=self.relu)(y)
        y = self.conv(self.out_maps, name="conv_2")(y)
        return y + with_channels(self.pooling.shortcut(x, self.strides), y.shape[-1])


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
    """Raises InputError unless height and width are even at every halving."""
    stem = STEMS[model.stem]
    halvings = len(model.widths) - 2
    unit = stem.strides * (2 if stem.pools else 1) * 2**halvings
    if height % unit or width % unit:
        size = -(-max(height, width) // unit) * unit
        raise InputError(
            f"images of {height}x{width} pixels do not fit a wide_resnet with"
            f" config.model.stem={model.stem!r}, which needs multiples of {unit}; set"
            f" config.data.image_size={size}"
        )
