"""DiffStride: spectral pooling whose strides are learned.

Pooling with strides S = (Sh, Sw) multiplies the spectrum of an image of H x W pixels by a mask,
keeps the rows and columns where the mask is positive, and transforms them back. The mask falls from
1 to 0 over R frequencies, the smoothness:

    mask(d) = clip((R + t - d) / R, 0, 1)
    rows:     t = max(H/Sh, 2) / 2        columns:  t = max(W/Sw, 2) / 2 + 1

The distance d of column l is l. That of a row of frequency f depends on the reading:

    "code"    d = f for f >= 0, and -f - 1 for f < 0, as in the authors' program. The number of kept
              rows is even.
    "paper"   d = abs(f), as in the paper. The kept rows are symmetric, so their number is odd,
              unless all rows of an even height are kept.

As in `mcn_jax.ops.spectral`, products with small matrices compute this, y = Re(A x B^T):

    A[p, m] = 1/oh * sum over f of mask(d) exp(2 pi i f (p/oh - m/H))
    B[q, n] = 1/ow * sum over l of kappa_l mask(l) exp(2 pi i l (q/ow - n/W))

In the reading "paper", A is real, which halves the work.

Backward: strides have a gradient only through the mask of kept rows and columns on the ramp, where
d mask / dS = -size / (2 R S^2). None passes through the size of the output. The ends of the ramp
belong to it, so a tie counts in full. Strides above size / 2 have no gradient.

Source: Riad et al. 2022. The paper's threshold of columns lacks the + 1 that the authors' program
has; both readings have it.
"""

import functools
import math
from collections.abc import Iterable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mcn_jax.ops import spectral

READINGS = ("code", "paper")
Array = TypeVar("Array", np.ndarray, jax.Array)


def smallest_stride(size: int, smoothness: float) -> float:
    """Returns the stride at which the ramp of the mask reaches the highest frequency.

    It is size / (size - R). Somewhat below it, the mask is 1 everywhere and has no gradient, so the
    authors lift strides to it.

    Args:
        size: H or W, in pixels.
        smoothness: R.

    Raises:
        ValueError: if R is not between 0 and the size.
    """
    if not 0 < smoothness < size:
        raise ValueError(
            f"a smoothness of {smoothness} must be above 0 and below the {size} pixels of an image"
            " that is pooled with learned strides"
        )
    return size / (size - smoothness)


def effective_strides(
    strides: Array,
    size: tuple[int, int],
    smoothness: float = 4.0,
    lower: float = 1.0,
    upper: float = math.inf,
) -> Array:
    """Lifts strides to `smallest_stride`, then clips them to limits.

    Backward: straight through, so strides that are lifted can grow again.

    Args:
        strides: [2], of the height and of the width, or [1], shared by both. A NumPy array is
            computed on the host.
        size: (H, W).
        smoothness: R.
        lower: the lower limit, at least 1.
        upper: the upper limit; it also holds where the smallest stride exceeds it.

    Returns:
        [2], of the kind and dtype of the strides.

    Raises:
        ValueError: if the shape, the smoothness or a limit does not fit.
    """
    if strides.shape not in ((1,), (2,)):
        raise ValueError(f"strides have the shape (2,), or (1,) if shared, not {strides.shape}")
    if not 1 <= lower <= upper:
        raise ValueError(f"limits of strides must be 1 <= lower <= upper, not {lower} and {upper}")
    smallest = [smallest_stride(pixels, smoothness) for pixels in size]
    if len(strides) == 1:
        smallest = [max(smallest)]
    xp = _namespace(strides)
    lifted = xp.clip(xp.maximum(strides, xp.asarray(smallest, strides.dtype)), lower, upper)
    if xp is jnp:
        lifted = lax.stop_gradient(lifted) + (strides - lax.stop_gradient(strides))
    return xp.broadcast_to(lifted, (2,))


def _namespace(array: Any) -> Any:
    """Returns numpy for NumPy arrays, and jax.numpy for others."""
    return np if isinstance(array, np.ndarray) else jnp


