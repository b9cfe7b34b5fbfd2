"""The model file: a network for inference, every binary filter weight in ceil(log2 U) bits.

A `.safetensors` file, whose metadata entry "mcn_jax" is a JSON object: all that inference needs.
docs/format.md describes both, exact enough for a reader in another language. Nothing in a file is
run, and whatever a file claims is checked against what it holds before memory is taken for it.
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
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from mcn_jax import models, ops
from mcn_jax.config import BinarizeConfig, Config, ModelConfig
from mcn_jax.errors import InputError, first_line
from mcn_jax.layers import folded_batch_norm
from mcn_jax.model_header import (
    DENSE,
    InputImages,
    Network,
    class_names_from_json,
    full_name_from_json,
    images_from_json,
    network_from_json,
)
from mcn_jax.ops import packing
from mcn_jax.trained import Trained
from mcn_jax.workdir import write_bytes_atomically

# Of the data's config, what tells which images were tested, and not where they lie.
DATA_FIELDS = ("name", "train_split", "test_split", "test_fraction", "split_seed")
KEY, VERSION = "mcn_jax", 1
# What the safetensors library and JSON raise for what is no such file; an AttributeError for types
# of numbers that NumPy has not.
READ_ERRORS = (
    safetensors.SafetensorError, ValueError, TypeError, KeyError, AttributeError, RecursionError,
)  # fmt: skip

KINDS = {  # last part of a tensor's name -> what it is part of
    "bits": "filters", "latent_filters": "filters", "m_filters": "M-filters", "centers": "centers",
    "scale": "batch norm", "offset": "batch norm",
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A model file's content.

    provenance: of the run that trained it; for people, nothing depends on it.
    tensors: as stored, {"conv_1/bits": ...}.
    variables: what `make_network(...).apply` takes.
    """

    network: Network
    images: InputImages
    class_names: tuple[str, ...]
    provenance: Mapping[str, Any]
    tensors: Mapping[str, np.ndarray]

    @functools.cached_property
    def variables(self) -> dict[str, Any]:
        """Filters, unpacked, and all else in float32.

        Raises:
            InputError: naming the tensor that is missing, left over, of another shape or dtype, or
                not finite.
        """
        return _variables(self)


def make_network(network: Network, num_classes: int) -> nn.Module:
    """The linen module of a model file, batch norm folded; its filters are those that convolve."""
    fields = {f.name: getattr(network, f.name) for f in dataclasses.fields(network)}
    num_centers = fields.pop("num_centers") or 2
    config = Config(model=ModelConfig(**fields), binarize=BinarizeConfig(num_centers=num_centers))
    return models.make_model(config, num_classes, binarized=False, folded_batch_norm=True)


@functools.lru_cache(maxsize=8)
def parameter_shapes(
    network: Network, num_classes: int, shape: tuple[int, int, int]
) -> dict[str, tuple[int, ...]]:
    """{"conv_1/latent_filters": [W, W, G*K, H], ...} of every parameter of a network."""
    module = make_network(network, num_classes)
    images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), images)
    flat = traverse_util.flatten_dict(variables["params"], sep="/")
    return {name: tuple(leaf.shape) for name, leaf in flat.items()}


def model_of(trained: Trained, stored_shape: tuple[int | None, ...], dense: str) -> Model:
    """The model file of a trained network.

    Args:
        trained: from `read_trained`.
        stored_shape: (Y, X, C) of the data set's images as stored, None where they differ in size.
        dense: how kernels of dense layers are stored, a name in `DENSE`. "int8" is symmetric, with
            a scale for each output.

    Raises:
        InputError: if the network is to have binary filters and has none yet.
    """
    config = trained.config
    if config.binarizes and not trained.binary:
        raise InputError(
            f"{trained.workdir} has no binary filters yet, after epoch"
            f" {trained.epoch['epoch'] + 1}; they start with epoch"
            f" {config.binarize.start_epoch + 1}"
        )
    data = {name: getattr(config.data, name) for name in DATA_FIELDS}
    model = Model(
        network=network_of(config, binary=trained.binary),
        images=images_of(trained, stored_shape),
        class_names=tuple(trained.data["class_names"]),
        provenance={
            "epoch": trained.epoch["epoch"] + 1,
            "step": trained.epoch["step"],
            "test_accuracy": trained.epoch["test_accuracy"],
            "git_revision": trained.git_revision,
            "data": data | {"full_name": trained.data["full_name"]},
        },
        tensors=packed_tensors(trained.variables, binary=trained.binary, dense=dense),
    )
    # What a reader refuses is not written.
    _model(json.loads(header(model)), dict(model.tensors))
    return model


