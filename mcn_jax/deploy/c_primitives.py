"""Translates what lies between the layers: one rule per JAX primitive.

A rule takes the program, the inputs and the equation of the traced function, for one image. It
returns an expression, or adds steps and returns where their result is.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from mcn_jax.deploy.c_expressions import (
    SUM,
    Applied,
    Constant,
    Expression,
    Index,
    Padded,
    Reading,
    Shape,
    Stored,
    View,
    affine,
    flat,
    joined,
    split_axes,
)
from mcn_jax.deploy.c_program import Program, indices, loops
from mcn_jax.errors import InputError

Inputs = list[Expression]
Rule = Callable[[Program, Inputs, Any], Expression]
RULES: dict[str, Rule] = {}
LOWEST = "-3.402823466e+38f"  # of float32


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Returns a decorator that adds a rule to the table under these primitive names."""

    def enter(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return enter


def shape_of(equation: Any) -> Shape:
    """Returns the shape of an equation's result."""
    return tuple(equation.outvars[0].aval.shape)


def _float64(value: Constant, rank: int) -> np.ndarray:
    array = value.array.astype(np.float64)
    return array.reshape((1,) * (rank - array.ndim) + array.shape)


def _broadcast(value: Expression, shape: Shape) -> Expression:
    if value.shape == shape:
        return value
    return View(shape=shape, source=value, source_index=lambda index: index)


@rule("copy", "device_put", "optimization_barrier", "stop_gradient")
def _same(program: Program, inputs: Inputs, equation: Any) -> Expression:
    del program, equation
    return inputs[0]


@rule("convert_element_type")
def _convert(program: Program, inputs: Inputs, equation: Any) -> Expression:
    del program
    dtype = np.dtype(equation.params["new_dtype"])
    if dtype != np.float32:
        raise InputError(f"converts numbers to {dtype.name}")
    return Applied(shape=inputs[0].shape, text="(float){}", operands=(inputs[0],))


@rule("neg")
def _negative(program: Program, inputs: Inputs, equation: Any) -> Expression:
    del program, equation
    ones = (1,) * len(inputs[0].shape)
    return affine(inputs[0], np.full(ones, -1.0), np.zeros(ones))


@rule("add", "sub", "mul", "div")
def _arithmetic(program: Program, inputs: Inputs, equation: Any) -> Expression:
    del program
    name, shape = equation.primitive.name, shape_of(equation)
    a, b = inputs
    ones = (1,) * len(shape)
    one, zero = np.ones(ones), np.zeros(ones)
    if isinstance(b, Constant):
        x, values = _broadcast(a, shape), _float64(b, len(shape))
        factors = {"mul": values, "div": one / values if np.all(values) else None}
        factor = factors.get(name, one)
        if factor is None:
            raise InputError("divides by a constant that is zero")
        return affine(x, factor, {"add": values, "sub": -values}.get(name, zero))
    if isinstance(a, Constant) and name != "div":
        x, values = _broadcast(b, shape), _float64(a, len(shape))
        factor = values if name == "mul" else -one if name == "sub" else one
        return affine(x, factor, zero if name == "mul" else values)
    text = {"add": SUM, "sub": "({} - {})", "mul": "({} * {})", "div": "({} / {})"}[name]
    return Applied(shape=shape, text=text, operands=(a, b))


@rule("max", "min")
def _extreme(program: Program, inputs: Inputs, equation: Any) -> Expression:
    del program
    helper = "larger" if equation.primitive.name == "max" else "smaller"
    text, shape = f"{helper}({{}}, {{}})", shape_of(equation)
    return Applied(shape=shape, text=text, operands=tuple(inputs), helper=helper)


@rule("reshape", "squeeze", "expand_dims")
def _reshape(program: Program, inputs: Inputs, equation: Any) -> Expression:
    return reshaped(program, inputs[0], shape_of(equation))


def reshaped(program: Program, value: Expression, shape: Shape) -> Expression:
    """Returns an array in another shape; computes it first if axes are joined."""
    axes = split_axes(value.shape, shape)
    if isinstance(value, Constant):
        return Constant(shape=shape, array=value.array.reshape(shape))
    if axes is not None and not isinstance(value, Stored):

        def source_index(index: Index) -> Index:
            return tuple(
                joined([index[axis] for axis in own], tuple(shape[axis] for axis in own))
                for own in axes
            )

        return View(shape=shape, source=value, source_index=source_index)
    stored = value if isinstance(value, Stored) else program.stored(value)
    return Stored(shape=shape, buffer=stored.buffer, text=stored.text)


@rule("broadcast_in_dim")
def _broadcast_in_dim(program: Program, inputs: Inputs, equation: Any) -> Expression:
    del program
    axes, shape = equation.params["broadcast_dimensions"], shape_of(equation)
    return View(
        shape=shape,
        source=inputs[0],
        source_index=lambda index: tuple(index[axis] for axis in axes),
    )


@rule("slice")
def _slice(program: Program, inputs: Inputs, equation: Any) -> Expression:
    del program
    starts = equation.params["start_indices"]
    strides = equation.params["strides"] or (1,) * len(starts)

    def source_index(index: Index) -> Index:
        found = []
        for text, start, stride in zip(index, starts, strides, strict=True):
            scaled = text if stride == 1 or text == "0" else f"{text} * {stride}"
            if start:
                scaled = str(start) if scaled == "0" else f"{scaled} + {start}"
            found.append(f"({scaled})" if " " in scaled else scaled)
        return tuple(found)

    return View(shape=shape_of(equation), source=inputs[0], source_index=source_index)


@rule("pad")
def _pad(program: Program, inputs: Inputs, equation: Any) -> Expression:
    del program
    config = [tuple(map(int, sizes)) for sizes in equation.params["padding_config"]]
    if any(low < 0 or high < 0 or inside for low, high, inside in config):
        raise InputError("pads inside an array, or by negative lengths")
    if all(low == high == 0 for low, high, _ in config):
        return inputs[0]
    low = tuple(low for low, _, _ in config)
    return Padded(shape=shape_of(equation), source=inputs[0], low=low, value=inputs[1])


@rule("concatenate")
def _concatenate(program: Program, inputs: Inputs, equation: Any) -> Expression:
    axis, shape = equation.params["dimension"], shape_of(equation)
    buffer = program.buffer(math.prod(shape))
    result = Stored(shape=shape, buffer=buffer, text=buffer.name + "[{}]")
    reading, start, code = Reading(program.constant), 0, ""
    for operand in inputs:
        index = indices(operand.shape)
        place = list(index)
        if start:
            place[axis] = str(start) if index[axis] == "0" else f"({index[axis]} + {start})"
        target = f"{buffer.name}[{flat(tuple(place), shape)}]"
        body = f"{target} = {reading.at(operand, index)};\n"
        code += loops(operand.shape, index, body)
        start += operand.shape[axis]
    program.add(code, reading, buffer)
    return result


@rule("reduce_sum", "reduce_max")
def _reduce(program: Program, inputs: Inputs, equation: Any) -> Expression:
    """Runs over the last axis that is kept inside of the axes that are reduced."""
    (x,), shape, axes = inputs, shape_of(equation), equation.params["axes"]
    index = indices(x.shape)
    if all(x.shape[axis] == 1 for axis in axes):
        return reshaped(program, x, shape)
    kept = tuple(text for axis, text in enumerate(index) if axis not in axes)
    buffer = program.buffer(math.prod(shape))
    place = f"{buffer.name}[{flat(kept, shape)}]"
    reading = Reading(program.constant)
    element = reading.at(x, index)
    if equation.primitive.name == "reduce_sum":
        first, update = "0.0f", f"{place} += {element};\n"
    else:
        reading.helpers.add("larger")
        first, update = LOWEST, f"{place} = larger({place}, {element});\n"
    inner = [number for number, text in enumerate(kept) if text != "0"][-1:]
    inner_loop = [kept[n] for n in inner], tuple(shape[n] for n in inner)
    over = tuple(index[axis] for axis in axes), tuple(x.shape[axis] for axis in axes)

    def run(body: str) -> str:
        return loops(inner_loop[1], inner_loop[0], body)

    outer = [n for n in range(len(kept)) if n not in inner]
    body = run(f"{place} = {first};\n") + loops(over[1], over[0], run(update))
    code = loops(tuple(shape[n] for n in outer), [kept[n] for n in outer], body)
    program.add(code, reading, buffer)
    return Stored(shape=shape, buffer=buffer, text=buffer.name + "[{}]")