def row_distances(frequencies: np.ndarray, reading: str) -> np.ndarray:
    """Returns the distances d of rows.

    Args:
        frequencies: f, signed, [rows] int.
        reading: a name in `READINGS`.

    Raises:
        ValueError: if the reading is unknown.
    """
    spectral.check_choice("reading", reading, READINGS)
    if reading == "paper":
        return np.abs(frequencies)
    return np.where(frequencies >= 0, frequencies, -frequencies - 1)


def masks(
    strides: jax.Array,
    size: tuple[int, int],
    pooled: tuple[int, int],
    smoothness: float = 4.0,
    reading: str = "code",
) -> tuple[jax.Array, jax.Array]:
    """Returns the masks of the kept rows, [oh], and of the kept columns, [ow // 2 + 1].

    Rows are in the order of `mcn_jax.ops.spectral.row_frequencies`.

    Args:
        strides: [2], as `effective_strides` returns them.
        size: (H, W).
        pooled: (oh, ow).
        smoothness: R.
        reading: a name in `READINGS`.
    """
    rows, columns = _ramps(strides, size, pooled, smoothness, reading)
    return _clipped(rows), _clipped(columns)


def _clipped(ramp: jax.Array) -> jax.Array:
    is_inside = (ramp >= 0) & (ramp <= 1)  # jnp.clip would halve the gradient at 0 and 1
    return jnp.where(is_inside, ramp, lax.stop_gradient(jnp.clip(ramp, 0, 1)))


