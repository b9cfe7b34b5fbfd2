"""Measures one GPU within a given time: steps, single layers, and the same WRN in PyTorch.

    python benchmarks/gpu.py steps --dtype=bfloat16 --widths=16,16,32,64 --out=FILE
    python benchmarks/gpu.py layers --dtypes=bfloat16,float32 --out=DIRECTORY
    python benchmarks/gpu.py pytorch --dtype=bfloat16 --widths=16,16,32,64 --out=FILE
    python benchmarks/gpu.py machine --out=FILE

It measures what `step.py`, `mcconv.py` and `roofline.py` measure, and writes records of the same
form. Records of steps also have the compile times. What fails is named in one line, and the rest is
still measured.

The measurement has a deadline: --until, in seconds since 1970. After the deadline nothing new
begins, and fewer turns are counted. Finished measurements are kept.

Several processes may start at once. Give them the same empty directory, --turns, and --turn=0, 1, 2
and so on. They trace at the same time, but compile and measure one after the other: while a program
compiles, XLA measures algorithms to choose from. A process that has ended in any way has had its
turn.
"""

import argparse
import contextlib
import itertools
import math
import os
import pathlib
import subprocess
import time
from collections.abc import Callable, Collection
from typing import Any, NoReturn

import jax
import jax.extend.backend
import jax.numpy as jnp
import mcconv
import numpy as np
import roofline
from gpu_steps import NETWORKS, pytorch, steps
from jax import lax
from measure import print_failure, write
from step import CONFIG
from turns import DeadlineError, Turn, join

from mcn_jax.errors import InputError, did_you_mean
from mcn_jax.ops.fastest import Shape, fastest_form
from mcn_jax.ops.mcconv import FORMS

# Layers of the networks with 16-16-32-64 and 64-64-128-256 maps; the inner layers first.
LAYERS = (
    Shape(16, 16, 4, 32, 1), Shape(32, 32, 4, 16, 1), Shape(64, 64, 4, 8, 1),
    Shape(256, 256, 4, 8, 1), Shape(64, 64, 4, 32, 1), Shape(128, 128, 4, 16, 1),
    Shape(16, 32, 4, 32, 2), Shape(32, 64, 4, 16, 2), Shape(3, 16, 4, 32, 1),
    Shape(64, 128, 4, 32, 2), Shape(128, 256, 4, 16, 2), Shape(3, 64, 4, 32, 1),
)  # fmt: skip
DTYPES = ("bfloat16", "float32")
PEAK_CALLS = 10  # calls in a turn, for the peak rates of the machine


def layers(options: argparse.Namespace, turn: Turn) -> None:
    """Measures single layers in each dtype, until the deadline."""
    turn.wait()
    records: dict[str, list[dict[str, Any]]] = {dtype: [] for dtype in options.dtypes}
    platform, longest = mcconv.jax_platform(), 0.0
    for shape, dtype in itertools.product(LAYERS, records):
        turn.check(longest)
        start = time.time()
        batch = mcconv.batch_of(shape, options.work, options.largest_batch)
        try:
            record = mcconv.measure(
                shape, batch, jnp.dtype(dtype), options.repeats, options.calls, options.forms,
                skips_failures=True,
            )  # fmt: skip
        except Exception as error:  # the other layers are still measured
            print_failure(f"{dtype} {tuple(shape)}", error)
            continue
        records[dtype].append(record | {"form": fastest_form(platform, dtype, shape)})
        took = time.time() - start
        longest = max(longest, took)
        ratios = record["with gradient"]["over_ordinary"]
        found = ", ".join(f"{form} {value:.2f}" for form, value in ratios.items())
        print(f"{dtype} {tuple(shape)}, batch {batch}: {found} of ordinary; {took:.1f} s",
              flush=True)  # fmt: skip
        write(
            options.out / f"mcconv_{dtype}.json",
            {
                "platform": platform,
                "device": jax.local_devices()[0].device_kind,
                "dtype": dtype,
                "repeats": options.repeats,
                "calls": options.calls,
                "layers": records[dtype],
            },
        )
    if not any(records.values()):
        raise InputError("no layer could be measured")


def machine(options: argparse.Namespace, turn: Turn) -> None:
    """Records the driver, the peak rates of the GPU, and the errors of its default float32."""
    turn.wait()
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,power.limit,clocks.max.sm"]
    found = ""
    with contextlib.suppress(OSError):
        run = subprocess.run([*query, "--format=csv,noheader"], capture_output=True, text=True)
        found = run.stdout.strip()
    peak: dict[str, dict[str, float]] = {}
    record = {
        "device": jax.local_devices()[0].device_kind,
        "nvidia_smi": found,
        "platform_version": jax.extend.backend.get_backend().platform_version,
        "default_matmul_precision": str(jax.config.jax_default_matmul_precision),
        "float32_error": _float32_errors(),
        "peak": peak,
    }
    write(options.out, record)
    for dtype in (*DTYPES, "any"):
        turn.check()
        if dtype == "any":
            rates = {"bytes": roofline.peak_bandwidth(options.repeats, PEAK_CALLS)}
        else:
            flops = roofline.peak_flops(jnp.dtype(dtype), options.repeats, PEAK_CALLS)
            rates = {"flops": flops}
        peak[dtype] = rates
        print(f"peak rates in {dtype} dtype: {rates}", flush=True)
        write(options.out, record)


