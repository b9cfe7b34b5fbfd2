"""Convolution whose filters are overlapping windows of one small map (3D-FilterMap).

A layer with C input channels and K filters of S1 x S2 pixels learns only a map [K1*x, K2*y, C]. Its
filters are windows of the map, at steps x and y in the plane and z = C / K3 along the channels:

    filters[i, j, c, k] = map[(k1*x + i) mod K1*x, (k2*y + j) mod K2*y, (k3*z + c) mod C]
    with k = (k3*K1 + k1)*K2 + k2

So K = K1 * K2 * K3, and the map has 9/4 * K3 times fewer weights than the filters, for 3x3 pixels
and the steps x = y = 2.

The paper's algorithm takes the mean over all occurrences of an element in the filters as its
gradient (its Eq. 1). The derivative is the sum. Sum and mean differ by `occurrences`, which are
between K3 and 4 * K3 within a layer. The filters of the mean are the orthogonal projection of the
filters' gradient on the filters that a map can have.

The paper does not say how windows continue at the border. All sizes that it prints follow if they
are cyclic along all three axes.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mcn_jax.ops import circulant
from mcn_jax.ops.block_convolution import convolve_blocks, takes_native_blocks
from mcn_jax.ops.convolution import convolve, takes_native

GRADIENTS = ("mean", "sum")
STEP = 2  # x and y
# "auto" takes the circulant form on a CPU if the input has at least `CIRCULANT_CHANNELS` and the
# output at least `CIRCULANT_FILTERS` channels. Without the native kernel, the input must have
# `CIRCULANT_CHANNELS_OF_XLA`. There benchmarks/filter_map.py measured 0.22 to 0.75 of the direct
# form's time with gradients with the kernel, and 0.32 to 0.81 without it, in float32 with AVX-512.
# With 16 channels, it was 1.65 and 1.40. Other dtypes are not measured.
CIRCULANT_CHANNELS, CIRCULANT_CHANNELS_OF_XLA, CIRCULANT_FILTERS = 32, 64, 32
FEW_FILTERS, MANY_FILTERS = 32, 256  # the limits of K3 in `samples_for`


class Geometry(NamedTuple):
    """How filters lie in a map; hashable, so it can be a static argument.

    Attributes:
        samples: (K1, K2, K3), windows along the rows, columns and channels of the map.
        kernel: (S1, S2), pixels of a filter.
        channels: C.
        steps: (x, y), distance of neighbouring windows in the plane.
    """

    samples: tuple[int, int, int]
    kernel: tuple[int, int]
    channels: int
    steps: tuple[int, int] = (STEP, STEP)

    @property
    def map_shape(self) -> tuple[int, int, int]:
        """The shape of the map, [K1*x, K2*y, C]."""
        rows, columns = (k * step for k, step in zip(self.samples, self.steps, strict=False))
        return rows, columns, self.channels

    @property
    def filter_shape(self) -> tuple[int, int, int, int]:
        """The shape of the filters, [S1, S2, C, K]."""
        return (*self.kernel, self.channels, math.prod(self.samples))


def geometry_for(
    outputs: int,
    channels: int,
    kernel: tuple[int, int],
    samples: tuple[int, int, int] | None = None,
    planes: int = 1,
) -> Geometry:
    """Returns the geometry of a layer, with the steps x = y = 2.

    Args:
        outputs: K.
        channels: C.
        kernel: (S1, S2).
        samples: (K1, K2, K3); None takes those of `samples_for`.
        planes: as in `samples_for`.

    Raises:
        ValueError: if filters have less than 2x2 pixels, or the samples do not fit.
    """
    if min(kernel) < STEP:
        raise ValueError(
            f"kernels of {_size(kernel)} pixels do not overlap in a filter map; use an ordinary"
            f" convolution, or kernels of at least {STEP}x{STEP} pixels"
        )
    geometry = Geometry(samples or samples_for(outputs, channels, kernel, planes), kernel, channels)
    if reason := _why_unfit(geometry, outputs):
        raise ValueError(f"samples={geometry.samples} {reason}")
    return geometry


def _why_unfit(geometry: Geometry, outputs: int) -> str:
    """Returns what is wrong with a geometry for a number of filters; empty if nothing is."""
    samples, (rows, columns, channels) = geometry.samples, geometry.map_shape
    if len(samples) != 3 or min(samples) < 1 or math.prod(samples) != outputs:
        return f"must be three numbers whose product is the {outputs} filters of the layer"
    if channels % samples[2]:
        return f"do not fit: {samples[2]} does not divide the {channels} input channels"
    if rows < geometry.kernel[0] or columns < geometry.kernel[1]:
        return (
            f"give a filter map of {rows}x{columns} pixels, smaller than the"
            f" {_size(geometry.kernel)} pixels of a filter"
        )
    return ""


def samples_for(
    outputs: int, channels: int, kernel: tuple[int, int], planes: int = 1
) -> tuple[int, int, int]:
    """Returns (K1, K2, K3) of a layer, by a rule that continues the paper's Table 1.

    K3 is 2 up to 32 filters, 4 up to 256 and 8 above, lowered to a power of two that divides both K
    and C. K1 >= K2 are the factors of K / K3 that are nearest to each other. The table itself has
    (2, 3, 2) for 12 filters, where the rule gives (3, 2, 2).

    Args:
        outputs: K.
        channels: C.
        kernel: (S1, S2).
        planes: number of filters per output map; K is a multiple of it.

    Raises:
        ValueError: if the map would be smaller than a filter. It names the nearest numbers of
            filters that can be taken, or of output maps if each has several.
    """
    samples = _samples(outputs, channels)
    if not _why_unfit(Geometry(samples, kernel, channels), outputs):
        return samples

    def fits(number: int) -> bool:
        geometry = Geometry(_samples(number, channels), kernel, channels)
        return not _why_unfit(geometry, number)

    nearest = [next(filter(fits, range(outputs - planes, 0, -planes)), None)]
    nearest.append(next(filter(fits, itertools.count(outputs + planes, planes))))
    rows, columns, _ = Geometry(samples, kernel, channels).map_shape
    raise ValueError(
        f"the filter map of {outputs} filters and {channels} input channels would have"
        f" {rows}x{columns} pixels, fewer than the {_size(kernel)} pixels of a filter; take"
        f" {' or '.join(str(number // planes) for number in nearest if number)}"
        f" {'filters' if planes == 1 else f'maps of {planes} filters each'}"
    )


def _samples(outputs: int, channels: int) -> tuple[int, int, int]:
    most_shifts = 2 if outputs <= FEW_FILTERS else 4 if outputs <= MANY_FILTERS else 8
    shifts = math.gcd(most_shifts, outputs, channels)
    windows = outputs // shifts
    columns = next(n for n in range(math.isqrt(windows), 0, -1) if windows % n == 0)
    return windows // columns, columns, shifts


def _size(pixels: Sequence[int]) -> str:
    return "x".join(map(str, pixels))


def occurrences(geometry: Geometry) -> np.ndarray:
    """Returns how often each element of the map occurs in the filters, [K1*x, K2*y, 1] float32.

    The number is the same for all channels. For 3x3 pixels and steps of 2, it is K3, 2 * K3 or
    4 * K3.
    """
    rows, columns = (
        np.bincount(
            (np.arange(0, size, step)[:, None] + np.arange(taps)).ravel() % size, minlength=size
        )
        for size, step, taps in zip(
            geometry.map_shape[:2], geometry.steps, geometry.kernel, strict=True
        )
    )
    return (geometry.samples[2] * np.outer(rows, columns)[:, :, None]).astype(np.float32)


def cut_filters(filter_map: jax.Array, geometry: Geometry) -> jax.Array:
    """Cuts the filters out of a map; see the equation of this module.

    It consists of slices, so its gradient consists of additions in a fixed order. The gradient of a
    gather would be a scatter, which is slow on a GPU, and may differ from run to run.

    Args:
        filter_map: [K1*x, K2*y, C].
        geometry: of the layer.

    Returns:
        [S1, S2, C, K].
    """
    (_, _, shifts), (height, width), channels, (x, y) = geometry
    map_CRW = jnp.moveaxis(filter_map, -1, 0)
    starts = [shift * (channels // shifts) for shift in range(shifts)]
    cut = _windows(map_CRW, axis=0, starts=starts, step=1, stacked=1)  # [C, K3, rows, columns]
    cut = _windows(cut, axis=2, starts=range(height), step=x, stacked=0)  # [S1, C, K3, K1, columns]
    cut = _windows(cut, axis=4, starts=range(width), step=y, stacked=1)  # [S1, S2, C, K3, K1, K2]
    return cut.reshape(geometry.filter_shape)


def _windows(
    array: jax.Array, axis: int, starts: Sequence[int], step: int, stacked: int
) -> jax.Array:
    """Stacks array[s], array[s + step], ... for every start s, cyclically along an axis."""
    size, last = array.shape[axis], max(starts)
    if last:
        beginning = lax.slice_in_dim(array, 0, last, axis=axis)
        array = jnp.concatenate([array, beginning], axis)
    rolled = [lax.slice_in_dim(array, start, start + size, step, axis) for start in starts]
    return jnp.stack(rolled, stacked)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def averaged(filter_map: jax.Array, geometry: Geometry) -> jax.Array:
    """Returns the map, with a gradient that is the mean over its occurrences (Eq. 1).

    Backward: the gradient from the filters, a sum over occurrences, divided by their number.

    Args:
        filter_map: [K1*x, K2*y, C].
        geometry: of the layer.
    """
    del geometry
    return filter_map


def _averaged_fwd(filter_map: jax.Array, geometry: Geometry) -> tuple[jax.Array, None]:
    del geometry
    return filter_map, None


def _averaged_bwd(geometry: Geometry, _: None, cotangent: jax.Array) -> tuple[jax.Array]:
    return (cotangent / occurrences(geometry).astype(cotangent.dtype),)


averaged.defvjp(_averaged_fwd, _averaged_bwd)


class _Convolution(NamedTuple):
    """Static settings of a convolution with a map."""

    geometry: Geometry
    strides: tuple[int, int]
    padding: str
    form: str


def _direct(spec: _Convolution, x: jax.Array, filter_map: jax.Array) -> jax.Array:
    filters = cut_filters(filter_map, spec.geometry)
    return convolve(x, filters, spec.strides, spec.padding)


def _circulant(spec: _Convolution, x: jax.Array, filter_map: jax.Array) -> jax.Array:
    """Splits the channels in K3 blocks, whose filters are cyclic shifts of each other."""
    *plane, shifts = spec.geometry.samples
    block = spec.geometry._replace(
        samples=(plane[0], plane[1], 1), channels=spec.geometry.channels // shifts
    )
    weigh = circulant.matrices(shifts).weigh.astype(filter_map.dtype)
    rows, columns, _ = filter_map.shape
    blocks = filter_map.reshape(rows, columns, shifts, block.channels)
    sums = jnp.einsum("pb,rcbz->prcz", weigh, blocks, precision=lax.Precision.HIGHEST)
    filters = jax.vmap(lambda one: cut_filters(one, block))(sums)
    return convolve_blocks(x, filters, shifts, spec.strides, spec.padding)


FORMS = {"direct": _direct, "circulant": _circulant}


def cpu_form(geometry: Geometry, dtype: str) -> str:
    """Returns the form that "auto" takes on a CPU; on other platforms it takes "direct".

    Args:
        geometry: of the layer.
        dtype: dtype of the input, such as "float32".
    """
    *_, channels, outputs = geometry.filter_shape
    shifts = geometry.samples[2]
    whole, block = geometry.filter_shape, (*geometry.kernel, channels // shifts, outputs // shifts)
    if takes_native(dtype, whole):
        is_wide = channels >= CIRCULANT_CHANNELS and takes_native_blocks(dtype, block)
    else:
        is_wide = channels >= CIRCULANT_CHANNELS_OF_XLA
    is_wide = is_wide and outputs >= CIRCULANT_FILTERS
    is_wide = is_wide and shifts > 1 and circulant.takes(shifts)
    return "circulant" if is_wide and dtype == "float32" else "direct"


def _by_platform(
    spec: _Convolution, run: Callable[..., Any], x: jax.Array, *arrays: jax.Array
) -> Any:
    """Returns run(form, x, *arrays) with the form of each platform."""
    if spec.form != "auto":
        return run(FORMS[spec.form], x, *arrays)
    on_cpu = cpu_form(spec.geometry, x.dtype.name)
    if on_cpu == "direct":
        return run(_direct, x, *arrays)
    passes = {"cpu": functools.partial(run, FORMS[on_cpu])}
    return lax.platform_dependent(x, *arrays, **passes, default=functools.partial(run, _direct))


# With a gradient of its own, only the map is kept for the backward pass, not the filters.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _convolution(spec: _Convolution, x: jax.Array, filter_map: jax.Array) -> jax.Array:
    return _by_platform(spec, lambda form, *arrays: form(spec, *arrays), x, filter_map)


def _convolution_fwd(
    spec: _Convolution, x: jax.Array, filter_map: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _convolution(spec, x, filter_map), (x, filter_map)


def _convolution_bwd(
    spec: _Convolution, residuals: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    def backward(
        form: Callable[..., jax.Array], x: jax.Array, filter_map: jax.Array, cotangent: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        _, vjp = jax.vjp(functools.partial(form, spec), x, filter_map)
        return vjp(cotangent)

    return _by_platform(spec, backward, *residuals, cotangent)


_convolution.defvjp(_convolution_fwd, _convolution_bwd)


def filter_map_convolution(
    x: jax.Array,
    filter_map: jax.Array,
    geometry: Geometry,
    *,
    strides: tuple[int, int] = (1, 1),
    padding: str = "SAME",
    gradient: str = "mean",
    form: str = "auto",
) -> jax.Array:
    """Convolves an input with the filters of a map, in the dtype of the input.

    Args:
        x: [N, Y, X, C].
        filter_map: [K1*x, K2*y, C].
        geometry: of the layer.
        strides: steps of the convolution in y and x, in pixels.
        padding: a name in `mcn_jax.ops.conv_spec.PADDINGS`.
        gradient: "mean" or "sum" of the gradients of an element's occurrences in the filters.
        form: "direct" cuts the filters and convolves. "circulant" splits the channels in K3 blocks;
            the same result takes 1/2, 5/16 and 11/64 of the multiply-adds for K3 = 2, 4 and 8.
            "auto" takes the form that was measured to be faster, see `cpu_form`.

    Returns:
        [N, Y', X', K].

    Raises:
        ValueError: if a name is unknown, a shape does not fit the geometry, or the form "circulant"
            does not take K3.
    """
    for name, value, allowed in (
        ("gradient", gradient, GRADIENTS),
        ("form", form, ("auto", *FORMS)),
    ):
        if value not in allowed:
            raise ValueError(f"{name}={value!r} must be one of {', '.join(allowed)}")
    if filter_map.shape != geometry.map_shape or x.shape[-1] != geometry.channels:
        raise ValueError(
            f"the filter map is {filter_map.shape} and the input {x.shape}, but the map must be"
            f" {geometry.map_shape} and the input have {geometry.channels} channels"
        )
    if form == "circulant" and not circulant.takes(geometry.samples[2]):
        raise ValueError(f"form='circulant' takes no {geometry.samples[2]} shifts; use 'direct'")
    if gradient == "mean":
        filter_map = averaged(filter_map, geometry)
    return _convolution(_Convolution(geometry, strides, padding, form), x, filter_map)


def multiply_adds(geometry: Geometry) -> dict[str, int]:
    """Returns the multiply-adds of one output pixel: "direct", and "factored" for the circulant.

    The additions that combine blocks are not counted.
    """
    shifts, direct = geometry.samples[2], math.prod(geometry.filter_shape)
    if not circulant.takes(shifts):
        return {"direct": direct}
    return {"direct": direct, "factored": direct // shifts**2 * circulant.products(shifts)}