def _ramps(
    strides: Array, size: tuple[int, int], pooled: tuple[int, int], smoothness: float, reading: str
) -> tuple[Array, Array]:
    """Returns the masks before they are clipped; NumPy arrays are computed on the host."""
    xp, dtype = _namespace(strides), strides.dtype

    def ramp(distances: np.ndarray, stride: Any, pixels: int, extra: int) -> Any:
        kept = pixels / stride
        threshold = xp.where(kept >= 2, kept, 2).astype(dtype) / 2 + extra
        return (smoothness + threshold - xp.asarray(distances, dtype)) / smoothness

    rows = row_distances(spectral.row_frequencies(pooled[0]), reading)
    columns = np.arange(pooled[1] // 2 + 1)
    return ramp(rows, strides[:1], size[0], 0), ramp(columns, strides[1:], size[1], 1)


def pool_size(
    strides: np.ndarray, size: tuple[int, int], smoothness: float = 4.0, reading: str = "code"
) -> tuple[int, int]:
    """Returns the size (oh, ow) of the output, computed on the host in float32.

    It is the number of rows with a positive mask, and 2 * (columns with a positive mask - 1). For
    the reading "code" and even sizes, oh = min(H, 2 * ceil(R + max(H/Sh, 2) / 2)), and likewise ow.

    Args:
        strides: [2], as `effective_strides` returns them.
        size: (H, W).
        smoothness: R.
        reading: a name in `READINGS`.

    Raises:
        ValueError: if strides are not finite or below 1, or the size does not fit the reading or
            the smoothness.
    """
    check_input(size, smoothness, reading)
    strides = np.asarray(strides, np.float32)
    if strides.shape != (2,) or not np.all((strides >= 1) & np.isfinite(strides)):
        raise ValueError(f"strides must be two finite numbers of at least 1, not {strides}")
    rows, columns = _ramps(strides, size, size, smoothness, reading)
    return int(np.sum(rows > 0)), 2 * (int(np.sum(columns > 0)) - 1)


def check_input(size: tuple[int, int], smoothness: float, reading: str) -> None:
    """Raises a ValueError if images of a size (H, W) cannot be pooled with learned strides."""
    spectral.check_choice("reading", reading, READINGS)
    for pixels in size:
        smallest_stride(pixels, smoothness)
    if min(size) < spectral.SMALLEST:
        raise ValueError(
            f"learned strides take at least {spectral.SMALLEST}x{spectral.SMALLEST} pixels, not"
            f" {size[0]}x{size[1]}"
        )
    if reading == "code" and size[0] % 2:
        raise ValueError(
            f"the reading 'code' of learned strides takes images of an even height, not"
            f" {size[0]}x{size[1]} pixels; the reading 'paper' takes any"
        )


def matrices(
    strides: jax.Array,
    size: tuple[int, int],
    pooled: tuple[int, int],
    smoothness: float = 4.0,
    reading: str = "code",
    gain: str = "authors",
) -> tuple[jax.Array, jax.Array]:
    """Returns the matrices of a layer, for `mcn_jax.ops.spectral.multiply`, in the strides' dtype.

    Args:
        strides: [2], as `effective_strides` returns them.
        size: (H, W).
        pooled: (oh, ow), as `pool_size` returns it for these strides or for others.
        smoothness: R.
        reading: a name in `READINGS`.
        gain: a name in `mcn_jax.ops.spectral.GAINS`.

    Returns:
        (Ar, -Ai), [2, oh, H], and (Br, Bi), [2, ow, W]; for the reading "paper" Ar, [1, oh, H], and
        Br, [1, ow, W].

    Raises:
        ValueError: if an argument does not fit.
    """
    check_input(size, smoothness, reading)
    _check_pooled(size, pooled, reading)
    is_real = reading == "paper"
    rows, columns = masks(strides, size, pooled, smoothness, reading)
    return (
        spectral.row_waves(size[0], pooled[0], gain, is_real=is_real).weighted(rows),
        spectral.column_waves(size[1], pooled[1], gain, is_real=is_real).weighted(columns),
    )


def _check_pooled(size: tuple[int, int], pooled: tuple[int, int], reading: str) -> None:
    (height, width), (out_height, out_width) = size, pooled
    fits = 2 <= out_height <= height and 2 <= out_width <= width and out_width % 2 == 0
    parity = 0 if reading == "code" else 1
    if not fits or (out_height % 2 != parity and out_height != height):
        raise ValueError(
            f"learned strides cannot pool {height}x{width} pixels to {out_height}x{out_width} in"
            f" the reading {reading!r}; take the size of `pool_size`"
        )


def diffstride_pool(
    images: jax.Array,
    strides: jax.Array,
    *,
    size: tuple[int, int],
    smoothness: float = 4.0,
    reading: str = "code",
    gain: str = "authors",
) -> jax.Array:
    """Pools images with learned strides; see the equations of this module.

    The size of the output is fixed when a program is compiled, so it may be that of earlier
    strides. Then rows and columns that were kept, but whose mask is now 0, add nothing. Those whose
    mask is now positive, but that were not kept, are lost.

    Args:
        images: [N, H, W, C].
        strides: [2], as `effective_strides` returns them.
        size: (oh, ow), as `pool_size` returns it.
        smoothness: R.
        reading: a name in `READINGS`.
        gain: "authors" multiplies the mean of an image by H*W / (oh*ow), "unit" keeps it.

    Returns:
        [N, oh, ow, C] in the dtype of the images.

    Raises:
        ValueError: if an argument does not fit.
    """
    strides = strides.astype(spectral.matrix_dtype(images))
    height, width = images.shape[1:3]
    rows, columns = matrices(strides, (height, width), size, smoothness, reading, gain)
    return spectral.multiply(images, rows, columns)


def stride_cost(strides: Iterable[jax.Array]) -> jax.Array:
    """Returns the sum over pooling layers l of the product over i <= l of 1 / (Sh_i Sw_i).

    The term of a layer is the share of an image's pixels that it leaves. Its derivative for a
    stride S of its product is -term / S.

    Args:
        strides: [2] of each layer, in the order of the network, as `effective_strides` returns
            them.

    Returns:
        A scalar; 0 without layers.
    """
    terms = [jnp.zeros(())]
    pixels: jax.Array | float = 1.0
    for pair in strides:
        pixels = pixels / (pair[0] * pair[1])
        terms.append(pixels)
    return functools.reduce(jnp.add, terms)
