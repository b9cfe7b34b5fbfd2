"""The ways of halving images inside a network, and the table that names them."""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


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


def windows_in_ceil_mode(size: int, window: int, strides: int) -> int:
    """Returns the number of windows along an axis, of which the last may leave the image.

    This is ceil((size - window) / strides) + 1, and at least one. Every window begins inside the
    image if `strides` is at most `window`.
    """
    return max(-(-(size - window) // strides), 0) + 1


def max_pool_ceil(x: jax.Array, window: int, strides: int) -> jax.Array:
    """Max-pools [N, Y, X, C] in ceil mode, as Caffe and cuda-convnet do.

    Windows may overlap, and the last one may leave the image; see `windows_in_ceil_mode`. The
    gradient of a window goes to its first maximum.
    """
    return _reduce_windows(x, -jnp.inf, lax.max, window, strides)


def average_pool_ceil(x: jax.Array, window: int, strides: int) -> jax.Array:
    """Averages [N, Y, X, C] over windows in ceil mode, as Caffe and cuda-convnet do.

    A window that leaves the image is averaged over its pixels inside the image.
    """
    rows, columns = (_pixels_inside(size, window, strides) for size in x.shape[1:3])
    counts = np.outer(rows, columns)[None, :, :, None]
    return _reduce_windows(x, 0.0, lax.add, window, strides) / counts.astype(x.dtype)


def max_over_pieces(x: jax.Array, pieces: int, planes: int = 1) -> jax.Array:
    """Takes the maximum over the pieces of each maxout unit (Goodfellow et al. 2013, Sec. 3).

    Unit u consists of `pieces` neighbouring groups of `planes` channels. The maximum is taken over
    the groups, plane by plane. Its gradient goes to the largest piece; pieces that share the
    maximum also share its gradient.

    Args:
        x: [..., units * pieces * planes].
        pieces: number of pieces.
        planes: channels per feature map.

    Returns:
        [..., units * planes].
    """
    units = x.shape[-1] // (pieces * planes)
    split = x.reshape(*x.shape[:-1], units, pieces, planes)
    return jnp.max(split, axis=-2).reshape(*x.shape[:-1], units * planes)


def _pixels_inside(size: int, window: int, strides: int) -> np.ndarray:
    """Returns the pixels of each window along an axis that lie inside the image."""
    starts = strides * np.arange(windows_in_ceil_mode(size, window, strides))
    return np.minimum(starts + window, size) - starts


def _reduce_windows(
    x: jax.Array,
    initial: float,
    reduce: Callable[[jax.Array, jax.Array], jax.Array],
    window: int,
    strides: int,
) -> jax.Array:
    padding = [(0, 0)]
    for size in x.shape[1:3]:
        last = strides * (windows_in_ceil_mode(size, window, strides) - 1)
        padding.append((0, max(last + window - size, 0)))
    padding.append((0, 0))
    shape, steps = (1, window, window, 1), (1, strides, strides, 1)
    return lax.reduce_window(x, initial, reduce, shape, steps, padding)


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
