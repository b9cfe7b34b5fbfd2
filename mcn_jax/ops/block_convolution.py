"""Convolution of blocks of channels, whose filters are cyclic shifts of each other.

The channels of the input are n blocks, and so are those of the output. Output block k is

    y[k] = sum over b of  conv(x[b], f[(b + k) mod n])

for n sets of filters f. With the sums of `mcn_jax.ops.circulant.matrices`, fewer than n^2
convolutions are computed. The same sums of the filters are given, not the filters themselves.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from mcn_jax.ops import circulant, native
from mcn_jax.ops.conv_spec import pads_and_out_size
from mcn_jax.ops.convolution import NATIVE_CHANNELS, convolve, takes_native, xla_convolve

Strides = tuple[int, int]


def convolve_blocks(
    features: jax.Array, filters: jax.Array, blocks: int, strides: Strides, padding: str
) -> jax.Array:
    """Convolves n blocks of channels with cyclic shifts of n sets of filters.

    On a CPU, the native kernel computes it where `takes_native_blocks` says so. A thread then keeps
    the sums of some images in cache. Where the kernel computes, the gradient itself cannot be
    differentiated, and `jax.vmap` makes a loop.

    Args:
        features: [N, Y, X, n*C].
        filters: [P, W, W, C, O], the sums `matrices(n).weigh` of the n sets of filters.
        blocks: n, a power of two.
        strides: steps in y and x, in pixels.
        padding: a name in `mcn_jax.ops.conv_spec.PADDINGS`.

    Returns:
        [N, Y', X', n*O] in the dtype of the features.
    """
    shape = filters.shape[1:]
    _, out_size = pads_and_out_size(features.shape[1:3], shape[:2], strides, padding)
    is_empty = min(*features.shape, *shape, *out_size) <= 0
    if not is_empty and takes_native_blocks(features.dtype, shape):
        return _native_blocks(features, filters.astype(features.dtype), blocks, strides, padding)
    return _by_sums(features, filters, blocks, strides, padding, convolve)


def takes_native_blocks(dtype: DTypeLike, shape: Sequence[int]) -> bool:
    """Returns whether `convolve_blocks` takes the native kernel on this CPU.

    It does where the convolution of a block takes it and has at least `NATIVE_CHANNELS` channels.

    Args:
        dtype: of the features.
        shape: of the filters of a block, (W, W, C, O).
    """
    return shape[2] >= NATIVE_CHANNELS and takes_native(dtype, shape)


def _by_sums(
    features: jax.Array,
    filters: jax.Array,
    blocks: int,
    strides: Strides,
    padding: str,
    convolution: Callable[..., jax.Array],
) -> jax.Array:
    take, _, give = circulant.matrices(blocks)
    x = jnp.split(features, blocks, axis=-1)
    products = [
        convolution(_weighted(weights, x), own, strides, padding)
        for weights, own in zip(take, filters, strict=True)
    ]
    return jnp.concatenate([_weighted(weights, products) for weights in give], axis=-1)


def _weighted(weights: np.ndarray, arrays: Sequence[jax.Array]) -> jax.Array:
    """Returns the sum of weights[i] * arrays[i]."""
    terms = [
        array if weight == 1 else float(weight) * array
        for weight, array in zip(weights, arrays, strict=True)
        if weight
    ]
    return functools.reduce(jnp.add, terms)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _native_blocks(
    features: jax.Array, filters: jax.Array, blocks: int, strides: Strides, padding: str
) -> jax.Array:
    take, _, give = circulant.matrices(blocks)

    def by_kernel(features: jax.Array, filters: jax.Array) -> jax.Array:
        return native.convolve_blocks(features, filters, take, give, strides, padding)

    by_xla = functools.partial(_by_xla, blocks=blocks, strides=strides, padding=padding)
    return lax.platform_dependent(features, filters, cpu=by_kernel, default=by_xla)


def _by_xla(
    features: jax.Array, filters: jax.Array, blocks: int, strides: Strides, padding: str
) -> jax.Array:
    return _by_sums(features, filters, blocks, strides, padding, xla_convolve)


def _native_blocks_fwd(
    features: jax.Array, filters: jax.Array, blocks: int, strides: Strides, padding: str
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _native_blocks(features, filters, blocks, strides, padding), (features, filters)


def _native_blocks_bwd(
    blocks: int,
    strides: Strides,
    padding: str,
    residuals: tuple[jax.Array, jax.Array],
    cotangent: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    take, _, give = circulant.matrices(blocks)

    def by_kernel(
        features: jax.Array, filters: jax.Array, cotangent: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        return native.block_gradients(features, filters, cotangent, take, give, strides, padding)

    def by_xla(
        features: jax.Array, filters: jax.Array, cotangent: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        run = functools.partial(_by_xla, blocks=blocks, strides=strides, padding=padding)
        _, vjp = jax.vjp(run, features, filters)
        return vjp(cotangent)

    return lax.platform_dependent(*residuals, cotangent, cpu=by_kernel, default=by_xla)


_native_blocks.defvjp(_native_blocks_fwd, _native_blocks_bwd)
