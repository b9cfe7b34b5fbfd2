"""Maxout networks (Goodfellow et al. 2013), with batch norm before each maximum.

The authors' programs have three networks, one for each entry of `LAYOUTS`, with `planes` 1:

    layout     widths          head
    "cifar10"  (96, 192, 192)  "maxout" with `dense_features` 500
    "svhn"     (64, 128, 128)  "maxout" with `dense_features` 400
    "mnist"    (48, 48, 24)    "linear"

They have a bias for each output of a convolution, where ours have batch norm. The authors limit the
norm of each filter, and apply dropout to the image and before each layer. We do neither, apart from
the dropout in the head.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mcn_jax.config import ModelConfig
from mcn_jax.errors import InputError, require
from mcn_jax.layers.pooling import max_over_pieces, max_pool_ceil, windows_in_ceil_mode
from mcn_jax.layers.table import LAYERS
from mcn_jax.models.classifier import Classifier


class Layer(NamedTuple):
    """Sizes of a maxout layer.

    Attributes:
        kernel_size: of the convolution, in pixels.
        padding: zeros on each side of the image.
        window: of the max-pooling, in pixels.
        pieces: convolution outputs per output.
    """

    kernel_size: int
    padding: int
    window: int
    pieces: int


POOLING_STRIDES = 2
# Names for config.model.layout; see the files maxout/cifar10.yaml, svhn.yaml and mnist.yaml of
# Pylearn2's scripts/papers.
LAYOUTS = {
    "cifar10": (Layer(8, 4, 4, 2), Layer(8, 3, 4, 2), Layer(5, 3, 2, 2)),
    "svhn": (Layer(5, 4, 3, 2), Layer(5, 3, 3, 2), Layer(5, 3, 3, 2)),
    "mnist": (Layer(8, 0, 4, 2), Layer(8, 3, 4, 2), Layer(5, 3, 2, 4)),
}


class Maxout(Classifier):
    """Three layers of convolution, batch norm, maximum over pieces and max-pooling, and the head.

    There is no ReLU. Max-pooling has stride 2 and works in ceil mode. The image is zero-padded
    before each convolution, whose own padding is "VALID".

    Attributes:
        widths: output maps of each layer, after the maximum.
        layout: kernels, pooling and pieces of the layers, a name in `LAYOUTS`.

    For the other attributes see `Classifier`.
    """

    head: str = "maxout"
    layout: str = "cifar10"

    def convolutions(
        self,
        x: jax.Array,
        batch_norm: Callable[..., nn.Module],
        dropout: Callable[..., jax.Array],
    ) -> tuple[jax.Array, jax.Array]:
        """Computes everything before the head; see `Classifier`."""
        del dropout
        if self.layout not in LAYOUTS:
            raise ValueError(f"layout={self.layout!r} must be one of {', '.join(LAYOUTS)}")
        layers = zip(LAYOUTS[self.layout], self.widths, strict=True)
        for number, (layer, width) in enumerate(layers, start=1):
            conv = self.stem_conv if number == 1 else self.conv
            pads = (layer.padding, layer.padding)
            x = conv(
                width * layer.pieces,
                kernel_size=layer.kernel_size,
                padding="VALID",
                name=f"conv_{number}",
            )(jnp.pad(x, ((0, 0), pads, pads, (0, 0))))
            x = batch_norm(name=f"batch_norm_{number}", relu=False)(x)
            features = max_over_pieces(x, layer.pieces, self.planes)
            x = max_pool_ceil(features, layer.window, POOLING_STRIDES)
        return features, x

    def vector(self, maps: jax.Array) -> jax.Array:
        """Returns all pixels of all maps as vectors."""
        return maps.reshape(maps.shape[0], -1)


def sizes(layout: str, size: int) -> list[int]:
    """Returns the pixels along an axis of each convolution's output and each pooled output.

    A layer whose kernel is larger than the padded image has an output of no or negative size.
    """
    found = []
    for layer in LAYOUTS[layout]:
        size = size + 2 * layer.padding - layer.kernel_size + 1
        found.append(size)
        size = windows_in_ceil_mode(size, layer.window, POOLING_STRIDES)
        found.append(size)
    return found


def check(model: ModelConfig) -> None:
    """Raises InputError unless the network can be built."""
    layers = LAYOUTS[model.layout]
    if len(model.widths) != len(layers):
        raise InputError(
            f"config.model.widths={model.widths} must be the {len(layers)} widths of a maxout, such"
            " as 96,192,192"
        )
    even = [layer.kernel_size for layer in layers if layer.kernel_size % 2 == 0]
    odd = [name for name, other in LAYOUTS.items() if all(one.kernel_size % 2 for one in other)]
    for field, conv in (("conv", model.conv), ("stem_conv", model.stem_conv)):
        require(
            not even or not conv or not LAYERS[conv].takes_planes,
            f"model.{field}",
            conv,
            f"needs kernels with an odd side, but config.model.layout={model.layout!r} has kernels"
            f" of {even and even[0]}x{even and even[0]} pixels; set config.model.layout to"
            f" {' or '.join(odd)}, or config.model.{field}=conv",
        )


def check_image_size(model: ModelConfig, height: int, width: int) -> None:
    """Raises InputError unless every convolution leaves a pixel."""
    size = min(height, width)
    if min(sizes(model.layout, size)) < 1:
        raise InputError(
            f"images of {size} pixels are too small for config.model.layout={model.layout!r}; set"
            " config.data.image_size to at least"
            f" {next(n for n in range(size, 64) if min(sizes(model.layout, n)) > 0)}"
        )
