"""Spectral pooling: makes images smaller by cutting the high frequencies off their spectrum.

The spectrum of an image x of H x W pixels is its discrete Fourier transform. The image is real, so
half of the spectrum is enough. Pooling to oh x ow pixels keeps its rows f = -oh/2 .. oh/2 - 1 and
its columns l = 0 .. floor(ow/2), and transforms them back. Here, two products with constant
matrices compute the same for each channel, without a Fourier transform:

    y = Re(A x B^T)
    A[p, m] = 1/oh * sum over f of exp(2 pi i f (p/oh - m/H))
    B[q, n] = 1/ow * sum over l of kappa_l exp(2 pi i l (q/ow - n/W))

kappa_l is 1 for l = 0 and l = ow/2. It is 2 for the other columns, which also stand for -l. The
products take half precision and have the same result everywhere. Libraries differ in the inverse
transform of such a spectrum, because its row -oh/2 lacks its partner +oh/2.

As in the authors' program, the spectrum is not rescaled. So pooling multiplies the mean of an image
by H*W / (oh*ow), about the product of the strides. The gain "unit" keeps the mean instead.

Sources: Rippel et al. 2015 (spectral pooling); Riad et al. 2022 (DiffStride), whose program defines
which rows and columns are kept.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

GAINS = ("authors", "unit")
SMALLEST = 2  # pixels of an axis, before and after pooling
# Strides such as 32/7 must give 7 pixels in spite of rounding.
ROUNDING = 1e-6


def fixed_pool_size(size: tuple[int, int], strides: tuple[float, float]) -> tuple[int, int]:
    """Returns the size (oh, ow) of pooled images, with an even height.

    It is the size over the strides, rounded down, the height to an even number. Both are at least
    2. So pooling 10x10 pixels gives 4x5 for strides of 2, and 2x3 for strides of 3.

    Args:
        size: (H, W) in pixels.
        strides: of the height and of the width; any numbers that are at least 1.

    Raises:
        ValueError: if the image is smaller than 2x2 pixels, or a stride is less than 1.
    """
    if min(size) < SMALLEST or not all(stride >= 1 for stride in strides):
        raise ValueError(
            f"spectral pooling takes at least {SMALLEST}x{SMALLEST} pixels and strides of at least"
            f" 1, not {size[0]}x{size[1]} pixels and strides {strides[0]} and {strides[1]}"
        )
    height, width = (
        math.floor(pixels / stride + ROUNDING) for pixels, stride in zip(size, strides, strict=True)
    )
    return max(height - height % 2, SMALLEST), max(width, SMALLEST)


class Waves(NamedTuple):
    """The waves that pooling keeps along an axis: factors of its matrices, in float64.

    Attributes:
        outputs: [K, out, 2F], the cosine and sine of F frequencies at the output's pixels. K is 2
            for the real and imaginary part of a matrix, and 1 if it is real.
        inputs: [in, 2F], the same at the input's pixels.
    """

    outputs: np.ndarray
    inputs: np.ndarray

    def matrices(self) -> np.ndarray:
        """Returns the matrices [K, out, in] that keep all these waves as they are."""
        return self.outputs @ self.inputs.T

    def weighted(self, mask: jax.Array) -> jax.Array:
        """Returns the matrices [K, out, in] that multiply frequencies by a mask [F]."""
        outputs, inputs = (jnp.asarray(array, mask.dtype) for array in self)
        both = jnp.concatenate([mask, mask])[None, None]
        return jnp.matmul(outputs * both, inputs.T, precision=lax.Precision.HIGHEST)


def row_frequencies(rows: int) -> np.ndarray:
    """Returns the frequencies of the kept rows in ascending order, [rows] int.

    They are -rows/2 .. rows/2 - 1 if `rows` is even, and symmetric if it is odd.
    """
    return np.arange(rows) - rows // 2


def row_waves(pixels: int, pooled: int, gain: str, *, is_real: bool) -> Waves:
    """Returns the waves of the height, for the matrices (Ar, -Ai), or for Ar alone.

    Args:
        pixels: H.
        pooled: oh.
        gain: a name in `GAINS`.
        is_real: whether Ai is known to be 0.

    Raises:
        ValueError: if the gain is unknown.
    """
    weights = np.full(pooled, 1 / _divisor(pixels, pooled, gain))
    return _waves(row_frequencies(pooled), weights, pixels, pooled, [1] if is_real else [1, -1])


def column_waves(pixels: int, pooled: int, gain: str, *, is_real: bool) -> Waves:
    """Returns the waves of the width, for the matrices (Br, Bi), or for Br alone.

    Args:
        pixels: W.
        pooled: ow.
        gain: a name in `GAINS`.
        is_real: whether Ai is known to be 0, so that Bi is not needed.

    Raises:
        ValueError: if the gain is unknown.
    """
    frequencies = np.arange(pooled // 2 + 1)
    occurrences = np.where((frequencies == 0) | (2 * frequencies == pooled), 1, 2)
    weights = occurrences / _divisor(pixels, pooled, gain)
    return _waves(frequencies, weights, pixels, pooled, [1] if is_real else [1, 1])


def _divisor(pixels: int, pooled: int, gain: str) -> int:
    check_choice("gain", gain, GAINS)
    return pooled if gain == "authors" else pixels


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises a ValueError if the value of the argument `name` is not one of the choices."""
    if value not in choices:
        raise ValueError(f"{name}={value!r} must be one of {', '.join(choices)}")


