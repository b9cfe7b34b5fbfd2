"""Defines the table of translation rules, one per JAX primitive, and the elementwise rules.

A rule takes the graph and an equation of the traced function. It writes nodes and returns the value
of the result, or a list of values. `onnx_shapes`, `onnx_reductions` and `onnx_products` add rules.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from mcn_jax.deploy import onnx_values
from mcn_jax.deploy.onnx_operators import apply, cast, kernel_dtype, scalar
from mcn_jax.deploy.onnx_values import Graph, Shape, Value, describe
from mcn_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Equation:
    """One equation of the traced function, which was traced for two numbers of images.

    Attributes:
        primitive: name of the JAX primitive.
        inputs: the values that it is applied to.
        shapes: of its results.
        dtypes: of its results.
        parameters: of the primitive, in both traces.
        merge: turns the lengths of both traces into one shape.
    """

    primitive: str
    inputs: list[Value]
    shapes: list[Shape]
    dtypes: list[np.dtype]
    parameters: tuple[dict[str, Any], dict[str, Any]]
    merge: Callable[[Any, Any], Shape]

    def __getitem__(self, name: str) -> Any:
        """Returns a parameter that must not depend on the number of images."""
        first, second = (parameters[name] for parameters in self.parameters)
        is_nan = isinstance(first, float) and first != first
        if first != second and not is_nan:
            raise InputError(
                f"{self.primitive} has {name}={first!r:.100}, which depends on the number of images"
            )
        return first

    def sizes(self, name: str) -> Shape:
        """Returns a parameter that is a shape."""
        return self.merge(*(parameters[name] for parameters in self.parameters))

    @property
    def shape(self) -> Shape:
        """The shape of the first result."""
        return self.shapes[0]

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the first result."""
        return self.dtypes[0]

    def lacks(self, what: str) -> InputError:
        """Returns the error to raise when a rule does not cover a case."""
        shapes = ", ".join(f"{v.dtype.name} {describe(v.shape)}" for v in self.inputs)
        return InputError(f"{self.primitive} of {shapes} cannot be written as ONNX: {what}")


