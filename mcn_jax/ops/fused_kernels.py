"""The kernels of `mcn_jax.ops.fused`, and how they read and write blocks of arrays.

Arrays are whole, with pixels of all images along one axis: features [N*Y*X, C], output and
cotangent [N*Y'*X', H, K], filters [T, C, H] and M [T, K]. In the names of blocks, P stands for the
pixels of a tile, and C, H and K for its channels, maps and planes.
"""

import functools
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu


class Sizes(NamedTuple):
    """Static sizes of one MCconv.

    Attributes:
        images: N.
        size: (Y, X) of the features.
        out_size: (Y', X') of the output.
        strides: steps in y and x.
        low: padding before the first pixel in y and x.
        width: W, so there are W*W taps.
        channels: C = G*K of the features.
        maps: H of the output.
        planes: K.
    """

    images: int
    size: tuple[int, int]
    out_size: tuple[int, int]
    strides: tuple[int, int]
    low: tuple[int, int]
    width: int
    channels: int
    maps: int
    planes: int

    @property
    def taps(self) -> int:
        """T."""
        return self.width**2

    @property
    def plane_block(self) -> int:
        """K, rounded up to a power of two."""
        return power_of_two(self.planes)


class Tile(NamedTuple):
    """Sides of the blocks of one program."""

    pixels: int
    channels: int
    maps: int


class _Axis(NamedTuple):
    """Indices along one axis of an array, and whether each is inside; others read as zero."""

    indices: jax.Array
    inside: jax.Array


