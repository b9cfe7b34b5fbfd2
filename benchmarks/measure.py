"""How the benchmarks measure: both sides of a ratio in one process, alternated, with medians."""

import argparse
import json
import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from mcn_jax.workdir import environment, write_atomically

ROOT = pathlib.Path(__file__).parents[1]
WARM_UP = 2


def seconds(function: Callable[[], Any]) -> float:
    """Of one call, to the end of what it computes on a device."""
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def alternated(functions: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each call of each function, which take turns; the first turns are not counted."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(WARM_UP + repeats):
        for name, function in functions.items():
            elapsed = seconds(function)
            if turn >= WARM_UP:
                times[name].append(elapsed)
    return times


def ratio(times: Mapping[str, Sequence[float]], a: str, b: str) -> float:
    """Median of a's time over b's of the same turn."""
    return statistics.median(x / y for x, y in zip(times[a], times[b], strict=True))


def add_out(parser: argparse.ArgumentParser, name: str) -> None:
    """Adds --out, whose default is results/benchmarks/NAME."""
    out = ROOT / "results" / "benchmarks" / name
    parser.add_argument("--out", type=pathlib.Path, default=out, help="the JSON that is written")


def write(path: pathlib.Path, record: Mapping[str, Any]) -> None:
    """Writes a record with the machine that it was measured on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {**record, "cpu": platform.processor(), **environment()}
    write_atomically(path, json.dumps(record, indent=2) + "\n")
