"""Opens a trained network from any of its files, as a function from images to logits."""

import dataclasses
import importlib.util
import json
import pathlib
import types
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.progress
from flax import traverse_util

from mcn_jax import models
from mcn_jax.config import DataConfig, from_mapping
from mcn_jax.data.augment import normalise
from mcn_jax.data.dataset import open_dataset
from mcn_jax.data.examples import Examples
from mcn_jax.data.facts import DATASETS, why_other
from mcn_jax.data.images import padded_to
from mcn_jax.deploy import model_file
from mcn_jax.deploy.header import (
    MAX_TENSORS,
    InputImages,
    class_names_from_json,
    full_name_from_json,
    images_from_json,
    layer_bytes,
    network_from_json,
)
from mcn_jax.deploy.header_text import with_defaults
from mcn_jax.deploy.onnx import INPUT, OUTPUT
from mcn_jax.errors import InputError, first_line
from mcn_jax.escapes import shown
from mcn_jax.workdirs.trained import Trained, checkpoint_of, read_trained

BATCH_BYTES = 2**29  # most bytes of one layer's output for a whole batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predictor:
    """A network that is ready to predict.

    Attributes:
        logits: maps images [N, Y, X, C] uint8, for any N, to logits [N, classes] float32.
        images: the images that it takes.
        image_bytes: the most bytes that one image has in any layer; see `layer_bytes`.
        class_names: of the logits.
        data: returns the config of the data that it was tested on; raises InputError if unknown.
        full_name: of these data; None if unknown.
    """

    logits: Callable[[np.ndarray], np.ndarray]
    images: InputImages
    image_bytes: int
    class_names: tuple[str, ...]
    data: Callable[[], DataConfig]
    full_name: str | None

    @property
    def most_images(self) -> int:
        """The most images in a batch whose layers fit into `BATCH_BYTES`; at least 1."""
        return max(1, BATCH_BYTES // self.image_bytes)


def open_predictor(
    path: str | pathlib.Path, places: Mapping[str, Any] = types.MappingProxyType({})
) -> Predictor:
    """Opens a work directory, a checkpoint in it, a `.safetensors` file or an `.onnx` file.

    Args:
        path: one of these.
        places: as in `open_test_split`; see `stored_shape`.

    Raises:
        InputError: if the path is none of these, or cannot be read.
    """
    path = pathlib.Path(path)
    if path.is_dir() or checkpoint_of(path):
        return of_trained(read_trained(path), places)
    if path.suffix == ".onnx":
        return of_onnx(path)
    if path.suffix == ".safetensors" or not path.exists():
        return of_model(model_file.read_model(path), path)
    raise InputError(f"{path} is neither a work directory nor a .safetensors or .onnx file")


def stored_shape(trained: Trained, places: Mapping[str, Any]) -> tuple[int | None, ...]:
    """Returns (Y, X, C) of a data set's images as stored, with None where they differ in size.

    The data are opened, at `places`, only if neither the run nor `DATASETS` knows the shape.
    """
    config = trained.config.data
    if not config.image_size:
        return tuple(trained.data["image_shape"])
    if facts := DATASETS.get(config.name):
        return facts.image_shape
    return open_dataset(dataclasses.replace(config, **places)).test.shape


def _tested_on(
    path: pathlib.Path | str, provenance: Mapping[str, Any], images: InputImages
) -> DataConfig:
    """Returns the config of the data named in a file's provenance, without their location."""
    data: Any = provenance.get("data")
    try:
        known = {name: data[name] for name in model_file.DATA_FIELDS}
        facts = DATASETS.get(known["name"])
        may_differ = None in facts.image_shape if facts else images.height == images.width
        were_resized = may_differ or images.center_crop < 1
        size = images.image_size or (images.height if were_resized else 0)
        fields = known | {
            "image_size": size,
            "center_crop": images.center_crop,
            "background": images.background,
            "exif_orientation": images.exif_orientation,
        }
        return from_mapping(DataConfig, fields, "provenance.data")
    except (TypeError, KeyError, ValueError) as error:
        raise InputError(
            f"{path} does not say which data it was trained on; evaluate its work directory"
        ) from error


def of_model(model: model_file.Model, path: pathlib.Path | str = "the model") -> Predictor:
    """Returns a predictor that runs a model file with JAX; errors refer to it as `path`."""
    tensors = {name: jnp.asarray(tensor) for name, tensor in model.tensors.items()}
    params = jax.jit(model.unpacked)(tensors)
    return Predictor(
        logits=_logits(model.module, {"params": params}, model.images),
        images=model.images,
        image_bytes=layer_bytes(model.plan, model.images),
        class_names=model.class_names,
        data=lambda: _tested_on(path, model.provenance, model.images),
        full_name=full_name_from_json(model.provenance),
    )


def of_trained(trained: Trained, places: Mapping[str, Any]) -> Predictor:
    """Returns a predictor for a checkpoint: as training evaluates it, but computed in float32.

    Parameters of quantizable layers keep the dtype of the training, because rounding before
    quantization could move a weight to another level. For `places` see `stored_shape`.
    """
    config = dataclasses.replace(trained.config, dtype="float32")
    names = tuple(trained.data["class_names"])
    module = models.make_model(config, len(names), quantized=trained.binary)
    images = model_file.images_of(trained, stored_shape(trained, places))
    plan = model_file.plan_of_trained(trained)
    kept = tuple(layer.path for layer in plan if layer.family.quantizes)
    variables = traverse_util.path_aware_map(
        lambda path, leaf: (
            leaf
            if any(path[1 : 1 + len(own)] == own for own in kept)
            else np.asarray(leaf, np.float32)
        ),
        trained.variables,
    )
    return Predictor(
        logits=_logits(module, variables, images, x64=config.param_dtype == "float64"),
        images=images,
        image_bytes=layer_bytes(plan, images),
        class_names=names,
        data=lambda: trained.config.data,
        full_name=trained.data["full_name"],
    )


def _logits(
    module: nn.Module, variables: Any, images: InputImages, *, x64: bool = False
) -> Callable[[np.ndarray], np.ndarray]:
    with jax.enable_x64(x64):
        variables = jax.device_put(variables)

    @jax.jit
    def logits(variables: Any, pixels: jax.Array) -> jax.Array:
        x = normalise(pixels, images.mean, images.std, jnp.dtype("float32"))
        outputs: Any = module.apply(variables, x)
        return outputs.logits

    def of_stored(pixels: np.ndarray) -> np.ndarray:
        with jax.enable_x64(x64):
            found = logits(variables, padded_to(pixels, images.image_size))
            return np.asarray(found, np.float32)

    return of_stored


def has_onnx_runtime() -> bool:
    """Returns whether ONNX Runtime is installed, which `of_onnx` needs."""
    return importlib.util.find_spec("onnxruntime") is not None


def of_onnx(path: pathlib.Path) -> Predictor:
    """Returns a predictor that runs an exported graph with ONNX Runtime, an optional dependency.

    ONNX Runtime runs whatever the graph contains. Prefer `.safetensors` for untrusted models.

    Raises:
        InputError: if ONNX Runtime is not installed, or the file was not exported by mcn_jax.
    """
    if not has_onnx_runtime():
        raise InputError(
            f"{path} needs ONNX Runtime; install it: pip install onnxruntime, or use the"
            " .safetensors file"
        )
    import onnxruntime

    if not path.is_file():
        raise InputError(f"{path} does not exist; name a model file, such as model.onnx")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised, so they need not be logged
    try:
        session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
        text = session.get_modelmeta().custom_metadata_map[model_file.KEY]
        header = with_defaults(json.loads(text))
        images = images_from_json(header["images"])
        names = class_names_from_json(header["class_names"])
        full_name = full_name_from_json(header.get("provenance"))
        file_bytes = path.stat().st_size
        network = network_from_json(header["network"], images, len(names), MAX_TENSORS, file_bytes)
        [taken], [given] = session.get_inputs(), session.get_outputs()
        shape = [images.height, images.width, images.channels]
        if (taken.name, taken.shape[1:], given.name, given.shape[1:]) != (
            INPUT, shape, OUTPUT, [len(names)]
        ):  # fmt: skip
            raise InputError("its inputs and outputs do not match its header")
    except Exception as error:  # the errors of ONNX Runtime have no other common class
        raise InputError(
            f"{path} is not a graph that mcn_jax exported ({first_line(error)}); export it again"
        ) from error

    def logits(pixels: np.ndarray) -> np.ndarray:
        try:
            return session.run([OUTPUT], {INPUT: pixels})[0]
        except Exception as error:
            raise InputError(f"{path} cannot be run ({first_line(error)})") from error

    provenance = header.get("provenance")
    provenance = provenance if isinstance(provenance, dict) else {}
    return Predictor(
        logits=logits,
        images=images,
        image_bytes=layer_bytes(network.plan(len(names), images.shape), images),
        class_names=names,
        data=lambda: _tested_on(path, provenance, images),
        full_name=full_name,
    )


def open_test_split(predictor: Predictor, places: Mapping[str, Any]) -> Examples:
    """Opens the images that a network was tested on, as stored.

    Args:
        predictor: the network.
        places: fields of `DataConfig` with the present location of the data.

    Raises:
        InputError: if the data are unknown, or are not those of the network.
    """
    dataset = open_dataset(dataclasses.replace(predictor.data(), **places))
    if dataset.class_names != predictor.class_names:
        raise InputError(
            f"the data have the classes {', '.join(map(shown, dataset.class_names))[:100]}, but"
            f" the network has {', '.join(map(shown, predictor.class_names))[:100]}; name"
            " the data it was trained on"
        )
    if not dataset.is_named(predictor.full_name):
        raise InputError(
            f"the network was trained on {predictor.full_name}, but these data are"
            f" {dataset.full_name}{why_other(predictor.full_name)}; name the data it was trained"
            " on, or restore the files"
        )
    examples = dataset.test
    if None not in examples.shape:  # a predictor pads them itself
        unpadded = dataclasses.replace(examples.config, image_size=0)
        examples = dataclasses.replace(examples, config=unpadded)
    taken = (predictor.images.height, predictor.images.width, predictor.images.channels)
    if examples.image_shape != taken:
        raise InputError(
            f"the network takes images of {_size(taken)}, but those of {dataset.full_name} are"
            f" {_size(examples.image_shape)}; name the data it was trained on, or export it again"
        )
    return examples


def _size(shape: tuple[int, int, int]) -> str:
    return "x".join(map(str, shape))


def logits_of(predictor: Predictor, images: np.ndarray, batch_size: int) -> np.ndarray:
    """Returns the logits of up to `batch_size` images.

    The batch is always padded to `batch_size`; JAX would compile again for any other size.

    Raises:
        InputError: if a logit is not finite.
    """
    batch = np.zeros((batch_size, *images.shape[1:]), images.dtype)
    batch[: len(images)] = images
    logits = predictor.logits(batch)[: len(images)]
    if not np.isfinite(logits).all():
        raise InputError(
            "the network's logits of an image are not finite; weights or input may be out of range:"
            " use another checkpoint or file"
        )
    return logits


def run_all(
    predictors: Mapping[str, Predictor], examples: Examples, batch_size: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Computes the logits of every image with each predictor, and shows a progress bar.

    Args:
        predictors: by name.
        examples: from `open_test_split`.
        batch_size: most images at once; fewer are used if the networks or `chunks` take fewer.

    Returns:
        The logits {name: [N, classes]} and the labels [N].

    Raises:
        InputError: if the data cannot be read, or a logit is not finite.
    """
    most = min(predictor.most_images for predictor in predictors.values())
    batch_size = min(batch_size, most, examples.chunk_size, len(examples))
    logits: dict[str, list[np.ndarray]] = {name: [] for name in predictors}
    labels: list[np.ndarray] = []
    console = rich.console.Console(stderr=True)
    with rich.progress.Progress(
        *rich.progress.Progress.get_default_columns(),
        console=console, transient=True, disable=not console.is_terminal,
    ) as bar:  # fmt: skip
        task = bar.add_task("test images", total=len(examples))
        for chunk in examples.chunks():
            labels.append(chunk.labels)
            for start in range(0, len(chunk.labels), batch_size):
                images = chunk.images[start : start + batch_size]
                for name, member in predictors.items():
                    logits[name].append(logits_of(member, images, batch_size))
                bar.advance(task, len(images))
    return {name: np.concatenate(values) for name, values in logits.items()}, np.concatenate(labels)
