"""The model file: a network for inference, every quantized weight in a few bits.

A `.safetensors` file, whose metadata entry "mcn_jax" is a JSON object: all that inference needs.
docs/format.md describes both, exact enough for a reader in another language. Reading runs nothing
of a file, and what its header claims is checked against its tensors before memory is taken.
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
    InputImages,
    Network,
    class_names_from_json,
    full_name_from_json,
    images_from_json,
    network_from_json,
)
from mcn_jax.errors import InputError, first_line
from mcn_jax.layers.family import Tensor
from mcn_jax.models.plan import Plan, plan_of, specs
from mcn_jax.training.phases import quantizes
from mcn_jax.workdirs.files import write_bytes_atomically
from mcn_jax.workdirs.trained import Trained

# Of the data's config, what tells which images were tested, and not where they lie.
DATA_FIELDS = ("name", "train_split", "test_split", "test_fraction", "split_seed")
KEY, VERSION = "mcn_jax", 1
# What the safetensors library and JSON raise for a file that is not one; an AttributeError for
# types of numbers that NumPy does not have.
READ_ERRORS = (
    safetensors.SafetensorError, ValueError, TypeError, KeyError, AttributeError, RecursionError,
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A model file's content.

    provenance: of the run that trained it; for people, nothing depends on it.
    tensors: as stored, {"conv_1/bits": ...}.
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
        """The network for inference, whose parameters `unpacked` makes of the tensors."""
        config, quantized = self.network
        num_classes = len(self.class_names)
        return models.make_model(config, num_classes, quantized=quantized, deployed=True)

    def unpacked(self, tensors: Mapping[str, jax.Array]) -> dict[str, Any]:
        """The "params" collection of `module`, of the tensors; traceable."""
        params: dict[str, Any] = {}
        for layer in self.plan:
            own = layer.family.unpack(own_tensors(tensors, layer.name), layer)
            params |= {f"{layer.name}/{leaf}": value for leaf, value in own.items()}
        return traverse_util.unflatten_dict(params, sep="/")


def own_tensors(tensors: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The tensors of one layer by their leaf names."""
    prefix = f"{name}/"
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def model_of(trained: Trained, stored_shape: tuple[int | None, ...], dense: str) -> Model:
    """The model file of a trained network.

    Args:
        trained: from `read_trained`.
        stored_shape: (Y, X, C) of the data set's images as stored, None where they differ in size.
        dense: how kernels of dense layers are stored, a name in `mcn_jax.layers.dense.FORMATS`.

    Raises:
        InputError: if the network is to have binary filters and has none yet, or is one that a
            reader of the file would refuse.
    """
    config = trained.config
    if quantizes(config) and not trained.binary:
        raise InputError(
            f"{trained.workdir} has no binary filters yet, after epoch"
            f" {trained.epoch['epoch'] + 1}; they start with epoch"
            f" {config.binarize.start_epoch + 1}"
        )
    data = {name: getattr(config.data, name) for name in DATA_FIELDS}
    model = Model(
        network=Network(config, trained.binary),
        images=images_of(trained, stored_shape),
        class_names=tuple(trained.data["class_names"]),
        provenance={
            "epoch": trained.epoch["epoch"] + 1,
            "step": trained.epoch["step"],
            "test_accuracy": trained.epoch["test_accuracy"],
            "git_revision": trained.git_revision,
            "data": data | {"full_name": trained.data["full_name"]},
        },
        tensors=packed_tensors(trained.variables, plan_of_trained(trained), trained.binary, dense),
    )
    # What a reader refuses is not written.
    _model(json.loads(header(model)), dict(model.tensors))
    return model


def plan_of_trained(trained: Trained) -> Plan:
    """The layers of a trained network."""
    shape = trained.data["image_shape"]
    return plan_of(trained.config, len(trained.data["class_names"]), tuple(shape))


def images_of(trained: Trained, stored_shape: tuple[int | None, ...]) -> InputImages:
    """What a trained network takes; `stored_shape` as in `model_of`."""
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
    )