def _waves(
    frequencies: np.ndarray, weights: np.ndarray, pixels: int, pooled: int, signs: list[int]
) -> Waves:
    inputs, outputs = (
        # The angle is reduced in whole numbers, so it is exact for any frequency and pixel.
        2 * np.pi / size * (np.outer(np.arange(size), frequencies) % size)
        for size in (pixels, pooled)
    )
    cos, sin = weights * np.cos(outputs), weights * np.sin(outputs)
    parts = [np.concatenate([cos, sin], 1), np.concatenate([sin, -cos], 1)]
    return Waves(
        np.stack([sign * part for sign, part in zip(signs, parts, strict=False)]),
        np.concatenate([np.cos(inputs), np.sin(inputs)], 1),
    )


def matrix_dtype(images: jax.Array) -> Any:
    """Returns the dtype of matrices for images: float64 for float64 images, else float32.

    Raises:
        ValueError: if the images are not of a floating dtype.
    """
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"spectral pooling takes images of a floating dtype, not {images.dtype}")
    return jnp.promote_types(images.dtype, jnp.float32)


# The matrix is repeated for each group of features. On a CPU this takes less time than one product
# of all groups, for which XLA transposes the features.
@jax.custom_vjp
def _product(matrix: jax.Array, features: jax.Array) -> jax.Array:
    """Multiplies features [B, M, Z] by a matrix [P, M], in the dtype of the features.

    Sums are at least in float32, and the gradient of the matrix has the dtype of the matrix.
    """
    return _einsum("bpm,bmz->bpz", _repeated(matrix, features), features).astype(features.dtype)


def _repeated(matrix: jax.Array, features: jax.Array) -> jax.Array:
    return jnp.broadcast_to(matrix.astype(features.dtype)[None], (len(features), *matrix.shape))


def _einsum(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    sum_dtype = jnp.promote_types(a.dtype, jnp.float32)
    return jnp.einsum(equation, a, b, preferred_element_type=sum_dtype)


def _product_fwd(
    matrix: jax.Array, features: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _product(matrix, features), (matrix, features)


def _product_bwd(
    residuals: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    matrix, features = residuals
    to_matrix = jnp.sum(_einsum("bpz,bmz->bpm", cotangent, features), 0)
    to_features = _einsum("bpm,bpz->bmz", _repeated(matrix, features), cotangent)
    return to_matrix.astype(matrix.dtype), to_features.astype(features.dtype)


_product.defvjp(_product_fwd, _product_bwd)


def multiply(images: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Returns Ar x Br^T - Ai x Bi^T for each image and channel, or Ar x Br^T.

    Factors are rounded to the dtype of the images, and sums are at least in float32. As in
    convolutions, a device may round float32 factors further by default.

    Args:
        images: x, [N, H, W, C].
        rows: (Ar, -Ai), [2, oh, H], or Ar alone, [1, oh, H].
        columns: (Br, Bi), [2, ow, W], or Br alone, [1, ow, W].

    Returns:
        [N, oh, ow, C] in the dtype of the images.
    """
    n, height, width, channels = images.shape
    parts, out_height, _ = rows.shape
    out_width = columns.shape[1]
    row_by_row = images.reshape(n * height, width, channels)
    narrow = _product(columns.reshape(parts * out_width, width), row_by_row)
    # Each row now has its real part, then its imaginary one.
    narrow = narrow.reshape(n, height * parts, out_width * channels)
    both = jnp.transpose(rows, (1, 2, 0)).reshape(out_height, height * parts)
    return _product(both, narrow).reshape(n, out_height, out_width, channels)


def multiply_adds(size: tuple[int, int], pooled: tuple[int, int], *, is_real: bool) -> int:
    """Returns the multiply-adds of `multiply` for one image and channel.

    Args:
        size: (H, W).
        pooled: (oh, ow).
        is_real: whether the matrices are Ar and Br alone.
    """
    (height, width), (out_height, out_width) = size, pooled
    return (1 if is_real else 2) * out_width * height * (width + out_height)


def spectral_pool(images: jax.Array, size: tuple[int, int], *, gain: str = "authors") -> jax.Array:
    """Pools images to a size, as in the equations of this module.

    Backward: the transposed matrices are applied to the cotangent of the output.

    Images that have this size already are returned as they are.

    Args:
        images: [N, H, W, C].
        size: (oh, ow), such as `fixed_pool_size` returns: oh is even, both are between 2 and the
            size of the images.
        gain: "authors" multiplies the mean of an image by H*W / (oh*ow), "unit" keeps it.

    Returns:
        [N, oh, ow, C] in the dtype of the images.

    Raises:
        ValueError: if the size does not fit, the gain is unknown, or the images are not of a
            floating dtype.
    """
    (height, width), (out_height, out_width) = images.shape[1:3], size
    if out_height % 2 or not (SMALLEST <= out_height <= height and SMALLEST <= out_width <= width):
        raise ValueError(
            f"spectral pooling of {height}x{width} pixels gives an even height, and both sides"
            f" between {SMALLEST} and those of the image, not {out_height}x{out_width}"
        )
    check_choice("gain", gain, GAINS)
    dtype = matrix_dtype(images)
    if (out_height, out_width) == (height, width):
        return images
    # With all rows, the row -H/2 is its own partner.
    is_real = out_height == height
    rows = row_waves(height, out_height, gain, is_real=is_real).matrices()
    columns = column_waves(width, out_width, gain, is_real=is_real).matrices()
    return multiply(images, jnp.asarray(rows, dtype), jnp.asarray(columns, dtype))
