"""MCconv, the modulated convolution, with its straight-through gradient.

A form of MCconv is a pair of functions, forward and backward. All forms compute the same result, in
a different order of operations. A form only receives filters that are already binary; `_mcconv`
does the binarization and chooses the gradient of M.

    forward(spec, features, filters, m_filters) -> output
    backward(spec, features, filters, m_sum_filters, m_filters, cotangent)
        -> (d_features, d_filters, d_m), each in the dtype of its array

`m_sum_filters` are the filters in the sum of Eq. 16, either the binary or the latent ones.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mcn_jax.ops import factored, native
from mcn_jax.ops.binarize import nearest_center
from mcn_jax.ops.conv_spec import PADDINGS, ConvSpec
from mcn_jax.ops.convolution import convolve, xla_convolve
from mcn_jax.ops.fastest import (
    UNMEASURED,
    Shape,
    fastest_form,
    measured_platforms,
    native_is_faster,
)
from mcn_jax.ops.modulate import reconstructed_filters
from mcn_jax.ops.plane_signs import PATTERNS, gradient_of_plane, has_slices, why_unsuitable

# Features, latent filters, centers, M, and the products of the native kernel if it saved them.
Residuals = tuple[jax.Array, jax.Array, jax.Array | None, jax.Array, jax.Array | None]
# With fewer channels in a slice, computing products again takes less time than reading them.
CHANNELS_TO_SAVE = 256
# With fewer input channels, the direct form of a pattern of signs is faster than its slices, with
# gradients (benchmarks/plane_signs.py). Only two planes have slices there.
CHANNELS_TO_SLICE = 64
M_GRADIENTS = ("binary", "latent")


class Form(NamedTuple):
    """One way to compute MCconv; the docstring of this module gives both signatures."""

    forward: Callable[..., jax.Array]
    backward: Callable[..., tuple[jax.Array, jax.Array, jax.Array]]


def _convolution(spec: ConvSpec) -> Callable[..., jax.Array]:
    """Returns the ordinary convolution with Q: XLA's, whose peer is the native form.

    With a pattern of planes, it is the faster code, because only signs have a native form.
    """
    return convolve if spec.plane_signs else xla_convolve


def _direct_forward(
    spec: ConvSpec, features: jax.Array, filters: jax.Array, m_filters: jax.Array
) -> jax.Array:
    q_WWCO = reconstructed_filters(filters, m_filters, spec.plane_signs)
    return _convolution(spec)(features, q_WWCO, spec.strides, spec.padding)


def _direct_backward(
    spec: ConvSpec,
    features: jax.Array,
    filters: jax.Array,
    m_sum_filters: jax.Array,
    m_filters: jax.Array,
    cotangent: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    q_WWCO = reconstructed_filters(filters, m_filters, spec.plane_signs)
    convolution = functools.partial(_convolution(spec), strides=spec.strides, padding=spec.padding)
    _, vjp = jax.vjp(convolution, features, q_WWCO)
    d_features, dq_WWCO = vjp(cotangent)
    planes = m_filters.shape[-1]
    dq_WWCHK = dq_WWCO.reshape(*filters.shape, planes)
    if spec.plane_signs:
        undone = [
            gradient_of_plane(dq_WWCHK[..., k], k, planes, spec.plane_signs) for k in range(planes)
        ]
        dq_WWCHK = jnp.stack(undone, axis=-1)
    d_filters = jnp.einsum("xychk,xyk->xych", dq_WWCHK, m_filters)
    d_m = jnp.einsum("xychk,xych->xyk", dq_WWCHK, m_sum_filters)
    return d_features, d_filters, d_m.astype(m_filters.dtype)


def _auto_forward(
    spec: ConvSpec, features: jax.Array, filters: jax.Array, m_filters: jax.Array
) -> jax.Array:
    arrays = features, filters, m_filters
    forms = _fastest(spec, features, filters, m_filters)
    passes = {platform: functools.partial(form.forward, spec) for platform, form in forms.items()}
    return lax.platform_dependent(*arrays, **passes)


def _auto_backward(
    spec: ConvSpec,
    features: jax.Array,
    filters: jax.Array,
    m_sum_filters: jax.Array,
    m_filters: jax.Array,
    cotangent: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    arrays = features, filters, m_sum_filters, m_filters, cotangent
    forms = _fastest(spec, features, filters, m_filters)
    passes = {platform: functools.partial(form.backward, spec) for platform, form in forms.items()}
    return lax.platform_dependent(*arrays, **passes)


def _fused_forward(*arguments: Any) -> jax.Array:
    # Imported only if used, because a later jax may not have Pallas's Triton backend.
    from mcn_jax.ops import fused

    return fused.forward(*arguments)


def _fused_backward(*arguments: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    from mcn_jax.ops import fused

    return fused.backward(*arguments)


def _fastest(
    spec: ConvSpec, features: jax.Array, filters: jax.Array, m_filters: jax.Array
) -> dict[str, Form]:
    """Returns {platform: form to take}; "default" stands for all platforms that are not named.

    The native kernel is for CPUs and float32. There `spec.form` can name it; otherwise it is taken
    if it is available and was faster. The table of measurements has no patterns of planes.
    """
    planes = m_filters.shape[-1]
    shape = Shape(
        in_maps=filters.shape[2] // planes,
        out_maps=filters.shape[3],
        planes=planes,
        size=features.shape[1],
        stride=spec.strides[0],
    )
    dtype = features.dtype.name
    default = FORMS[UNMEASURED]
    platforms = [] if spec.plane_signs else measured_platforms()
    measured = {platform: FORMS[fastest_form(platform, dtype, shape)] for platform in platforms}
    # Every branch is traced, so platforms that take the default get none.
    forms = {platform: form for platform, form in measured.items() if form is not default}
    forms["default"] = default
    if dtype == "float32" and (spec.form == "native" or takes_native(shape, spec.plane_signs)):
        forms["cpu"] = _NATIVE
    return forms


def _saves_products(
    spec: ConvSpec, features: jax.Array, filters: jax.Array, m_filters: jax.Array
) -> bool:
    """Returns whether the native kernel computes this layer and saves its products for dM."""
    planes = m_filters.shape[2]
    slices = planes if has_slices(spec.plane_signs) else 1
    in_lanes = native.has_planes_in_lanes(spec.plane_signs, filters.shape[2] // planes, planes)
    return (
        spec.form in ("auto", "native")
        and spec.m_gradient == "binary"  # otherwise dM needs the products of other filters
        and filters.shape[2] // slices >= CHANNELS_TO_SAVE
        and not in_lanes
        and jax.default_backend() == "cpu"
        and _fastest(spec, features, filters, m_filters).get("cpu") is _NATIVE
    )


def _forward_and_products(
    spec: ConvSpec, features: jax.Array, filters: jax.Array, m_filters: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Computes the output and products; the latter are zero where other forms compute."""
    arrays = features, filters, m_filters
    size = native.products_size(spec, *arrays)

    def by(form: Form, *arrays: jax.Array) -> tuple[jax.Array, jax.Array]:
        return form.forward(spec, *arrays), jnp.zeros(size, jnp.float32)

    passes = {name: functools.partial(by, form) for name, form in _fastest(spec, *arrays).items()}
    passes["cpu"] = functools.partial(native.forward_and_products, spec)
    return lax.platform_dependent(*arrays, **passes)


