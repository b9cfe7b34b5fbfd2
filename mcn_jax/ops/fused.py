"""MCconv in a fused form for NVIDIA GPUs: three Pallas kernels, which Triton compiles.

The forms "factored" and "pallas" do the same arithmetic. The factored form writes the products of
all T taps to memory, an array with T*H channels. Here, these products never leave the chip:

1. The forward kernel holds a tile of output pixels and maps, as K planes. For each tap it
   multiplies the features by the binary filters and adds the product, times M[t, k], to plane k.
2. The kernel of d_features holds a tile of pixels and channels. For each tap it mixes the K planes
   of the cotangent by M and multiplies the mix by the filters. With strides (s, s), a pixel is read
   only by the taps of its phase. A program takes pixels of one phase and visits only these taps.
3. The kernel of d_filters and d_m holds the filters of one tap, for a tile of channels and maps. It
   walks over the output pixels. From the same features and cotangent it computes the gradient of
   the filters and the product that the gradient of M needs. Programs write partial sums, which are
   added outside.

Sums are kept in float32, or in float64 for float64 features. Only features, filters and the mixed
cotangent are rounded to the dtype of the features. In float32, a GPU multiplies in TF32 unless
`jax_default_matmul_precision` says otherwise.

Triton needs blocks whose sides are powers of two, and at least 16 in matrix products. No array is
padded for this: a mask reads elements outside of an array as zero, and never writes them. This
costs no memory, but arithmetic on zeros. Four maps take as long as 16, and the backward pass mixes
three planes as if they were four.

The sizes of the tiles have not been measured. They follow from registers and shared memory:

- A program of the forward kernel holds at most 2^15 sums. With 8 warps of 32 threads, these are 128
  of the 255 registers of a thread. For K = 4, this is a tile of 128 pixels and 64 maps.
- A program of the third kernel holds at most 2^14 products of features and cotangent, for the
  same reason: it holds the planes of the cotangent as well.
- A block of channels takes at most 128 bytes per pixel. In the forward pass, a stage of the
  pipeline then takes at most 24 KB of shared memory.

On a CPU, the kernels run in Pallas's interpreter, which is slow and only for tests. On platforms
other than "cpu" and "cuda", lowering raises NotImplementedError. Later versions of jax warn that
they will remove Pallas's Triton backend.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from mcn_jax.ops import fused_kernels as kernels
from mcn_jax.ops.conv_spec import ConvSpec, pads_and_out_size
from mcn_jax.ops.fused_kernels import Sizes, Tile

# The smallest side of a block in a matrix product.
LEAST = 16
MOST_PIXELS, MOST_MAPS, MOST_CHANNELS = 128, 64, 128
# Bytes per pixel of a block of channels that a program reads at a time.
CHANNEL_BYTES = 128
# Planes of maps in a tile: maps times K.
MOST_MAP_PLANES = 256
# Sums that a program of the forward kernel holds.
FORWARD_SUMS = 2**15
# Planes of the cotangent that a program of the backward pass holds: pixels times maps times K.
COTANGENT_PLANES = 2**14
# A program with more sums than this has 8 warps, others have 4.
SUMS_OF_FOUR_WARPS = 2**13
# Programs that the kernel of d_filters and d_m may have before it stops splitting the pixels.
ENOUGH_PROGRAMS = 1024
PIPELINE_STAGES = 2


def forward(
    spec: ConvSpec, features: jax.Array, filters: jax.Array, m_filters: jax.Array
) -> jax.Array:
    """Computes the output of MCconv; see `mcn_jax.ops.mcconv` for the signature."""
    sizes = _sizes(spec, features, filters, m_filters)
    maps = _map_tile(sizes)
    held = maps * sizes.plane_block
    tile = Tile(
        pixels=_side(FORWARD_SUMS // held, MOST_PIXELS),
        channels=_side(sizes.channels, CHANNEL_BYTES // features.dtype.itemsize),
        maps=maps,
    )
    pixels = sizes.images * sizes.out_size[0] * sizes.out_size[1]
    output_PHK = _run(
        functools.partial(kernels.forward_kernel, sizes=sizes, tile=tile),
        (pl.cdiv(pixels, tile.pixels), pl.cdiv(sizes.maps, tile.maps)),
        jax.ShapeDtypeStruct((pixels, sizes.maps, sizes.planes), features.dtype),
        tile.pixels * held,
        _pixel_rows(features),
        _tap_rows(filters, features),
        _matrix(m_filters, features),
    )
    return output_PHK.reshape(sizes.images, *sizes.out_size, -1)


def backward(
    spec: ConvSpec,
    features: jax.Array,
    filters: jax.Array,
    m_sum_filters: jax.Array,
    m_filters: jax.Array,
    cotangent: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Computes the gradients of MCconv; see `mcn_jax.ops.mcconv` for the signature."""
    sizes = _sizes(spec, features, filters, m_filters)
    g_PHK = cotangent.reshape(-1, sizes.maps, sizes.planes)
    m_TK = _matrix(m_filters, features)
    d_features = _gradient_of_features(sizes, g_PHK, _tap_rows(filters, features), m_TK)
    d_filters, d_m = _gradients_of_filters(
        sizes, _pixel_rows(features), g_PHK, _tap_rows(m_sum_filters, features), m_TK
    )
    return (
        d_features.reshape(features.shape),
        d_filters.reshape(filters.shape).astype(filters.dtype),
        d_m.reshape(m_filters.shape).astype(m_filters.dtype),
    )


