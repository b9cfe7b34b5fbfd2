"""What layers with quantized weights share in model files and under inspection.

Each weight is stored as a code of one bit or more. In most layers, a code is the index of one of
the layer's `centers`, which are stored in ascending order.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from mcn_jax.errors import InputError
from mcn_jax.layers.family import FILTERS, Cell, PlannedLayer, Tensor, View
from mcn_jax.ops import packing


def center_tensors(shape: tuple[int, ...], num_centers: int) -> dict[str, Tensor]:
    """Describes the codes and centers of weights of a shape."""
    weights = int(np.prod(shape, dtype=object))
    bits = weights * packing.bits_per_weight(num_centers)
    packed = packing.packed_shape(shape, num_centers)
    return {
        "bits": Tensor("uint8", packed, FILTERS, bits, weights),
        "centers": Tensor("float32", (num_centers,), "centers", 32 * num_centers, 0),
    }


def center_of_each_weight(stored: Mapping[str, jax.Array], shape: tuple[int, ...]) -> jax.Array:
    """Returns quantized weights; it is traceable.

    Args:
        stored: tensors of the layer, which `check_centers` has accepted.
        shape: of the weights.
    """
    codes = packing.unpack_traced(stored["bits"], shape)
    return stored["centers"].at[codes].get(mode="promise_in_bounds", wrap_negative_indices=False)


def check_centers(stored: Mapping[str, np.ndarray], layer: PlannedLayer) -> None:
    """Raises InputError if a code has no center, or centers are not sorted."""
    codes = packing.unpack(stored["bits"], _shape(layer))
    if codes.max() >= len(stored["centers"]):
        raise InputError(f"its tensor {layer.name}/bits has codes without a center")
    if np.any(np.diff(stored["centers"]) < 0):
        raise InputError(f"its tensor {layer.name}/centers is not in ascending order")


def codes_in(view: View) -> np.ndarray:
    """Returns the code of each weight, in the shape of the layer's filters."""
    return packing.unpack(view.stored["bits"], _shape(view.layer))


def _shape(layer: PlannedLayer) -> tuple[int, ...]:
    assert layer.family.filters is not None
    return layer.params[layer.family.filters]


def center_facts(view: View, centers: np.ndarray) -> dict[str, Any]:
    """Returns the centers and the share of weights at each one."""
    counts = np.bincount(codes_in(view).ravel(), minlength=len(centers))
    return {
        "centers": [float(center) for center in centers],
        "shares": [float(share) for share in counts / counts.sum()],
    }


def flip_ratio(before: View, after: View) -> float | None:
    """Returns the share of weights whose code has changed.

    It is None unless both views are quantized with the same number of centers.
    """
    quantized = all("bits" in view.stored for view in (before, after))
    numbers = {len(view.stored.get("centers", ())) for view in (before, after)}
    if not quantized or len(numbers) > 1:
        return None
    return float(np.mean(codes_in(before) != codes_in(after)))


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Returns ||found - expected|| / ||expected||."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def error_cell(record: Mapping[str, Any]) -> Cell:
    """Returns the table cell of the fact `quantization_error`."""
    error = record.get("quantization_error")
    return ("", -1) if error is None else (f"{error:.3f}", error)


CENTER_COLUMNS = {
    "centers": lambda record: (
        " ".join(f"{center:.3g}" for center in record.get("centers", ())),
        record.get("centers", [0])[-1],
    ),
    "shares": lambda record: (
        " ".join(f"{share:.1%}" for share in record.get("shares", ())),
        record.get("shares", [0])[0],
    ),
}
