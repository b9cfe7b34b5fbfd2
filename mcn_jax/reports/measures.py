"""Measures the costs and weights of layers, and the differences between two networks."""

from typing import Any

import numpy as np

from mcn_jax.errors import InputError
from mcn_jax.layers.family import DENSE_LAYERS, FILTERS, PlannedLayer
from mcn_jax.models.plan import specs
from mcn_jax.reports.inspected import Inspected


def describe(inspected: Inspected) -> dict[str, Any]:
    """Returns everything that the inspection command prints, as numbers.

    Returns:
        "path": the path of the network.
        "layers": one record per layer, quantizable layers first. It has "layer", "kind", "shape",
            "weights", "bits" (of its weights in a model file) and "float32_bits". Convolutions also
            have "multiply_adds_direct" and other forms, for one image. Dense layers with one-bit
            weights have "multiply_adds_dense". `Family.facts` adds more.
        "totals": over all layers.
            "filter_bits" and "float32_filter_bits" are the bits of all convolutions.
            "bits" and "float32_bits" are the bits of everything.
            "multiply_adds_direct" and "multiply_adds_factored" are sums over the convolutions that
            have the form, for one image. Dense layers are not counted, even with one-bit weights.
            "file_bytes" is the size of the file, or of all files of the checkpoint.
    """
    dtypes = {name: tensor.dtype.name for name, tensor in inspected.stored.items()}
    tensors = specs(inspected.plan, *inspected.network, dtypes)
    quantizable_first = sorted(inspected.plan, key=lambda layer: not layer.family.quantizes)
    records = [_record(inspected, layer) for layer in quantizable_first]
    filters = [tensor for tensor in tensors.values() if tensor.part == FILTERS]

    def total(name: str) -> int:
        return sum(record.get(name, 0) for record in records)

    totals = {
        "filter_bits": sum(tensor.bits for tensor in filters),
        "float32_filter_bits": sum(32 * tensor.weights for tensor in filters),
        "bits": sum(tensor.bits for tensor in tensors.values()),
        "float32_bits": sum(32 * tensor.weights for tensor in tensors.values()),
        "multiply_adds_direct": total("multiply_adds_direct"),
        "multiply_adds_factored": total("multiply_adds_factored"),
        "file_bytes": inspected.file_bytes,
    }
    return {"path": str(inspected.path), "layers": records, "totals": totals}


def _record(inspected: Inspected, layer: PlannedLayer) -> dict[str, Any]:
    view = inspected.view(layer.name)
    dtypes = {leaf: tensor.dtype.name for leaf, tensor in view.stored.items()}
    spec = layer.family.spec(layer, *inspected.network, dtypes)
    tensors = list(spec.values())
    shape = max(layer.params.values(), key=np.prod, default=())
    if layer.family.filters is not None:
        tensors = [tensor for tensor in tensors if tensor.part in (FILTERS, DENSE_LAYERS)]
        shape = layer.params[layer.family.filters]
    adds = layer.family.multiply_adds(layer)
    return {
        "layer": layer.name,
        "kind": layer.family.kind,
        "shape": list(shape),
        "weights": sum(tensor.weights for tensor in tensors),
        "bits": sum(tensor.bits for tensor in tensors),
        "float32_bits": sum(32 * tensor.weights for tensor in tensors),
        **{f"multiply_adds_{form}": number for form, number in adds.items()},
        **layer.family.facts(view),
    }


def compare(a: Inspected, b: Inspected) -> list[dict[str, Any]]:
    """Returns what has changed from `a` to `b`, in every layer whose family can compare.

    Returns:
        One record per layer: "layer", and the result of `Family.compare`.

    Raises:
        InputError: if the two are not the same network.
    """
    shapes_a, shapes_b = (
        [(name, view.layer.params) for name, view in inspected.quantizable.items()]
        for inspected in (a, b)
    )
    if not shapes_a or shapes_a != shapes_b:
        raise InputError(
            f"{a.path} and {b.path} cannot be compared: they do not have the same quantizable"
            " layers"
        )
    return [
        {"layer": name, **view.layer.family.compare(view, b.quantizable[name])}
        for name, view in a.quantizable.items()
        if view.layer.family.compare is not None
    ]
