"""Writes elementwise ONNX operators, for values of any layout.

ONNX Runtime has no kernel for some pairs of operator and dtype. In that case the values are cast to
a wider dtype and the result is cast back. This keeps the low bits, as JAX does.
"""

import dataclasses
from typing import Any

import numpy as np
from onnx import helper

from mcn_jax.deploy.onnx_values import Graph, Value

# Dtypes for which ONNX Runtime 1.22 has no kernel, by operator. These operators do not have kernels
# for bool and bfloat16 either.
_NARROW = "uint8 int8 uint16 int16"
_WIDE_UNSIGNED = "uint32 uint64"
LACKING = {
    "Max": _NARROW,
    "Min": _NARROW,
    "Clip": "uint16 int16",
    "Pow": f"{_NARROW} {_WIDE_UNSIGNED}",
    "Where": f"int8 uint16 int16 {_WIDE_UNSIGNED}",
    "ReduceMax": f"uint16 int16 {_WIDE_UNSIGNED}",
    "ReduceMin": f"uint16 int16 {_WIDE_UNSIGNED}",
    "ReduceSum": f"{_NARROW} {_WIDE_UNSIGNED}",
    "ReduceProd": f"{_NARROW} {_WIDE_UNSIGNED}",
    "CumSum": f"{_NARROW} {_WIDE_UNSIGNED}",
    "ArgMax": f"uint16 int16 {_WIDE_UNSIGNED}",
    "ArgMin": f"uint16 int16 {_WIDE_UNSIGNED}",
    "MatMul": _NARROW,
    "Pad": "uint16 int16",
}
# Operators with a kernel for bool. Those that only move elements have one, too.
_FOR_BOOL = {"Equal", "And", "Or", "Xor", "Not", "Cast"}


def kernel_dtype(operator: str, dtype: np.dtype) -> np.dtype:
    """Returns the dtype, or a wider one if ONNX Runtime has no kernel of the operator for it."""
    if dtype.name == "bfloat16":
        return dtype if operator == "Cast" else np.dtype(np.float32)
    lacks = dtype.name in LACKING.get(operator, "").split()
    if not lacks and (dtype != np.bool_ or operator in _FOR_BOOL):
        return dtype
    return np.dtype(np.int64 if dtype.name in _WIDE_UNSIGNED.split() else np.int32)


def cast(graph: Graph, value: Value, dtype: np.dtype) -> Value:
    """Returns the value in another dtype."""
    if value.dtype == dtype:
        return value
    if value.constant is not None:
        return dataclasses.replace(value, constant=value.constant.astype(dtype), dtype=dtype)
    to = helper.np_dtype_to_tensor_dtype(dtype)
    if value.source is not None:  # cast first, the reshape is written later
        source = cast(graph, value.source, dtype)
        return dataclasses.replace(value, source=source, dtype=dtype)
    return dataclasses.replace(value, name=graph.emit("Cast", value.name, to=to), dtype=dtype)


def apply(
    graph: Graph, operator: str, *values: Value, dtype: Any = None, **attributes: Any
) -> Value:
    """Adds an elementwise operator, which broadcasts, and returns its result.

    Args:
        graph: the graph to add it to.
        operator: name of the ONNX operator.
        values: the operands. Their shapes are equal, except for axes of length 1 and scalars.
        dtype: of the result; None means the dtype of the last value.
        attributes: of the ONNX node.
    """
    narrow = values[-1].dtype
    dtype = narrow if dtype is None else np.dtype(dtype)
    wide = kernel_dtype(operator, narrow)
    if wide != narrow:
        widened = [cast(graph, v, wide) if v.dtype == narrow else v for v in values]
        result_dtype = wide if dtype == narrow else dtype
        result = apply(graph, operator, *widened, dtype=result_dtype, **attributes)
        return cast(graph, result, dtype)
    rank = max(len(value.shape) for value in values)
    full = [value for value in values if len(value.shape) == rank]
    lengths_of_axes = zip(*(value.shape for value in full), strict=True)
    shape = tuple(next((n for n in lengths if n != 1), 1) for lengths in lengths_of_axes)
    # The operand with the most axes longer than 1 sets the axis order of all operands.
    leader = max(full, key=lambda v: (sum(n != 1 for n in v.stored), v.constant is None))
    order = leader.order if leader.source is None else tuple(range(rank))
    names = [
        graph.tensor(
            value,
            order if len(value.shape) == rank else None,
            expand=False,
            strip=value is not leader,
        )
        for value in values
    ]
    all_stored = zip(*(value.stored for value in full), strict=True)
    repeated = frozenset(
        axis
        for axis, lengths in enumerate(all_stored)
        if shape[axis] != 1 and all(n == 1 for n in lengths)
    )
    name = graph.emit(operator, *names, **attributes)
    return Value(shape=shape, dtype=dtype, name=name, order=order, repeated=repeated)


def scalar(number: float, dtype: np.dtype) -> Value:
    """Returns a constant without axes."""
    return Value(shape=(), dtype=dtype, constant=np.array(number, dtype))
