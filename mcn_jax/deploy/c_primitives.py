"""Translates what lies between the layers: one rule per JAX primitive.

A rule takes the program, the inputs and the equation of the traced function, for one image. It
returns an expression, or adds steps and returns where their result is.
"""

import math
from collections.abc import Callable, Sequence
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
from mcn_jax.deploy.c_text import number
from mcn_jax.errors import InputError

Inputs = list[Expression]
Rule = Callable[[Program, Inputs, Any], Expression]
RULES: dict[str, Rule] = {}
LOWEST = float(np.finfo(np.float32).min)


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
    (x,), shape, axes = inputs, shape_of(equation), equation.params["axes"]
    if all(x.shape[axis] == 1 for axis in axes):
        return reshaped(program, x, shape)
    index, reading = indices(x.shape), Reading(program.constant)
    kept = tuple(text for axis, text in enumerate(index) if axis not in axes)
    over = tuple(index[axis] for axis in axes), tuple(x.shape[axis] for axis in axes)
    element = reading.at(x, index)
    is_sum = equation.primitive.name == "reduce_sum"
    return _reduced(program, (kept, shape), over, element, reading, is_sum=is_sum)


@rule("reduce_window_sum", "reduce_window_max")
def _reduce_windows(program: Program, inputs: Inputs, equation: Any) -> Expression:
    (x,), shape, params = inputs, shape_of(equation), equation.params
    if set(params["base_dilation"]) | set(params["window_dilation"]) != {1}:
        raise InputError("has dilated windows")
    is_sum = equation.primitive.name == "reduce_window_sum"
    low, high = zip(*params["padding"], strict=True)
    size = tuple(sum(sizes) for sizes in zip(low, x.shape, high, strict=True))
    outside = _scalar(0.0 if is_sum else LOWEST)
    padded = Padded(shape=size, source=program.stored(x), low=low, value=outside)
    index, windows = indices(shape), params["window_dimensions"]
    inside, reading = indices(windows, "w"), Reading(program.constant)
    places = []
    for start, stride, offset in zip(index, params["window_strides"], inside, strict=True):
        terms = [text for text in (start, offset) if text != "0"]
        if start != "0" and stride > 1:
            terms[0] = f"{start} * {stride}"
        place = " + ".join(terms) or "0"
        places.append(f"({place})" if " " in place else place)
    element = reading.at(padded, tuple(places))
    return _reduced(program, (index, shape), (inside, windows), element, reading, is_sum=is_sum)


@rule("dot_general")
def _product(program: Program, inputs: Inputs, equation: Any) -> Expression:
    (summed, batched), shape = equation.params["dimension_numbers"], shape_of(equation)
    index, reading, factors = indices(shape), Reading(program.constant), []
    lengths = tuple(inputs[0].shape[axis] for axis in summed[0])
    over = indices(lengths, "k")
    rest = iter(index[len(batched[0]) :])
    for value, its_summed, its_batched in zip(inputs, summed, batched, strict=True):
        shared = dict(zip(its_summed, over, strict=True))
        shared |= dict(zip(its_batched, index, strict=False))
        own = [shared[axis] if axis in shared else next(rest) for axis in range(len(value.shape))]
        factors.append(reading.at(_factor(program, value, its_batched), tuple(own)))
    element = f"{factors[0]} * {factors[1]}"
    return _reduced(program, (index, shape), (over, lengths), element, reading, is_sum=True)


def _factor(program: Program, value: Expression, batched: Sequence[int]) -> Expression:
    """Returns a factor in memory; a constant that all of a batch share is stored once."""
    if not isinstance(value, Constant):
        return value if value.is_stored else program.stored(value)
    array = value.array
    for axis in batched:
        first = np.take(array, [0], axis)
        if np.array_equal(np.broadcast_to(first, array.shape), array):
            array = first
    return Constant(shape=array.shape, array=array)


def _reduced(
    program: Program,
    result: tuple[Index, Shape],
    over: tuple[Index, Shape],
    element: str,
    reading: Reading,
    *,
    is_sum: bool,
) -> Expression:
    """Adds a step that sums elements, or takes the largest of them.

    The last axis of the result is the inner one, inside of the axes that are reduced.

    Args:
        program: gets the step.
        result: index and shape of the result.
        over: indices and lengths of the axes that are reduced.
        element: what is reduced, in these indices.
        reading: what it reads.
        is_sum: whether the elements are added.
    """
    index, shape = result
    buffer = program.buffer(math.prod(shape))
    place = f"{buffer.name}[{flat(index, shape)}]"
    if is_sum:
        first, update = 0.0, f"{place} += {element};\n"
    else:
        reading.helpers.add("larger")
        first, update = LOWEST, f"{place} = larger({place}, {element});\n"
    inner = [axis for axis, text in enumerate(index) if text != "0"][-1:]
    outer = [axis for axis in range(len(index)) if axis not in inner]

    def along(axes: Sequence[int], body: str) -> str:
        return loops(tuple(shape[axis] for axis in axes), [index[axis] for axis in axes], body)

    body = along(inner, f"{place} = {number(first)};\n")
    body += loops(over[1], over[0], along(inner, update))
    program.add(along(outer, body), reading, buffer)
    return Stored(shape=shape, buffer=buffer, text=buffer.name + "[{}]")


def _scalar(value: float) -> Constant:
    return Constant(shape=(), array=np.asarray(value, np.float32))
