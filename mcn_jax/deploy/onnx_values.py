"""The values of a traced function, and the ONNX graph that they are written to.

Nothing is written before something needs it. A transpose only notes the order of the axes, a
broadcast notes the axes that repeat, and a reshape notes its source. So transposes between
convolutions vanish, ONNX broadcasts where JAX writes a broadcast, and two reshapes become one.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from mcn_jax.errors import InputError

Shape = tuple[int, ...]  # -a stands for a * N, N being the number of images
Order = tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Value:
    """An array of the traced function, and how the graph holds it.

    Exactly one of `name`, `constant` and `source` is set.

    Attributes:
        shape: its shape in JAX.
        dtype: its dtype, the same in JAX and in the graph.
        name: the tensor that holds it.
        constant: what the array is, of length 1 along `repeated`, its axes in JAX's order.
        source: the value that it is a reshape of; the reshape is not written yet.
        order: axis j of the tensor `name` is axis order[j] of the array.
        repeated: axes along which the array repeats one value, of length 1 in the tensor.
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
        """The shape with length 1 along `repeated`."""
        return tuple(1 if axis in self.repeated else n for axis, n in enumerate(self.shape))


class Graph:
    """The nodes and initializers of a graph as it grows.

    Attributes:
        nodes: in the order of their computation.
        initializers: by name.
        producers: the node of every tensor that a node makes.
        means: for a tensor that is a sum, the number of its terms and the tensor of their mean.
    """

    def __init__(self, input_name: str, taken: Iterable[str]):
        """Starts an empty graph.

        Args:
            input_name: of the input, whose first axis is the images.
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
        """Adds a node with one output and returns its name; the same node is added only once."""
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
        """Returns the name of a vector of int64: a shape, axes or indices."""
        return self.constant(np.array(list(values), np.int64))

    def tensor(
        self,
        value: Value,
        order: Order | None = None,
        *,
        expand: bool = True,
        strip: bool = False,
    ) -> str:
        """Writes a value and returns the name of the tensor.

        Args:
            value: what to write.
            order: axis j of the tensor is axis order[j] of the array; None for JAX's order.
            expand: whether repeated values are written out.
            strip: leave out leading axes of length 1; not together with `expand`.
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
        """A tensor with the elements of a value in a given order of its axes, and its shape."""
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
            raise InputError(f"a shape with more than one axis of images: {describe(target)}")
        # 0 copies a length. So ONNX Runtime knows that the number of images stays the same, which
        # it needs to add two results of convolutions in the layout that these have.
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
    """The lengths of the axes in another order."""
    return tuple(shape[axis] for axis in order)


def _same_elements(shape: Shape, a: Order, b: Order) -> bool:
    """Whether two orders of the axes differ only in where axes of length 1 stand."""
    return [axis for axis in a if shape[axis] != 1] == [axis for axis in b if shape[axis] != 1]


def describe(shape: Shape) -> str:
    """A shape as people write it, such as [N, 32, 32, 3]."""
    return "[" + ", ".join(str(n) if n >= 0 else f"{-n}N".lstrip("1") for n in shape) + "]"


def reshape(graph: Graph, value: Value, shape: Shape) -> Value:
    """The value in another shape of as many elements."""
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
    """The reshape that joins a repeated axis and one beside it, as `jnp.repeat` does it: a Gather,
    or nothing but a note where there is one element to repeat."""
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
    """The value with its axis i as axis axes[i], which ascend, repeated along all others."""
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
    """The value with axis order[i] as axis i."""
    shape = permuted(value.shape, order)
    repeated = frozenset(i for i, axis in enumerate(order) if axis in value.repeated)
    if value.constant is not None:
        constant = value.constant.transpose(order)
        return Value(shape=shape, dtype=value.dtype, constant=constant, repeated=repeated)
    value = written(graph, value)
    new_order = tuple(order.index(axis) for axis in value.order)
    return dataclasses.replace(value, shape=shape, order=new_order, repeated=repeated)


def written(graph: Graph, value: Value) -> Value:
    """The value with its reshape written, if it is one; its tensor is in JAX's order then."""
    if value.source is None:
        return value
    name = graph.tensor(value, expand=False)
    return dataclasses.replace(value, name=name, source=None)
