"""The ordinary convolution that all layers use, and the gradient of its filters."""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from mcn_jax.ops import native
from mcn_jax.ops.chunks import images_at_a_time
from mcn_jax.ops.conv_spec import explicit_pads, pads_and_out_size

DIMENSIONS = ("NHWC", "HWIO", "NHWC")
# Where a CPU convolves with XLA, it uses XLA's filter gradient if the input has at least this many
# channels, and at least as many channels as pixels. There it took no more time or memory than the
# product of patches, measured in float32 with AVX-512.
MANY_CHANNELS = 128
# benchmarks/convolution.py measured the native kernel and XLA on two cores with AVX-512. With
# gradients, the kernel took less time in nearly all shapes whose input has at least this many
# channels, for filters of one tap and of more. Forward alone, it also did in most shapes, but in
# few of those whose output has more than `NATIVE_GROWTH` times the input's channels and whose
# filters have more than one tap. The code for few channels was faster forward and with gradients.
NATIVE_CHANNELS_OF_ONE_TAP, NATIVE_CHANNELS, NATIVE_GROWTH = 32, 8, 2


def convolve(
    features: jax.Array, filters: jax.Array, strides: tuple[int, int], padding: str
) -> jax.Array:
    """Cross-correlates [N, Y, X, C] with filters [W, W, C, O], in the dtype of the features.

    On a CPU, the native kernel computes it where `native_passes` says so, if it is available.
    Otherwise `xla_convolve` does. Where the kernel is available, the gradient itself cannot be
    differentiated, and `jax.vmap` makes a loop.

    Args:
        features: [N, Y, X, C].
        filters: [W, W, C, O]; their gradient has their dtype.
        strides: steps in y and x, in pixels.
        padding: a name in `mcn_jax.ops.conv_spec.PADDINGS`.

    Returns:
        [N, Y', X', O].
    """
    _, out_size = pads_and_out_size(features.shape[1:3], filters.shape[:2], strides, padding)
    is_empty = min(*features.shape, *filters.shape, *out_size) <= 0
    if not is_empty and takes_native(features.dtype, filters.shape):
        return _native_convolve(features, filters.astype(features.dtype), strides, padding)
    return xla_convolve(features, filters, strides, padding)


def takes_native(dtype: DTypeLike, shape: Sequence[int]) -> bool:
    """Returns whether `convolve` takes the native kernel on this CPU; see `native_passes`."""
    return native_passes(dtype, shape).gradients and native.why_unavailable() is None


class NativePasses(NamedTuple):
    """Which passes of a convolution the native kernel computes."""

    forward: bool
    gradients: bool


def native_passes(dtype: DTypeLike, shape: Sequence[int]) -> NativePasses:
    """Returns which passes of a convolution take the native kernel on CPUs that have it.

    Args:
        dtype: of the features.
        shape: of the filters, (W, W, C, O).
    """
    height, width, channels, outputs = shape
    if jnp.dtype(dtype) != jnp.float32 or height != width:
        return NativePasses(forward=False, gradients=False)
    if native.is_narrow(shape):
        return NativePasses(forward=True, gradients=True)
    least = NATIVE_CHANNELS_OF_ONE_TAP if height == 1 else NATIVE_CHANNELS
    suits = channels >= least
    grows = height > 1 and outputs > NATIVE_GROWTH * channels
    return NativePasses(forward=suits and not grows, gradients=suits)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _native_convolve(
    features: jax.Array, filters: jax.Array, strides: tuple[int, int], padding: str
) -> jax.Array:
    by_xla = functools.partial(xla_convolve, strides=strides, padding=padding)
    if not native_passes(features.dtype, filters.shape).forward:
        return by_xla(features, filters)
    kernel = functools.partial(native.convolve, strides=strides, padding=padding)
    return lax.platform_dependent(features, filters, cpu=kernel, default=by_xla)


def _native_convolve_fwd(
    features: jax.Array, filters: jax.Array, strides: tuple[int, int], padding: str
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _native_convolve(features, filters, strides, padding), (features, filters)


def _native_convolve_bwd(
    strides: tuple[int, int],
    padding: str,
    residuals: tuple[jax.Array, jax.Array],
    cotangent: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    kernel = functools.partial(native.convolution_gradients, strides=strides, padding=padding)
    by_xla = functools.partial(_xla_gradients, strides=strides, padding=padding)
    return lax.platform_dependent(*residuals, cotangent, cpu=kernel, default=by_xla)


_native_convolve.defvjp(_native_convolve_fwd, _native_convolve_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def xla_convolve(
    features: jax.Array, filters: jax.Array, strides: tuple[int, int], padding: str
) -> jax.Array:
    """Computes `convolve` with XLA's convolution, whose arguments are the same.

    The gradient of the filters is `filter_gradient`, in the dtype of the filters.
    """
    return _convolve(features, filters, strides, padding)


def _xla_fwd(
    features: jax.Array, filters: jax.Array, strides: tuple[int, int], padding: str
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _convolve(features, filters, strides, padding), (features, filters)


def _xla_bwd(
    strides: tuple[int, int],
    padding: str,
    residuals: tuple[jax.Array, jax.Array],
    cotangent: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    return _xla_gradients(*residuals, cotangent, strides, padding)


def _xla_gradients(
    features: jax.Array,
    filters: jax.Array,
    cotangent: jax.Array,
    strides: tuple[int, int],
    padding: str,
) -> tuple[jax.Array, jax.Array]:
    _, vjp = jax.vjp(lambda x: _convolve(x, filters, strides, padding), features)
    taps = filters.shape[:2]
    d_filters = filter_gradient(features, cotangent, taps, strides, padding)
    return vjp(cotangent)[0], d_filters.astype(filters.dtype)


xla_convolve.defvjp(_xla_fwd, _xla_bwd)


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

    if not features.size or not cotangent.size:  # sums without terms
        shape = (*kernel_size, features.shape[-1], cotangent.shape[-1])
        return jnp.zeros(shape, features.dtype)

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
