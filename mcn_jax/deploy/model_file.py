"""Writes and reads model files: networks for inference, with few bits per quantized weight.

A model file is a `.safetensors` file. Its metadata entry "mcn_jax" is a JSON object with all other
information that inference needs. Its tensors are those of all layers, joined; files of version 1
hold them one by one. docs/format.md specifies both, so a reader can be written in another language.
Loading an untrusted file runs no code. Its header is checked against its tensors before memory is
allocated for the network.
"""

import collections
import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from mcn_jax import models
from mcn_jax.deploy.header import (
    MAX_TENSORS,
    InputImages,
    Network,
    class_names_from_json,
    full_name_from_json,
    images_from_json,
    network_from_json,
)
from mcn_jax.deploy.header_text import header_text, with_defaults
from mcn_jax.deploy.joined import join, own_tensors, split
from mcn_jax.errors import InputError, first_line
from mcn_jax.layers.family import Tensor
from mcn_jax.layers.formats import FLOAT32, Formats
from mcn_jax.models.plan import Plan, plan_of, specs
from mcn_jax.training.phases import quantizes
from mcn_jax.workdirs.files import write_bytes_atomically
from mcn_jax.workdirs.trained import Trained

# Fields of the data's config that identify the test images, but not their location.
DATA_FIELDS = ("name", "train_split", "test_split", "test_fraction", "split_seed")
KEY = "mcn_jax"
# Errors that safetensors and JSON raise for an invalid file. safetensors raises AttributeError for
# dtypes that NumPy does not have.
READ_ERRORS = (
    safetensors.SafetensorError, ValueError, TypeError, KeyError, AttributeError, RecursionError,
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """The content of a model file.

    Attributes:
        network: the architecture.
        images: the images that the network takes.
        class_names: of the logits.
        provenance: describes the training run and its data. Logits do not depend on it.
        tensors: of all layers, such as {"conv_1/bits": ...}.
    """

    network: Network
    images: InputImages
    class_names: tuple[str, ...]
    provenance: Mapping[str, Any]
    tensors: Mapping[str, np.ndarray]

    @property
    def plan(self) -> Plan:
        """The layers of the network."""
        return self.network.plan(len(self.class_names), self.images.shape)

    @functools.cached_property
    def module(self) -> nn.Module:
        """The network for inference. `unpacked` computes its parameters from the tensors."""
        config, quantized = self.network
        num_classes = len(self.class_names)
        return models.make_model(config, num_classes, quantized=quantized, deployed=True)

    def unpacked(self, tensors: Mapping[str, jax.Array]) -> dict[str, Any]:
        """Returns the "params" collection of `module` for these tensors; JAX can trace it."""
        params: dict[str, Any] = {}
        for layer in self.plan:
            if layer.family.unpacks_early:
                with jax.ensure_compile_time_eval():
                    own = layer.family.unpack(own_tensors(self.tensors, layer.name), layer)
            else:
                own = layer.family.unpack(own_tensors(tensors, layer.name), layer)
            params |= {f"{layer.name}/{leaf}": value for leaf, value in own.items()}
        return traverse_util.unflatten_dict(params, sep="/")


def model_of(
    trained: Trained,
    stored_shape: tuple[int | None, ...],
    formats: Formats = FLOAT32,
) -> Model:
    """Returns the model file's content for a trained network.

    Args:
        trained: from `read_trained`.
        stored_shape: (Y, X, C) of the data set's images as stored, None where they differ in size.
        formats: how numbers are stored.

    Raises:
        InputError: if the config asks for binary filters but training has not reached them yet, or
            if a reader would refuse the file.
    """
    config = trained.config
    if quantizes(config) and not trained.binary:
        raise InputError(
            f"{trained.workdir} has no binary filters yet, after epoch"
            f" {trained.epoch['epoch'] + 1}; they start with epoch"
            f" {config.binarize.start_epoch + 1}"
        )
    tensors = packed_tensors(trained.variables, plan_of_trained(trained), trained.binary, formats)
    model = described(trained, stored_shape, tensors)
    # Never write a file that a reader would refuse.
    _model(json.loads(header(model)), join(model.tensors, model.plan))
    return model


def described(
    trained: Trained, stored_shape: tuple[int | None, ...], tensors: Mapping[str, np.ndarray]
) -> Model:
    """Returns the model file's content for a trained network whose tensors are already packed.

    Args:
        trained: from `read_trained`; its variables are not read.
        stored_shape: as in `model_of`.
        tensors: as `packed_tensors` returns them.
    """
    data = {name: getattr(trained.config.data, name) for name in DATA_FIELDS}
    return Model(
        network=Network(trained.config, trained.binary),
        images=images_of(trained, stored_shape),
        class_names=tuple(trained.data["class_names"]),
        provenance={
            "epoch": trained.epoch["epoch"] + 1,
            "step": trained.epoch["step"],
            "test_accuracy": trained.epoch["test_accuracy"],
            "git_revision": trained.git_revision,
            "data": data | {"full_name": trained.data["full_name"]},
        },
        tensors=tensors,
    )


def plan_of_trained(trained: Trained) -> Plan:
    """Returns the layers of a trained network."""
    shape = trained.data["image_shape"]
    return plan_of(trained.config, len(trained.data["class_names"]), tuple(shape))


def images_of(trained: Trained, stored_shape: tuple[int | None, ...]) -> InputImages:
    """Returns the images that a trained network takes; `stored_shape` is as in `model_of`."""
    config, (height, width, _) = trained.config.data, stored_shape
    size = config.image_size
    return InputImages(
        height=height or size,
        width=width or size,
        channels=trained.data["image_shape"][2],
        image_size=size if height else 0,
        center_crop=config.center_crop,
        mean=tuple(trained.data["mean"]),
        std=tuple(trained.data["std"]),
        background=config.background,
        exif_orientation=config.exif_orientation,
    )


def packed_tensors(
    variables: Mapping[str, Any],
    plan: Plan,
    quantized: bool,
    formats: Formats = FLOAT32,
) -> dict[str, np.ndarray]:
    """Returns the tensors of all layers in a model file.

    Args:
        variables: "params" and the other collections of the trained network.
        plan: the layers of the network.
        quantized: whether to store quantized weights, for layers that have them.
        formats: how numbers are stored.
    """
    tensors: dict[str, np.ndarray] = {}
    for layer in plan:
        p, s = layer.params_in(variables["params"]), layer.state_in(variables)
        stored = layer.family.pack(p, s, quantized)
        if layer.family.recode is not None:
            stored = layer.family.recode(stored, formats)
        tensors |= {f"{layer.name}/{leaf}": value for leaf, value in stored.items()}
    return tensors


def write_model(model: Model, path: pathlib.Path) -> None:
    """Writes a model file atomically: a concurrent reader finds the old file or the new one."""
    write_bytes_atomically(path, serialized(model))


def serialized(model: Model) -> bytes:
    """Returns the bytes of a model file."""
    return safetensors.numpy.save(join(model.tensors, model.plan), metadata={KEY: header(model)})


def header(model: Model) -> str:
    """Returns everything in a model file except the tensors, as JSON."""
    return header_text(model.network, model.images, model.class_names, model.provenance)


def _filter_shapes(plan: Plan) -> dict[str, list[int]]:
    """Returns the "filter_shapes" of version 1: {"conv_1": [W, W, G*K, H], ...}."""
    return {
        layer.name: list(layer.params[layer.family.filters])
        for layer in plan
        if layer.family.quantizes and layer.family.filters is not None
    }


def parts(model: Model) -> dict[str, tuple[int, int]]:
    """Returns the size of each part, as {"filters": (bytes in the file, bytes in float32), ...}.

    Centers and scales count as 0 bytes in float32, because float32 weights do not need them.
    """
    sizes: collections.Counter[str] = collections.Counter()
    float32: collections.Counter[str] = collections.Counter()
    for name, tensor in _specs(model).items():
        sizes[tensor.part] += model.tensors[name].nbytes
        float32[tensor.part] += 4 * tensor.weights
    return {part: (size, float32[part]) for part, size in sizes.items()}


def _specs(model: Model) -> dict[str, Tensor]:
    dtypes = {name: tensor.dtype.name for name, tensor in model.tensors.items()}
    return specs(model.plan, *model.network, dtypes)


def read_model(path: str | pathlib.Path) -> Model:
    """Reads a model file, which may be untrusted.

    Raises:
        InputError: naming what is wrong, if the file is not a model file, is damaged, or has an
            unsupported version.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist; name a model file, such as model.safetensors")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            header_text = (file.metadata() or {}).get(KEY)
            if header_text is None:
                raise InputError(
                    f'{path} has no "{KEY}" in its metadata: it is not a model file of mcn_jax'
                )
            header = json.loads(header_text)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except InputError:
        raise
    except READ_ERRORS as error:
        raise InputError(
            f"{path} is not a complete model file ({first_line(error)}); export it again"
        ) from error
    try:
        model = _model(header, tensors)
        check_tensors(model)
    except (InputError, ValueError, TypeError, OverflowError) as error:
        raise InputError(f"{path} cannot be used: {first_line(error)}; export it again") from error
    return model


def _model(header: Any, tensors: dict[str, np.ndarray]) -> Model:
    """Checks a header and the sizes of tensors, and returns the model that both describe."""
    header = with_defaults(header)
    is_joined = header["version"] > 1
    images = images_from_json(header.get("images"))
    names = class_names_from_json(header.get("class_names"))
    provenance = header.get("provenance")
    full_name_from_json(provenance)
    num_bytes = sum(tensor.nbytes for tensor in tensors.values())
    num_tensors = MAX_TENSORS if is_joined else len(tensors)
    network = network_from_json(header.get("network"), images, len(names), num_tensors, num_bytes)
    plan = network.plan(len(names), images.shape)
    if is_joined:
        tensors = split(tensors, plan, *network)
    elif header.get("filter_shapes") != _filter_shapes(plan):
        raise InputError("its filter_shapes do not match its network")
    return Model(
        network=network,
        images=images,
        class_names=names,
        provenance=provenance if isinstance(provenance, dict) else {},
        tensors=tensors,
    )


def check_tensors(model: Model) -> None:
    """Checks every tensor of a file.

    Raises:
        InputError: naming the tensor that is missing, unexpected, not finite, of the wrong shape or
            dtype, or has values that its layer does not allow.
    """
    expected = _specs(model)
    for name, tensor in expected.items():
        if name not in model.tensors:
            raise InputError(f"its tensor {name} is missing")
        found = model.tensors[name]
        if found.dtype.name != tensor.dtype or found.shape != tensor.shape:
            raise InputError(
                f"its tensor {name} is {found.dtype.name} {list(found.shape)} instead of"
                f" {tensor.dtype} {list(tensor.shape)}"
            )
        if found.dtype.kind == "f" and not np.isfinite(found).all():
            raise InputError(f"its tensor {name} has values that are not finite")
    for name in model.tensors:
        if name not in expected:
            raise InputError(f"its tensor {name!a:.100} does not belong to its network")
    for layer in model.plan:
        layer.family.check_values(own_tensors(model.tensors, layer.name), layer)
