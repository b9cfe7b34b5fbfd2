"""Filter maps in model files and under inspection: the map, or its bits and centers.

A file never holds the filters. They are cut out of the map when it is read, see `unpack`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mcn_jax.config import Config
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
from mcn_jax.ops.filter_map import STEP, Geometry, cut_filters

MAP = "filter_map"
# From p and s, the index of each element's center, and the centers [U] in ascending order.
Quantizer = Callable[[Leaves, Leaves], tuple[jax.Array, jax.Array]]


def geometry_of(layer: PlannedLayer) -> Geometry:
    """Returns how the filters of a layer lie in its map."""
    rows, columns, channels = layer.params[MAP]
    plane = rows // STEP, columns // STEP
    shifts = layer.out_shape[-1] // (plane[0] * plane[1])
    return Geometry((*plane, shifts), (layer.kernel_size, layer.kernel_size), channels)


def pack(quantizer: Quantizer | None, p: Leaves, s: Leaves, quantized: bool) -> dict[str, Any]:
    """Returns the bits and centers of a map; without quantization, the map itself.

    Args:
        quantizer: of the family; None if it has none.
        p: parameters of the layer.
        s: its other state.
        quantized: whether bits are stored.
    """
    filter_map = np.asarray(p[MAP])
    if quantizer is None or not quantized:
        return {MAP: filter_map.astype(np.float32)}
    with jax.enable_x64(filter_map.dtype == np.float64):
        arrays = [{name: jnp.asarray(leaf) for name, leaf in leaves.items()} for leaves in (p, s)]
        codes, centers = map(np.asarray, quantizer(*arrays))
    bits = packing.pack(codes.astype(np.uint8), len(centers))
    return {"bits": bits, "centers": centers.astype(np.float32)}


def unpack(stored: Mapping[str, jax.Array], layer: PlannedLayer) -> dict[str, jax.Array]:
    """Returns `kernel`, the filters cut out of the map, for `KernelConv`."""
    filter_map = stored.get(MAP)
    if filter_map is None:
        filter_map = center_of_each_weight(stored, layer.params[MAP])
    return {"kernel": cut_filters(filter_map, geometry_of(layer))}


def spec(
    centers_of: Callable[[Config], int] | None,
    layer: PlannedLayer,
    config: Config,
    quantized: bool,
    dtypes: Mapping[str, str],
) -> dict[str, Tensor]:
    """Describes the tensors that `pack` returns.

    Args:
        centers_of: config -> number of centers; None for a family that does not quantize.
        layer: the layer.
        config: of the network.
        quantized: whether bits are stored.
        dtypes: see `Family.spec`.
    """
    del dtypes
    shape = layer.params[MAP]
    if centers_of is None or not quantized:
        return {MAP: float32_tensor(shape, FILTERS)}
    return center_tensors(shape, centers_of(config))


def check_values(stored: Mapping[str, np.ndarray], layer: PlannedLayer) -> None:
    """Raises InputError if a code has no center, or centers are not sorted."""
    if "bits" in stored:
        check_centers(stored, layer)


def arrays(view: View) -> dict[str, np.ndarray]:
    """Collects the arrays that an inspection can show.

    Returns:
        `filter_map`, `binary_map`, `centers`, and the `filters` that are cut out of the map that
        the layer convolves with, as far as available.
    """
    found = _maps(view)
    used = found.get("binary_map", found.get(MAP))
    return found | {"filters": np.asarray(cut_filters(jnp.asarray(used), geometry_of(view.layer)))}


def _maps(view: View) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    source = view.stored if view.trained is None else view.trained
    if MAP in source:
        found[MAP] = np.asarray(source[MAP])
    if "bits" in view.stored:
        found["binary_map"] = view.stored["centers"][codes_in(view)]
        found["centers"] = view.stored["centers"]
    return found


def facts(view: View) -> dict[str, Any]:
    """Collects what an inspection prints: samples and, if quantized, centers, shares and error."""
    geometry = geometry_of(view.layer)
    record: dict[str, Any] = {
        "in_channels": geometry.channels,
        "out_channels": view.layer.out_shape[-1],
        "samples": list(geometry.samples),
    }
    if "bits" not in view.stored:
        return record
    found = _maps(view)
    record |= center_facts(view, found["centers"])
    if MAP in found:
        record["quantization_error"] = relative_error(found["binary_map"], found[MAP])
    return record


def compare(before: View, after: View) -> dict[str, float | None]:
    """Measures how a layer has changed.

    Returns:
        flip_ratio: share of elements that moved to another center; None unless both views are
            binary with the same number of centers.
        latent_drift: ||map_b - map_a|| / ||map_a||; None for model files of binary maps.
    """
    a, b = _maps(before), _maps(after)
    drift = relative_error(b[MAP], a[MAP]) if MAP in a and MAP in b else None
    return {"flip_ratio": flip_ratio(before, after), "latent_drift": drift}


def pictures(view: View) -> Pictures:
    """Returns the map as trained, the map that is convolved with, and filters cut out of it."""
    found = arrays(view)
    filters = {"filters": found["filters"]}
    filters |= {
        title: found[name][..., None]
        for name, title in ((MAP, "map"), ("binary_map", "binary map"))
        if name in found
    }
    levels = tuple(float(center) for center in found.get("centers", ()))
    return Pictures(found.get(MAP, NO_VALUES), levels, NO_VALUES, filters)


def _samples(record: Mapping[str, Any]) -> Cell:
    return "x".join(map(str, record["samples"])), record["out_channels"]


COLUMNS = {"samples": _samples, **CENTER_COLUMNS, "error": error_cell}
