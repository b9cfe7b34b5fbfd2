"""MCconv and ordinary convolutions by the native kernel, C++ code for float32 on CPUs.

It is built with the package, and optional; `why_unavailable` says why it is not there. The library
is loaded at its first use. MCN_JAX_NATIVE=0 in the environment turns the kernel off.
"""

import ctypes
import functools
import os
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mcn_jax.errors import InputError, first_line
from mcn_jax.ops import native_build, plane_signs
from mcn_jax.ops.conv_spec import ConvSpec, pads_and_out_size

LIBRARY = pathlib.Path(__file__).with_name(native_build.LIBRARY)
SWITCH = "MCN_JAX_NATIVE"
# With fewer input maps, planes in lanes were faster than slices, with gradients and AVX-512.
MAPS_FOR_LANES = 24
# Up to these numbers of input channels, and of input times output channels, ordinary convolutions
# of more than one tap took less time with the code for few channels than with other code or XLA.
NARROW_CHANNELS, NARROW_PRODUCT = 8, 128
TARGETS = {
    "mcn_mcconv_forward": "McnMcconvForward",
    "mcn_mcconv_backward": "McnMcconvBackward",
    "mcn_hadamard_forward": "McnHadamardForward",
    "mcn_hadamard_backward": "McnHadamardBackward",
    "mcn_narrow_forward": "McnNarrowForward",
    "mcn_narrow_features_gradient": "McnNarrowFeaturesGradient",
    "mcn_narrow_filters_gradient": "McnNarrowFiltersGradient",
    "mcn_blocks_forward": "McnBlocksForward",
    "mcn_blocks_backward": "McnBlocksBackward",
}


class UnavailableError(Exception):
    """The message is a clause that says why the kernel cannot be used."""


def forward(
    spec: ConvSpec, features: jax.Array, filters: jax.Array, m_filters: jax.Array
) -> jax.Array:
    """Computes the output; see `mcn_jax.ops.mcconv`."""
    return _forward(spec, features, filters, m_filters, saved=0)[0]


