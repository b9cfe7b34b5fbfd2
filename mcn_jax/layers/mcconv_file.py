"""MCconv in model files and under inspection: bits, centers and M."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mcn_jax import ops
from mcn_jax.config import Config
from mcn_jax.errors import InputError
from mcn_jax.layers.arithmetic import Arithmetic, Quantized
from mcn_jax.layers.family import (
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
from mcn_jax.layers.quantized_file import (
    CENTER_COLUMNS,
    center_facts,
    center_of_each_weight,
    center_tensors,
    check_centers,
    codes_in,
    error_cell,
    flip_ratio,
    relative_error,
)
from mcn_jax.ops import packing
from mcn_jax.ops.plane_signs import has_slices, of_plane, signs_of_slices


def codes_of(latent_filters: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """Returns the uint8 index of each weight's center, computed in the dtype of training."""
    with jax.enable_x64(latent_filters.dtype == np.float64):
        codes = jax.jit(ops.nearest_index)(jnp.asarray(latent_filters), jnp.asarray(centers))
        return np.asarray(codes, np.uint8)


def pack(p: Leaves, s: Leaves, quantized: bool) -> dict[str, np.ndarray]:
    """Returns bits, centers and M; without quantization, latent filters and M."""
    m_filters = np.asarray(p["m_filters"], np.float32)
    if not quantized:
        latent_filters = np.asarray(p["latent_filters"], np.float32)
        return {"latent_filters": latent_filters, "m_filters": m_filters}
    centers = np.asarray(s["centers"], np.float32)
    codes = codes_of(np.asarray(p["latent_filters"]), np.asarray(s["centers"]))
    bits = packing.pack(codes, len(centers))
    return {"bits": bits, "centers": centers, "m_filters": m_filters}


def unpack(stored: Mapping[str, jax.Array], layer: PlannedLayer) -> dict[str, jax.Array]:
    """Returns `filters`, each weight one of the centers, and `m_filters`, for `ModulatedConv`."""
    m_filters = stored["m_filters"].astype(jnp.float32)
    if "bits" not in stored:
        return {"filters": stored["latent_filters"], "m_filters": m_filters}
    filters = center_of_each_weight(stored, layer.params["latent_filters"])
    return {"filters": filters, "m_filters": m_filters}


def recode(stored: Mapping[str, np.ndarray], formats: Formats) -> dict[str, np.ndarray]:
    """Returns the tensors of a layer with M in another format."""
    return with_scales(stored, ("m_filters",), formats, "M-filters")


def spec(
    layer: PlannedLayer, config: Config, quantized: bool, dtypes: Mapping[str, str]
) -> dict[str, Tensor]:
    """Describes the tensors that `pack` and `recode` return."""
    shape, m_shape = layer.params["latent_filters"], layer.params["m_filters"]
    weights = int(np.prod(m_shape, dtype=object))
    m_filters = scale_tensor("m_filters", dtypes, m_shape, "M-filters", weights)
    if not quantized:
        return {"latent_filters": float32_tensor(shape, FILTERS), "m_filters": m_filters}
    return center_tensors(shape, config.binarize.num_centers) | {"m_filters": m_filters}


def arithmetic(stored: Mapping[str, np.ndarray], layer: PlannedLayer, module: Any) -> Arithmetic:
    """Describes the sums of a `ModulatedConv`.

    Raises:
        InputError: if the layer has a pattern of planes that `Arithmetic` does not describe.
    """
    pattern, m_filters = module.plane_signs, stored["m_filters"].astype(np.float32)
    if pattern and not has_slices(pattern):
        raise InputError(
            f"the layer {layer.name} has plane_signs={pattern!r}, which has no C source; use the"
            " .safetensors or the .onnx file, or train with model.plane_signs=hadamard"
        )
    signs = signs_of_slices(pattern, m_filters.shape[-1]).astype(np.float32)
    weights: Any = stored.get("latent_filters")
    if weights is None:
        codes = packing.unpack(stored["bits"], layer.params["latent_filters"])
        weights = Quantized(codes, stored["centers"])
    return Arithmetic(
        weights=weights,
        m_filters=m_filters,
        signs=signs if pattern else None,
        strides=module.strides,
        padding=module.padding,
    )


def check_values(stored: Mapping[str, np.ndarray], layer: PlannedLayer) -> None:
    """Raises InputError if M is negative, a code has no center, or centers are not sorted."""
    if stored["m_filters"].min() < 0:
        raise InputError(f"its tensor {layer.name}/m_filters has negative values")
    if "bits" in stored:
        check_centers(stored, layer)


