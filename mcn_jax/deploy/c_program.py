"""Collects the parts of a C program: constants, functions, and the steps of a prediction."""

from collections.abc import Sequence

import numpy as np

from mcn_jax.deploy import c_text
from mcn_jax.deploy.c_expressions import (
    SUM,
    Applied,
    Expression,
    Index,
    Reading,
    Shape,
    Stored,
    flat,
)
from mcn_jax.deploy.c_memory import Buffer, Step

# Functions that expressions call. Each is written only if it is used.
HELPERS = {
    "larger": "static float larger(float a, float b)\n{\n    return a > b ? a : b;\n}\n",
    "smaller": "static float smaller(float a, float b)\n{\n    return a < b ? a : b;\n}\n",
    "half": """\
/* The number whose bits in half precision are given; it must be finite. */
static float half(uint16_t bits)
{
    const uint32_t wide = (uint32_t)(bits & 0x8000u) << 16 | (uint32_t)(bits & 0x7fffu) << 13;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value * 0x1p112f;
}
""",
}


class Program:
    """A C program that is being written.

    Attributes:
        constants: definitions of constant arrays.
        constant_bytes: the size of these arrays.
        helpers: names in `HELPERS` that are called.
        functions: {text of a function with {name} for its name: its name}.
        steps: the steps of a prediction, in order.
    """

    def __init__(self) -> None:
        self.constants: list[str] = []
        self.constant_bytes = 0
        self.helpers: set[str] = set()
        self.functions: dict[str, str] = {}
        self.steps: list[Step] = []
        self._known: dict[tuple[str, bytes], str] = {}
        self._buffers = 0

    def constant(self, values: np.ndarray, name: str = "constants") -> str:
        """Returns the name of an array of these values; equal arrays share one."""
        key = values.dtype.name, values.tobytes()
        if key not in self._known:
            self._known[key] = f"{c_text.identifier(name)}_{len(self._known)}"
            self.constants.append(c_text.array(self._known[key], values))
            self.constant_bytes += values.nbytes
        return self._known[key]

    def function(self, name: str, text: str) -> str:
        """Returns the name of a function; equal functions are one.

        Args:
            name: what the name begins with.
            text: its definition, with NAME for its name.
        """
        if text not in self.functions:
            self.functions[text] = f"{name}_{len(self.functions)}"
        return self.functions[text]

    def buffer(self, size: int) -> Buffer:
        """Returns a new array of floats in the arena."""
        self._buffers += 1
        return Buffer(f"b{self._buffers}", size)

    def stored(self, value: Expression) -> Stored:
        """Returns the array in memory; computes it in a step if it is an expression."""
        if isinstance(value, Stored) and value.buffer is not None:
            return value
        buffer = self.buffer(int(np.prod(value.shape)))
        reading = Reading(self.constant)
        index = indices(value.shape)
        result = Stored(shape=value.shape, buffer=buffer, text=buffer.name + "[{}]")
        place = flat(index, value.shape)
        body = f"{buffer.name}[{place}] = {reading.at(value, index)};\n"
        code = loops(value.shape, index, body)
        self.add(code, reading, buffer, place)
        if isinstance(value, Applied) and value.text == SUM:
            buffers = [o.buffer for o in value.operands if isinstance(o, Stored) and o.buffer]
            if len(buffers) == 2 and all(o.shape == value.shape for o in value.operands):
                self.steps[-1].adds = buffers[0], buffers[1]
        return result

    def add(self, code: str, reading: Reading, buffer: Buffer, place: str = "") -> None:
        """Adds a step of loops.

        Args:
            code: the loops.
            reading: what their expressions read.
            buffer: the result.
            place: the index of the elements that the loops write; a buffer that is read only at the
                same index may become the result. Empty if none may.
        """
        self.helpers |= reading.helpers
        same = (read for read, places in reading.reads.items() if places == {place})
        over = next(same, None)
        self.steps.append(Step(code=code, reads=set(reading.reads), writes=[buffer], over=over))


def indices(shape: Shape, prefix: str = "i") -> Index:
    """Returns the variables that loop over an array; axes of length 1 have none."""
    return tuple("0" if n == 1 else f"{prefix}{axis}" for axis, n in enumerate(shape))


def loops(shape: Shape, index: Sequence[str], body: str) -> str:
    """Returns loops over the axes of an array around some code; the last axis is the inner one."""
    for variable, length in reversed(list(zip(index, shape, strict=True))):
        if variable != "0":
            head = f"for (size_t {variable} = 0; {variable} < {length}; {variable}++) {{\n"
            body = head + c_text.indented(body) + "}\n"
    return body
