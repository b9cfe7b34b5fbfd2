"""Network in Network (Lin et al. 2014), with batch norm before each ReLU.

The authors' network for CIFAR has `widths` (192, 160, 96, 192, 192, 192, 192, 192), `planes` 1 and
the head "conv_relu". It has a bias in each layer, where ours has batch norm.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mcn_jax.config import ModelConfig
from mcn_jax.errors import InputError
from mcn_jax.layers.pooling import average_pool_ceil, max_pool_ceil
from mcn_jax.models.classifier import Classifier


class Stage(NamedTuple):
    """Convolutions of one image size.

    Attributes:
        kernel_sizes: of its convolutions, in pixels.
        pool: (x, window, strides) -> x, applied after them; None leaves the image.
    """

    kernel_sizes: tuple[int, ...]
    pool: Callable[[jax.Array, int, int], jax.Array] | None


STAGES = (
    Stage((5, 1, 1), max_pool_ceil),
    Stage((5, 1, 1), average_pool_ceil),
    Stage((3, 1), None),
)
CONVOLUTIONS = sum(len(stage.kernel_sizes) for stage in STAGES)
WINDOW, STRIDES = 3, 2  # of the pooling


class NetworkInNetwork(Classifier):
    """Three stages of a spatial convolution and 1x1 convolutions, followed by the head.

    Batch norm and ReLU follow each convolution. The first two stages end with pooling over windows
    of 3x3 pixels with stride 2, and with dropout.

    Only the spatial convolutions are of the chosen layer family. Those of 1x1 pixels are of
    `model.pointwise`, by default ordinary ones: an M-filter of a single tap "does not propagate any
    M-filter information" (Wang et al. 2018, Sec. 3.1). A head with dense layers takes the global
    average of the maps.

    `widths` are the output maps of the eight convolutions. The head "conv_relu" adds the ninth. For
    the other attributes see `Classifier`.
    """

    head: str = "conv_relu"

    def convolutions(
        self,
        x: jax.Array,
        batch_norm: Callable[..., nn.Module],
        dropout: Callable[..., jax.Array],
    ) -> tuple[jax.Array, jax.Array]:
        """Computes everything before the head; see `Classifier`."""
        layer = 0
        for number, stage in enumerate(STAGES, start=1):
            for kernel_size in stage.kernel_sizes:
                layer += 1
                conv = self.pointwise if kernel_size == 1 else self.conv
                conv = self.stem_conv if layer == 1 else conv
                name = f"conv_{layer}"
                x = conv(self.widths[layer - 1], kernel_size=kernel_size, name=name)(x)
                x = batch_norm(name=f"batch_norm_{layer}", relu=True)(x)
            if stage.pool is not None:
                x = dropout(stage.pool(x, WINDOW, STRIDES), place=number)
        return x, x

    def vector(self, maps: jax.Array) -> jax.Array:
        """Returns the global average of each map's channels."""
        return jnp.mean(maps, axis=(1, 2))


def check(model: ModelConfig) -> None:
    """Raises InputError unless the network can be built."""
    if len(model.widths) != CONVOLUTIONS:
        raise InputError(
            f"config.model.widths={model.widths} must be the {CONVOLUTIONS} widths of a nin without"
            " the layer in its head, such as 192,160,96,192,192,192,192,192"
        )


def check_image_size(model: ModelConfig, height: int, width: int) -> None:
    """Accepts images of any size, because pooling in ceil mode leaves at least one pixel."""
    del model, height, width
