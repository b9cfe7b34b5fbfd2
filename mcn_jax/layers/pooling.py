"""How images are halved inside a network: the table of poolings, and the poolings themselves."""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp


def max_pool_2x2(x: jax.Array) -> jax.Array:
    """2x2 max-pooling with stride 2; an odd last row or column is dropped.

    A maximum over a reshaped array, because XLA is slow at the gradient of a windowed maximum on
    CPU. Where several pixels share the maximum, they share the gradient.
    """
    n, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return jnp.max(x.reshape(n, height // 2, 2, width // 2, 2, channels), axis=(2, 4))


def average_pool(x: jax.Array, window: int) -> jax.Array:
    """Means over windows of [N, Y, X, C] that do not overlap, `window` pixels in y and x.

    Raises:
        ValueError: where windows do not fill the image.
    """
    n, height, width, channels = x.shape
    if height % window or width % window:
        raise ValueError(f"{height}x{width} pixels are not divisible by a window of {window}")
    shape = (n, height // window, window, width // window, window, channels)
    return jnp.mean(x.reshape(shape), axis=(2, 4))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pooling:
    """A way of halving images that a config can choose as `model.pooling`.

    after_layer: [N, Y, X, C] -> [N, Y // 2, X // 2, C], what follows a layer that keeps the size.
    convolution: (makes a convolution, output maps, strides, name) -> a convolution that divides the
        image by the strides.
    shortcut: (x, strides) -> x divided by the strides, beside such a convolution.
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