def forward_kernel(
    x_ref: Any, filters_ref: Any, m_ref: Any, output_ref: Any, *, sizes: Sizes, tile: Tile
) -> None:
    """Writes the output at a tile of pixels and maps; the grid is (pixels, maps)."""
    pixels = _axis(pl.program_id(0), tile.pixels, output_ref.shape[0])
    maps = _axis(pl.program_id(1), tile.maps, sizes.maps)
    zeros_PH = jnp.zeros((tile.pixels, tile.maps), m_ref.dtype)

    def add_tap(tap: jax.Array, planes: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        read = _read_pixels(pixels, tap, sizes)

        def add_channels(block: jax.Array, product_PH: jax.Array) -> jax.Array:
            channels = _axis(block, tile.channels, sizes.channels)
            x_PC = _load(x_ref, read, channels)
            filters_CH = _load(filters_ref, channels, maps, first=(tap,))
            return product_PH + _dot(x_PC, filters_CH, m_ref.dtype)

        blocks = pl.cdiv(sizes.channels, tile.channels)
        product_PH = lax.fori_loop(0, blocks, add_channels, zeros_PH)
        return tuple(plane + m_ref[tap, k] * product_PH for k, plane in enumerate(planes))

    planes = lax.fori_loop(0, sizes.taps, add_tap, (zeros_PH,) * sizes.planes)
    planes += (zeros_PH,) * (sizes.plane_block - sizes.planes)
    output_PHK = _interleave(planes).astype(output_ref.dtype)
    _store(output_ref, output_PHK, pixels, maps, _axis(0, sizes.plane_block, sizes.planes))


def features_kernel(
    g_ref: Any, filters_ref: Any, m_ref: Any, d_features_ref: Any, *, sizes: Sizes, tile: Tile
) -> None:
    """Writes d_features at pixels of one phase; the grid is (pixels, channels, phases)."""
    (height, width), (out_height, out_width) = sizes.size, sizes.out_size
    (step_y, step_x), (low_y, low_x) = sizes.strides, sizes.low
    phase_size = pl.cdiv(height, step_y), pl.cdiv(width, step_x)
    taps_y, taps_x = pl.cdiv(sizes.width, step_y), pl.cdiv(sizes.width, step_x)

    of_phase = _axis(pl.program_id(0), tile.pixels, sizes.images * phase_size[0] * phase_size[1])
    phase_y, phase_x = _divide(pl.program_id(2), step_x)
    image, y, x = _coordinates(of_phase.indices, phase_size)
    y, x = step_y * y + phase_y, step_x * x + phase_x
    inside = of_phase.inside & (y < height) & (x < width)
    channels = _axis(pl.program_id(1), tile.channels, sizes.channels)
    # Tap i reads pixel y for the output pixel (y + low - i) / step, if this is a whole number.
    _, first_i = _divide(phase_y + low_y, step_y)
    _, first_j = _divide(phase_x + low_x, step_x)

    def add_tap(index: jax.Array, total_PC: jax.Array) -> jax.Array:
        i, j = _divide(index, taps_x)
        i, j = first_i + step_y * i, first_j + step_x * j
        out_y, _ = _divide(y + low_y - i, step_y)
        out_x, _ = _divide(x + low_x - j, step_x)
        readers = _Axis(
            (image * out_height + out_y) * out_width + out_x,
            inside & _between(out_y, out_height) & _between(out_x, out_width)
            & (i < sizes.width) & (j < sizes.width),
        )  # fmt: skip
        tap = jnp.minimum(i, sizes.width - 1) * sizes.width + jnp.minimum(j, sizes.width - 1)

        def add_maps(block: jax.Array, total_PC: jax.Array) -> jax.Array:
            maps = _axis(block, tile.maps, sizes.maps)
            _, mixed_PH = _mixed_cotangent(g_ref, m_ref, readers, maps, tap, sizes)
            filters_CH = _load(filters_ref, channels, maps, first=(tap,))
            return total_PC + _dot(mixed_PH, filters_CH.T, m_ref.dtype)

        return lax.fori_loop(0, pl.cdiv(sizes.maps, tile.maps), add_maps, total_PC)

    zeros_PC = jnp.zeros((tile.pixels, tile.channels), m_ref.dtype)
    total_PC = lax.fori_loop(0, taps_y * taps_x, add_tap, zeros_PC)
    pixels = _Axis((image * height + y) * width + x, inside)
    _store(d_features_ref, total_PC.astype(d_features_ref.dtype), pixels, channels)


def filters_kernel(
    x_ref: Any,
    g_ref: Any,
    m_sum_filters_ref: Any,
    m_ref: Any,
    d_filters_ref: Any,
    d_m_ref: Any,
    *,
    sizes: Sizes,
    tile: Tile,
    steps: int,
) -> None:
    """Writes sums over one part of the pixels; the grid is (parts and taps, channels, maps).

    A part has `steps` tiles of pixels. The sum of d_m is over the channels and maps of the tile.
    """
    part, tap = _divide(pl.program_id(0), sizes.taps)
    channels = _axis(pl.program_id(1), tile.channels, sizes.channels)
    maps = _axis(pl.program_id(2), tile.maps, sizes.maps)
    m_sum_filters_CH = _load(m_sum_filters_ref, channels, maps, first=(tap,))

    def add_pixels(
        step: jax.Array, sums: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        d_filters_CH, d_m_PHK = sums
        pixels = _axis(part * steps + step, tile.pixels, g_ref.shape[0])
        x_PC = _load(x_ref, _read_pixels(pixels, tap, sizes), channels)
        g_PHK, mixed_PH = _mixed_cotangent(g_ref, m_ref, pixels, maps, tap, sizes)
        product_PH = _dot(x_PC, m_sum_filters_CH, m_ref.dtype)
        return (
            d_filters_CH + _dot(x_PC.T, mixed_PH, m_ref.dtype),
            d_m_PHK + product_PH[:, :, None] * g_PHK,
        )

    zeros_CH = jnp.zeros((tile.channels, tile.maps), m_ref.dtype)
    zeros_PHK = jnp.zeros((tile.pixels, tile.maps, sizes.plane_block), m_ref.dtype)
    d_filters_CH, d_m_PHK = lax.fori_loop(0, steps, add_pixels, (zeros_CH, zeros_PHK))
    _store(d_filters_ref, d_filters_CH, channels, maps, first=(pl.program_id(0),))
    planes = _axis(0, sizes.plane_block, sizes.plane_block)
    place = tuple(pl.program_id(axis) for axis in range(3))
    _store(d_m_ref, d_m_PHK.sum(axis=0).sum(axis=0), planes, first=place)


def _mixed_cotangent(
    g_ref: Any, m_ref: Any, pixels: _Axis, maps: _Axis, tap: jax.Array, sizes: Sizes
) -> tuple[jax.Array, jax.Array]:
    """Returns a block of the cotangent, [P, H, K], and its planes mixed by M for a tap, [P, H]."""
    planes = _axis(0, sizes.plane_block, sizes.planes)
    g_PHK = _load(g_ref, pixels, maps, planes).astype(m_ref.dtype)
    m_K = _load(m_ref, planes, first=(tap,))
    return g_PHK, jnp.sum(g_PHK * m_K[None, None, :], axis=-1).astype(g_ref.dtype)


def _read_pixels(pixels: _Axis, tap: jax.Array, sizes: Sizes) -> _Axis:
    """Returns the pixels of the features that a tap reads for these pixels of the output."""
    image, y, x = _coordinates(pixels.indices, sizes.out_size)
    i, j = _divide(tap, sizes.width)
    y = sizes.strides[0] * y + i - sizes.low[0]
    x = sizes.strides[1] * x + j - sizes.low[1]
    height, width = sizes.size
    inside = pixels.inside & _between(y, height) & _between(x, width)
    return _Axis((image * height + y) * width + x, inside)


def _coordinates(
    pixels: jax.Array, size: tuple[int, int]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns image, y and x of pixels that are counted through all images of this size."""
    rows, x = _divide(pixels, size[1])
    image, y = _divide(rows, size[0])
    return image, y, x


def _divide(number: jax.Array, divisor: int) -> tuple[jax.Array, jax.Array]:
    """Returns quotient and remainder, rounded to zero; `//` takes more instructions."""
    divisors = jnp.full_like(number, divisor)
    return lax.div(number, divisors), lax.rem(number, divisors)


def _between(number: jax.Array, size: int) -> jax.Array:
    return (number >= 0) & (number < size)


def _axis(block: jax.Array | int, side: int, size: int) -> _Axis:
    """Returns the indices of a block along an axis of `size` elements."""
    indices = block * side + jnp.arange(side, dtype=jnp.int32)
    return _Axis(indices, indices < size)


def _load(ref: Any, *axes: _Axis, first: tuple[jax.Array, ...] = ()) -> jax.Array:
    """Loads a block; `first` are the indices of leading axes."""
    indices, mask = _spread(axes)
    return plgpu.load(ref.at[(*first, *indices)], mask=mask, other=0)


def _store(ref: Any, block: jax.Array, *axes: _Axis, first: tuple[jax.Array, ...] = ()) -> None:
    indices, mask = _spread(axes)
    plgpu.store(ref.at[(*first, *indices)], block, mask=mask)


def _spread(axes: Sequence[_Axis]) -> tuple[list[jax.Array], jax.Array]:
    """Returns the indices, each along its own axis of a block, and the mask of the block."""
    others = [[other for other in range(len(axes)) if other != axis] for axis in range(len(axes))]
    spread = [
        _Axis(*(jnp.expand_dims(array, other) for array in axis))
        for axis, other in zip(axes, others, strict=True)
    ]
    mask = functools.reduce(operator.and_, (axis.inside for axis in spread))
    return [axis.indices for axis in spread], mask


def _dot(a: jax.Array, b: jax.Array, sum_dtype: Any) -> jax.Array:
    return jnp.dot(a, b, preferred_element_type=sum_dtype)


def _interleave(planes: Sequence[jax.Array]) -> jax.Array:
    """Stacks a power of two of arrays along a new last axis; Triton joins only two at a time."""
    if len(planes) == 1:
        return planes[0][..., None]
    pairs = jnp.stack((_interleave(planes[::2]), _interleave(planes[1::2])), axis=-1)
    return pairs.reshape(*planes[0].shape, len(planes))


def power_of_two(number: int) -> int:
    """Rounds up to a power of two."""
    return 1 << (number - 1).bit_length()
