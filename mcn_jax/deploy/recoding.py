"""Stores the numbers of a model file in other formats, and says what that would save."""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from mcn_jax.deploy.header import Network
from mcn_jax.deploy.joined import own_tensors
from mcn_jax.deploy.model_file import Model, parts
from mcn_jax.errors import InputError
from mcn_jax.layers.family import PlannedLayer
from mcn_jax.layers.formats import SMALLEST, Formats

# The smallest choice of each option of the export.
CHOICES = {
    "--dense=int8": Formats(dense=SMALLEST.dense),
    "--scales=float16": Formats(scales=SMALLEST.scales),
}


class Saving(NamedTuple):
    """What an option would change.

    Attributes:
        parts: names of the parts that would be smaller, as in `parts`.
        there: their bytes in the file.
        smaller: their bytes with the option.
    """

    parts: tuple[str, ...]
    there: int
    smaller: int


def recoded(model: Model, formats: Formats) -> Model:
    """Returns a model with its float32 numbers in other formats; "float32" leaves them unchanged.

    Raises:
        InputError: if numbers are stored in another of the smaller formats already, or do not fit.
    """
    tensors: dict[str, np.ndarray] = {}
    for layer in model.plan:
        stored = _recoded(layer, own_tensors(model.tensors, layer.name), model.network, formats)
        tensors |= {f"{layer.name}/{leaf}": tensor for leaf, tensor in stored.items()}
    return dataclasses.replace(model, tensors=tensors)


def _recoded(
    layer: PlannedLayer, stored: Mapping[str, np.ndarray], network: Network, formats: Formats
) -> Mapping[str, np.ndarray]:
    """Returns the tensors of one layer in other formats."""
    if layer.family.recode is None:
        return stored
    spec = layer.family.spec(layer, *network, {})
    unchanged = {leaf: np.ones(tensor.shape, tensor.dtype) for leaf, tensor in spec.items()}
    if _dtypes(stored) == _dtypes(unchanged):
        return layer.family.recode(stored, formats)
    wanted = layer.family.recode(unchanged, formats)
    if _dtypes(wanted) not in (_dtypes(stored), _dtypes(unchanged)):
        raise InputError(
            f"the layer {layer.name} is no longer stored in float32, so its format cannot be"
            " changed; export the run again"
        )
    return stored


def _dtypes(tensors: Mapping[str, np.ndarray]) -> dict[str, str]:
    return {leaf: tensor.dtype.name for leaf, tensor in tensors.items()}


def savings(model: Model) -> dict[str, Saving]:
    """Returns what the options of the export would save that have not been chosen, by option."""
    found: dict[str, Saving] = {}
    there = {part: size for part, (size, _) in parts(model).items()}
    for option, formats in CHOICES.items():
        try:
            sizes = parts(recoded(model, formats))
        except InputError:  # another smaller format was chosen, or the numbers do not fit
            continue
        smaller = {part: size for part, (size, _) in sizes.items() if size < there[part]}
        if smaller:
            before = sum(there[part] for part in smaller)
            found[option] = Saving(tuple(smaller), before, sum(smaller.values()))
    return found
