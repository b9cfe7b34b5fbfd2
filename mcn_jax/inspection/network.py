"""What a network is made of, read from a work directory, a checkpoint or a model file."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from mcn_jax import model_file, ops
from mcn_jax.config import did_you_mean
from mcn_jax.errors import InputError
from mcn_jax.layers import modulated_layers
from mcn_jax.model_header import Network
from mcn_jax.ops import packing
from mcn_jax.trained import Trained, checkpoint_of, read_trained
from mcn_jax.workdir import read_metrics


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layer:
    """The filters of one MCconv.

    latent_filters: C, [W, W, G*K, H]; None of a model file, which has none.
    filters: those that convolve: C-hat, or C where they are not binary.
    codes: index of the center of each weight; None where filters are not binary.
    centers: [U]; None where filters are not binary.
    m_filters: M, [W, W, K].
    """

    latent_filters: np.ndarray | None
    filters: np.ndarray
    codes: np.ndarray | None
    centers: np.ndarray | None
    m_filters: np.ndarray

    def binary_as(self, other: "Layer") -> bool:
        """Whether the filters of both are binary, with as many centers."""
        if self.centers is None or other.centers is None:
            return False
        return len(self.centers) == len(other.centers)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inspected:
    """A network that is looked into.

    layers: of every MCconv, in the order of the network.
    arrays: everything else it is made of, {"dense_1/kernel": ...}.
    file_bytes: of the model file, or of all files of the checkpoint.
    stored: the tensors of its model file, see `mcn_jax.model_file.packed_tensors`.
    records: of metrics.jsonl up to this checkpoint; none of a model file.
    """

    path: pathlib.Path
    network: Network
    image_shape: tuple[int, int, int]
    num_classes: int
    file_bytes: int
    layers: Mapping[str, Layer]
    arrays: Mapping[str, np.ndarray]
    stored: Mapping[str, np.ndarray]
    records: list[dict[str, Any]]


def inspect(path: str | pathlib.Path) -> Inspected:
    """Reads a work directory, a checkpoint or a model file.

    Raises:
        InputError: if it is none of these, is damaged, or of another version.
    """
    path = pathlib.Path(path)
    if path.is_file():
        if path.suffix != ".safetensors":
            raise InputError(f"{path} is no .safetensors file, work directory or checkpoint")
        return _of_model(path, model_file.read_model(path))
    if not path.is_dir() and not checkpoint_of(path):
        raise InputError(
            f"{path} does not exist; name a work directory, such as runs/digits, a checkpoint in it"
            " or a .safetensors file"
        )
    return _of_trained(path, read_trained(path))


def _of_trained(path: pathlib.Path, trained: Trained) -> Inspected:
    params, binary = trained.variables["params"], trained.binary
    all_centers = traverse_util.flatten_dict(trained.variables["centers"])
    layers = {}
    for place, layer in modulated_layers(params).items():
        latent = np.asarray(layer["latent_filters"])
        centers = np.asarray(all_centers[*place, "centers"]) if binary else None
        codes = None
        if centers is not None:
            codes = model_file.codes_of(latent, centers)
        layers["/".join(place)] = Layer(
            latent_filters=latent,
            filters=latent if codes is None or centers is None else centers[codes],
            codes=codes,
            centers=centers,
            m_filters=np.asarray(layer["m_filters"]),
        )
    flat = traverse_util.flatten_dict(trained.variables, sep="/")
    others = {
        name.partition("/")[2]: np.asarray(leaf)
        for name, leaf in flat.items()
        if not name.endswith(("/latent_filters", "/m_filters", "/centers"))
    }
    last = trained.epoch["step"]
    return Inspected(
        path=path,
        network=model_file.network_of(trained.config, binary=binary),
        image_shape=tuple(trained.data["image_shape"]),
        num_classes=len(trained.data["class_names"]),
        file_bytes=trained.file_bytes,
        layers=layers,
        arrays=others,
        stored=model_file.packed_tensors(trained.variables, binary=binary, dense="float32"),
        records=read_metrics(trained.workdir / "metrics.jsonl", last),
    )


def _of_model(path: pathlib.Path, model: model_file.Model) -> Inspected:
    variables = model.variables
    layers = {}
    for place, layer in modulated_layers(variables["params"]).items():
        name = "/".join(place)
        filters, centers, codes = np.asarray(layer["latent_filters"]), None, None
        if model.network.num_centers:
            centers = model.tensors[f"{name}/centers"]
            codes = packing.unpack(model.tensors[f"{name}/bits"], filters.shape)
        layers[name] = Layer(
            latent_filters=None if centers is not None else filters,
            filters=filters,
            codes=codes,
            centers=centers,
            m_filters=np.asarray(layer["m_filters"]),
        )
    others = {
        name: tensor
        for name, tensor in model.tensors.items()
        if name.rpartition("/")[0] not in layers
    }
    return Inspected(
        path=path,
        network=model.network,
        image_shape=model.images.shape,
        num_classes=len(model.class_names),
        file_bytes=path.stat().st_size,
        layers=layers,
        arrays=others,
        stored=model.tensors,
        records=[],
    )


def array_of(inspected: Inspected, name: str) -> np.ndarray:
    """One array, such as "conv_1/binary_filters" or "dense_1/kernel".

    An MCconv has `latent_filters`, `binary_filters`, `centers`, `m_filters` and
    `reconstructed_filters`, as far as there are any. "layers/3/binary_filters" is that of the third
    MCconv.

    Raises:
        InputError: if there is none of this name, naming the nearest.
    """
    path, _, last = name.rpartition("/")
    numbered = {f"layers/{number}": p for number, p in enumerate(inspected.layers, start=1)}
    path = numbered.get(path, path)
    if path in inspected.layers:
        found = arrays_of(inspected.layers[path])
        if last in found:
            return found[last]
    elif name in inspected.arrays:
        return inspected.arrays[name]
    known = [*inspected.arrays]
    known += [f"{p}/{n}" for p, layer in inspected.layers.items() for n in arrays_of(layer)]
    raise InputError(
        f"{inspected.path} has no array {name!r}{did_you_mean(name, known)}; they are"
        f" {', '.join(known[:4])}, ..."
    )


def arrays_of(layer: Layer) -> dict[str, np.ndarray]:
    """The arrays of an MCconv by their names, see `array_of`."""
    found = {"m_filters": layer.m_filters}
    if layer.latent_filters is not None:
        found["latent_filters"] = layer.latent_filters
    if layer.centers is not None:
        found |= {"binary_filters": layer.filters, "centers": layer.centers}
    q = ops.reconstructed_filters(jnp.asarray(layer.filters), jnp.asarray(layer.m_filters))
    return found | {"reconstructed_filters": np.asarray(q)}