def _float32_errors() -> dict[str, dict[str, float]]:
    """Returns the relative errors of float32 operations, {precision: {operation: error}}.

    An error is the norm of the difference from float64 on the host, over the norm in float64.
    """
    generator = np.random.default_rng(0)
    x = generator.normal(size=(2, 8, 8, 64)).astype(np.float32)
    w = generator.normal(size=(3, 3, 64, 64)).astype(np.float32)
    a = generator.normal(size=(256, 256)).astype(np.float32)
    padded = np.pad(x.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    exact = {
        "convolution": sum(
            padded[:, i : i + 8, j : j + 8] @ w[i, j].astype(np.float64)
            for i in range(3)
            for j in range(3)
        ),
        "matrix product": a.astype(np.float64) @ a.astype(np.float64),
    }

    def convolution(precision, x, w):
        return lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), precision=precision
        )

    errors: dict[str, dict[str, float]] = {}
    for precision in (None, "highest"):
        results = {
            "convolution": jax.jit(convolution, static_argnums=0)(precision, x, w),
            "matrix product": jnp.matmul(a, a, precision=precision),
        }
        errors[precision or "default"] = {
            name: float(np.linalg.norm(result - exact[name]) / np.linalg.norm(exact[name]))
            for name, result in results.items()
        }
    return errors


class _Parser(argparse.ArgumentParser):
    """A parser that reports an error in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def _whole(least: int) -> Callable[[str], int]:
    """Returns the parser of a whole number."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, at least {least}")
        return int(text)

    return parse


def _maps(text: str) -> tuple[int, ...]:
    widths = text.split(",")
    if not all(width.isdecimal() for width in widths):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form 16,16,32,64")
    return tuple(map(int, widths))


def _names(known: Collection[str], separator: str = ",") -> Callable[[str], tuple[str, ...]]:
    """Returns the parser of a list of known names."""

    def parse(text: str) -> tuple[str, ...]:
        names = tuple(dict.fromkeys(text.split(separator)))
        for name in names:
            if name not in known:
                message = f"{name!r} is not one of {separator.join(known)!r}"
                raise argparse.ArgumentTypeError(message + did_you_mean(name, known))
        return names

    return parse


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    parser = _Parser(
        prog="gpu.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for measure in (steps, layers, pytorch, machine):
        text = (measure.__doc__ or "").partition("\n")[0]
        command = commands.add_parser(measure.__name__, help=text, description=text)
        command.set_defaults(measure=measure)
        add = command.add_argument
        if measure in (steps, pytorch):
            text = f"file in configs/ whose network is measured (default: {CONFIG.name})"
            add("--config", type=pathlib.Path, default=CONFIG, help=text)
            add("--dtype", default="bfloat16", choices=DTYPES)
            add("--widths", type=_maps, help="in maps (default: of the config)")
            add("--depth", type=_whole(1), help="number of layers (default: of the config)")
            add("--batch_size", type=_whole(1), default=128)
            add("--steps", type=_whole(1), default=30, help="steps in one program")
        if measure is steps:
            text = f"names from {';'.join(NETWORKS)!r} (default: all)"
            add("--networks", type=_names(NETWORKS, ";"), default=tuple(NETWORKS), help=text)
        if measure is layers:
            add("--dtypes", type=_names(DTYPES), default=DTYPES)
            text = f"names from {','.join(FORMS)!r} (default: {','.join(mcconv.FORMS)!r})"
            add("--forms", type=_names(FORMS), default=mcconv.FORMS, help=text)
            add("--work", type=float, default=2e11, help="multiply-adds per batch")
            add("--largest_batch", type=_whole(4), default=2048, help="limit of the batch size")
            add("--calls", type=_whole(1), default=5, help="calls per measurement")
        add("--repeats", type=_whole(1), default=20, help="number of counted turns")
        add("--until", type=float, default=math.inf, help="deadline in seconds since 1970")
        add("--turns", type=pathlib.Path, help="directory that all processes share")
        add("--turn", type=_whole(0), default=0, help="turn of this process, from 0")
        text = "directory to write to" if measure is layers else "JSON file to write"
        add("--out", type=pathlib.Path, required=True, help=text)
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Runs one of the four measurements."""
    # Several processes, and PyTorch, need memory at the same time.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    parser = make_parser()
    options = parser.parse_args(arguments)
    try:
        if options.turn and not options.turns:
            raise InputError(
                f"--turn={options.turn} needs --turns, the directory that all processes share"
            )
        with join(options.turns, options.turn, options.until) as turn:
            if options.measure is not layers and options.out.is_dir():
                raise InputError(f"--out={options.out} is a directory; name a JSON file in it")
            directory = options.out if options.measure is layers else options.out.parent
            directory.mkdir(parents=True, exist_ok=True)
            options.measure(options, turn)
    except DeadlineError as error:
        print(f"gpu.py {options.command}: {error}; only finished measurements were written")
    except (InputError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
