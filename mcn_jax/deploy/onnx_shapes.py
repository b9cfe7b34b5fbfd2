"""Translates changes of shape to ONNX: reshapes, slices, paddings and concatenations.

Importing this module adds its rules to the table.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np

from mcn_jax.deploy import onnx_values
from mcn_jax.deploy.onnx_operators import cast, kernel_dtype
from mcn_jax.deploy.onnx_primitives import Equation, constant_scalar, rule
from mcn_jax.deploy.onnx_values import Graph, Shape, Value


@rule("reshape", "squeeze")
def _reshape(graph: Graph, equation: Equation) -> Value:
    return onnx_values.reshape(graph, equation.inputs[0], equation.shape)


@rule("broadcast_in_dim")
def _broadcast(graph: Graph, equation: Equation) -> Value:
    del graph
    return onnx_values.broadcast(
        equation.inputs[0], equation.shape, equation["broadcast_dimensions"]
    )


@rule("transpose")
def _transpose(graph: Graph, equation: Equation) -> Value:
    return onnx_values.transpose(graph, equation.inputs[0], equation["permutation"])


@rule("iota")
def _iota(graph: Graph, equation: Equation) -> Value:
    del graph
    axis, length = equation["dimension"], equation.shape[equation["dimension"]]
    if length < 0:
        raise equation.lacks("its length depends on the number of images")
    counted = np.arange(length, dtype=equation.dtype)
    numbers = Value(shape=(length,), dtype=equation.dtype, constant=counted)
    return onnx_values.broadcast(numbers, equation.shape, (axis,))


def sliced(
    graph: Graph, x: Value, starts: dict[int, int], stops: dict[int, int], steps: dict[int, int],
    shape: Shape,
) -> Value:  # fmt: skip
    """Takes every step-th element from start to stop along the axes that the dictionaries name."""
    axes = [axis for axis in starts if axis not in x.repeated]
    x = named(graph, x)
    if not axes:
        return dataclasses.replace(x, shape=shape)
    places = [x.order.index(axis) for axis in axes]
    inputs = [graph.integers(bounds[axis] for axis in axes) for bounds in (starts, stops)]
    inputs.append(graph.integers(places))
    if any(steps[axis] != 1 for axis in axes):
        inputs.append(graph.integers(steps[axis] for axis in axes))
    return dataclasses.replace(x, shape=shape, name=graph.emit("Slice", x.name, *inputs))


def named(graph: Graph, value: Value, axes: Iterable[int] = ()) -> Value:
    """Returns the value as a tensor; all repeats are written out if one of `axes` repeats."""
    if value.repeated.intersection(axes):
        return Value(shape=value.shape, dtype=value.dtype, name=graph.tensor(value))
    if value.constant is not None:
        return dataclasses.replace(value, name=graph.tensor(value, expand=False), constant=None)
    return onnx_values.written(graph, value)


@rule("slice")
def _slice(graph: Graph, equation: Equation) -> Value:
    (x,), starts = equation.inputs, equation["start_indices"]
    stops = equation.sizes("limit_indices")
    strides = equation["strides"] or (1,) * len(starts)
    axes = [
        axis
        for axis, (start, stop, stride) in enumerate(zip(starts, stops, strides, strict=True))
        if (start, stop, stride) != (0, x.shape[axis], 1)
    ]
    if any(stops[axis] < 0 for axis in axes):
        raise equation.lacks("it takes only some of the images")
    low, high, step = ({axis: values[axis] for axis in axes} for values in (starts, stops, strides))
    return sliced(graph, x, low, high, step, equation.shape)


@rule("dynamic_slice")
def _dynamic_slice(graph: Graph, equation: Equation) -> Value:
    x, *starts = equation.inputs
    sizes = equation.shape
    lows, highs = {}, {}
    for axis, start in enumerate(starts):
        if sizes[axis] == x.shape[axis]:
            continue
        first = constant_scalar(start)
        if first is None or x.shape[axis] < 0:
            raise equation.lacks("its start depends on the images")
        lows[axis] = int(np.clip(first, 0, x.shape[axis] - sizes[axis]))
        highs[axis] = lows[axis] + sizes[axis]
    return sliced(graph, x, lows, highs, dict.fromkeys(lows, 1), sizes)


@rule("split")
def _split(graph: Graph, equation: Equation) -> list[Value]:
    (x,), axis, start, parts = equation.inputs, equation["axis"], 0, []
    for length, shape in zip(equation["sizes"], equation.shapes, strict=True):
        parts.append(sliced(graph, x, {axis: start}, {axis: start + length}, {axis: 1}, shape))
        start += length
    return parts


@rule("rev")
def _reverse(graph: Graph, equation: Equation) -> Value:
    (x,), axes = equation.inputs, equation["dimensions"]
    first, end, step = (dict.fromkeys(axes, n) for n in (-1, np.iinfo(np.int32).min, -1))
    return sliced(graph, x, first, end, step, equation.shape)


@rule("unstack")
def _unstack(graph: Graph, equation: Equation) -> list[Value]:
    (x,), axis, parts = equation.inputs, equation["axis"], []
    row_shape = (*x.shape[:axis], 1, *x.shape[axis + 1 :])
    for index, shape in enumerate(equation.shapes):
        row = sliced(graph, x, {axis: index}, {axis: index + 1}, {axis: 1}, row_shape)
        parts.append(onnx_values.reshape(graph, row, shape))
    return parts


@rule("concatenate")
def _concatenate(graph: Graph, equation: Equation) -> Value:
    return _joined(graph, equation.inputs, equation["dimension"], equation)


@rule("stack")
def _stack(graph: Graph, equation: Equation) -> Value:
    axis = equation["axis"]
    shape = (*equation.shape[:axis], 1, *equation.shape[axis + 1 :])
    rows = [onnx_values.reshape(graph, x, shape) for x in equation.inputs]
    return _joined(graph, rows, axis, equation)


def _joined(graph: Graph, values: list[Value], axis: int, equation: Equation) -> Value:
    leader = max(values, key=lambda x: (x.constant is None, x.source is None))
    order = leader.order if leader.source is None else tuple(range(len(leader.shape)))
    names = [graph.tensor(x, order) for x in values]
    name = graph.emit("Concat", *names, axis=order.index(axis))
    return Value(shape=equation.shape, dtype=equation.dtype, name=name, order=order)


@rule("tile")
def _tile(graph: Graph, equation: Equation) -> Value:
    (x,), times = equation.inputs, equation["reps"]
    x = named(graph, x, [axis for axis, n in enumerate(times) if n > 1])
    counts = graph.integers(times[axis] for axis in x.order)
    return dataclasses.replace(x, shape=equation.shape, name=graph.emit("Tile", x.name, counts))


@rule("pad")
def _pad(graph: Graph, equation: Equation) -> Value:
    x, fill = equation.inputs
    return padded(graph, x, fill, equation["padding_config"], equation)


def padded(
    graph: Graph, x: Value, fill: Value, config: tuple[tuple[int, int, int], ...],
    equation: Equation,
) -> Value:  # fmt: skip
    """Pads every axis before, after and between its elements; a negative padding cuts."""
    if x.dtype != kernel_pad(x.dtype):
        wide = kernel_pad(x.dtype)
        narrow, x, fill = x.dtype, cast(graph, x, wide), cast(graph, fill, wide)
        return cast(graph, padded(graph, x, fill, config, equation), narrow)
    for axis, (_, _, between) in enumerate(config):
        if between:  # gives every element a row with padding; the last padding is cut below
            n = x.shape[axis]
            if n < 0:
                raise equation.lacks("it pads between images")
            rows = onnx_values.reshape(graph, x, (*x.shape[: axis + 1], 1, *x.shape[axis + 1 :]))
            after = [0] * len(rows.shape)
            after[axis + 1] = between
            rows = _pad_ends(graph, rows, fill, [0] * len(after), after)
            shape = (*x.shape[:axis], n * (between + 1), *x.shape[axis + 1 :])
            x = onnx_values.reshape(graph, rows, shape)
    before = [low for low, _, _ in config]
    after = [high - between for _, high, between in config]
    return _pad_ends(graph, x, fill, before, after)


def kernel_pad(dtype: np.dtype) -> np.dtype:
    """Returns the dtype that Pad is computed in."""
    return np.dtype(np.uint8) if dtype == np.bool_ else kernel_dtype("Pad", dtype)


def _pad_ends(graph: Graph, x: Value, fill: Value, before: list[int], after: list[int]) -> Value:
    if not any(before) and not any(after):
        return x
    if x.repeated or x.constant is not None:
        x = Value(shape=x.shape, dtype=x.dtype, name=graph.tensor(x))
    x = onnx_values.written(graph, x)
    ends = [ends[axis] for ends in (before, after) for axis in x.order]
    inputs = [x.name, graph.integers(ends)]
    if constant_scalar(fill) != 0:
        inputs.append(graph.tensor(fill))
    lengths = zip(x.shape, before, after, strict=True)
    shape = tuple(n if not b and not a else int(n + b + a) for n, b, a in lengths)
    return dataclasses.replace(x, shape=shape, name=graph.emit("Pad", *inputs))
