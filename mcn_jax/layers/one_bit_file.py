"""One-bit filters in model files and under inspection: signs and scales."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mcn_jax.config import Config
from mcn_jax.errors import InputError
from mcn_jax.layers.arithmetic import Arithmetic, Quantized
from mcn_jax.layers.family import (
    DENSE_LAYERS,
    FILTERS,
    NO_VALUES,
    Cell,
    Leaves,
    Pictures,
    PlannedLayer,
    Tensor,
    View,
    float32_tensor,
)
from mcn_jax.layers.formats import Formats, scale_tensor, with_scales
from mcn_jax.layers.quantized_file import codes_in, error_cell, flip_ratio, relative_error
from mcn_jax.ops import packing

LATENT = "latent_kernel"
SCALES, EXPONENTS = "scales", "exponents"
# The computed filters of a layer from p and s, [W, W, C, O].
FiltersOf = Callable[[Leaves, Leaves], jax.Array]


def binary_filters(filters_of: FiltersOf, p: Leaves, s: Leaves) -> np.ndarray:
    """Returns the filters of the convolution, computed in the dtype of training."""
    with jax.enable_x64(np.asarray(p[LATENT]).dtype == np.float64):
        arrays = [{name: jnp.asarray(leaf) for name, leaf in leaves.items()} for leaves in (p, s)]
        return np.asarray(filters_of(*arrays))


def pack(
    filters_of: FiltersOf, scale_leaf: str, per_filter: bool, p: Leaves, s: Leaves, quantized: bool
) -> dict[str, np.ndarray]:
    """Returns the signs and scales of a layer; without quantization, its latent filters.

    Args:
        filters_of: the layer's rule.
        scale_leaf: `SCALES`, or `EXPONENTS` if every scale is a power of two.
        per_filter: whether each filter has its own scale.
        p: parameters of the layer.
        s: its other state.
        quantized: whether signs are stored.
    """
    if not quantized:
        return {LATENT: np.asarray(p[LATENT], np.float32)}
    filters = binary_filters(filters_of, p, s)
    bits = packing.pack((~np.signbit(filters)).astype(np.uint8), num_centers=2)
    scales = np.abs(filters[0, 0, 0])[: None if per_filter else 1]
    if scale_leaf == EXPONENTS:
        return {"bits": bits, EXPONENTS: np.rint(np.log2(scales)).astype(np.int8)}
    return {"bits": bits, SCALES: scales.astype(np.float32)}


def unpack(stored: Mapping[str, jax.Array], layer: PlannedLayer) -> dict[str, jax.Array]:
    """Returns `kernel`, every weight plus or minus its scale, for `KernelConv`."""
    if LATENT in stored:
        return {"kernel": stored[LATENT]}
    scales = scales_of(stored).reshape(1, 1, 1, -1)
    positive = packing.unpack_traced(stored["bits"], layer.params[LATENT]).astype(jnp.float32)
    return {"kernel": (2 * positive - 1) * scales}


def recode(stored: Mapping[str, np.ndarray], formats: Formats) -> dict[str, np.ndarray]:
    """Returns the tensors of a layer with its scales in another format."""
    return with_scales(stored, (SCALES,), formats, "scales of one-bit filters")


def scales_of(stored: Mapping[str, Any]) -> Any:
    """Returns the scales in float32, [1] or [O]."""
    if EXPONENTS in stored:
        return 2.0 ** stored[EXPONENTS].astype(np.float32)
    return stored[SCALES].astype(np.float32)


def is_dense(layer: PlannedLayer) -> bool:
    """Returns whether a layer is a dense one of a head: a 1x1 convolution of a single pixel.

    The 1x1 convolutions of a network are none, even if a small image has become a single pixel.
    """
    is_pixel = layer.params[LATENT][:2] == layer.in_shape[:-1] == (1, 1)
    return is_pixel and layer.name.startswith("dense_")


def spec(
    scale_leaf: str,
    per_filter: bool,
    layer: PlannedLayer,
    config: Config,
    quantized: bool,
    dtypes: Mapping[str, str],
) -> dict[str, Tensor]:
    """Describes the tensors that `pack` and `recode` return."""
    del config
    shape = layer.params[LATENT]
    part = DENSE_LAYERS if is_dense(layer) else FILTERS
    if not quantized:
        return {LATENT: float32_tensor(shape, part)}
    weights, count = int(np.prod(shape, dtype=object)), shape[-1] if per_filter else 1
    if scale_leaf == EXPONENTS:
        scales = Tensor("int8", (count,), "scales", 8 * count, 0)
    else:
        scales = scale_tensor(SCALES, dtypes, (count,), "scales", 0)
    return {
        "bits": Tensor("uint8", packing.packed_shape(shape, 2), part, weights, weights),
        scale_leaf: scales,
    }


def check_values(stored: Mapping[str, np.ndarray], layer: PlannedLayer) -> None:
    """Raises InputError if a scale is negative."""
    if SCALES in stored and stored[SCALES].min() < 0:
        raise InputError(f"its tensor {layer.name}/{SCALES} has negative values")


def arithmetic(stored: Mapping[str, np.ndarray], layer: PlannedLayer, module: Any) -> Arithmetic:
    """Describes the sums of a `KernelConv` with one-bit filters, or with latent filters."""
    weights: Any
    if LATENT in stored:
        weights, scales = stored[LATENT], None
    else:
        codes = packing.unpack(stored["bits"], layer.params[LATENT])
        weights, scales = Quantized(codes, np.array([-1, 1], np.float32)), scales_of(stored)
    return Arithmetic(
        weights=weights, scales=scales, strides=module.strides, padding=module.padding
    )


def arrays(view: View) -> dict[str, np.ndarray]:
    """Collects the arrays that an inspection can show.

    Returns:
        `latent_kernel`, `binary_filters` and `scales`, as far as available.
    """
    found: dict[str, np.ndarray] = {}
    source = view.stored if view.trained is None else view.trained
    if LATENT in source:
        found[LATENT] = np.asarray(source[LATENT])
    if "bits" in view.stored:
        found["scales"] = np.asarray(scales_of(view.stored))
        found["binary_filters"] = (2 * codes_in(view).astype(np.float32) - 1) * found["scales"]
    return found


def facts(view: View) -> dict[str, Any]:
    """Collects what an inspection prints: scales, shares of both signs, quantization error."""
    *_, channels, outputs = view.layer.params[LATENT]
    record: dict[str, Any] = {"in_channels": channels, "out_channels": outputs}
    if "bits" not in view.stored:
        return record
    found = arrays(view)
    scales, share = found["scales"], float(np.mean(codes_in(view)))
    record |= {
        "scale_min": float(scales.min()),
        "scale_max": float(scales.max()),
        "shares": [1 - share, share],
    }
    if LATENT in found and EXPONENTS not in view.stored:  # those are of standardized weights
        record["quantization_error"] = relative_error(found["binary_filters"], found[LATENT])
    return record


def compare(before: View, after: View) -> dict[str, float | None]:
    """Measures how a layer has changed.

    Returns:
        flip_ratio: share of weights whose sign has changed; None unless both views are binary.
        latent_drift: ||w_b - w_a|| / ||w_a||; None for model files of binary filters.
    """
    a, b = arrays(before), arrays(after)
    drift = relative_error(b[LATENT], a[LATENT]) if LATENT in a and LATENT in b else None
    return {"flip_ratio": flip_ratio(before, after), "latent_drift": drift}


def pictures(view: View) -> Pictures:
    """Returns the latent filters, and the filters of the convolution."""
    found = arrays(view)
    filters = {
        title: found[name]
        for name, title in ((LATENT, "latent"), ("binary_filters", "binary"))
        if name in found
    }
    levels: tuple[float, ...] = ()
    if len(scales := found.get("scales", NO_VALUES)) == 1:
        levels = (-float(scales[0]), float(scales[0]))
    return Pictures(found.get(LATENT, NO_VALUES), levels, NO_VALUES, filters)


def _range_of_scales(record: Mapping[str, Any]) -> Cell:
    if "scale_min" not in record:
        return "", -1
    low, high = record["scale_min"], record["scale_max"]
    return (f"{low:.3g}" if low == high else f"{low:.3g}-{high:.3g}"), high


def _shares(record: Mapping[str, Any]) -> Cell:
    shares = record.get("shares")
    return ("", -1) if shares is None else (f"{shares[0]:.1%} {shares[1]:.1%}", shares[0])


COLUMNS = {"scales": _range_of_scales, "shares": _shares, "error": error_cell}
