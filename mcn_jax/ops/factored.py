"""MCconv in its factored form, with about 1/K of the direct form's multiply-adds.

All K planes of an output map share one binary filter; only the weights of the taps differ:

    output[h, k] = sum over taps t of M[t, k] * (shift_t(features) @ filters[t, :, h])

The product in brackets does not depend on k. The forward pass has three steps:

1. One matrix product, [pixels, C] @ [C, T*H], multiplies the features by the filters of all T taps.
2. The product of each tap is shifted to the output pixels that it contributes to.
3. M, as a matrix [T, K], mixes the T shifted products into K planes.

The backward pass runs in the opposite direction. M spreads the cotangent over the taps, each part
is shifted back, and two matrix products give the gradients of features and filters. The gradient of
M is the matrix product of the shifted products and the cotangent. The shifted products are computed
again for this. XLA may reuse those of the forward pass if the batch is not split (see `_chunk`).

With strides (s, s), a tap reads every s-th pixel in y and x, which is one of the s*s phases of the
image. Each phase is multiplied by the filters of its own taps. With stride 1, the image is the only
phase.

With a pattern of signs per plane, the convolution is a sum over K slices of the channels
(`mcn_jax.ops.plane_signs.sliced_m`). Each slice takes the steps above.

The intermediate arrays have T*H channels, more than input and output together. A CPU processes a
few images at a time, so they stay in cache and take little memory; small batches of wide layers are
the exception. Other platforms process the whole batch at once.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from mcn_jax.ops import plane_signs
from mcn_jax.ops.chunks import images_at_a_time, scan_chunks
from mcn_jax.ops.conv_spec import ConvSpec, explicit_pads


class _Tap(NamedTuple):
    """One row or column of taps.

    Attributes:
        phase: the phase of the image that the tap reads.
        padding: low and high padding, often negative, that takes the phase to the output pixels
            that read it.
    """

    phase: int
    padding: tuple[int, int]

    @property
    def back(self) -> tuple[int, int]:
        """Padding that reverses `padding`; as a linear map, it is the transpose."""
        return -self.padding[0], -self.padding[1]


class _Taps(NamedTuple):
    """All taps of a kernel on an image of `size`, as rows in y and columns in x."""

    size: tuple[int, ...]
    out_size: tuple[int, ...]
    strides: tuple[int, int]
    rows: list[_Tap]
    columns: list[_Tap]

    def by_phase(self) -> dict[tuple[int, int], list[tuple[int, int]]]:
        """Returns {phase in y and x: (i, j) of the taps that read it}."""
        found: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for (i, row), (j, column) in itertools.product(
            enumerate(self.rows), enumerate(self.columns)
        ):
            found.setdefault((row.phase, column.phase), []).append((i, j))
        return found


def forward(
    spec: ConvSpec, features: jax.Array, filters: jax.Array, m_filters: jax.Array
) -> jax.Array:
    """Computes the output of MCconv; see `mcn_jax.ops.mcconv` for the signature."""
    if spec.plane_signs:
        return _sum_of_slices(spec, features, filters, m_filters)
    taps = _taps(features.shape[1:3], filters.shape[:2], spec.strides, spec.padding)
    filters, m_TK = filters.astype(features.dtype), _matrix(m_filters, features.dtype)
    planes, maps = m_TK.shape[1], filters.shape[-1]

    def of_chunk(nothing: None, images: jax.Array) -> tuple[None, jax.Array]:
        products_TNYXH = _shifted_products(images, filters, taps)
        mixed_KP = m_TK.T @ products_TNYXH.reshape(len(m_TK), -1)
        mixed_KNYXH = mixed_KP.reshape(planes, -1, *taps.out_size, maps)
        return nothing, jnp.moveaxis(mixed_KNYXH, 0, -1).reshape(-1, *out_shape[1:])

    out_shape = (len(features), *taps.out_size, maps * planes)
    # Made of the features, so XLA cannot allocate it before they exist.
    buffer = jnp.broadcast_to(features[0, 0, 0, 0], out_shape)
    chunk = _chunk(features, filters, m_TK, taps)
    return scan_chunks(of_chunk, None, [features], buffer, chunk)[1]


def backward(
    spec: ConvSpec,
    features: jax.Array,
    filters: jax.Array,
    m_sum_filters: jax.Array,
    m_filters: jax.Array,
    cotangent: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Computes the gradients of MCconv; see `mcn_jax.ops.mcconv` for the signature."""
    if spec.plane_signs:
        return _gradients_of_slices(spec, features, filters, m_sum_filters, m_filters, cotangent)
    taps = _taps(features.shape[1:3], filters.shape[:2], spec.strides, spec.padding)
    filters_dtype, dtype = filters.dtype, features.dtype
    filters, m_sum_filters = filters.astype(dtype), m_sum_filters.astype(dtype)
    m_TK = _matrix(m_filters, dtype)
    # Sums of half-precision products are kept in float32.
    sum_dtype = jnp.promote_types(dtype, jnp.float32)

    def add(
        sums: tuple[jax.Array, jax.Array], images: jax.Array, cotangents: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        products_TP = _shifted_products(images, m_sum_filters, taps).reshape(len(m_TK), -1)
        g_PK = cotangents.reshape(-1, m_TK.shape[1])
        d_m_TK = jnp.matmul(products_TP, g_PK, preferred_element_type=sum_dtype)
        d_products = _gradients_of_shifted(cotangents, m_TK.astype(sum_dtype), taps)
        d_images, d_filters = _gradients_of_products(images, filters, d_products, taps, sum_dtype)
        return (sums[0] + d_filters, sums[1] + d_m_TK), d_images

    chunk = _chunk(features, filters, m_TK, taps)
    zeros = jnp.zeros(filters.shape, sum_dtype), jnp.zeros(m_TK.shape, sum_dtype)
    buffer = jnp.broadcast_to(cotangent[0, 0, 0, 0], features.shape)
    (d_filters, d_m), d_features = scan_chunks(add, zeros, [features, cotangent], buffer, chunk)
    return (
        d_features,
        d_filters.astype(filters_dtype),
        d_m.reshape(m_filters.shape).astype(m_filters.dtype),
    )


def _sum_of_slices(
    spec: ConvSpec, features: jax.Array, filters: jax.Array, m_filters: jax.Array
) -> jax.Array:
    plain = dataclasses.replace(spec, plane_signs="")
    sliced_m = plane_signs.sliced_m(m_filters, spec.plane_signs)
    slices = len(sliced_m)
    total = jnp.zeros((), jnp.promote_types(features.dtype, jnp.float32))
    for i in range(slices):
        total += forward(plain, features[..., i::slices], filters[:, :, i::slices], sliced_m[i])
    return total.astype(features.dtype)


def _gradients_of_slices(
    spec: ConvSpec,
    features: jax.Array,
    filters: jax.Array,
    m_sum_filters: jax.Array,
    m_filters: jax.Array,
    cotangent: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    plain = dataclasses.replace(spec, plane_signs="")
    slice_m = functools.partial(plane_signs.sliced_m, plane_signs=spec.plane_signs)
    sliced_m, m_vjp = jax.vjp(slice_m, m_filters)
    slices = len(sliced_m)
    gradients = []
    for i in range(slices):
        own = slice(i, None, slices)
        arrays = features[..., own], filters[:, :, own], m_sum_filters[:, :, own]
        gradients.append(backward(plain, *arrays, sliced_m[i], cotangent))
    d_features, d_filters, d_m = zip(*gradients, strict=True)
    return (
        jnp.stack(d_features, axis=-1).reshape(features.shape),
        jnp.stack(d_filters, axis=3).reshape(filters.shape),
        *m_vjp(jnp.stack(d_m)),
    )


def _shifted_products(images: jax.Array, filters: jax.Array, taps: _Taps) -> jax.Array:
    """Computes what each tap adds to each output pixel before M weighs it.

    [N, Y, X, C] and [W, W, C, H] -> [T, N, Y', X', H].
    """
    height, width = taps.strides
    products = {}
    for (y, x), its_taps in taps.by_phase().items():
        phase = images[:, y::height, x::width]
        together = phase @ _side_by_side(filters, its_taps)
        for tap, product in zip(its_taps, jnp.split(together, len(its_taps), axis=-1), strict=True):
            products[tap] = _pad(product, taps.rows[tap[0]].padding, taps.columns[tap[1]].padding)
    return jnp.stack([products[tap] for tap in sorted(products)])


def _gradients_of_shifted(
    cotangents: jax.Array, m_TK: jax.Array, taps: _Taps
) -> dict[tuple[int, int], jax.Array]:
    """Spreads the cotangent over the taps by M and shifts each part back.

    [N, Y', X', H*K] -> {(i, j): [N, y, x, H]}.

    The planes are padded once for all taps, so each tap reads windows of the padded planes.
    Weighing and adding these windows, in the dtype of M, takes one pass over memory. A matrix
    product with M would take several.
    """
    rows, columns = (np.array([tap.back for tap in line]) for line in (taps.rows, taps.columns))
    padded = _pad(cotangents, rows.max(axis=0), columns.max(axis=0))
    planes_last = padded.reshape(*padded.shape[:3], -1, m_TK.shape[1])
    planes = jnp.unstack(jnp.moveaxis(planes_last, -1, 0))
    crop_rows, crop_columns = rows - rows.max(axis=0), columns - columns.max(axis=0)
    spread = {}
    for tap, (i, j) in enumerate(itertools.product(range(len(rows)), range(len(columns)))):
        windows = [_pad(plane, crop_rows[i], crop_columns[j]) for plane in planes]
        weighted = (m * window for m, window in zip(m_TK[tap], windows, strict=True))
        spread[i, j] = sum(weighted).astype(cotangents.dtype)
    return spread


def _gradients_of_products(
    images: jax.Array,
    filters: jax.Array,
    d_products: Mapping[tuple[int, int], jax.Array],
    taps: _Taps,
    sum_dtype: DTypeLike,
) -> tuple[jax.Array, jax.Array]:
    """Computes the gradients of images and filters from the gradient of each tap's product."""
    height, width = taps.strides
    d_images = jnp.zeros((), images.dtype)
    d_filters: dict[tuple[int, int], jax.Array] = {}
    for (y, x), its_taps in taps.by_phase().items():
        phase = images[:, y::height, x::width]
        together = jnp.concatenate([d_products[tap] for tap in its_taps], axis=-1)
        d_phase = together @ _side_by_side(filters, its_taps).T
        d_side_by_side = jnp.matmul(
            phase.reshape(-1, phase.shape[-1]).T,
            together.reshape(-1, together.shape[-1]),
            preferred_element_type=sum_dtype,
        )
        parts = jnp.split(d_side_by_side, len(its_taps), axis=-1)
        d_filters |= dict(zip(its_taps, parts, strict=True))
        d_images += _onto_image(d_phase, (y, x), taps)
    stacked = jnp.stack([d_filters[tap] for tap in sorted(d_filters)])
    return d_images, stacked.reshape(filters.shape)


def _taps(
    size: tuple[int, ...], kernel_size: tuple[int, ...], strides: tuple[int, int], padding: str
) -> _Taps:
    pads = explicit_pads(size, kernel_size, strides, padding)
    out_size, lines = [], []
    for pixels, kernel, stride, (low, high) in zip(size, kernel_size, strides, pads, strict=True):
        out_size.append((pixels + low + high - kernel) // stride + 1)
        line = []
        for tap in range(kernel):
            # Output pixel o reads pixel stride * o + tap - low = stride * (o + shift) + phase.
            shift, phase = divmod(tap - low, stride)
            in_phase = len(range(phase, pixels, stride))
            line.append(_Tap(phase, (-shift, out_size[-1] - in_phase + shift)))
        lines.append(line)
    return _Taps(size, tuple(out_size), strides, *lines)


def _matrix(m_filters: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Returns M as a matrix [T, K]."""
    return m_filters.reshape(-1, m_filters.shape[-1]).astype(dtype)


def _side_by_side(filters: jax.Array, its_taps: Sequence[tuple[int, int]]) -> jax.Array:
    """Concatenates the filters of some taps: [W, W, C, H] -> [C, len(its_taps) * H]."""
    return jnp.concatenate([filters[tap] for tap in its_taps], axis=-1)


def _pad(array: jax.Array, rows: Sequence[int], columns: Sequence[int]) -> jax.Array:
    zero = jnp.zeros((), array.dtype)
    config = (0, 0, 0), (rows[0], rows[1], 0), (columns[0], columns[1], 0), (0, 0, 0)
    return lax.pad(array, zero, config)


def _onto_image(phase: jax.Array, place: tuple[int, int], taps: _Taps) -> jax.Array:
    """Places the pixels of one phase in an image that is zero at the pixels of all other phases.

    [N, y, x, C] -> [N, Y, X, C].
    """
    if taps.strides == (1, 1):
        return phase
    config = [(0, 0, 0)]
    for pixels, start, size, stride in zip(
        phase.shape[1:3], place, taps.size, taps.strides, strict=True
    ):
        covered = stride * (pixels - 1) + 1 if pixels else 0
        config.append((start, size - start - covered, stride - 1))
    return lax.pad(phase, jnp.zeros((), phase.dtype), (*config, (0, 0, 0)))


def _chunk(features: jax.Array, filters: jax.Array, m_TK: jax.Array, taps: _Taps) -> int:
    """Returns the number of images per chunk on a CPU.

    The intermediates of an image are the products, their gradients, and the cotangent with its
    planes as the leading axis. This estimate is for stride 1; with strides there are fewer.

    Every chunk reads all filters, so a chunk may take at least as many bytes as the filters. A
    batch is not split if its intermediates need no more memory than three arrays of the size of Q,
    as much as the direct form of a wide layer takes. Then the filters are read once, and XLA may
    reuse the products of the forward pass in the backward pass.
    """
    pixels = max(math.prod(taps.size), math.prod(taps.out_size))
    planes = m_TK.shape[1]
    channels = (2 * m_TK.shape[0] + planes) * filters.shape[-1]
    itemsize = features.dtype.itemsize
    image_bytes, filter_bytes = pixels * channels * itemsize, filters.size * itemsize
    if len(features) * image_bytes <= 3 * planes * filter_bytes:
        return len(features)
    return images_at_a_time(len(features), image_bytes, at_least=filter_bytes)