Rule = Callable[[Graph, Equation], Value | list[Value]]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Returns a decorator that adds a rule to the table under these primitive names."""

    def enter(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return enter


UNARY = {
    "abs": "Abs", "acos": "Acos", "acosh": "Acosh", "asin": "Asin", "asinh": "Asinh",
    "atan": "Atan", "atanh": "Atanh", "ceil": "Ceil", "cos": "Cos", "cosh": "Cosh", "erf": "Erf",
    "exp": "Exp", "floor": "Floor", "log": "Log", "logistic": "Sigmoid", "sign": "Sign",
    "sin": "Sin", "sinh": "Sinh", "sqrt": "Sqrt", "tan": "Tan", "tanh": "Tanh",
}  # fmt: skip
BINARY = {"add": "Add", "sub": "Sub", "mul": "Mul", "min": "Min", "pow": "Pow"}
COMPARISONS = {
    "eq": "Equal", "lt": "Less", "le": "LessOrEqual", "gt": "Greater", "ge": "GreaterOrEqual"
}  # fmt: skip
LOGICAL = {"and": "And", "or": "Or", "xor": "Xor", "not": "Not"}  # for bool; otherwise Bitwise...


def _operator(operator: str, graph: Graph, equation: Equation) -> Value:
    return apply(graph, operator, *equation.inputs)


def _comparison(operator: str, graph: Graph, equation: Equation) -> Value:
    return apply(graph, operator, *equation.inputs, dtype=np.bool_)


def _logical(operator: str, graph: Graph, equation: Equation) -> Value:
    prefix = "" if equation.dtype == np.bool_ else "Bitwise"
    return apply(graph, prefix + operator, *equation.inputs)


for _table, _write in (
    (UNARY | BINARY, _operator), (COMPARISONS, _comparison), (LOGICAL, _logical)
):  # fmt: skip
    for _name, _onnx_name in _table.items():
        RULES[_name] = functools.partial(_write, _onnx_name)


@rule("copy", "device_put", "name", "optimization_barrier", "stop_gradient")
def _same(graph: Graph, equation: Equation) -> list[Value]:
    del graph
    return equation.inputs


@rule("ne")
def _not_equal(graph: Graph, equation: Equation) -> Value:
    return apply(graph, "Not", apply(graph, "Equal", *equation.inputs, dtype=np.bool_))


def constant_scalar(value: Value) -> float | None:
    """Returns the only number of a constant; None if the value is not a single known number."""
    if value.constant is None or value.constant.size != 1:
        return None
    return value.constant.item()


@rule("max")
def _max(graph: Graph, equation: Equation) -> Value:
    a, b = equation.inputs
    if equation.dtype.kind == "f" and 0 in (constant_scalar(a), constant_scalar(b)):
        x = b if constant_scalar(a) == 0 else a
        if x.shape == equation.shape:
            return apply(graph, "Relu", x)
    return apply(graph, "Max", a, b)


@rule("div")
def _div(graph: Graph, equation: Equation) -> Value:
    sums, count = equation.inputs
    terms, mean = graph.means.get((sums.source or sums).name, (None, ""))
    if terms is None or constant_scalar(count) != terms:
        return apply(graph, "Div", sums, count)
    if sums.source is None:
        return dataclasses.replace(sums, name=mean)
    return dataclasses.replace(sums, source=dataclasses.replace(sums.source, name=mean))


@rule("rem")
def _rem(graph: Graph, equation: Equation) -> Value:
    return apply(graph, "Mod", *equation.inputs, fmod=1)


@rule("neg")
def _neg(graph: Graph, equation: Equation) -> Value:
    (x,) = equation.inputs
    if equation.dtype.kind == "u":
        return apply(graph, "Sub", scalar(0, x.dtype), x)
    return apply(graph, "Neg", x)


@rule("square")
def _square(graph: Graph, equation: Equation) -> Value:
    return apply(graph, "Mul", *equation.inputs * 2)


@rule("integer_pow")
def _integer_pow(graph: Graph, equation: Equation) -> Value:
    (x,), exponent = equation.inputs, equation["y"]
    if exponent == 2:
        return apply(graph, "Mul", x, x)
    return apply(graph, "Pow", x, scalar(exponent, x.dtype))


@rule("rsqrt")
def _rsqrt(graph: Graph, equation: Equation) -> Value:
    return apply(graph, "Reciprocal", apply(graph, "Sqrt", *equation.inputs))


@rule("exp2")
def _exp2(graph: Graph, equation: Equation) -> Value:
    return apply(graph, "Pow", scalar(2, equation.dtype), *equation.inputs)


@rule("log2")
def _log2(graph: Graph, equation: Equation) -> Value:
    natural = apply(graph, "Log", *equation.inputs)
    return apply(graph, "Div", natural, scalar(np.log(2), equation.dtype))


@rule("cbrt")
def _cbrt(graph: Graph, equation: Equation) -> Value:
    (x,) = equation.inputs
    root = apply(graph, "Pow", apply(graph, "Abs", x), scalar(1 / 3, x.dtype))
    return apply(graph, "Mul", apply(graph, "Sign", x), root)


@rule("log1p")
def _log1p(graph: Graph, equation: Equation) -> Value:
    one = scalar(1, equation.dtype)
    return apply(graph, "Log", apply(graph, "Add", one, *equation.inputs))


@rule("expm1")
def _expm1(graph: Graph, equation: Equation) -> Value:
    return apply(graph, "Sub", apply(graph, "Exp", *equation.inputs), scalar(1, equation.dtype))


@rule("erfc")
def _erfc(graph: Graph, equation: Equation) -> Value:
    one = scalar(1, equation.dtype)
    return apply(graph, "Sub", one, apply(graph, "Erf", *equation.inputs))


@rule("round")
def _round(graph: Graph, equation: Equation) -> Value:
    (x,) = equation.inputs
    if int(equation["rounding_method"]) == 1:  # ties go to the even number
        return apply(graph, "Round", x)
    half = apply(graph, "Add", apply(graph, "Abs", x), scalar(0.5, x.dtype))
    return apply(graph, "Mul", apply(graph, "Sign", x), apply(graph, "Floor", half))


@rule("is_finite")
def _is_finite(graph: Graph, equation: Equation) -> Value:
    x = cast(graph, equation.inputs[0], np.dtype(np.float32))
    bad = (apply(graph, name, x, dtype=np.bool_) for name in ("IsInf", "IsNaN"))
    return apply(graph, "Not", apply(graph, "Or", *bad))


@rule("clamp")
def _clamp(graph: Graph, equation: Equation) -> Value:
    low, x, high = equation.inputs
    if not low.shape and not high.shape:
        wide = kernel_dtype("Clip", x.dtype)
        x, low, high = (cast(graph, value, wide) for value in (x, low, high))
        bounds = graph.tensor(low), graph.tensor(high)
        x = onnx_values.written(graph, x)
        if x.constant is None:
            name = graph.emit("Clip", x.name, *bounds)
            return cast(graph, dataclasses.replace(x, name=name), equation.dtype)
    return cast(graph, apply(graph, "Min", apply(graph, "Max", x, low), high), equation.dtype)


@rule("select_n")
def _select(graph: Graph, equation: Equation) -> Value:
    which, *cases = equation.inputs
    if equation.dtype == np.bool_:  # ONNX Runtime has no Where for bool
        cases = [cast(graph, case, np.dtype(np.uint8)) for case in cases]
    result = cases[0]
    for index, case in enumerate(cases[1:], start=1):
        chosen = which
        if which.dtype != np.bool_:
            chosen = apply(graph, "Equal", which, scalar(index, which.dtype), dtype=np.bool_)
        result = apply(graph, "Where", chosen, case, result)
    return cast(graph, result, equation.dtype)


@rule("shift_left", "shift_right_logical", "shift_right_arithmetic")
def _shift(graph: Graph, equation: Equation) -> Value:
    x, count = equation.inputs
    if equation.primitive == "shift_right_arithmetic" and x.dtype.kind == "i":
        # For negative x, ~x is not negative, so it can be shifted as unsigned: x >> n = ~(~x >> n).
        zero = scalar(0, x.dtype)
        sign = apply(graph, "Less", x, zero, dtype=np.bool_)
        mask = apply(graph, "Sub", zero, cast(graph, sign, x.dtype))
        x = apply(graph, "BitwiseXor", x, mask)
        return apply(graph, "BitwiseXor", _shifted(graph, x, count, "RIGHT"), mask)
    direction = "LEFT" if equation.primitive == "shift_left" else "RIGHT"
    return _shifted(graph, x, count, direction)


def _shifted(graph: Graph, x: Value, count: Value, direction: str) -> Value:
    """Shifts as unsigned numbers, as ONNX requires; casting there and back keeps the bits."""
    unsigned = np.dtype(f"u{x.dtype}".removeprefix("u") if x.dtype.kind == "u" else f"u{x.dtype}")
    wide = np.dtype(np.uint32) if unsigned == np.uint16 else unsigned
    x, dtype = cast(graph, cast(graph, x, unsigned), wide), x.dtype
    count = cast(graph, count, wide)
    return cast(graph, apply(graph, "BitShift", x, count, direction=direction), dtype)


@rule("convert_element_type")
def _convert(graph: Graph, equation: Equation) -> Value:
    return cast(graph, equation.inputs[0], equation.dtype)
