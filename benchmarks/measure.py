"""Measures both sides of a ratio in one process, in alternation, and takes medians."""

import argparse
import json
import math
import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from mcn_jax.errors import first_line
from mcn_jax.workdirs.files import environment, write_atomically

ROOT = pathlib.Path(__file__).parents[1]
WARM_UP = 2
FEWEST = 5  # counted turns after a deadline


def seconds(function: Callable[[], Any], calls: int = 1) -> float:
    """Returns the seconds of one call, until the device has finished: the mean over `calls`.

    Only the last call is waited for; the others are queued on the device.
    """
    start = time.perf_counter()
    for _ in range(calls):
        result = function()
    jax.block_until_ready(result)
    return (time.perf_counter() - start) / calls


def alternated(
    functions: Mapping[str, Callable[[], Any]],
    repeats: int,
    calls: int = 1,
    until: float = math.inf,
) -> dict[str, list[float]]:
    """Returns the seconds per call of each function, in each turn.

    In a turn, all functions run one after the other. The first `WARM_UP` turns are not counted.
    After `until`, in seconds since 1970, no turn begins if `FEWEST` turns have been counted.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(WARM_UP + repeats):
        if turn >= WARM_UP + FEWEST and time.time() > until:
            break
        for name, function in functions.items():
            elapsed = seconds(function, calls)
            if turn >= WARM_UP:
                times[name].append(elapsed)
    return times


def ratio(times: Mapping[str, Sequence[float]], a: str, b: str) -> float:
    """Returns the median of a's time over b's time in the same turn."""
    return statistics.median(x / y for x, y in zip(times[a], times[b], strict=True))


def print_failure(name: str, error: Exception) -> None:
    """Prints in one line that something could not be measured."""
    print(f"{name}: not measured: {type(error).__name__}: {first_line(error)}", flush=True)


def add_out(parser: argparse.ArgumentParser, name: str) -> None:
    """Adds --out, whose default is runs/benchmarks/NAME."""
    out = ROOT / "runs" / "benchmarks" / name
    parser.add_argument(
        "--out",
        metavar="FILE",
        type=pathlib.Path,
        default=out,
        help=f"the JSON file to write (default: runs/benchmarks/{name}); results/records.py"
        " add-benchmark copies it to results/benchmarks/",
    )


def write(path: pathlib.Path, record: Mapping[str, Any]) -> None:
    """Writes a record as JSON, with a description of this machine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {**record, "cpu": cpu_model(), **environment()}
    write_atomically(path, json.dumps(record, indent=2) + "\n")


def cpu_model() -> str:
    """Returns the name of the CPU from Linux, else from Python; empty if neither knows it."""
    path = pathlib.Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