def packed_tensors(
    variables: Mapping[str, Any], plan: Plan, quantized: bool, dense: str = "float32"
) -> dict[str, np.ndarray]:
    """The tensors of a model file.

    Args:
        variables: "params" and the other collections of the trained network.
        plan: of the network.
        quantized: whether quantized weights are stored, where a layer has them.
        dense: how kernels of dense layers are stored, a name in `mcn_jax.layers.dense.FORMATS`.
    """
    tensors: dict[str, np.ndarray] = {}
    for layer in plan:
        p, s = layer.params_in(variables["params"]), layer.state_in(variables)
        stored = layer.family.pack(p, s, quantized)
        if layer.family.recode is not None:
            stored = layer.family.recode(stored, dense)
        tensors |= {f"{layer.name}/{leaf}": value for leaf, value in stored.items()}
    return tensors


def write_model(model: Model, path: pathlib.Path) -> None:
    """Writes a model file; whoever reads `path` meanwhile finds the old one or the new one."""
    tensors = {name: np.ascontiguousarray(value) for name, value in model.tensors.items()}
    write_bytes_atomically(path, safetensors.numpy.save(tensors, metadata={KEY: header(model)}))


def header(model: Model) -> str:
    """All but the tensors, as JSON."""
    return json.dumps(
        {
            "version": VERSION,
            "network": model.network.to_json(),
            "images": dataclasses.asdict(model.images),
            "class_names": list(model.class_names),
            "filter_shapes": filter_shapes(model.plan),
            "provenance": dict(model.provenance),
        }
    )


def filter_shapes(plan: Plan) -> dict[str, list[int]]:
    """{"conv_1": [W, W, G*K, H], ...} of the layers that can be quantized."""
    return {
        layer.name: list(layer.params[layer.family.filters])
        for layer in plan
        if layer.family.quantizes and layer.family.filters is not None
    }


def parts(model: Model) -> dict[str, tuple[int, int]]:
    """What a model file is made of: {"filters": (bytes there, bytes in float32), ...}.

    Centers and scales have none in float32, because weights in float32 need none.
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
    """Reads a model file, which may be from a stranger.

    Raises:
        InputError: naming what is wrong, if it is not a model file, is damaged, or is of another
            version.
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
            f"{path} is not a whole model file ({first_line(error)}); export it anew"
        ) from error
    try:
        model = _model(header, tensors)
        check_tensors(model)
    except (InputError, ValueError, OverflowError) as error:
        raise InputError(f"{path} cannot be used: {first_line(error)}; export it anew") from error
    return model


def _model(header: Any, tensors: dict[str, np.ndarray]) -> Model:
    """Checks everything that a header says."""
    if not isinstance(header, dict) or header.get("version") != VERSION:
        found = header.get("version") if isinstance(header, dict) else header
        raise InputError(f"its version is {found!r:.100}, and this program reads {VERSION}")
    images = images_from_json(header.get("images"))
    names = class_names_from_json(header.get("class_names"))
    provenance = header.get("provenance")
    full_name_from_json(provenance)
    num_bytes = sum(tensor.nbytes for tensor in tensors.values())
    model = Model(
        network=network_from_json(
            header.get("network"), images, len(names), len(tensors), num_bytes
        ),
        images=images,
        class_names=names,
        provenance=provenance if isinstance(provenance, dict) else {},
        tensors=tensors,
    )
    if header.get("filter_shapes") != filter_shapes(model.plan):
        raise InputError("its filter_shapes are not those of its network")
    return model


def check_tensors(model: Model) -> None:
    """Checks every tensor of a file.

    Raises:
        InputError: naming the tensor that is missing, left over, of another shape or dtype, not
            finite, or of values that its layer does not allow.
    """
    expected = _specs(model)
    for name, tensor in expected.items():
        if name not in model.tensors:
            raise InputError(f"it has no tensor {name}")
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
            raise InputError(f"it has a tensor {name!a:.100} that its network does not have")
    for layer in model.plan:
        layer.family.check_values(own_tensors(model.tensors, layer.name), layer)