def network_of(config: Config, *, binary: bool) -> Network:
    """The network of a config, with binary filters or those of a U-MCN or ordinary ones."""
    fields = {field.name for field in dataclasses.fields(Network)} - {"num_centers"}
    return Network(
        **{name: getattr(config.model, name) for name in fields},
        num_centers=config.binarize.num_centers if binary else 0,
    )


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
    variables: Mapping[str, Any], *, binary: bool, dense: str
) -> dict[str, np.ndarray]:
    """The tensors of a model file.

    Args:
        variables: "params", "batch_stats" and "centers".
        binary: whether filters are.
        dense: a name in `DENSE`.
    """
    tensors: dict[str, np.ndarray] = {}
    statistics = traverse_util.flatten_dict(variables["batch_stats"])
    centers = traverse_util.flatten_dict(variables["centers"])
    layers: dict[tuple[str, ...], dict[str, np.ndarray]] = {}
    params = traverse_util.flatten_dict(variables["params"])
    for path, leaf in params.items():
        layers.setdefault(path[:-1], {})[path[-1]] = np.asarray(leaf, np.float32)
    for path, layer in layers.items():
        stored: dict[str, np.ndarray]
        if (*path, "mean") in statistics:
            own = {name: statistics[*path, name] for name in ("mean", "var")}
            folded = folded_batch_norm(layer, own)
            stored = {name: np.asarray(value, np.float32) for name, value in folded.items()}
        elif "latent_filters" in layer and binary:
            values = np.asarray(centers[*path, "centers"], np.float32)
            codes = codes_of(params[*path, "latent_filters"], centers[*path, "centers"])
            stored = {
                "bits": packing.pack(codes, len(values)),
                "centers": values,
                "m_filters": layer["m_filters"],
            }
        elif layer.get("kernel", np.zeros(())).ndim == 2:
            stored = dense_tensors(layer["kernel"], dense) | {"bias": layer["bias"]}
        else:
            stored = layer
        tensors |= {"/".join((*path, name)): value for name, value in stored.items()}
    return tensors