def _gradient_of_features(
    sizes: Sizes, g_PHK: jax.Array, filters_TCH: jax.Array, m_TK: jax.Array
) -> jax.Array:
    """Returns [N*Y*X, C]."""
    tile = Tile(
        pixels=_side(COTANGENT_PLANES // (LEAST * sizes.plane_block), MOST_PIXELS),
        channels=_side(sizes.channels, MOST_CHANNELS),
        maps=LEAST,
    )
    phase_size = [pl.cdiv(size, step) for size, step in zip(sizes.size, sizes.strides, strict=True)]
    return _run(
        functools.partial(kernels.features_kernel, sizes=sizes, tile=tile),
        (
            pl.cdiv(sizes.images * phase_size[0] * phase_size[1], tile.pixels),
            pl.cdiv(sizes.channels, tile.channels),
            sizes.strides[0] * sizes.strides[1],
        ),
        jax.ShapeDtypeStruct(
            (sizes.images * sizes.size[0] * sizes.size[1], sizes.channels), g_PHK.dtype
        ),
        tile.pixels * tile.channels,
        g_PHK,
        filters_TCH,
        m_TK,
    )


def _gradients_of_filters(
    sizes: Sizes, x_PC: jax.Array, g_PHK: jax.Array, m_sum_filters_TCH: jax.Array, m_TK: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns [T, C, H] and [T, K]."""
    maps = _map_tile(sizes)
    held = maps * sizes.plane_block
    tile = Tile(
        pixels=_side(COTANGENT_PLANES // held, MOST_PIXELS // 2),
        channels=_side(sizes.channels, CHANNEL_BYTES // x_PC.dtype.itemsize),
        maps=maps,
    )
    tiles = [
        pl.cdiv(size, side)
        for size, side in zip((len(g_PHK), sizes.channels, sizes.maps), tile, strict=True)
    ]
    most_parts = pl.cdiv(ENOUGH_PROGRAMS, sizes.taps * tiles[1] * tiles[2])
    steps = pl.cdiv(tiles[0], most_parts)
    parts = pl.cdiv(tiles[0], steps)
    d_filters, d_m = _run(
        functools.partial(kernels.filters_kernel, sizes=sizes, tile=tile, steps=steps),
        (parts * sizes.taps, *tiles[1:]),
        (
            jax.ShapeDtypeStruct((parts * sizes.taps, sizes.channels, sizes.maps), m_TK.dtype),
            jax.ShapeDtypeStruct((parts * sizes.taps, *tiles[1:], sizes.plane_block), m_TK.dtype),
        ),
        tile.pixels * held,
        x_PC,
        g_PHK,
        m_sum_filters_TCH,
        m_TK,
    )
    d_m = d_m.reshape(parts, sizes.taps, -1, sizes.plane_block)[..., : sizes.planes]
    return d_filters.reshape(parts, *m_sum_filters_TCH.shape).sum(axis=0), d_m.sum(axis=(0, 2))


def _run(
    kernel: Callable[..., None], grid: tuple[int, ...], outputs: Any, sums: int, *arrays: jax.Array
) -> Any:
    """Runs a kernel on whole arrays; `sums` is the number of sums that a program holds."""
    parameters = plgpu.CompilerParams(
        num_warps=4 if sums <= SUMS_OF_FOUR_WARPS else 8, num_stages=PIPELINE_STAGES
    )
    compiled, interpreted = (
        pl.pallas_call(kernel, outputs, grid=grid, compiler_params=parameters, interpret=interpret)
        for interpret in (False, True)
    )
    return lax.platform_dependent(*arrays, cpu=interpreted, cuda=compiled)


def _sizes(spec: ConvSpec, features: jax.Array, filters: jax.Array, m_filters: jax.Array) -> Sizes:
    width, _, channels, maps = filters.shape
    size = features.shape[1:3]
    pads, (out_y, out_x) = pads_and_out_size(size, (width, width), spec.strides, spec.padding)
    return Sizes(
        images=len(features),
        size=(size[0], size[1]),
        out_size=(out_y, out_x),
        strides=spec.strides,
        low=(pads[0][0], pads[1][0]),
        width=width,
        channels=channels,
        maps=maps,
        planes=m_filters.shape[-1],
    )


def _map_tile(sizes: Sizes) -> int:
    return _side(sizes.maps, min(MOST_MAPS, MOST_MAP_PLANES // sizes.plane_block))


def _side(wanted: int, most: int) -> int:
    """Returns a power of two from `LEAST` to `most`; `LEAST` if `most` is smaller."""
    return max(LEAST, min(kernels.power_of_two(wanted), most))


def _pixel_rows(features: jax.Array) -> jax.Array:
    """[N, Y, X, C] -> [N*Y*X, C]."""
    return features.reshape(-1, features.shape[-1])


def _tap_rows(filters: jax.Array, features: jax.Array) -> jax.Array:
    """[W, W, C, H] -> [T, C, H] in the dtype of the features."""
    return filters.reshape(-1, *filters.shape[2:]).astype(features.dtype)


def _matrix(m_filters: jax.Array, features: jax.Array) -> jax.Array:
    """[W, W, K] -> [T, K] in the dtype of sums."""
    sum_dtype = jnp.promote_types(features.dtype, jnp.float32)
    return m_filters.reshape(-1, m_filters.shape[-1]).astype(sum_dtype)
