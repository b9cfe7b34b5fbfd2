"""Joins the tensors of a network's layers into a few large ones for a file, and splits them again.

The description of a tensor in a safetensors file takes more bytes than most tensors of a small
network. So a file holds one tensor for each part of all layers, such as all bits or all M-filters:
the values of the layers one after another, in call order, each in row-major order. A reader splits
it again, because the shapes follow from the network.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from mcn_jax.config import Config
from mcn_jax.errors import InputError
from mcn_jax.layers.family import Family
from mcn_jax.models.plan import Plan


def own_tensors(tensors: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Returns the tensors of one layer by leaf name."""
    prefix = f"{name}/"
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def joined_prefix(family: Family) -> str:
    """Returns what precedes the leaf names of a family's layers in the names of joined tensors.

    Parts of convolutions have nothing before them. The others have their kind, such as in
    "batch_norm/scale" and "dense/kernel", whose numbers may have another format.
    """
    return "" if family.filters is not None else f"{family.kind.replace(' ', '_')}/"


def join(tensors: Mapping[str, np.ndarray], plan: Plan) -> dict[str, np.ndarray]:
    """Returns {"bits": [all bits of the network], "batch_norm/scale": ..., ...}, one axis each.

    Args:
        tensors: of all layers, such as {"conv_1/bits": ...}.
        plan: the layers of the network.

    Raises:
        InputError: if a part has more than one dtype.
    """
    parts: dict[str, list[np.ndarray]] = {}
    for layer in plan:
        for leaf, tensor in own_tensors(tensors, layer.name).items():
            parts.setdefault(joined_prefix(layer.family) + leaf, []).append(tensor.ravel())
    for name, values in parts.items():
        if len(dtypes := {value.dtype.name for value in values}) > 1:
            raise InputError(f"its layers hold {name} as {' and '.join(sorted(dtypes))}")
    return {name: np.concatenate(values) for name, values in parts.items()}


def split(
    joined: Mapping[str, np.ndarray], plan: Plan, config: Config, quantized: bool
) -> dict[str, np.ndarray]:
    """Returns the tensors of all layers, as views.

    Args:
        joined: as `join` returns them, but from a file that may be untrusted.
        plan: the layers of the network.
        config: of the network.
        quantized: whether quantized weights are stored.

    Raises:
        InputError: naming a tensor that is missing, unexpected or of the wrong size.
    """
    places: dict[str, list[tuple[str, tuple[int, ...]]]] = {}
    for layer in plan:
        prefix = joined_prefix(layer.family)
        dtypes = {
            name.removeprefix(prefix): tensor.dtype.name
            for name, tensor in joined.items()
            if name.startswith(prefix)
        }
        for leaf, tensor in layer.family.spec(layer, config, quantized, dtypes).items():
            places.setdefault(prefix + leaf, []).append((f"{layer.name}/{leaf}", tensor.shape))
    for name in joined:
        if name not in places:
            raise InputError(f"its tensor {name!a:.100} does not belong to its network")
    tensors: dict[str, np.ndarray] = {}
    for name, members in places.items():
        if name not in joined:
            raise InputError(f"its tensor {name} is missing")
        sizes = [math.prod(shape) for _, shape in members]
        if joined[name].shape != (sum(sizes),):
            raise InputError(
                f"its tensor {name} has the shape {list(joined[name].shape)} instead of"
                f" {[sum(sizes)]}"
            )
        start = 0
        for (own, shape), size in zip(members, sizes, strict=True):
            tensors[own] = joined[name][start : start + size].reshape(shape)
            start += size
    return tensors
