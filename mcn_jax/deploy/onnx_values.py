"""Represents the values of a traced function, and the ONNX graph that they are written to.

A node is written only when something needs it. Until then, a transpose notes the order of the axes,
a broadcast notes the axes that repeat, and a reshape notes its source. So transposes between
convolutions vanish, ONNX operators broadcast by themselves, and two reshapes become one.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from mcn_jax.errors import InputError

Shape = tuple[int, ...]  # -a stands for a * N, where N is the number of images
Order = tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Value:
    """An array of the traced function, and how the graph holds it.

    Exactly one of `name`, `constant` and `source` is set.

    Attributes:
        shape: its shape in JAX.
        dtype: its dtype, the same in JAX and in the graph.
        name: the tensor that holds the array.
        constant: the array itself, with length 1 along `repeated` and its axes in JAX's order.
        source: the value before a reshape that is not written yet; this is the value after it.
        order: axis j of the tensor `name` is axis order[j] of the array.
        repeated: axes along which the array repeats one value; the tensor has length 1 there.
    """

    shape: Shape
    dtype: np.dtype
    name: str = ""
    constant: np.ndarray | None = None
    source: "Value | None" = None
    order: Order = ()
    repeated: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        if not self.order:
            object.__setattr__(self, "order", tuple(range(len(self.shape))))

    @property
    def stored(self) -> Shape:
        """The shape of the array with length 1 along `repeated`."""
        return tuple(1 if axis in self.repeated else n for axis, n in enumerate(self.shape))


class Graph:
    """The nodes and initializers of an ONNX graph that is being built.

    Attributes:
        nodes: in the order of computation.
        initializers: by name.
        producers: for the output of each node, the node.
        means: for a tensor that is a sum, the number of its terms and the tensor of their mean.
    """

    def __init__(self, input_name: str, taken: Iterable[str]):
        """Starts an empty graph.

        Args:
            input_name: name of the input, whose first axis is the images.
            taken: names that nodes and constants must not have.
        """
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.producers: dict[str, onnx.NodeProto] = {}
        self.means: dict[str, tuple[float, str]] = {}
        self._input_name = input_name
        self._taken = {input_name, *taken}
        self._known: dict[Any, str] = {}

    def emit(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node and returns the name of its output; the same node is added only once."""
        key = operator, inputs, repr(sorted(attributes.items()))
        if key not in self._known:
            output = self._known[key] = self._new_name(operator, len(self.nodes))
            self.nodes.append(helper.make_node(operator, inputs, [output], **attributes))
            self.producers[output] = self.nodes[-1]
        return self._known[key]

    def constant(self, array: np.ndarray) -> str:
        """Returns the name of an initializer; equal arrays share one."""
        key = array.dtype.name, array.shape, array.tobytes()
        if key not in self._known:
            name = self._known[key] = self._new_name("constant", len(self.initializers))
            array = np.ascontiguousarray(array).reshape(array.shape)
            self.initializers[name] = numpy_helper.from_array(array, name)
        return self._known[key]

    def integers(self, values: Iterable[int]) -> str:
        """Returns the name of an int64 vector, such as a shape, axes or indices."""
        return self.constant(np.array(list(values), np.int64))

    def tensor(
        self,
        value: Value,
        order: Order | None = None,
        *,
        expand: bool = True,
        strip: bool = False,
    ) -> str:
        """Writes a value and returns the name of its tensor.

        Args:
            value: what to write.
            order: axis j of the tensor is axis order[j] of the array; None for JAX's order.
            expand: whether to write out repeated values.
            strip: whether to leave out leading axes of length 1; cannot be combined with `expand`.
        """
        order = tuple(range(len(value.shape))) if order is None else order
        shape = permuted(value.stored, order)
        if strip:
            shape = shape[next((i for i, n in enumerate(shape) if n != 1), len(shape)) :]
        if value.constant is not None:
            name = self.constant(value.constant.transpose(order).reshape(shape))
        else:
            name = self._reshaped(*self._elements(value, order), shape)
        if expand and value.repeated:
            sizes = [value.shape[axis] if axis in value.repeated else 1 for axis in order]
            name = self.emit("Expand", name, self._runtime_shape(sizes))
        return name

    def _elements(self, value: Value, order: Order) -> tuple[str, Shape]:
        """Returns a tensor with a value's elements in the given order of axes, and its shape."""
        stored = value.stored
        if value.source is not None:
            source = value.source
            data, shape = self._elements(source, tuple(range(len(source.shape))))
            if _same_elements(stored, order, tuple(range(len(stored)))):
                return data, shape
            data = self._reshaped(data, shape, stored)
            return self.emit("Transpose", data, perm=order), permuted(stored, order)
        if value.constant is not None:
            return self.constant(value.constant.transpose(order)), permuted(stored, order)
        if _same_elements(stored, order, value.order):
            return value.name, permuted(stored, value.order)
        permutation = [value.order.index(axis) for axis in order]
        return self.emit("Transpose", value.name, perm=permutation), permuted(stored, order)

    def _reshaped(self, name: str, shape: Shape, target: Shape) -> str:
        if shape == target:
            return name
        if sum(n < 0 for n in target) > 1:
            raise InputError(f"shape {describe(target)} has more than one axis of images")
        # The size 0 copies a length. It tells ONNX Runtime that the number of images stays the
        # same. Only then can ONNX Runtime add two convolution outputs in their own layout.
        copies = [n < 0 and shape[axis : axis + 1] == (n,) for axis, n in enumerate(target)]
        sizes = (0 if copy else max(n, -1) for copy, n in zip(copies, target, strict=True))
        return self.emit("Reshape", name, self.integers(sizes))

    def _runtime_shape(self, sizes: Sequence[int]) -> str:
        if min(sizes, default=1) > 0:
            return self.integers(sizes)
        images = self.emit("Shape", self._input_name, start=0, end=1)
        parts = [
            self.integers([n]) if n > 0 else self.emit("Mul", images, self.integers([-n]))
            for n in sizes
        ]
        return self.emit("Concat", *parts, axis=0)

    def _new_name(self, prefix: str, number: int) -> str:
        name = f"{prefix}_{number}"
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name


