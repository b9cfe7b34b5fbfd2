"""The ways of halving images inside a network, and the table that names them."""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp


def max_pool_2x2(x: jax.Array) -> jax.Array:
    """Max-pools 2x2 pixels with stride 2; drops an odd last row or column.

    It takes a maximum over a reshaped array, because on a CPU the gradient of XLA's windowed
    maximum is slow. Pixels that share the maximum also share its gradient.
    """
    n, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return jnp.max(x.reshape(n, height // 2, 2, width // 2, 2, channels), axis=(2, 4))


def average_pool(x: jax.Array, window: int) -> jax.Array:
    """Averages [N, Y, X, C] over non-overlapping windows of `window` x `window` pixels.

    Raises:
        ValueError: if the windows do not fill the image.
    """
    n, height, width, channels = x.shape
    if height % window or width % window:
        raise ValueError(f"{height}x{width} pixels are not divisible by a window of {window}")
    shape = (n, height // window, window, width // window, window, channels)
    return jnp.mean(x.reshape(shape), axis=(2, 4))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pooling:
    """A way of halving images that a config can choose as `model.pooling`.

    Attributes:
        after_layer: [N, Y, X, C] -> [N, Y // 2, X // 2, C], applied after a layer that keeps the
            size.
        convolution: (makes a convolution, output maps, strides, name) -> a convolution that divides
            the image size by the strides.
        shortcut: (x, strides) -> x with its size divided by the strides, in parallel to such a
            convolution.
    """

    after_layer: Callable[[jax.Array], jax.Array]
    convolution: Callable[[Callable[..., nn.Module], int, int, str], Callable[..., jax.Array]]
    shortcut: Callable[[jax.Array, int], jax.Array]


def _strided(
    conv: Callable[..., nn.Module], out_maps: int, strides: int, name: str
) -> Callable[..., jax.Array]:
    return conv(out_maps, strides=strides, name=name)


POOLINGS = {
    "strided": Pooling(after_layer=max_pool_2x2, convolution=_strided, shortcut=average_pool),
}
