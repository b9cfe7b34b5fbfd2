"""Which form of MCconv is the fastest for a shape: the nearest one that was measured tells.

`benchmarks/mcconv.py --tune` measures, and writes `fastest.json`.
"""

import functools
import json
import math
import pathlib
from collections.abc import Iterable
from typing import Any, NamedTuple, Self

TABLE = pathlib.Path(__file__).with_name("fastest.json")
# The form where nothing was measured: on another platform, or in another dtype.
UNMEASURED = "direct"


class Shape(NamedTuple):
    """Of one MCconv with 3x3 taps. `size`: height of the input in pixels; `stride`: in y."""

    in_maps: int
    out_maps: int
    planes: int
    size: int
    stride: int

    @classmethod
    def of(cls, record: dict[str, Any]) -> Self:
        """That of a record which has these fields among others."""
        return cls(**{name: record[name] for name in cls._fields})

    def distance(self, other: "Shape") -> float:
        """Octaves between two shapes. Those of K count most: the fewer planes share a filter, the
        less there is to gain."""
        weights = Shape(in_maps=1, out_maps=1, planes=4, size=1, stride=1)
        pairs = zip(weights, self, other, strict=True)
        return sum(weight * abs(math.log2(a / b)) for weight, a, b in pairs)


def fastest_form(platform: str, dtype: str, shape: Shape) -> str:
    """The name of the form that was the fastest at the nearest shape measured.

    Args:
        platform: of JAX, such as "cpu" or "cuda".
        dtype: of the features, such as "float32".
        shape: of the MCconv.

    Returns:
        "direct" or "factored"; `UNMEASURED` where the table has nothing of platform and dtype.
    """
    rows = _measured().get((platform, dtype))
    if not rows:
        return UNMEASURED
    return min(rows, key=lambda row: row[0].distance(shape))[1]


def measured_platforms() -> list[str]:
    """Those that the table has anything of."""
    return sorted({platform for platform, _ in _measured()})


@functools.cache
def _measured() -> dict[tuple[str, str], list[tuple[Shape, str]]]:
    return parse(json.loads(TABLE.read_text()))


def parse(rows: Iterable[dict[str, Any]]) -> dict[tuple[str, str], list[tuple[Shape, str]]]:
    """{(platform, dtype): [(shape, form), ...]} of the rows of `fastest.json`."""
    table: dict[tuple[str, str], list[tuple[Shape, str]]] = {}
    for row in rows:
        table.setdefault((row["platform"], row["dtype"]), []).append((Shape.of(row), row["form"]))
    return table
