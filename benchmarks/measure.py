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

from mcn_jax.workdirs.files import environment, write_atomically

ROOT = pathlib.Path(__file__).parents[1]
WARM_UP = 2


def seconds(function: Callable[[], Any], calls: int = 1) -> float:
    """Of one call, to the end of what it computes on a device; the mean of several that the device
    is given without waiting for any but the last."""
    start = time.perf_counter()
    for _ in range(calls):
        result = function()
    jax.block_until_ready(result)
    return (time.perf_counter() - start) / calls


def alternated(
    functions: Mapping[str, Callable[[], Any]], repeats: int, calls: int = 1
) -> dict[str, list[float]]:
    """Seconds a call of each function in each turn, which the functions take one after the other;
    the first turns are not counted."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(WARM_UP + repeats):
        for name, function in functions.items():
            elapsed = seconds(function, calls)
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
    record = {**record, "cpu": cpu_model(), **environment()}
    write_atomically(path, json.dumps(record, indent=2) + "\n")


def cpu_model() -> str:
    """As Linux calls it, or else Python; empty where neither knows."""
    path = pathlib.Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