def arrays(view: View) -> dict[str, np.ndarray]:
    """Collects the arrays of a layer that an inspection can show.

    Returns:
        `m_filters`, `latent_filters`, `binary_filters`, `centers` and `reconstructed_filters`, as
        far as available.
    """
    found = _filters(view)
    filters = found.get("binary_filters", found.get("latent_filters"))
    signs = view.layer.settings["plane_signs"]
    q = ops.reconstructed_filters(jnp.asarray(filters), jnp.asarray(found["m_filters"]), signs)
    return found | {"reconstructed_filters": np.asarray(q)}


def _filters(view: View) -> dict[str, np.ndarray]:
    """Returns `arrays` without the reconstructed filters, which are K times as large."""
    source = view.stored if view.trained is None else view.trained
    found = {
        name: np.asarray(source[name]) for name in ("m_filters", "latent_filters") if name in source
    }
    # Sums in float16 would overflow.
    m_filters = found["m_filters"]
    found["m_filters"] = m_filters.astype(np.result_type(m_filters, np.float32))
    if "bits" in view.stored:
        centers = np.asarray(source["centers"])
        found |= {"binary_filters": centers[codes_in(view)], "centers": centers}
    return found


def facts(view: View) -> dict[str, Any]:
    """Collects what an inspection prints about a layer.

    Returns:
        Maps and the range of M. For binary filters also centers, shares and, if the latent filters
        are available, the quantization error.
    """
    stored = view.stored
    *_, channels, maps = view.layer.params["latent_filters"]
    found = _filters(view)
    m_filters = found["m_filters"]
    floats = [stored[name] for name in ("m_filters", "centers") if name in stored]
    record: dict[str, Any] = {
        "in_maps": channels // m_filters.shape[-1],
        "out_maps": maps,
        "m_filters": m_filters.size,
        "m_min": float(m_filters.min()),
        "m_max": float(m_filters.max()),
        "m_and_center_bits": 8 * sum(array.nbytes for array in floats),
    }
    if "bits" in stored:
        record |= center_facts(view, found["centers"])
        if "latent_filters" in found:
            latent, binary = found["latent_filters"], found["binary_filters"]
            # The filter loss is half the sum over the planes.
            loss = ops.filter_loss(jnp.asarray(latent), jnp.asarray(binary), jnp.asarray(m_filters))
            squares = 2 * loss / m_filters.shape[-1] / np.sum(latent**2)
            record["quantization_error"] = float(np.sqrt(squares))
    return record


def compare(before: View, after: View) -> dict[str, float | None]:
    """Measures how a layer has changed.

    Returns:
        flip_ratio: share of weights that moved to another center; None unless both views are binary
            with the same number of centers.
        m_drift: ||M_b - M_a|| / ||M_a||.
        latent_drift: the same for C; None for model files.
    """
    a, b = _filters(before), _filters(after)
    drifts = {
        name: relative_error(b[name], a[name])
        for name in ("m_filters", "latent_filters")
        if name in a and name in b
    }
    return {
        "flip_ratio": flip_ratio(before, after),
        "m_drift": drifts["m_filters"],
        "latent_drift": drifts.get("latent_filters"),
    }


def pictures(view: View) -> Pictures:
    """Returns the latent filters and centers, M, and the filters of the convolution."""
    found = _filters(view)
    latent, binary = found.get("latent_filters"), found.get("binary_filters")
    filters = {} if latent is None else {"latent": latent}
    if binary is not None:
        filters["binary"] = binary
    m_filters = found["m_filters"]
    whole = next(reversed(filters.values()))
    planes, signs = m_filters.shape[-1], view.layer.settings["plane_signs"]
    for plane in range(min(planes, 4)):
        read = np.asarray(of_plane(jnp.asarray(whole), plane, planes, signs)) if signs else whole
        modulated = read * m_filters[:, :, None, None, plane]
        filters[f"reconstructed, plane {plane + 1}"] = modulated
    weights = NO_VALUES if latent is None else latent
    levels = tuple(float(center) for center in found.get("centers", ()))
    return Pictures(weights, levels, m_filters, filters)


def _range_of_m(record: Mapping[str, Any]) -> Cell:
    low, high = record["m_min"], record["m_max"]
    return f"{low:.2f}-{high:.2f}", high - low


def _floats(record: Mapping[str, Any]) -> Cell:
    """Returns the number of M and centers."""
    number = record["m_filters"] + len(record.get("centers", ()))
    return str(number), number


COLUMNS = {
    "maps": lambda record: (f"{record['in_maps']}-{record['out_maps']}", record["out_maps"]),
    "floats": _floats,
    **CENTER_COLUMNS,
    "range of M": _range_of_m,
    "error": error_cell,
}
