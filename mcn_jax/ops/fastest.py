"""The choice of the fastest form of MCconv, from measurements at similar shapes.

`benchmarks/mcconv.py --tune` measures the forms and writes `fastest.json`. A row's "form" is the
fastest form that XLA compiles. Where the native kernel was measured too, "native_over_form" is its
time over the time of that form.
"""

import functools
import json
import math
import pathlib
from collections.abc import Iterable
from typing import Any, NamedTuple, Self

TABLE = pathlib.Path(__file__).with_name("fastest.json")
# The form for platforms and dtypes without measurements.
UNMEASURED = "direct"


class Shape(NamedTuple):
    """Shape of one MCconv with 3x3 taps.

    Attributes:
        in_maps: G, feature maps of the input.
        out_maps: H, feature maps of the output.
        planes: K, channels per feature map.
        size: height of the input in pixels.
        stride: step in y in pixels.
    """

    in_maps: int
    out_maps: int
    planes: int
    size: int
    stride: int

    @classmethod
    def of(cls, record: dict[str, Any]) -> Self:
        """Takes the shape from a record that has these fields among others."""
        return cls(**{name: record[name] for name in cls._fields})

    def distance(self, other: "Shape") -> float:
        """Returns the distance to another shape, in octaves.

        An octave is a factor of two in one field; the octaves of all fields are added. Differences
        in K count four times: the fewer planes share a filter, the less the factored form gains.
        """
        weights = Shape(in_maps=1, out_maps=1, planes=4, size=1, stride=1)
        pairs = zip(weights, self, other, strict=True)
        return sum(weight * abs(math.log2(a / b)) for weight, a, b in pairs)


def fastest_form(platform: str, dtype: str, shape: Shape) -> str:
    """Returns the form that was fastest at the most similar measured shape, without native code.

    Args:
        platform: JAX's name of the platform, such as "cpu" or "cuda".
        dtype: dtype of the features, such as "float32".
        shape: shape of the MCconv.

    Returns:
        A name in `mcn_jax.ops.mcconv.FORMS`; `UNMEASURED` if the table has no rows for platform
        and dtype.
    """
    rows = _measured().get((platform, dtype))
    if not rows:
        return UNMEASURED
    return min(rows, key=lambda row: row[0].distance(shape))[1]


def native_is_faster(platform: str, dtype: str, shape: Shape) -> bool:
    """Returns whether the native kernel was faster than `fastest_form` at the same measured shape.

    It is False if the kernel was not measured there.
    """
    rows = _measured_gains().get((platform, dtype))
    if not rows:
        return False
    gain = min(rows, key=lambda row: row[0].distance(shape))[1]
    return gain is not None and gain < 1


def measured_platforms() -> list[str]:
    """Returns the platforms for which the table has measurements."""
    return sorted({platform for platform, _ in _measured()})


@functools.cache
def _measured() -> dict[tuple[str, str], list[tuple[Shape, str]]]:
    return parse(json.loads(TABLE.read_text()))


@functools.cache
def _measured_gains() -> dict[tuple[str, str], list[tuple[Shape, float | None]]]:
    return parse(json.loads(TABLE.read_text()), "native_over_form")


def parse(
    rows: Iterable[dict[str, Any]], field: str = "form"
) -> dict[tuple[str, str], list[tuple[Shape, Any]]]:
    """Turns the rows of `fastest.json` into {(platform, dtype): [(shape, value), ...]}.

    Args:
        rows: the rows.
        field: the field that the values are from; None stands for a field that a row lacks.
    """
    table: dict[tuple[str, str], list[tuple[Shape, Any]]] = {}
    for row in rows:
        value = row.get(field)
        table.setdefault((row["platform"], row["dtype"]), []).append((Shape.of(row), value))
    return table