def codes_of(latent_filters: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """The index of each weight's center, uint8, computed in the dtype that training had."""
    with jax.enable_x64(latent_filters.dtype == np.float64):
        codes = ops.nearest_index(jnp.asarray(latent_filters), jnp.asarray(centers))
        return np.asarray(codes, np.uint8)


def dense_tensors(kernel: np.ndarray, dense: str) -> dict[str, np.ndarray]:
    """A kernel [inputs, outputs] as it is stored: see `model_of`."""
    if dense == "int8":
        scale = np.maximum(np.abs(kernel).max(axis=0), np.finfo(np.float32).tiny) / 127
        rounded = np.round(kernel / scale[None]).astype(np.int8)
        return {"kernel": rounded, "kernel_scale": scale.astype(np.float32)}
    if dense == "float16" and np.abs(kernel).max() > np.finfo(np.float16).max:
        raise InputError("a dense layer has weights beyond float16; use --dense=float32 or int8")
    return {"kernel": kernel.astype(dense)}


def write_model(model: Model, path: pathlib.Path) -> None:
    """Writes a model file; whoever reads `path` meanwhile finds the old one or the new one."""
    tensors = {name: np.ascontiguousarray(value) for name, value in model.tensors.items()}
    write_bytes_atomically(path, safetensors.numpy.save(tensors, metadata={KEY: header(model)}))


def header(model: Model) -> str:
    """All but the tensors, as JSON."""
    return json.dumps(
        {
            "version": VERSION,
            "network": dataclasses.asdict(model.network),
            "images": dataclasses.asdict(model.images),
            "class_names": list(model.class_names),
            "filter_shapes": filter_shapes(model),
            "provenance": dict(model.provenance),
        }
    )


def filter_shapes(model: Model) -> dict[str, list[int]]:
    """{"conv_1": [W, W, G*K, H], ...} of the convolutions whose filters are modulated."""
    shapes = parameter_shapes(model.network, len(model.class_names), model.images.shape)
    return {
        name.rpartition("/")[0]: list(shape)
        for name, shape in shapes.items()
        if name.endswith("/latent_filters")
    }


def parts(model: Model) -> dict[str, tuple[int, int]]:
    """What a model file is made of: {"filters": (bytes there, bytes in float32), ...}.

    "centers" has none in float32, because filters in float32 need none.
    """
    sizes: collections.Counter[str] = collections.Counter()
    float32: collections.Counter[str] = collections.Counter()
    weights = {f"{path}/bits": shape for path, shape in filter_shapes(model).items()}
    for name, tensor in model.tensors.items():
        last = name.rpartition("/")[2]
        kind = "filters" if tensor.ndim == 4 else KINDS.get(last, "dense layers")
        sizes[kind] += tensor.nbytes
        if last not in ("centers", "kernel_scale"):
            float32[kind] += 4 * int(np.prod(weights.get(name, tensor.shape)))
    return {kind: (size, float32[kind]) for kind, size in sizes.items()}


def read_model(path: str | pathlib.Path) -> Model:
    """Reads a model file, which may be from a stranger.

    Raises:
        InputError: naming what is wrong, if it is no model file, is damaged or of another version.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist; name a model file, such as model.safetensors")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            header_text = (file.metadata() or {}).get(KEY)
            if header_text is None:
                raise InputError(f'{path} has no "{KEY}" in its metadata: it is no model of ours')
            header = json.loads(header_text)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except InputError:
        raise
    except READ_ERRORS as error:
        raise InputError(
            f"{path} is no whole model file ({first_line(error)}); export it anew"
        ) from error
    try:
        model = _model(header, tensors)
        _ = model.variables  # every tensor is looked at
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
    if header.get("filter_shapes") != filter_shapes(model):
        raise InputError("its filter_shapes are not those of its network")
    return model


def _variables(model: Model) -> dict[str, Any]:
    shapes = parameter_shapes(model.network, len(model.class_names), model.images.shape)
    left = dict(model.tensors)

    def take(name: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        if name not in left:
            raise InputError(f"it has no tensor {name}")
        tensor = left.pop(name)
        if tensor.dtype.name != dtype or tensor.shape != shape:
            raise InputError(
                f"its tensor {name} is {tensor.dtype.name} {list(tensor.shape)} instead of {dtype}"
                f" {list(shape)}"
            )
        if tensor.dtype.kind == "f" and not np.isfinite(tensor).all():
            raise InputError(f"its tensor {name} has values that are not finite")
        return tensor

    params: dict[str, np.ndarray] = {}
    all_centers: dict[str, np.ndarray] = {}
    for name, shape in shapes.items():
        path, _, last = name.rpartition("/")
        if last == "latent_filters":
            num_centers = model.network.num_centers
            centers = np.zeros(2, np.float32)
            if num_centers:
                centers = take(f"{path}/centers", "float32", (num_centers,))
                packed_shape = packing.packed_shape(shape, num_centers)
                codes = packing.unpack(take(f"{path}/bits", "uint8", packed_shape), shape)
                if codes.max() >= num_centers:
                    raise InputError(f"its tensor {path}/bits has codes beyond its centers")
                if np.any(np.diff(centers) < 0):
                    raise InputError(f"its tensor {path}/centers does not ascend")
                params[name] = centers[codes]
            else:
                params[name] = take(name, "float32", shape)
            all_centers[f"{path}/centers"] = centers
        elif last == "kernel" and len(shape) == 2:
            stored = left.get(name)
            dtype = "float32" if stored is None else stored.dtype.name
            if dtype not in DENSE:
                raise InputError(f"its tensor {name} is {dtype}, not one of {', '.join(DENSE)}")
            kernel = take(name, dtype, shape).astype(np.float32)
            if dtype == "int8":
                with np.errstate(over="ignore"):
                    kernel *= take(f"{path}/kernel_scale", "float32", shape[1:])[None]
                if not np.isfinite(kernel).all():
                    raise InputError(f"its tensor {path}/kernel_scale is too large for float32")
            params[name] = kernel
        else:
            params[name] = take(name, "float32", shape)
            if last == "m_filters" and params[name].min() < 0:
                raise InputError(f"its tensor {name} has negative values")
    if left:
        raise InputError(f"it has a tensor {next(iter(left))!r:.100} that its network has not")
    return {
        "params": traverse_util.unflatten_dict(params, sep="/"),
        "centers": traverse_util.unflatten_dict(all_centers, sep="/"),
    }