def _backward_from_products(
    spec: ConvSpec,
    features: jax.Array,
    filters: jax.Array,
    m_sum_filters: jax.Array,
    m_filters: jax.Array,
    cotangent: jax.Array,
    products: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    def by(form: Form, *arrays: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        return form.backward(spec, *arrays[:-1])

    forms = _fastest(spec, features, filters, m_filters)
    passes = {name: functools.partial(by, form) for name, form in forms.items()}
    passes["cpu"] = functools.partial(native.backward, spec)
    arrays = features, filters, m_sum_filters, m_filters, cotangent, products
    return lax.platform_dependent(*arrays, **passes)


def takes_native(shape: Shape, plane_signs: str = "") -> bool:
    """Returns whether "auto" takes the native form on this CPU, in float32."""
    if plane_signs:
        is_faster = native_pattern_is_faster(shape, plane_signs)
    else:
        is_faster = native_is_faster("cpu", "float32", shape)
    return is_faster and native.why_unavailable() is None


def native_pattern_is_faster(shape: Shape, plane_signs: str) -> bool:
    """Returns whether the native form of a pattern is faster than the direct form, in float32."""
    if native.has_planes_in_lanes(plane_signs, shape.in_maps, shape.planes):
        return True
    return has_slices(plane_signs) and shape.in_maps * shape.planes >= CHANNELS_TO_SLICE


_NATIVE = Form(native.forward, native.backward)

FORMS = {
    "auto": Form(_auto_forward, _auto_backward),
    "direct": Form(_direct_forward, _direct_backward),
    "factored": Form(factored.forward, factored.backward),
    "native": Form(_auto_forward, _auto_backward),
    "pallas": Form(_fused_forward, _fused_backward),
}
# The forms that compute every pattern of planes, and patterns of signs only. "auto" is one of both.
FORMS_OF_PATTERNS = "auto", "direct"
FORMS_OF_SIGNS = *FORMS_OF_PATTERNS, "factored", "native"


def mcconv(
    features: jax.Array,
    latent_filters: jax.Array,
    centers: jax.Array | None,
    m_filters: jax.Array,
    *,
    strides: tuple[int, int] = (1, 1),
    padding: str = "SAME",
    m_gradient: str = "binary",
    form: str = "auto",
    plane_signs: str = "",
) -> jax.Array:
    """Convolves features with modulated binary filters (Wang et al. 2018, Eqs. 3 to 9, 12 and 16).

    Forward:  C-hat = nearest_center(C, centers), ties to the higher center
              Q[.., c, h*K + k] = C-hat[.., c, h] * M[.., k]
              output = cross-correlation of the features with Q
    Backward: dC   = sum over k of dQ_k * M_k          straight through past C-hat (Eq. 12)
              dM_k = sum over c, h of dQ_k * C-hat     (Eq. 16)

    The default `m_gradient="binary"` is the exact derivative, which the authors' later book prints
    (its Eq. 3.26). With `m_gradient="latent"` the last line has C in place of C-hat, as the paper
    prints it.

    The centers are constants: their gradient is zero. With `centers=None` the convolution is not
    binarized (U-MCN): C replaces C-hat in all equations. Products are computed in the dtype of the
    features, binarization in the dtype of the latent filters. Each gradient has the dtype of its
    argument.

    Args:
        features: [N, Y, X, G*K]; feature map g consists of channels g*K to g*K + K - 1.
        latent_filters: C, [W, W, G*K, H], W odd.
        centers: [U], sorted, or None.
        m_filters: M, [W, W, K].
        strides: steps in y and x, in pixels.
        padding: "SAME", "VALID" or "CENTERED", see `mcn_jax.ops.conv_spec`.
        m_gradient: "binary" or "latent".
        form: a name in `FORMS`; all forms compute the same function. "auto" takes the form that was
            fastest at the most similar measured shape, see `mcn_jax.ops.fastest`. "native" is
            C++ code for CPUs and float32, see `mcn_jax.ops.native`; on other platforms and for
            other dtypes it is what "auto" takes. "pallas" is for NVIDIA GPUs; no row of the
            table names it.
        plane_signs: a name in `mcn_jax.ops.plane_signs.PATTERNS`, or "". With a pattern, plane k of
            Q has the filter's planes in another order or with other signs, and the gradients
            follow. "direct" computes every pattern, "factored" and "native" those of signs only.
            With signs only, "auto" is "native" for four and eight planes, and for two planes from
            `CHANNELS_TO_SLICE` input channels, on a CPU in float32 with the kernel. Otherwise it is
            "direct".

    Returns:
        [N, Y', X', H*K].

    Raises:
        ValueError: if shapes do not fit each other, the output is empty, a name is unknown,
            form="native" is not available on this machine, or the form or the number of planes
            does not allow the pattern.
    """
    _check_shapes(features, latent_filters, m_filters, padding)
    for name, value, allowed in (
        ("padding", padding, PADDINGS),
        ("m_gradient", m_gradient, M_GRADIENTS),
        ("form", form, FORMS),
    ):
        if value not in allowed:
            raise ValueError(f"{name}={value!r} must be one of {', '.join(allowed)}")
    if form == "native" and (reason := native.why_unavailable()) is not None:
        raise ValueError(f"form='native' cannot be used: {reason}")
    if plane_signs:
        if plane_signs not in PATTERNS:
            names = ", ".join(PATTERNS)
            raise ValueError(f"plane_signs={plane_signs!r} must be empty or one of {names}")
        if (reason := why_unsuitable(plane_signs, m_filters.shape[-1])) is not None:
            raise ValueError(f"plane_signs={plane_signs!r} {reason}")
        possible = FORMS_OF_SIGNS if has_slices(plane_signs) else FORMS_OF_PATTERNS
        if form not in possible:
            raise ValueError(
                f"form={form!r} cannot compute plane_signs={plane_signs!r}; use one of"
                f" {', '.join(possible)}"
            )
        if possible is FORMS_OF_PATTERNS:
            form = "direct"
    spec = ConvSpec(
        strides=strides, padding=padding, m_gradient=m_gradient, form=form, plane_signs=plane_signs
    )
    return _mcconv(spec, features, latent_filters, centers, m_filters)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _mcconv(
    spec: ConvSpec,
    features: jax.Array,
    latent_filters: jax.Array,
    centers: jax.Array | None,
    m_filters: jax.Array,
) -> jax.Array:
    filters = latent_filters if centers is None else nearest_center(latent_filters, centers)
    return FORMS[spec.form].forward(spec, features, filters, m_filters)


def _mcconv_fwd(
    spec: ConvSpec,
    features: jax.Array,
    latent_filters: jax.Array,
    centers: jax.Array | None,
    m_filters: jax.Array,
) -> tuple[jax.Array, Residuals]:
    # C-hat is cheaper to recompute than to keep.
    residuals = features, latent_filters, centers, m_filters
    if not _saves_products(spec, features, latent_filters, m_filters):
        return _mcconv(spec, *residuals), (*residuals, None)
    filters = latent_filters if centers is None else nearest_center(latent_filters, centers)
    output, products = _forward_and_products(spec, features, filters, m_filters)
    return output, (*residuals, products)


def _mcconv_bwd(
    spec: ConvSpec, residuals: Residuals, cotangent: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array | None, jax.Array]:
    features, latent_filters, centers, m_filters, products = residuals
    filters = latent_filters if centers is None else nearest_center(latent_filters, centers)
    m_sum_filters = latent_filters if spec.m_gradient == "latent" else filters
    arrays = features, filters, m_sum_filters, m_filters, cotangent
    if products is None:
        d_features, d_latent, d_m = FORMS[spec.form].backward(spec, *arrays)
    else:
        d_features, d_latent, d_m = _backward_from_products(spec, *arrays, products)
    d_centers = None if centers is None else jnp.zeros_like(centers)
    return d_features, d_latent, d_centers, d_m


_mcconv.defvjp(_mcconv_fwd, _mcconv_bwd)


def _check_shapes(
    features: jax.Array, latent_filters: jax.Array, m_filters: jax.Array, padding: str
) -> None:
    if features.ndim != 4 or latent_filters.ndim != 4 or m_filters.ndim != 3:
        raise ValueError(
            "MCconv takes features [N, Y, X, G*K], latent filters [W, W, G*K, H] and M-filters"
            f" [W, W, K], not {features.shape}, {latent_filters.shape} and {m_filters.shape}"
        )
    height, width, channels, _ = latent_filters.shape
    planes = m_filters.shape[-1]
    if height != width or height % 2 == 0:
        raise ValueError(f"filters of {height}x{width} taps must be square, with an odd side")
    if m_filters.shape[:2] != (height, width):
        raise ValueError(
            f"M-filters have {m_filters.shape[:2]} taps, but the filters have {(height, width)}"
        )
    if features.shape[-1] != channels:
        raise ValueError(f"features have {features.shape[-1]} channels, the filters {channels}")
    if 0 in latent_filters.shape:
        raise ValueError(f"filters of shape {latent_filters.shape} have no weights")
    if channels % planes:
        raise ValueError(f"{channels} channels are not divisible by the {planes} planes of a map")
    too_small = padding == "VALID" and min(features.shape[1:3]) < height
    if too_small or features.size == 0:
        raise ValueError(
            f"features of shape {features.shape} give an empty output with {height}x{width} taps"
            f" and padding {padding}"
        )
