"""Translates convolutions, matrix products and indexing to ONNX.

Importing this module adds its rules to the table.
"""

import dataclasses
import math

import numpy as np
from onnx import numpy_helper

from mcn_jax.deploy import onnx_values
from mcn_jax.deploy.onnx_operators import apply, cast, kernel_dtype, scalar
from mcn_jax.deploy.onnx_primitives import Equation, rule
from mcn_jax.deploy.onnx_reductions import reduced
from mcn_jax.deploy.onnx_shapes import named, padded
from mcn_jax.deploy.onnx_values import Graph, Order, Value


@rule("conv_general_dilated")
def _convolution(graph: Graph, equation: Equation) -> Value:
    x, kernel = (cast(graph, value, equation.dtype) for value in equation.inputs)
    images_spec, kernel_spec, output_spec = equation["dimension_numbers"]
    if equation["batch_group_count"] != 1:
        raise equation.lacks(f"batch_group_count={equation['batch_group_count']}")
    padding, between = equation["padding"], equation["lhs_dilation"]
    if max(between, default=1) > 1 or min(map(min, padding), default=0) < 0:
        config = [(0, 0, 0)] * len(x.shape)
        for axis, (low, high), dilation in zip(images_spec[2:], padding, between, strict=True):
            config[axis] = (low, high, dilation - 1)
        x = padded(graph, x, scalar(0, x.dtype), tuple(config), equation)
        padding = [(0, 0)] * len(padding)
    attributes = {
        "kernel_shape": [kernel.shape[axis] for axis in kernel_spec[2:]],
        "strides": list(equation["window_strides"]),
        "pads": [ends[i] for i in (0, 1) for ends in padding],
    }
    if max(equation["rhs_dilation"], default=1) > 1:
        attributes["dilations"] = list(equation["rhs_dilation"])
    if equation["feature_group_count"] > 1:
        attributes["group"] = equation["feature_group_count"]
    inputs = graph.tensor(x, images_spec), graph.tensor(kernel, kernel_spec)
    name = graph.emit("Conv", *inputs, **attributes)
    return Value(shape=equation.shape, dtype=equation.dtype, name=name, order=output_spec)


@rule("dot_general")
def _product(graph: Graph, equation: Equation) -> Value:
    (a_sums, b_sums), (a_batch, b_batch) = equation["dimension_numbers"]
    wide = kernel_dtype("MatMul", equation.dtype)
    a, b = (cast(graph, value, wide) for value in equation.inputs)
    a_rows = [i for i in range(len(a.shape)) if i not in (*a_sums, *a_batch)]
    b_columns = [i for i in range(len(b.shape)) if i not in (*b_sums, *b_batch)]
    rows, columns = ([v.shape[i] for i in axes] for v, axes in ((a, a_rows), (b, b_columns)))
    batch = [a.shape[i] for i in a_batch]
    terms = math.prod(a.shape[i] for i in a_sums)
    # If the second operand is a matrix, ONNX allows any leading axes in the first one.
    a_shape = (*batch, *([math.prod(rows)] if batch else rows), terms)
    b_shape = (*batch, terms, math.prod(columns))
    a = _matrix(graph, a, (*a_batch, *a_rows, *a_sums), a_shape)
    b = _matrix(graph, b, (*b_batch, *b_sums, *b_columns), b_shape)
    name = graph.emit("MatMul", graph.tensor(a), graph.tensor(b))
    shape = (*a_shape[:-1], b_shape[-1])
    result = cast(graph, Value(shape=shape, dtype=wide, name=name), equation.dtype)
    return onnx_values.reshape(graph, result, equation.shape)


def _matrix(graph: Graph, value: Value, order: Order, shape: tuple[int, ...]) -> Value:
    if order != tuple(range(len(order))):
        value = onnx_values.transpose(graph, value, order)
    return onnx_values.reshape(graph, value, shape)


