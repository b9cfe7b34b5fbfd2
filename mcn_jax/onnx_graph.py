"""A model file as an ONNX graph, whose initializers hold the filters as the file does: in bits.

The graph takes any number of images of uint8; it normalises them, unpacks and modulates the filters
and convolves, all with standard operators. A runtime that folds constants, as ONNX Runtime does,
unpacks once, when it loads the graph.
"""

import math
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mcn_jax import model_file
from mcn_jax.model_file import Model, filter_shapes
from mcn_jax.models import CONVOLUTIONS
from mcn_jax.models.wide_resnet import STEMS, blocks_per_stage
from mcn_jax.workdir import write_bytes_atomically

OPSET = 17
INPUT, OUTPUT = "images", "logits"


class Graph:
    """The graph of a model as it grows. Features are [N, C, Y, X]."""

    def __init__(self, model: Model):
        self.model = model
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._filter_shapes = filter_shapes(model)

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """A node with one output, whose name is returned."""
        output = f"{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], output, **attributes))
        return output

    def constant(self, value: Any, dtype: str = "float32") -> str:
        """The name of an initializer; equal ones are one."""
        array = np.asarray(value, dtype)
        key = (dtype, array.shape, array.tobytes())
        if key not in self._constants:
            name = self._constants[key] = f"constant_{len(self._constants)}"
            self.initializers[name] = numpy_helper.from_array(array, name)
        return self._constants[key]

    def integers(self, *values: int) -> str:
        """A vector of int64: a shape, axes or indices."""
        return self.constant(values, "int64")

    def has(self, name: str) -> bool:
        """Whether the model file has such a tensor."""
        return name in self.model.tensors

    def tensor(self, name: str) -> str:
        """A tensor of the model file, under its name there."""
        array = np.ascontiguousarray(self.model.tensors[name])
        self.initializers[name] = numpy_helper.from_array(array, name)
        return name

    def convolution(self, x: str, path: str, size: tuple[int, int], strides: int = 1) -> str:
        """A convolution of images of `size` pixels in y and x with padding "SAME"."""
        kernel, taps = self._kernel(path)
        pads = [max((-(-n // strides) - 1) * strides + taps - n, 0) for n in size]
        before = [total // 2 for total in pads]  # an odd one has a pixel more after the image
        after = [total - start for total, start in zip(pads, before, strict=True)]
        return self.add(
            "Conv", x, kernel,
            kernel_shape=[taps, taps], strides=[strides, strides], pads=[*before, *after],
        )  # fmt: skip

    def _kernel(self, path: str) -> tuple[str, int]:
        """(kernel [C', C, W, W], W) of an MCconv, or of an ordinary convolution."""
        if path in self._filter_shapes:
            taps, (channels, maps) = self._filter_shapes[path][:2], self._filter_shapes[path][2:]
            planes = self.model.network.planes
            filters = self._filters(path)
            # Q[.., c, h*K + k] = filters[.., c, h] * M[.., k]
            column = self.add("Reshape", filters, self.integers(*taps, channels, maps, 1))
            m_filters = self.tensor(f"{path}/m_filters")
            row = self.add("Reshape", m_filters, self.integers(*taps, 1, 1, planes))
            product = self.add("Mul", column, row)
            kernel = self.add("Reshape", product, self.integers(*taps, channels, maps * planes))
        else:
            kernel = self.tensor(f"{path}/conv/kernel")
            taps = list(self.model.tensors[f"{path}/conv/kernel"].shape[:2])
        return self.add("Transpose", kernel, perm=[3, 2, 0, 1]), taps[0]

    def _filters(self, path: str) -> str:
        """The filters that M modulates, of any shape with as many elements."""
        if not self.has(f"{path}/bits"):
            return self.tensor(f"{path}/latent_filters")
        bits = self.model.tensors[f"{path}/bits"].shape[0]
        weights = math.prod(self._filter_shapes[path])
        planes = self.add("Unsqueeze", self.tensor(f"{path}/bits"), self.integers(2))
        shifted = self.add(
            "BitShift", planes, self.constant([[range(8)]], "uint8"), direction="RIGHT"
        )
        ones = self.add("Mod", shifted, self.constant(2, "uint8"))
        flat = self.add("Reshape", ones, self.integers(bits, -1))
        whole = self.add("Slice", flat, self.integers(0), self.integers(weights), self.integers(1))
        digits = self.add("Cast", whole, to=TensorProto.INT32)
        values = self.constant([[1 << bit] for bit in range(bits)], "int32")
        codes = self.add("ReduceSum", self.add("Mul", digits, values), self.integers(0), keepdims=0)
        return self.add("Gather", self.tensor(f"{path}/centers"), codes)

    def affine(self, x: str, path: str) -> str:
        """A batch norm, its statistics folded in."""
        shape = self.integers(-1, 1, 1)
        scale = self.add("Reshape", self.tensor(f"{path}/scale"), shape)
        offset = self.add("Reshape", self.tensor(f"{path}/offset"), shape)
        return self.add("Add", self.add("Mul", x, scale), offset)

    def dense(self, x: str, path: str) -> str:
        """[N, F] to [N, F']."""
        name = f"{path}/kernel"
        kernel = self.tensor(name)
        if self.model.tensors[name].dtype != np.float32:
            kernel = self.add("Cast", kernel, to=TensorProto.FLOAT)
        if self.has(f"{path}/kernel_scale"):
            kernel = self.add("Mul", kernel, self.tensor(f"{path}/kernel_scale"))
        return self.add("Gemm", x, kernel, self.tensor(f"{path}/bias"))

    def max_pool(self, x: str) -> str:
        """2x2, stride 2; an odd last row or column is dropped."""
        return self.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])

    def average_pool(self, x: str, window: int) -> str:
        """Means over windows that do not overlap."""
        if window == 1:
            return x
        return self.add("AveragePool", x, kernel_shape=[window] * 2, strides=[window] * 2)


def _images(graph: Graph) -> str:
    """From uint8 [N, Y, X, C] to what the first convolution takes."""
    network, spec = graph.model.network, graph.model.images
    x = graph.add("Cast", INPUT, to=TensorProto.FLOAT)
    if spec.image_size:
        top, left = (spec.image_size - spec.height) // 2, (spec.image_size - spec.width) // 2
        bottom = spec.image_size - spec.height - top
        right = spec.image_size - spec.width - left
        x = graph.add("Pad", x, graph.integers(0, top, left, 0, 0, bottom, right, 0))
    x = graph.add("Div", x, graph.constant(255.0))
    x = graph.add("Sub", x, graph.constant(spec.mean))
    x = graph.add("Div", x, graph.constant(spec.std))
    if CONVOLUTIONS[network.conv].takes_planes:
        x = INPUT_PLANES[network.input_planes](graph, x, network.planes)
    return graph.add("Transpose", x, perm=[0, 3, 1, 2])


def _copy(graph: Graph, x: str, planes: int) -> str:
    channels = range(graph.model.images.channels)
    return graph.add("Gather", x, graph.integers(*np.repeat(channels, planes)), axis=3)


def _first(graph: Graph, x: str, planes: int) -> str:
    return graph.add("Gather", x, graph.integers(*[0] * planes), axis=3)


def _rgbx(graph: Graph, x: str, planes: int) -> str:
    del planes  # it is 4
    return graph.add("Concat", x, graph.add("ReduceMean", x, axes=[3], keepdims=1), axis=3)


INPUT_PLANES: dict[str, Callable[[Graph, str, int], str]] = {
    "copy": _copy, "first": _first, "rgbx": _rgbx,
}  # fmt: skip


def _simple_cnn(graph: Graph, x: str) -> str:
    """See `mcn_jax.models.simple_cnn`; returns [N, F]."""
    height, width, _ = graph.model.images.shape
    for layer in range(1, len(graph.model.network.widths) + 1):
        x = graph.convolution(x, f"conv_{layer}", (height, width))
        x = graph.max_pool(graph.add("Relu", graph.affine(x, f"batch_norm_{layer}")))
        height, width = height // 2, width // 2
    return graph.add("Flatten", graph.add("Transpose", x, perm=[0, 2, 3, 1]))


def _wide_resnet(graph: Graph, x: str) -> str:
    """See `mcn_jax.models.wide_resnet`; returns [N, F]."""
    network, stem = graph.model.network, STEMS[graph.model.network.stem]
    factor = network.planes
    height, width, _ = graph.model.images.shape
    x = graph.convolution(x, "stem", (height, width), stem.strides)
    height, width = -(-height // stem.strides), -(-width // stem.strides)
    if stem.pools:
        x, height, width = graph.max_pool(x), height // 2, width // 2
    before, *stages = network.widths
    for stage, maps in enumerate(stages, start=1):
        for block in range(1, blocks_per_stage(network.depth) + 1):
            path = f"stage_{stage}_block_{block}"
            strides = 2 if stage > 1 and block == 1 else 1
            y = graph.add("Relu", graph.affine(x, f"{path}/batch_norm_1"))
            y = graph.convolution(y, f"{path}/conv_1", (height, width), strides)
            height, width = height // strides, width // strides
            y = graph.add("Relu", graph.affine(y, f"{path}/batch_norm_2"))
            y = graph.convolution(y, f"{path}/conv_2", (height, width))
            x = graph.average_pool(x, strides)
            if maps != before:  # whole maps of zeros are appended
                more = (maps - before) * factor
                x = graph.add("Pad", x, graph.integers(0, 0, 0, 0, 0, more, 0, 0))
            x, before = graph.add("Add", y, x), maps
    x = graph.add("Relu", graph.affine(x, "batch_norm"))
    return graph.add("ReduceMean", x, axes=[2, 3], keepdims=0)


NETWORKS: dict[str, Callable[[Graph, str], str]] = {
    "simple_cnn": _simple_cnn, "wide_resnet": _wide_resnet,
}  # fmt: skip


def write_onnx(model: Model, path: pathlib.Path) -> None:
    """Writes the graph; whoever reads `path` meanwhile finds the old one or the new one."""
    write_bytes_atomically(path, onnx_model(model).SerializeToString())


def onnx_model(model: Model) -> onnx.ModelProto:
    """The graph: from "images" [N, Y, X, C] uint8 to "logits" [N, classes] float32.

    Args:
        model: the content of a model file.

    Raises:
        onnx.checker.ValidationError: if the result is no valid ONNX, which would be our mistake.
    """
    graph, spec = Graph(model), model.images
    x = NETWORKS[model.network.name](graph, _images(graph))
    x = graph.add("Relu", graph.dense(x, "dense_1"))
    graph.dense(x, "dense_2")
    graph.nodes[-1].output[0] = OUTPUT
    shape: list[str | int | None] = ["N", spec.height, spec.width, spec.channels]
    proto = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "mcn_jax",
            [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, shape)],
            [
                helper.make_tensor_value_info(
                    OUTPUT, TensorProto.FLOAT, ["N", len(model.class_names)]
                )
            ],
            list(graph.initializers.values()),
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=8,
        producer_name="mcn_jax",
    )
    helper.set_model_props(proto, {model_file.KEY: model_file.header(model)})
    onnx.checker.check_model(proto, full_check=True)
    return proto
