"""Represents the arrays of a traced function as C expressions of their indices.

An array is computed only where something needs it as a whole. Until then it is an expression: a
batch norm, the ReLU after it and the windows of a pooling become one loop nest.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from mcn_jax.deploy.c_memory import Buffer
from mcn_jax.deploy.c_text import number

Shape = tuple[int, ...]
SUM = "({} + {})"  # `Applied.text` of an addition
Index = tuple[str, ...]  # one C expression per axis; "0" along axes of length 1


class Reading:
    """Writes expressions, and notes what they read.

    Attributes:
        reads: the texts of the indices by which each buffer is read.
        helpers: names of helper functions that are called.
    """

    def __init__(self, constant: Callable[[np.ndarray], str]):
        """Starts with nothing read; `constant` returns the name of an array of constants."""
        self.constant = constant
        self.reads: dict[Buffer, set[str]] = {}
        self.helpers: set[str] = set()

    def at(self, value: "Expression", index: Index) -> str:
        """Returns the C expression of an element of an array that broadcasts to `index`."""
        own = index[len(index) - len(value.shape) :] if value.shape else ()
        index = tuple("0" if n == 1 else i for n, i in zip(value.shape, own, strict=True))
        return value.written(self, index)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Expression:
    """An array, by the C expression of its elements.

    Attributes:
        shape: its shape in JAX.
    """

    shape: Shape

    @property
    def is_stored(self) -> bool:
        """Whether reading an element computes nothing."""
        return False

    def written(self, reading: Reading, index: Index) -> str:
        """Returns the C expression of an element."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Stored(Expression):
    """An array in memory, in row order.

    Attributes:
        buffer: the memory; None for the image.
        text: how an element is read, with {} for its index.
    """

    buffer: Buffer | None
    text: str

    @property
    def is_stored(self) -> bool:
        """Whether reading an element computes nothing."""
        return True

    def written(self, reading: Reading, index: Index) -> str:
        """Returns the C expression of an element."""
        place = flat(index, self.shape)
        if self.buffer is not None:
            reading.reads.setdefault(self.buffer, set()).add(place)
        return self.text.format(place)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Constant(Expression):
    """An array that is known; `array` has its shape."""

    array: np.ndarray

    @property
    def is_stored(self) -> bool:
        """Whether reading an element computes nothing."""
        return True

    def written(self, reading: Reading, index: Index) -> str:
        """Returns the C expression of an element."""
        return constant_at(reading, self.array, index)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Affine(Expression):
    """source * factor + offset, with float64 constants that broadcast to the source's shape."""

    source: Expression
    factor: np.ndarray
    offset: np.ndarray

    def written(self, reading: Reading, index: Index) -> str:
        """Returns the C expression of an element."""
        text = reading.at(self.source, index)
        if np.any(self.factor != 1):
            text = f"{text} * {constant_at(reading, self.factor, index)}"
        if np.any(self.offset != 0):
            text = f"{text} + {constant_at(reading, self.offset, index)}"
        return f"({text})"


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Applied(Expression):
    """An operation on each element: `text` has one {} per operand."""

    text: str
    operands: tuple[Expression, ...]
    helper: str = ""

    def written(self, reading: Reading, index: Index) -> str:
        """Returns the C expression of an element."""
        if self.helper:
            reading.helpers.add(self.helper)
        return self.text.format(*(reading.at(operand, index) for operand in self.operands))


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class View(Expression):
    """Elements of another array: `source_index` maps an index of this one to one of `source`."""

    source: Expression
    source_index: Callable[[Index], Index]

    @property
    def is_stored(self) -> bool:
        """Whether reading an element computes nothing."""
        return self.source.is_stored

    def written(self, reading: Reading, index: Index) -> str:
        """Returns the C expression of an element."""
        return reading.at(self.source, self.source_index(index))


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Padded(Expression):
    """An array with `value` around it; `low` are the elements before it along each axis."""

    source: Expression
    low: Shape
    value: Expression

    def written(self, reading: Reading, index: Index) -> str:
        """Returns the C expression of an element."""
        conditions, inner = [], []
        sizes = zip(index, self.source.shape, self.shape, self.low, strict=True)
        for text, length, padded_length, low in sizes:
            if low:
                conditions.append(f"{text} >= {low}")
            if low + length < padded_length:
                conditions.append(f"{text} < {low + length}")
            inner.append(f"({text} - {low})" if low else text)
        inside = reading.at(self.source, tuple(inner))
        outside = reading.at(self.value, ())
        return f"({' && '.join(conditions)} ? {inside} : {outside})" if conditions else inside


def flat(index: Index, shape: Shape) -> str:
    """Returns the index of an element in row order."""
    text = ""
    for one, length in zip(index, shape, strict=True):
        if text:
            text = f"({text}) * {length}" if " + " in text else f"{text} * {length}"
        if one != "0":
            text = f"{text} + {one}" if text else one
    return text or "0"


def constant_at(reading: Reading, values: np.ndarray, index: Index) -> str:
    """Returns the C expression of an element of constants that broadcast to `index`."""
    if values.size and np.all(values == values.flat[0]):
        return number(float(values.flat[0]))
    own = index[len(index) - values.ndim :]
    places = tuple("0" if n == 1 else i for n, i in zip(values.shape, own, strict=True))
    with np.errstate(over="ignore"):  # what is not finite is refused when it is written
        rounded = values.astype(np.float32)
    return f"{reading.constant(rounded)}[{flat(places, values.shape)}]"


def affine(source: Expression, factor: np.ndarray, offset: np.ndarray) -> Expression:
    """Returns source * factor + offset; two of them in a row become one.

    The constants broadcast to the source's shape.
    """
    if isinstance(source, Affine):
        factor, offset = source.factor * factor, source.offset * factor + offset
        source = source.source
    if np.all(factor == 1) and np.all(offset == 0):
        return source
    return Affine(shape=source.shape, source=source, factor=factor, offset=offset)


def split_axes(source: Shape, target: Shape) -> list[list[int]] | None:
    """Returns the axes of `target` whose lengths multiply to each axis of `source`.

    Axes of length 1 of the target belong to no axis of the source. The result is None if an axis of
    the target covers more than one of the source.
    """
    rest = [axis for axis, n in enumerate(target) if n != 1]
    found: list[list[int]] = []
    for length in source:
        own: list[int] = []
        while math.prod(target[axis] for axis in own) < length and rest:
            own.append(rest.pop(0))
        if math.prod(target[axis] for axis in own) != length:
            return None
        found.append(own)
    return None if rest else found


def joined(index: Sequence[str], lengths: Shape) -> str:
    """Returns the position that an index stands for, in parentheses if it is a sum."""
    text = flat(tuple(index), lengths)
    return f"({text})" if " " in text else text
