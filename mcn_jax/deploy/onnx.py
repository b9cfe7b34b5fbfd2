"""Exports a model file as an ONNX graph, whose initializers hold the packed weights of the file.

The graph is translated from the network itself: from the traced function that unpacks the tensors
and predicts. A runtime that folds constants, such as ONNX Runtime, unpacks once, when it loads the
graph.
"""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import onnx
from onnx import helper

from mcn_jax.data.augment import normalise
from mcn_jax.deploy import model_file
from mcn_jax.deploy.model_file import Model
from mcn_jax.deploy.onnx_translator import translate
from mcn_jax.workdirs.files import write_bytes_atomically

INPUT, OUTPUT = "images", "logits"


def write_onnx(model: Model, path: pathlib.Path) -> None:
    """Writes the graph atomically: a concurrent reader finds the old file or the new one."""
    write_bytes_atomically(path, onnx_model(model).SerializeToString())


def onnx_model(model: Model) -> onnx.ModelProto:
    """Returns the graph, from "images" [N, Y, X, C] uint8 to "logits" [N, classes] float32.

    Args:
        model: the content of a model file.

    Raises:
        InputError: naming the operation, if a layer uses one that has no translation.
        onnx.checker.ValidationError: if the result is not valid ONNX: a bug in this package.
    """
    shape = (model.images.height, model.images.width, model.images.channels)
    function = prediction(model)
    proto = translate(function, model.tensors, shape, input_name=INPUT, output_name=OUTPUT)
    helper.set_model_props(proto, {model_file.KEY: model_file.header(model)})
    onnx.checker.check_model(proto, full_check=True)
    return proto


def prediction(model: Model) -> Callable[[Mapping[str, jax.Array], jax.Array], jax.Array]:
    """Returns the function that a model file defines.

    It maps the file's tensors and images [N, Y, X, C] uint8 to logits [N, classes] float32.
    """
    spec = model.images

    def logits(tensors: Mapping[str, jax.Array], images: jax.Array) -> jax.Array:
        x = normalise(padded(images, spec.image_size), spec.mean, spec.std, jnp.dtype("float32"))
        outputs: Any = model.module.apply({"params": model.unpacked(tensors)}, x)
        return outputs.logits

    return logits


def padded(images: jax.Array, size: int) -> jax.Array:
    """Zero-pads images [N, Y, X, C] to `size` pixels in y and x, with half of it on each side.

    A size of 0 leaves them unchanged. This is `mcn_jax.data.images.padded_to` for traced arrays.
    """
    if not size:
        return images
    pads = [(size - length, (size - length) // 2) for length in images.shape[1:3]]
    widths = [(0, 0), *((before, total - before) for total, before in pads), (0, 0)]
    return jnp.pad(images, widths)
