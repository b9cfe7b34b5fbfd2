"""Reads a network for inspection from a work directory, a checkpoint or a model file."""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from mcn_jax.deploy import model_file
from mcn_jax.deploy.header import Network
from mcn_jax.deploy.joined import own_tensors
from mcn_jax.errors import InputError, did_you_mean
from mcn_jax.layers.family import View
from mcn_jax.models.plan import Plan
from mcn_jax.workdirs.files import read_metrics
from mcn_jax.workdirs.trained import Trained, checkpoint_of, read_trained


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inspected:
    """A network to inspect.

    Attributes:
        path: the path that it was read from.
        network: its architecture.
        plan: its layers, in call order.
        file_bytes: size of the model file, or of all files of the checkpoint.
        stored: the tensors of its model file; see `mcn_jax.deploy.model_file.packed_tensors`.
        variables: the collections of a checkpoint; None for a model file.
        records: lines of metrics.jsonl up to this checkpoint; empty for a model file.
    """

    path: pathlib.Path
    network: Network
    plan: Plan
    file_bytes: int
    stored: Mapping[str, np.ndarray]
    variables: Mapping[str, Any] | None
    records: list[dict[str, Any]]

    def view(self, name: str) -> View:
        """Returns the layer of this name as its family sees it."""
        layer = next(layer for layer in self.plan if layer.name == name)
        trained = None
        if self.variables is not None:
            leaves = layer.params_in(self.variables["params"]) | layer.state_in(self.variables)
            trained = {leaf: np.asarray(value) for leaf, value in leaves.items()}
        return View(layer, own_tensors(self.stored, name), trained)

    @functools.cached_property
    def quantizable(self) -> dict[str, View]:
        """The layers that can have quantized weights, by name."""
        return {layer.name: self.view(layer.name) for layer in self.plan if layer.family.quantizes}


def inspect(path: str | pathlib.Path) -> Inspected:
    """Reads a work directory, a checkpoint or a model file.

    Raises:
        InputError: if the path is none of these, is damaged, or has an unsupported version.
    """
    path = pathlib.Path(path)
    if path.is_file():
        if path.suffix != ".safetensors":
            raise InputError(f"{path} is not a .safetensors file, work directory or checkpoint")
        return _of_model(path, model_file.read_model(path))
    if not path.is_dir() and not checkpoint_of(path):
        raise InputError(
            f"{path} does not exist; name a work directory, such as runs/digits, a checkpoint in it"
            " or a .safetensors file"
        )
    return _of_trained(path, read_trained(path))


def _of_trained(path: pathlib.Path, trained: Trained) -> Inspected:
    plan = model_file.plan_of_trained(trained)
    last = trained.epoch["step"]
    return Inspected(
        path=path,
        network=Network(trained.config, trained.binary),
        plan=plan,
        file_bytes=trained.file_bytes,
        stored=model_file.packed_tensors(trained.variables, plan, trained.binary),
        variables=trained.variables,
        records=read_metrics(trained.workdir / "metrics.jsonl", last),
    )


def _of_model(path: pathlib.Path, model: model_file.Model) -> Inspected:
    return Inspected(
        path=path,
        network=model.network,
        plan=model.plan,
        file_bytes=path.stat().st_size,
        stored=model.tensors,
        variables=None,
        records=[],
    )


def array_of(inspected: Inspected, name: str) -> np.ndarray:
    """Returns one array, such as "conv_1/binary_filters" or "dense_1/kernel".

    A quantizable layer has the arrays that its family names. Any other layer has the parameters and
    statistics of a checkpoint, or the tensors of a model file. "layers/3/binary_filters" means the
    binary filters of the third quantizable layer.

    Raises:
        InputError: if no array has this name; the error suggests the nearest name.
    """
    for number, (path, view) in enumerate(inspected.quantizable.items(), start=1):
        for prefix in (f"{path}/", f"layers/{number}/"):
            if name.startswith(prefix):
                found = view.layer.family.arrays(view)
                if (leaf := name.removeprefix(prefix)) in found:
                    return found[leaf]
    others = _other_arrays(inspected)
    if name in others:
        return others[name]
    known = [*others]
    for p, view in inspected.quantizable.items():
        known += [f"{p}/{n}" for n in view.layer.family.arrays(view)]
    raise InputError(
        f"{inspected.path} has no array {name!r}{did_you_mean(name, known)}; its arrays are"
        f" {', '.join(known[:4])}, ..."
    )


def _other_arrays(inspected: Inspected) -> dict[str, np.ndarray]:
    """Returns {"dense_1/kernel": ...}, the arrays of all layers that are not quantizable."""
    if inspected.variables is None:
        arrays = dict(inspected.stored)
    else:
        flat = traverse_util.flatten_dict(inspected.variables, sep="/")
        arrays = {name.partition("/")[2]: np.asarray(leaf) for name, leaf in flat.items()}
    prefixes = tuple(f"{name}/" for name in inspected.quantizable)
    return {name: array for name, array in arrays.items() if not name.startswith(prefixes)}