def forward_and_products(
    spec: ConvSpec, features: jax.Array, filters: jax.Array, m_filters: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Computes the output, and the products that `backward` takes, but not with planes in lanes."""
    saved = products_size(spec, features, filters, m_filters)
    return _forward(spec, features, filters, m_filters, saved)


def products_size(
    spec: ConvSpec, features: jax.Array, filters: jax.Array, m_filters: jax.Array
) -> int:
    """Returns the number of floats in the products of a layer, padded to whole vectors."""
    pads, out_size = _pads_and_out_size(spec, features, filters)
    (low_y, _), (low_x, _) = pads
    taps, _, channels, maps = filters.shape
    slices = len(plane_signs.signs_of_slices(spec.plane_signs, m_filters.shape[2]))
    sizes = (
        *features.shape[:3], slices, channels // slices, taps, maps, m_filters.shape[2],
        *out_size, *spec.strides, low_y, low_x
    )  # fmt: skip
    function = _load(LIBRARY).mcn_native_products
    function.restype = ctypes.c_int64
    return function((ctypes.c_int64 * len(sizes))(*sizes))


def _forward(
    spec: ConvSpec, features: jax.Array, filters: jax.Array, m_filters: jax.Array, saved: int
) -> tuple[jax.Array, jax.Array]:
    _load(LIBRARY)
    pads, out_size = _pads_and_out_size(spec, features, filters)
    channels = filters.shape[3] * m_filters.shape[2]
    shapes = (features.shape[0], *out_size, channels), (saved,)
    results = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    target = f"mcn_{_code(spec, filters, m_filters)}_forward"
    call = jax.ffi.ffi_call(target, results, vmap_method="sequential")
    arrays = _float32(features, filters, _m_of_slices(spec, filters, m_filters))
    output, products = call(*arrays, **_attributes(spec.strides, pads))
    return output, products


def backward(
    spec: ConvSpec,
    features: jax.Array,
    filters: jax.Array,
    m_sum_filters: jax.Array | None,
    m_filters: jax.Array,
    cotangent: jax.Array,
    products: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Computes the gradients; see `mcn_jax.ops.mcconv`.

    `products`, from `forward_and_products`, are those of `m_sum_filters`. Without them they are
    computed again. With `m_sum_filters=None` the gradient of M is zero. Planes in lanes need
    `m_sum_filters` and take no products.
    """
    _load(LIBRARY)
    if products is None:
        products = jnp.zeros(0)
    if m_sum_filters is None:
        m_sum_filters = jnp.zeros(0)
    sliced_m, m_vjp = jax.vjp(
        lambda m: _m_of_slices(spec, filters, m), m_filters.astype(jnp.float32)
    )
    shapes = features.shape, filters.shape, sliced_m.shape
    outputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    target = f"mcn_{_code(spec, filters, m_filters)}_backward"
    call = jax.ffi.ffi_call(target, outputs, vmap_method="sequential")
    d_features, d_filters, d_sliced_m = call(
        *_float32(features, filters, m_sum_filters, sliced_m, cotangent, products),
        **_attributes(spec.strides, _pads_and_out_size(spec, features, filters)[0]),
    )
    (d_m,) = m_vjp(d_sliced_m)
    return (
        d_features.astype(features.dtype),
        d_filters.astype(filters.dtype),
        d_m.astype(m_filters.dtype),
    )


def has_planes_in_lanes(plane_signs: str, in_maps: int, planes: int) -> bool:
    """Returns whether the kernel keeps the planes of a map in the lanes of a vector.

    See cpp/hadamard.cc. For other layers with the Hadamard pattern it has slices of the channels.
    """
    return plane_signs == "hadamard" and planes in (4, 8) and in_maps < MAPS_FOR_LANES


def is_narrow(shape: Sequence[int]) -> bool:
    """Returns whether the kernel's code for few channels computes a convolution.

    Args:
        shape: of the filters, (W, W, C, O).
    """
    taps, _, channels, outputs = shape
    return taps > 1 and channels <= NARROW_CHANNELS and channels * outputs <= NARROW_PRODUCT


def convolve(
    features: jax.Array, filters: jax.Array, strides: tuple[int, int], padding: str
) -> jax.Array:
    """Computes an ordinary convolution; see `mcn_jax.ops.convolution.convolve`.

    With C channels to O, it is an MCconv of C to O maps of one plane, where M is one. With few
    channels it has code of its own; see cpp/narrow.cc.
    """
    if is_narrow(filters.shape):
        pads, out_size = pads_and_out_size(features.shape[1:3], filters.shape[:2], strides, padding)
        shape = (features.shape[0], *out_size, filters.shape[3])
        return _call("mcn_narrow_forward", shape, (features, filters), strides, pads)
    return forward(_plain_spec(strides, padding), features, filters, _unit_m(filters))


def convolution_gradients(
    features: jax.Array,
    filters: jax.Array,
    cotangent: jax.Array,
    strides: tuple[int, int],
    padding: str,
) -> tuple[jax.Array, jax.Array]:
    """Computes the gradients of `convolve` with respect to features and filters."""
    if is_narrow(filters.shape):
        pads, _ = pads_and_out_size(features.shape[1:3], filters.shape[:2], strides, padding)
        # Two calls, so that XLA leaves out the one that nobody needs.
        of_features, of_filters = (
            f"mcn_narrow_{name}_gradient" for name in ("features", "filters")
        )
        return (
            _call(of_features, features.shape, (filters, cotangent), strides, pads),
            _call(of_filters, filters.shape, (features, cotangent), strides, pads),
        )
    arrays = features, filters, None, _unit_m(filters), cotangent
    d_features, d_filters, _ = backward(_plain_spec(strides, padding), *arrays)
    return d_features, d_filters


def convolve_blocks(
    features: jax.Array,
    filters: jax.Array,
    take: np.ndarray,
    give: np.ndarray,
    strides: tuple[int, int],
    padding: str,
) -> jax.Array:
    """Computes sums of convolutions of blocks; see `mcn_jax.ops.block_convolution`."""
    pads, out_size = pads_and_out_size(features.shape[1:3], filters.shape[1:3], strides, padding)
    shape = (features.shape[0], *out_size, len(give) * filters.shape[-1])
    arrays = features, filters, jnp.asarray(take), jnp.asarray(give)
    return _call("mcn_blocks_forward", shape, arrays, strides, pads)


def block_gradients(
    features: jax.Array,
    filters: jax.Array,
    cotangent: jax.Array,
    take: np.ndarray,
    give: np.ndarray,
    strides: tuple[int, int],
    padding: str,
) -> tuple[jax.Array, jax.Array]:
    """Computes the gradients of `convolve_blocks` with respect to features and filters."""
    _load(LIBRARY)
    pads, _ = pads_and_out_size(features.shape[1:3], filters.shape[1:3], strides, padding)
    outputs = [jax.ShapeDtypeStruct(array.shape, jnp.float32) for array in (features, filters)]
    call = jax.ffi.ffi_call("mcn_blocks_backward", outputs, vmap_method="sequential")
    arguments = (features, filters, jnp.asarray(take), jnp.asarray(give), cotangent)
    d_features, d_filters = call(*_float32(*arguments), **_attributes(strides, pads))
    return d_features, d_filters


def _call(
    target: str,
    shape: tuple[int, ...],
    arrays: tuple[jax.Array, ...],
    strides: tuple[int, int],
    pads: list[tuple[int, int]],
) -> jax.Array:
    _load(LIBRARY)
    result = jax.ShapeDtypeStruct(shape, jnp.float32)
    call = jax.ffi.ffi_call(target, result, vmap_method="sequential")
    return call(*_float32(*arrays), **_attributes(strides, pads))


def _plain_spec(strides: tuple[int, int], padding: str) -> ConvSpec:
    return ConvSpec(strides=strides, padding=padding, m_gradient="binary", form="native")


def _code(spec: ConvSpec, filters: jax.Array, m_filters: jax.Array) -> str:
    """Returns "hadamard" for planes in lanes, or "mcconv", as in `TARGETS`."""
    planes = m_filters.shape[2]
    in_lanes = has_planes_in_lanes(spec.plane_signs, filters.shape[2] // planes, planes)
    return "hadamard" if in_lanes else "mcconv"


def _m_of_slices(spec: ConvSpec, filters: jax.Array, m_filters: jax.Array) -> jax.Array:
    """Returns M of each slice of the channels; planes in lanes have one slice."""
    if _code(spec, filters, m_filters) == "hadamard":
        return m_filters[None]
    return plane_signs.sliced_m(m_filters, spec.plane_signs)


def _unit_m(filters: jax.Array) -> jax.Array:
    return jnp.ones((*filters.shape[:2], 1))


def why_unavailable() -> str | None:
    """Returns why the kernel cannot be used on this machine's CPU, as a clause; None if it can.

    Raises:
        InputError: if MCN_JAX_NATIVE has a value other than 0 and 1.
    """
    switch = os.environ.get(SWITCH, "1")
    if switch not in ("0", "1"):
        raise InputError(
            f"{SWITCH}={switch!r} must be 0, which turns the native kernel off, or 1, the default"
        )
    if switch == "0":
        return f"the native kernel is turned off by {SWITCH}=0"
    try:
        _load(LIBRARY)
    except UnavailableError as error:
        return str(error)
    return None


def instruction_set() -> str:
    """Returns the instruction set that the kernel uses here: "avx512", "avx2" or "baseline"."""
    function = _load(LIBRARY).mcn_native_instruction_set
    function.restype = ctypes.c_char_p
    return function().decode()


def _load(path: pathlib.Path) -> ctypes.CDLL:
    library = _loaded(path)
    if isinstance(library, str):
        raise UnavailableError(library)
    return library


@functools.cache
def _loaded(path: pathlib.Path) -> ctypes.CDLL | str:
    """Loads the library and registers its functions; returns what hinders that."""
    if not path.exists():
        reason = path.with_name(native_build.REASON)
        why = ""
        if reason.exists():
            why = f" ({reason.read_text().strip()} when mcn_jax was installed)"
        return f"the native kernel was not built{why}"
    try:
        library = ctypes.CDLL(str(path))
        stamp = getattr(library, native_build.HASH_FUNCTION)
        stamp.restype = ctypes.c_char_p
        expected = native_build.sources_hash()
        if expected is not None and stamp().decode() != expected:
            return "the native kernel was built from other sources; install mcn_jax again"
        for target, symbol in TARGETS.items():
            pointer = jax.ffi.pycapsule(getattr(library, symbol))
            jax.ffi.register_ffi_target(target, pointer, platform="cpu", api_version=1)
    except Exception as error:
        return f"the native kernel cannot be loaded ({first_line(error)}); install mcn_jax again"
    return library


def _pads_and_out_size(
    spec: ConvSpec, features: jax.Array, filters: jax.Array
) -> tuple[list[tuple[int, int]], tuple[int, ...]]:
    return pads_and_out_size(features.shape[1:3], filters.shape[:2], spec.strides, spec.padding)


def _attributes(strides: tuple[int, int], pads: list[tuple[int, int]]) -> dict[str, np.int64]:
    values = (*strides, pads[0][0], pads[1][0])
    names = ("stride_y", "stride_x", "low_y", "low_x")
    return {name: np.int64(value) for name, value in zip(names, values, strict=True)}


def _float32(*arrays: jax.Array) -> list[jax.Array]:
    return [array.astype(jnp.float32) for array in arrays]
