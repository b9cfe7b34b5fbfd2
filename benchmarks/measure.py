"""Measures both sides of a ratio in alternation, and takes medians."""

import argparse
import concurrent.futures
import functools
import importlib.util
import json
import math
import multiprocessing
import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import jax

from mcn_jax.errors import first_line
from mcn_jax.memory import keep_freed_memory
from mcn_jax.workdirs.files import environment, write_atomically

ROOT = pathlib.Path(__file__).parents[1]
WARM_UP = 2
# Seconds after which the threads of an idle framework have stopped spinning.
PAUSE = 0.05
# {name of a peer: whether its process keeps memory that it frees}
PYTORCH = {"PyTorch": False, "PyTorch, keeping memory": True}
# Seconds of calls that are not timed, after which caches and cores are as in a long run.
UNTIMED = 0.15
HAS_PYTORCH = importlib.util.find_spec("torch") is not None
FEWEST = 5  # counted turns after a deadline
# What is measured of a layer; the second includes the first.
PASSES = ("forward", "with gradient")


def seconds(function: Callable[[], Any], calls: int = 1) -> float:
    """Returns the seconds of one call, until the device has finished: the mean over `calls`.

    Only the last call is waited for; the others are queued on the device.
    """
    start = time.perf_counter()
    for _ in range(calls):
        result = function()
    jax.block_until_ready(result)
    return (time.perf_counter() - start) / calls


def compiled_pass(
    name: str, function: Callable[..., jax.Array], arguments: Sequence[Any], cotangent: jax.Array
) -> functools.partial[Any]:
    """Compiles one of `PASSES` of a function, and returns the program with its arguments.

    Args:
        name: of the pass.
        function: of the arguments, in all of which it is differentiated.
        arguments: the arguments.
        cotangent: of its output.
    """

    def value_and_gradients(cotangent: jax.Array, *arguments: Any) -> tuple[jax.Array, Any]:
        output, vjp = jax.vjp(function, *arguments)
        return output, vjp(cotangent)

    program: Callable[..., Any] = function
    if name == "with gradient":
        program, arguments = value_and_gradients, (cotangent, *arguments)
    return functools.partial(jax.jit(program).lower(*arguments).compile(), *arguments)


class OtherProcess:
    """A function that runs in a process of its own, such as one of another framework.

    So it has the memory allocator and the threads that it has without JAX.
    """

    def __init__(
        self,
        make: Callable[..., Callable[[], Any]],
        *arguments: Any,
        keeps_memory: bool = False,
    ):
        """Starts the process.

        Args:
            make: makes the function.
            arguments: of `make`, picklable.
            keeps_memory: whether the process keeps memory that it frees, as JAX's process does.
        """
        context = multiprocessing.get_context("spawn")
        self._pool = concurrent.futures.ProcessPoolExecutor(
            1, context, initializer=_make_function, initargs=(make, keeps_memory, *arguments)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def seconds(self, calls: int) -> float:
        """Returns the mean seconds of a call, without the time to ask the other process."""
        return self._pool.submit(_seconds_there, calls).result()


_function: Callable[[], Any]  # of the process that an `OtherProcess` started


def _make_function(
    make: Callable[..., Callable[[], Any]], keeps_memory: bool, *arguments: Any
) -> None:
    global _function
    if keeps_memory:
        keep_freed_memory()
    _function = make(*arguments)


def _seconds_there(calls: int) -> float:
    return _seconds_after_untimed(_function, calls)


def _seconds_after_untimed(function: Callable[[], Any], calls: int) -> float:
    start = time.perf_counter()
    while time.perf_counter() - start < UNTIMED:
        seconds(function)
    return seconds(function, calls)


def pairs(
    here: Callable[[], Any], there: OtherProcess, repeats: int, calls: int = 1
) -> list[tuple[float, float]]:
    """Returns the seconds per call of both, in each turn; see `alternated`.

    Before it is timed, each side waits until the other's threads are idle, and is then called for a
    while. Without that, small programs take longer than in a long run.
    """
    times = []
    for turn in range(WARM_UP + repeats):
        time.sleep(PAUSE)
        first = _seconds_after_untimed(here, calls)
        time.sleep(PAUSE)
        second = there.seconds(calls)
        if turn >= WARM_UP:
            times.append((first, second))
    return times


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
