"""The ordinary convolution that all layers use, and the gradient of its filters."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from mcn_jax.ops.chunks import images_at_a_time

DIMENSIONS = ("NHWC", "HWIO", "NHWC")
# A CPU uses XLA's filter gradient if the input has at least this many channels, and at least as
# many channels as pixels. There it took no more time or memory than the product of patches,
# measured in float32 with AVX-512.
MANY_CHANNELS = 128
# "CENTERED" pads W // 2 zeros on each side, as most PyTorch programs do. With "SAME" and stride 2,
# XLA pads images of an even size by one zero less on the low side.
PADDINGS = ("SAME", "VALID", "CENTERED")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvSpec:
    """Static settings of a modulated convolution; hashable, so they can be a static argument."""

    strides: tuple[int, int]
    padding: str
    m_gradient: str
    form: str
    plane_signs: str = ""


def pads_and_out_size(
    size: tuple[int, ...], kernel_size: tuple[int, ...], strides: tuple[int, int], padding: str
) -> tuple[list[tuple[int, int]], tuple[int, ...]]:
    """Returns the low and high padding in y and x, and the size of the output.

    Args:
        size: of the image, in pixels.
        kernel_size: (W, W).
        strides: as given to `convolve`.
        padding: as given to `convolve`.
    """
    pads = explicit_pads(size, kernel_size, strides, padding)
    out_size = (
        (pixels + low + high - taps) // stride + 1
        for pixels, (low, high), taps, stride in zip(size, pads, kernel_size, strides, strict=True)
    )
    return pads, tuple(out_size)


def explicit_pads(
    size: tuple[int, ...], kernel_size: tuple[int, ...], strides: tuple[int, int], padding: str
) -> list[tuple[int, int]]:
    """Returns the low and high padding in y and x; the arguments are as in `pads_and_out_size`."""
    if padding == "CENTERED":
        return [(taps // 2, taps // 2) for taps in kernel_size]
    found = lax.padtype_to_pads(size, kernel_size, strides, padding)
    return [(int(low), int(high)) for low, high in found]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve(
    features: jax.Array, filters: jax.Array, strides: tuple[int, int], padding: str
) -> jax.Array:
    """Cross-correlates [N, Y, X, C] with filters [W, W, C, O], in the dtype of the features.

    `padding` is a name in `PADDINGS`.

    The gradient of the filters is `filter_gradient`, in the dtype of the filters.
    """
    return _convolve(features, filters, strides, padding)


def _convolve_fwd(
    features: jax.Array, filters: jax.Array, strides: tuple[int, int], padding: str
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _convolve(features, filters, strides, padding), (features, filters)


def _convolve_bwd(
    strides: tuple[int, int],
    padding: str,
    residuals: tuple[jax.Array, jax.Array],
    cotangent: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    features, filters = residuals
    _, vjp = jax.vjp(lambda x: _convolve(x, filters, strides, padding), features)
    taps = filters.shape[:2]
    d_filters = filter_gradient(features, cotangent, taps, strides, padding)
    return vjp(cotangent)[0], d_filters.astype(filters.dtype)


convolve.defvjp(_convolve_fwd, _convolve_bwd)


def _convolve(
    features: jax.Array, filters: jax.Array, strides: tuple[int, int], padding: str
) -> jax.Array:
    return lax.conv_general_dilated(
        features,
        filters.astype(features.dtype),
        window_strides=strides,
        padding=explicit_pads(features.shape[1:3], filters.shape[:2], strides, padding),
        dimension_numbers=DIMENSIONS,
    )


def filter_gradient(
    features: jax.Array,
    cotangent: jax.Array,
    kernel_size: tuple[int, ...],
    strides: tuple[int, int],
    padding: str,
) -> jax.Array:
    """Computes the gradient of `convolve` with respect to its filters.

    dQ[i, j, c, o] = sum over n, y, x of features[n, s*y + i, s*x + j, c] * cotangent[n, y, x, o]

    XLA computes this as a convolution whose window is the image. That is fast on accelerators, and
    on a CPU if there are many channels and few pixels. Otherwise, a CPU computes one matrix product
    of patches and cotangents per chunk of images. Chunks are so small that their patches stay in
    cache.

    Args:
        features: [N, Y, X, C], as given to `convolve`.
        cotangent: [N, Y', X', O].
        kernel_size: (W, W).
        strides: as given to `convolve`.
        padding: as given to `convolve`.

    Returns:
        [W, W, C, O] in the dtype of the features.
    """

    def by_convolution(features: jax.Array, cotangent: jax.Array) -> jax.Array:
        shape = (*kernel_size, features.shape[-1], cotangent.shape[-1])
        zeros = jnp.zeros(shape, features.dtype)
        _, vjp = jax.vjp(lambda filters: _convolve(features, filters, strides, padding), zeros)
        return vjp(cotangent)[0]

    def by_patches(features: jax.Array, cotangent: jax.Array) -> jax.Array:
        return _filter_gradient_by_patches(features, cotangent, kernel_size, strides, padding)

    _, height, width, channels = features.shape
    has_many = channels >= max(MANY_CHANNELS, height * width)
    on_cpu = by_convolution if has_many else by_patches
    return lax.platform_dependent(features, cotangent, cpu=on_cpu, default=by_convolution)


def _filter_gradient_by_patches(
    features: jax.Array,
    cotangent: jax.Array,
    kernel_size: tuple[int, ...],
    strides: tuple[int, int],
    padding: str,
) -> jax.Array:
    n, _, _, channels = features.shape
    _, height, width, outputs = cotangent.shape
    pads = explicit_pads(features.shape[1:3], kernel_size, strides, padding)
    taps = math.prod(kernel_size)
    image_bytes = height * width * taps * channels * features.dtype.itemsize
    chunk = images_at_a_time(n, image_bytes)

    def patches_of(images: jax.Array) -> jax.Array:
        images = jnp.pad(images, ((0, 0), *pads, (0, 0)))
        rows = [slice(i, i + height * strides[0], strides[0]) for i in range(kernel_size[0])]
        columns = [slice(j, j + width * strides[1], strides[1]) for j in range(kernel_size[1])]
        shifted = [images[:, y, x] for y in rows for x in columns]
        return jnp.concatenate(shifted, axis=-1).reshape(-1, taps * channels)

    def add(total: jax.Array, chunks: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        images, cotangents = chunks
        product = jnp.matmul(
            cotangents.reshape(-1, outputs).T,
            patches_of(images),
            preferred_element_type=total.dtype,
        )
        return total + product, None

    # Sums of half-precision products are kept in float32.
    sum_dtype = jnp.promote_types(features.dtype, jnp.float32)
    total, _ = lax.scan(
        add,
        jnp.zeros((outputs, taps * channels), sum_dtype),
        (
            features.reshape(n // chunk, chunk, *features.shape[1:]),
            cotangent.reshape(n // chunk, chunk, *cotangent.shape[1:]),
        ),
    )
    return total.T.reshape(*kernel_size, channels, outputs).astype(features.dtype)