@rule("gather")
def _gather(graph: Graph, equation: Equation) -> Value:
    x, indices = equation.inputs
    numbers, sizes = equation["dimension_numbers"], equation.sizes("slice_sizes")
    indexed = numbers.start_index_map
    whole = [axis for axis in range(len(x.shape)) if axis not in indexed]
    if numbers.operand_batching_dims or any(sizes[axis] != 1 for axis in indexed):
        raise equation.lacks("only whole rows can be indexed")
    if any(sizes[axis] != x.shape[axis] for axis in whole):
        raise equation.lacks("rows cannot be indexed and cut at once")
    if any(x.shape[axis] < 0 for axis in indexed):
        raise equation.lacks("images cannot be indexed")
    if indices.dtype not in (np.int32, np.int64):
        indices = cast(graph, indices, np.dtype(np.int64))
    index_shape = indices.shape[:-1]
    mode = equation["mode"].name
    limits = np.array([x.shape[axis] - 1 for axis in indexed], np.int64)
    inside = indices
    if mode != "PROMISE_IN_BOUNDS":
        inside = _within(graph, indices, limits)
    elif len(indexed) == 1:
        inside = _unwrapped(graph, indices, x.shape[indexed[0]])
    # A label per axis of the result: an axis of x, or a negative number for an axis of the indices.
    labels = [-1 - i for i in range(len(index_shape))]
    left = iter([axis for axis in range(len(x.shape)) if axis not in numbers.collapsed_slice_dims])
    found = iter(labels)
    offsets, rank = set(numbers.offset_dims), len(equation.shape)
    all_labels = [next(left if place in offsets else found) for place in range(rank)]
    kept = [label for label in all_labels if label not in indexed]
    if len(indexed) == 1:
        x = named(graph, x, indexed)
        place = x.order.index(indexed[0])
        rows = graph.tensor(onnx_values.reshape(graph, inside, index_shape))
        name = graph.emit("Gather", x.name, rows, axis=place)
        written = [*x.order[:place], *labels, *x.order[place + 1 :]]
    else:
        data = graph.tensor(x, (*indexed, *whole))
        rows = graph.tensor(cast(graph, inside, np.dtype(np.int64)))
        name, written = graph.emit("GatherND", data, rows), [*labels, *whole]
        x = dataclasses.replace(x, repeated=frozenset())
    result = Value(
        shape=tuple(
            n for n, label in zip(equation.shape, all_labels, strict=True) if label in kept
        ),
        dtype=x.dtype,
        name=name,
        order=tuple(kept.index(label) for label in written),
        repeated=frozenset(kept.index(axis) for axis in x.repeated),
    )
    if mode == "FILL_OR_DROP" and inside.constant is None:
        valid = apply(graph, "Equal", indices, inside, dtype=np.bool_)
        valid = reduced(graph, "ReduceMin", valid, [len(index_shape)])
        places = [kept.index(label) for label in labels]
        valid = onnx_values.broadcast(valid, result.shape, places)
        fill = equation["fill_value"]
        if fill is None:
            fill = np.nan if x.dtype.kind == "f" else _outside(x.dtype)
        result = apply(graph, "Where", valid, result, scalar(fill, x.dtype))
    return onnx_values.reshape(graph, result, equation.shape)


def _outside(dtype: np.dtype) -> int:
    """Returns the integer that JAX fills in for an index outside the array."""
    info = np.iinfo(dtype)
    return info.max if dtype.kind == "u" else info.min


def _within(graph: Graph, indices: Value, limits: np.ndarray) -> Value:
    """Returns the indices [..., k], clipped to the range from 0 to limits [k]."""
    limits = limits.reshape((1,) * (len(indices.shape) - 1) + limits.shape).astype(indices.dtype)
    highest = Value(shape=limits.shape, dtype=indices.dtype, constant=limits)
    if indices.constant is not None:
        clipped = np.clip(indices.constant, 0, limits)
        if not np.array_equal(clipped, indices.constant):
            return apply(
                graph, "Min", apply(graph, "Max", indices, scalar(0, indices.dtype)), highest
            )
        return indices
    at_least_0 = apply(graph, "Max", indices, scalar(0, indices.dtype))
    return apply(graph, "Min", at_least_0, highest)


def _unwrapped(graph: Graph, indices: Value, length: int) -> Value:
    """Returns the indices as they were before JAX added the length of the axis to negative ones.

    ONNX adds the length itself.
    """
    name = (indices.source or indices).name
    where = graph.producers.get(name)
    if where is None or where.op_type != "Where":
        return indices
    is_negative, added, plain = where.input
    less, add = graph.producers.get(is_negative), graph.producers.get(added)
    if less is None or add is None or (less.op_type, add.op_type) != ("Less", "Add"):
        return indices
    constants = [
        numpy_helper.to_array(graph.initializers[name])
        for name in (less.input[1], add.input[1])
        if name in graph.initializers
    ]
    if plain != less.input[0] or plain != add.input[0] or constants != [0, length]:
        return indices
    if indices.source is None:
        return dataclasses.replace(indices, name=plain)
    source = dataclasses.replace(indices.source, name=plain)
    return dataclasses.replace(indices, source=source)
