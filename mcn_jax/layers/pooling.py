"""The ways of making images smaller inside a network, and the table that names them."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mcn_jax.layers.spectral_pooling import DiffStride, SpectralPool, initial_size
from mcn_jax.ops.spectral import fixed_pool_size


def max_pool(x: jax.Array, window: int) -> jax.Array:
    """Max-pools [N, Y, X, C] over non-overlapping windows of `window` x `window` pixels.

    Last rows and columns that do not fill a window are dropped. The maximum is taken over a
    reshaped array, because on a CPU the gradient of XLA's windowed maximum is slow. Pixels that
    share the maximum also share its gradient.
    """
    return jnp.max(_windows(x, window), axis=(2, 4))


def average_pool(x: jax.Array, window: int) -> jax.Array:
    """Averages [N, Y, X, C] over non-overlapping windows of `window` x `window` pixels.

    Last rows and columns that do not fill a window are dropped.
    """
    return jnp.mean(_windows(x, window), axis=(2, 4))


def _windows(x: jax.Array, window: int) -> jax.Array:
    """Splits [N, Y, X, C] into windows, [N, Y', window, X', window, C]."""
    n, height, width, channels = x.shape
    rows, columns = height // window, width // window
    x = x[:, : rows * window, : columns * window]
    return x.reshape(n, rows, window, columns, window, channels)


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
class PoolingOptions:
    """Settings of spectral pooling and DiffStride; others ignore them.

    Attributes:
        gain: see `mcn_jax.ops.spectral.spectral_pool`.
        reading: see `mcn_jax.ops.diffstride.diffstride_pool`.
        smoothness: R of DiffStride, in pixels.
        shares_stride: whether a DiffStride has one stride for both axes.
        deployed: whether the network is for inference from a file, see `DiffStride`.
        param_dtype: dtype of learned strides.
    """

    gain: str = "authors"
    reading: str = "code"
    smoothness: float = 4.0
    shares_stride: bool = False
    deployed: bool = False
    param_dtype: Any = jnp.float32


Size = tuple[int, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pooling:
    """A way of making images smaller that a config can choose as `model.pooling`.

    Attributes:
        layer: (stride, output size, options, name) -> a function [N, Y, X, C] -> [N, Y', X', C].
            The size is for `learns_strides` alone; None takes the one of the initial strides.
        out_size: ((Y, X), stride, options) -> (Y', X'), for the initial strides.
        least_size: (stride, options) -> the fewest pixels in y and x that the layer takes.
        by_convolutions: whether residual networks have strided convolutions in place of the layer.
        learns_strides: whether strides are parameters; stride 1 then has a layer, too.
        precedes_batch_norm: whether the layer comes before batch norm and ReLU where a network has
            the choice. It should if it is linear: a ReLU after it removes what rings below zero.
        options: fields of `ModelConfig` that it reads.
    """

    layer: Callable[[int, Size | None, PoolingOptions, str], Callable[[jax.Array], jax.Array]]
    out_size: Callable[[Size, int, PoolingOptions], Size]
    least_size: Callable[[int, PoolingOptions], int]
    by_convolutions: bool = False
    learns_strides: bool = False
    precedes_batch_norm: bool = True
    options: tuple[str, ...] = ()


def _of_windows(
    pool: Callable[[jax.Array, int], jax.Array],
) -> Callable[[int, Size | None, PoolingOptions, str], Callable[[jax.Array], jax.Array]]:
    def make(
        stride: int, size: Size | None, options: PoolingOptions, name: str
    ) -> Callable[[jax.Array], jax.Array]:
        del size, options, name
        return lambda x: pool(x, stride)

    return make


def _whole_windows(size: Size, stride: int, options: PoolingOptions) -> Size:
    del options
    return size[0] // stride, size[1] // stride


def _a_window(stride: int, options: PoolingOptions) -> int:
    del options
    return stride


def _spectral(
    stride: int, size: Size | None, options: PoolingOptions, name: str
) -> Callable[[jax.Array], jax.Array]:
    del size
    return SpectralPool(stride=stride, gain=options.gain, name=name)


def _diffstride(
    stride: int, size: Size | None, options: PoolingOptions, name: str
) -> Callable[[jax.Array], jax.Array]:
    return DiffStride(
        stride=stride,
        size=size,
        gain=options.gain,
        reading=options.reading,
        smoothness=options.smoothness,
        shares_stride=options.shares_stride,
        deployed=options.deployed,
        param_dtype=options.param_dtype,
        name=name,
    )


def _two_pixels(stride: int, options: PoolingOptions) -> int:
    del stride, options
    return 2


def _above_smoothness(stride: int, options: PoolingOptions) -> int:
    del stride
    return math.floor(options.smoothness) + 1


def _initial_size(size: Size, stride: int, options: PoolingOptions) -> Size:
    count = 1 if options.shares_stride else 2
    return initial_size(size, stride, options.smoothness, options.reading, count=count)


def _fixed_size(size: Size, stride: int, options: PoolingOptions) -> Size:
    del options
    return fixed_pool_size(size, (float(stride), float(stride)))


POOLINGS = {
    "strided": Pooling(
        layer=_of_windows(max_pool),
        out_size=_whole_windows,
        least_size=_a_window,
        by_convolutions=True,
        precedes_batch_norm=False,
    ),
    "max": Pooling(
        layer=_of_windows(max_pool),
        out_size=_whole_windows,
        least_size=_a_window,
        precedes_batch_norm=False,
    ),
    "average": Pooling(
        layer=_of_windows(average_pool), out_size=_whole_windows, least_size=_a_window
    ),
    "spectral": Pooling(
        layer=_spectral,
        out_size=_fixed_size,
        least_size=_two_pixels,
        options=("spectral_gain",),
    ),
    "diffstride": Pooling(
        layer=_diffstride,
        out_size=_initial_size,
        least_size=_above_smoothness,
        learns_strides=True,
        options=("spectral_gain", "smoothness", "reading", "shares_stride", "pooled_sizes"),
    ),
}
