"""Translates reductions to ONNX: over whole axes, over pooling windows, and cumulative sums.

A pooling may be written as a reshape that splits each axis into (windows, pixels of a window), and
a maximum or sum over the pixels. `mcn_jax.layers.pooling.max_pool` does that. The translation
detects it and writes a pooling. Importing this module adds its rules to the table.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np

from mcn_jax.deploy import onnx_values
from mcn_jax.deploy.onnx_operators import apply, cast, kernel_dtype, scalar
from mcn_jax.deploy.onnx_primitives import RULES, Equation, rule
from mcn_jax.deploy.onnx_shapes import named
from mcn_jax.deploy.onnx_values import Graph, Shape, Value

REDUCTIONS = {
    "reduce_sum": "ReduceSum", "reduce_max": "ReduceMax", "reduce_min": "ReduceMin",
    "reduce_prod": "ReduceProd", "reduce_and": "ReduceMin", "reduce_or": "ReduceMax",
}  # fmt: skip
POOLS = {"ReduceMax": "MaxPool", "ReduceSum": "AveragePool"}


def _reduce(operator: str, graph: Graph, equation: Equation) -> Value:
    (x,), axes = equation.inputs, equation["axes"]
    if equation.primitive in ("reduce_and", "reduce_or") and x.dtype != np.bool_:
        raise equation.lacks("only bool is supported")
    if not axes:
        return x
    if operator in POOLS and (factors := _pooled_axes(x, axes)) is not None:
        source = x.source or x
        window = tuple(factors.get(axis, 1) for axis in range(len(source.shape)))
        return _pool(graph, POOLS[operator], source, window, window, equation.shape)
    return reduced(graph, operator, x, axes)


for _primitive, _operator in REDUCTIONS.items():
    RULES[_primitive] = functools.partial(_reduce, _operator)


def reduced(graph: Graph, operator: str, x: Value, axes: Sequence[int]) -> Value:
    """Reduces over axes and removes them. The mean of a sum is noted in `graph.means`."""
    dtype, wide = x.dtype, kernel_dtype(operator, x.dtype)
    x = named(graph, cast(graph, x, wide), axes)
    places = graph.integers(sorted(x.order.index(axis) for axis in axes))
    name = graph.emit(operator, x.name, places, keepdims=0)
    terms = math.prod(x.shape[axis] for axis in axes)
    if operator == "ReduceSum" and dtype == wide and dtype.kind == "f" and terms > 0:
        graph.means[name] = terms, graph.emit("ReduceMean", x.name, places, keepdims=0)
    return cast(graph, _without_axes(x, axes, name), dtype)


def _without_axes(x: Value, axes: Sequence[int], name: str) -> Value:
    left = [axis for axis in range(len(x.shape)) if axis not in axes]
    return Value(
        shape=onnx_values.permuted(x.shape, tuple(left)),
        dtype=x.dtype,
        name=name,
        order=tuple(left.index(axis) for axis in x.order if axis not in axes),
        repeated=frozenset(left.index(axis) for axis in x.repeated),
    )


def _pooled_axes(x: Value, axes: Sequence[int]) -> dict[int, int] | None:
    """Returns {axis of the source: pixels per window} if the reduction is a pooling, else None.

    The reduction over `axes` is a pooling if `x` is a reshape of its source that splits axes into
    (windows, pixels of a window), and `axes` are the pixels.
    """
    if x.source is None or x.repeated or x.dtype not in (np.float32, np.float16):
        return None
    factors, i = {}, 0
    for axis, length in enumerate(x.source.shape):
        here, after = (*x.shape[i : i + 2], 0, 0)[:2]
        if i not in axes and i + 1 in axes and here * after == length:
            factors[axis] = after
            i += 2
        elif i not in axes and here == length:
            i += 1
        else:
            return None
    is_whole = i == len(x.shape) and len(factors) == len(axes)
    return factors if is_whole and len(x.source.shape) - len(factors) >= 2 else None


def _pool(
    graph: Graph,
    operator: str,
    x: Value,
    window: Shape,
    strides: Shape,
    shape: Shape,
    padding: Sequence[tuple[int, int]] | None = None,
    dilation: Shape | None = None,
) -> Value:
    """Returns the maxima or sums over windows.

    At least two axes must have windows of one element; they take the place of images and channels.
    """
    if max(window) == 1 and max(strides) == 1:
        return onnx_values.reshape(graph, x, shape)
    padding = padding or [(0, 0)] * len(window)
    whole = [a for a, n in enumerate(window) if n == strides[a] == 1 and padding[a] == (0, 0)]
    images, channels = whole[0], whole[-1]
    pixels = [axis for axis in range(len(window)) if axis not in (images, channels)]
    order = (images, channels, *pixels)
    attributes: dict[str, list[int]] = {
        "kernel_shape": [window[axis] for axis in pixels],
        "strides": [strides[axis] for axis in pixels],
    }
    if any(map(any, padding)):
        attributes["pads"] = [padding[axis][end] for end in (0, 1) for axis in pixels]
    if dilation is not None and max(dilation) > 1:
        attributes["dilations"] = [dilation[axis] for axis in pixels]
    data = graph.tensor(x, order)
    if operator == "MaxPool":
        name = graph.emit(operator, data, **attributes)
        return Value(shape=shape, dtype=x.dtype, name=name, order=order)
    include = {"count_include_pad": 1} if "pads" in attributes else {}
    mean = graph.emit(operator, data, **attributes, **include)
    terms = math.prod(window)
    means = Value(shape=shape, dtype=x.dtype, name=mean, order=order)
    sums = apply(graph, "Mul", means, scalar(terms, x.dtype))
    graph.means[sums.name] = terms, mean
    return sums


@rule("reduce_window_max", "reduce_window_sum")
def _reduce_window(graph: Graph, equation: Equation) -> Value:
    (x,), window = equation.inputs, equation["window_dimensions"]
    strides, padding = equation["window_strides"], equation["padding"]
    dilation = equation["window_dilation"]
    is_max = equation.primitive == "reduce_window_max"
    whole = [a for a, n in enumerate(window) if n == strides[a] == 1 and padding[a] == (0, 0)]
    if x.dtype not in (np.float32, np.float16):
        raise equation.lacks("windows must be float32 or float16")
    if max(equation["base_dilation"]) > 1 or (max(dilation) > 1 and not is_max):
        raise equation.lacks("this dilation is not supported")
    if len(whole) < 2 or len(window) > 5 or min(map(min, padding)) < 0:
        raise equation.lacks(f"windows {window} with padding {padding} are not supported")
    operator = "MaxPool" if is_max else "AveragePool"
    return _pool(graph, operator, x, window, strides, equation.shape, padding, dilation)


@rule("cumsum")
def _cumsum(graph: Graph, equation: Equation) -> Value:
    (x,), axis = equation.inputs, equation["axis"]
    x = named(graph, cast(graph, x, kernel_dtype("CumSum", x.dtype)), [axis])
    place = graph.constant(np.array(x.order.index(axis), np.int64))
    name = graph.emit("CumSum", x.name, place, reverse=int(equation["reverse"]))
    result = Value(shape=x.shape, dtype=x.dtype, name=name, order=x.order, repeated=x.repeated)
    return cast(graph, result, equation.dtype)


@rule("argmax", "argmin")
def _argmax(graph: Graph, equation: Equation) -> Value:
    (x,), (axis,) = equation.inputs, equation["axes"]
    operator = "ArgMax" if equation.primitive == "argmax" else "ArgMin"
    x = named(graph, cast(graph, x, kernel_dtype(operator, x.dtype)), [axis])
    name = graph.emit(operator, x.name, axis=x.order.index(axis), keepdims=0)
    indices = dataclasses.replace(_without_axes(x, [axis], name), dtype=np.dtype(np.int64))
    return cast(graph, indices, equation.dtype)