def permuted(shape: Shape, order: Order) -> Shape:
    """Returns the lengths of the axes in another order."""
    return tuple(shape[axis] for axis in order)


def _same_elements(shape: Shape, a: Order, b: Order) -> bool:
    """Returns whether two orders differ only in the positions of axes of length 1."""
    return [axis for axis in a if shape[axis] != 1] == [axis for axis in b if shape[axis] != 1]


def describe(shape: Shape) -> str:
    """Returns a shape as readable text, such as "[N, 32, 32, 3]"."""
    return "[" + ", ".join(str(n) if n >= 0 else f"{-n}N".lstrip("1") for n in shape) + "]"


def reshape(graph: Graph, value: Value, shape: Shape) -> Value:
    """Returns the value in another shape with the same number of elements."""
    if value.shape == shape:
        return value
    if value.constant is not None and len(value.repeated) == len(value.shape) > 0:
        ones, everywhere = (1,) * len(shape), frozenset(range(len(shape)))
        constant = value.constant.reshape(ones)
        return Value(shape=shape, dtype=value.dtype, constant=constant, repeated=everywhere)
    if value.constant is not None and min(value.shape, default=1) >= 0:
        constant = np.broadcast_to(value.constant, value.shape).reshape(shape)
        return Value(shape=shape, dtype=value.dtype, constant=constant)
    if value.repeated:
        copies = _copies(graph, value, shape)
        if copies is not None:
            return copies
        value = Value(shape=value.shape, dtype=value.dtype, name=graph.tensor(value))
    source = value.source or value
    if source.shape == shape:
        return source
    return Value(shape=shape, dtype=value.dtype, source=source)


def _copies(graph: Graph, value: Value, shape: Shape) -> Value | None:
    """Reshapes by joining a repeated axis with its neighbor, as `jnp.repeat` does.

    This becomes a Gather, or only a note if there is just one element to repeat. The result is None
    for all other shapes.
    """
    axis, times = min((axis, value.shape[axis]) for axis in value.repeated)
    rest = (*value.shape[:axis], *value.shape[axis + 1 :])
    for beside, indices in ((axis - 1, np.repeat), (axis, np.tile)):
        length = rest[beside] if 0 <= beside < len(rest) else 0
        joined = (*rest[:beside], length * times, *rest[beside + 1 :])
        if len(value.repeated) > 1 or min(length, times) < 1 or joined != shape:
            continue
        once = dataclasses.replace(value, shape=value.stored, repeated=frozenset())
        once = written(graph, reshape(graph, once, rest))
        if length == 1:
            return dataclasses.replace(once, shape=shape, repeated=frozenset([beside]))
        places = graph.integers(indices(np.arange(length), times))
        name = graph.emit("Gather", once.name, places, axis=once.order.index(beside))
        return dataclasses.replace(once, shape=shape, name=name)
    return None


def broadcast(value: Value, shape: Shape, axes: Sequence[int]) -> Value:
    """Returns the value with its axis i as axis axes[i], repeated along all other axes.

    `axes` must ascend.
    """
    place = dict(zip(axes, value.stored, strict=True))
    stored = tuple(place.get(axis, 1) for axis in range(len(shape)))
    repeated = frozenset(i for i, n in enumerate(stored) if n == 1 and shape[i] != 1)
    if value.constant is not None:
        constant = value.constant.reshape(stored)
        return Value(shape=shape, dtype=value.dtype, constant=constant, repeated=repeated)
    if len(shape) == len(value.shape):
        return dataclasses.replace(value, shape=shape, repeated=repeated)
    source = value.source or dataclasses.replace(value, shape=value.stored, repeated=frozenset())
    return Value(shape=shape, dtype=value.dtype, source=source, repeated=repeated)


def transpose(graph: Graph, value: Value, order: Order) -> Value:
    """Returns the value with its axis order[i] as axis i."""
    shape = permuted(value.shape, order)
    repeated = frozenset(i for i, axis in enumerate(order) if axis in value.repeated)
    if value.constant is not None:
        constant = value.constant.transpose(order)
        return Value(shape=shape, dtype=value.dtype, constant=constant, repeated=repeated)
    value = written(graph, value)
    new_order = tuple(order.index(axis) for axis in value.order)
    return dataclasses.replace(value, shape=shape, order=new_order, repeated=repeated)


def written(graph: Graph, value: Value) -> Value:
    """Returns the value with a tensor: its reshape is written now if it was not written yet.

    The tensor of a reshape has its axes in JAX's order.
    """
    if value.source is None:
        return value
    name = graph.tensor(value, expand=False)
    return dataclasses.replace(value, name=name, source=None)
