"""Measures one GPU within a given time: steps, single layers, and the same WRN in PyTorch.

    python benchmarks/gpu.py steps --dtype=bfloat16 --widths=16,16,32,64 --out=FILE
    python benchmarks/gpu.py layers --dtypes=bfloat16,float32 --out=DIRECTORY
    python benchmarks/gpu.py pytorch --dtype=bfloat16 --widths=16,16,32,64 --out=FILE
    python benchmarks/gpu.py machine --out=FILE

It measures what `step.py`, `mcconv.py` and `roofline.py` measure, and writes records of the same
form. There are three differences. One network is traced while the previous one compiles. Records of
steps also have the compile times. The measurement has a deadline: --until, in seconds since 1970.
After the deadline nothing new begins, and fewer turns are counted. Finished measurements are kept.

Several processes may start at once. Give them the same --turns directory, and --turn 0, 1, 2 and so
on. They trace at the same time, but compile and measure one after the other.
"""

import argparse
import concurrent.futures
import contextlib
import importlib.util
import os
import pathlib
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

if importlib.util.find_spec("torch") is not None:  # JAX must leave memory for PyTorch
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.extend.backend
import jax.numpy as jnp
import mcconv
import numpy as np
import roofline
from jax import lax
from measure import WARM_UP, ratio, seconds, write
from networks import TrainingStep, load
from step import CONFIG

from mcn_jax.models.wide_resnet import blocks_per_stage
from mcn_jax.ops.fastest import Shape, fastest_form

# Name: (fields of the config, arguments of `TrainingStep`).
NETWORKS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "MCN": ({}, {"quantized": True}),
    "WRN": ({"model.conv": "conv"}, {"quantized": False}),
    "U-MCN": ({}, {"quantized": False}),
    "MCN, factored": ({}, {"quantized": True, "form": "factored"}),
}
# Layers of the networks with 16-16-32-64 and 64-64-128-256 maps; the inner layers first.
LAYERS = (
    Shape(16, 16, 4, 32, 1), Shape(32, 32, 4, 16, 1), Shape(64, 64, 4, 8, 1),
    Shape(256, 256, 4, 8, 1), Shape(64, 64, 4, 32, 1), Shape(128, 128, 4, 16, 1),
    Shape(16, 32, 4, 32, 2), Shape(32, 64, 4, 16, 2), Shape(3, 16, 4, 32, 1),
    Shape(64, 128, 4, 32, 2), Shape(128, 256, 4, 16, 2), Shape(3, 64, 4, 32, 1),
)  # fmt: skip
FEWEST, MOST = 5, 20  # counted turns
MACHINE_TURNS = 10  # turns for the peak rates of the machine, and calls in each turn


def main() -> None:
    """Runs one of the four measurements."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("steps", "layers", "pytorch", "machine"))
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--dtypes", default="bfloat16,float32", help="dtypes of the layers")
    parser.add_argument("--widths", default="16,16,32,64", help="widths of the networks, in maps")
    parser.add_argument("--networks", default=";".join(NETWORKS), help="names separated by ;")
    parser.add_argument("--batch_size", type=int, default=128, help="batch size of the networks")
    parser.add_argument("--steps", type=int, default=30, help="steps in one program")
    parser.add_argument("--work", type=float, default=2e11, help="multiply-adds of a layer's batch")
    parser.add_argument("--largest_batch", type=int, default=2048, help="largest batch of a layer")
    parser.add_argument("--calls", type=int, default=5, help="calls of a layer per measurement")
    parser.add_argument(
        "--until", type=float, default=float("inf"), help="deadline in seconds since 1970"
    )
    parser.add_argument("--turns", type=pathlib.Path, help="directory that all processes share")
    parser.add_argument("--turn", type=int, default=0, help="turn of this process, from 0")
    parser.add_argument(
        "--out", type=pathlib.Path, required=True, help="the JSON file; for layers, a directory"
    )
    options = parser.parse_args()
    options.widths = tuple(int(width) for width in options.widths.split(","))
    with _ends_turn(options):
        {"steps": steps, "layers": layers, "pytorch": pytorch, "machine": machine}[options.what](
            options
        )


@contextlib.contextmanager
def _ends_turn(options: argparse.Namespace) -> Iterator[None]:
    """Lets the next process begin when this one ends, even with an error."""
    try:
        yield
    finally:
        if options.turns:
            options.turns.mkdir(parents=True, exist_ok=True)
            (options.turns / f"{options.turn}.ended").touch()


def _await_turn(options: argparse.Namespace) -> None:
    before = [options.turns / f"{turn}.ended" for turn in range(options.turn)]
    while not all(path.exists() for path in before):
        time.sleep(0.05)


def steps(options: argparse.Namespace) -> None:
    """Measures steps of the networks at one width, in one dtype."""
    pipeline = Pipeline(options)
    members = pipeline.run()
    if not members:
        return
    times = _alternated_until(members, options)
    batch, over = options.batch_size, {}
    if "WRN" in times:
        over = {name: ratio(times, name, "WRN") for name in times}
    medians = {name: statistics.median(values) / options.steps for name, values in times.items()}
    for name, median in medians.items():
        print(f"{options.dtype} {options.widths} {name}: {1e3 * median:.3f} ms per step,"
              f" {batch / median:,.0f} images/s", flush=True)  # fmt: skip
    record = {
        "widths": options.widths,
        "batch_size": batch,
        "steps_per_dispatch": options.steps,
        "median_seconds": medians,
        "images_per_second": {name: batch / median for name, median in medians.items()},
        "over_wrn": over,
        "temporary_bytes": {
            name: step.compiled.memory_analysis().temp_size_in_bytes
            for name, step in members.items()
        },
        "compile_seconds": pipeline.compile_seconds,
        "repeats": min(map(len, times.values())),
        "device_peak_bytes": {},
    }
    device = jax.local_devices()[0].device_kind
    write(options.out, {"device": device, "dtype": options.dtype, "networks": [record]})


class Pipeline:
    """Builds the networks in threads: one is traced while the previous one is compiled.

    They are compiled one by one, when it is this process's turn. While it compiles, XLA measures
    algorithms to choose from. Parallel compilations would disturb these measurements.

    Attributes:
        compile_seconds: compile time of each network, by name.
    """

    def __init__(self, options: argparse.Namespace):
        self.compile_seconds: dict[str, float] = {}
        self._options = options
        self._names = options.networks.split(";")
        self._traced = [threading.Event() for _ in self._names]
        self._compiled = [threading.Event() for _ in self._names]
        self._index = threading.local()

    def run(self) -> dict[str, TrainingStep]:
        """Returns all networks for which there is time."""
        members = {}
        with (
            self._own_compile(),
            concurrent.futures.ThreadPoolExecutor(len(self._names)) as pool,
        ):
            made = [pool.submit(self._make, index) for index in range(len(self._names))]
            for name, future in zip(self._names, made, strict=True):
                try:
                    members[name] = future.result()
                    print(f"{name}: compiled in {self.compile_seconds[name]:.1f} s", flush=True)
                except Exception as error:  # the others are still measured
                    print(f"{name}: {type(error).__name__}: {str(error)[:500]}", flush=True)
        return members

    def _make(self, index: int) -> TrainingStep:
        options = self._options
        self._index.value = index
        try:
            if index:
                self._traced[index - 1].wait()
            fields, arguments = NETWORKS[self._names[index]]
            fields = {"model.widths": options.widths, "dtype": options.dtype, **fields}
            return TrainingStep(
                load(CONFIG, fields), options.batch_size, steps=options.steps, **arguments
            )
        finally:
            self._traced[index].set()
            self._compiled[index].set()

    def _compile(
        self, compile_program: Callable[..., Any], *arguments: Any, **keywords: Any
    ) -> Any:
        index = self._index.value
        self._traced[index].set()
        if index:
            self._compiled[index - 1].wait()
        _await_turn(self._options)
        if time.time() > self._options.until:
            raise TimeoutError("the deadline has passed")
        start = time.perf_counter()
        compiled = compile_program(*arguments, **keywords)
        self.compile_seconds[self._names[index]] = time.perf_counter() - start
        return compiled

    @contextlib.contextmanager
    def _own_compile(self) -> Iterator[None]:
        """Replaces JAX's compile, which `TrainingStep` calls, by `_compile`."""
        compile_program = jax.stages.Lowered.compile

        def compile_in_turn(lowered, *arguments, **keywords):
            return self._compile(compile_program, lowered, *arguments, **keywords)

        jax.stages.Lowered.compile = compile_in_turn  # type: ignore[method-assign]
        try:
            yield
        finally:
            jax.stages.Lowered.compile = compile_program  # type: ignore[method-assign]


def _alternated_until(
    functions: dict[str, Callable[[], Any]], options: argparse.Namespace
) -> dict[str, list[float]]:
    """Measures like `measure.alternated`: `MOST` turns, or as many as the deadline allows."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(WARM_UP + MOST):
        for name, function in functions.items():
            elapsed = seconds(function)
            if turn >= WARM_UP:
                times[name].append(elapsed)
        if turn >= WARM_UP + FEWEST - 1 and time.time() > options.until:
            break
    return times


def layers(options: argparse.Namespace) -> None:
    """Measures single layers in each dtype, until the deadline."""
    _await_turn(options)
    records: dict[str, list[dict[str, Any]]] = {name: [] for name in options.dtypes.split(",")}
    longest = 0.0
    for shape in LAYERS:
        for dtype, done in records.items():
            start = time.time()
            if start + longest > options.until:
                return
            batch = mcconv.batch_of(shape, options.work, options.largest_batch)
            record = mcconv.measure(shape, batch, jnp.dtype(dtype), MOST, options.calls)
            form = fastest_form(mcconv.jax_platform(), dtype, shape)
            done.append(record | {"form": form})
            took = time.time() - start
            longest = max(longest, took)
            ratios = record["with gradient"]["over_ordinary"]
            print(
                f"{dtype} {tuple(shape)}, batch {batch}: direct {ratios['direct']:.2f},"
                f" factored {ratios['factored']:.2f} of ordinary; {took:.1f} s",
                flush=True,
            )
            write(
                options.out / f"mcconv_{dtype}.json",
                {
                    "platform": mcconv.jax_platform(),
                    "device": jax.local_devices()[0].device_kind,
                    "dtype": dtype,
                    "repeats": MOST,
                    "calls": options.calls,
                    "layers": done,
                },
            )


def pytorch(options: argparse.Namespace) -> None:
    """Measures steps of the same WRN in PyTorch, without and with `cudnn.benchmark`."""
    import pytorch_wrn
    import torch

    model = load(CONFIG).model
    channels = tuple(width * model.planes for width in options.widths)
    _await_turn(options)
    medians: dict[str, float] = {}
    for name, tries_all in (("WRN, PyTorch", False), ("WRN, PyTorch, cudnn.benchmark", True)):
        if time.time() > options.until:
            break
        torch.backends.cudnn.benchmark = tries_all
        step = pytorch_wrn.TrainingStep(
            channels,
            blocks_per_stage(model.depth),
            options.batch_size,
            options.dtype,
            options.steps,
        )
        times = _alternated_until({name: step}, options)
        medians[name] = statistics.median(times[name]) / options.steps
        print(f"{options.dtype} {options.widths} {name}: {1e3 * medians[name]:.3f} ms per step,"
              f" {options.batch_size / medians[name]:,.0f} images/s", flush=True)  # fmt: skip
    if not medians:
        return
    write(
        options.out,
        {
            "device": jax.local_devices()[0].device_kind,
            "dtype": options.dtype,
            "torch": torch.__version__,
            "cudnn": torch.backends.cudnn.version(),
            "tf32": {
                "cudnn": torch.backends.cudnn.allow_tf32,
                "matmul": torch.backends.cuda.matmul.allow_tf32,
            },
            "networks": [
                {
                    "widths": options.widths,
                    "batch_size": options.batch_size,
                    "steps_per_dispatch": options.steps,
                    "median_seconds": medians,
                    "images_per_second": {n: options.batch_size / s for n, s in medians.items()},
                }
            ],
        },
    )


def machine(options: argparse.Namespace) -> None:
    """Records the driver, the peak rates of the GPU, and the errors of its default float32."""
    _await_turn(options)
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,power.limit,clocks.max.sm"]
    found = ""
    with contextlib.suppress(OSError):
        run = subprocess.run([*query, "--format=csv,noheader"], capture_output=True, text=True)
        found = run.stdout.strip()
    record: dict[str, Any] = {
        "device": jax.local_devices()[0].device_kind,
        "nvidia_smi": found,
        "platform_version": jax.extend.backend.get_backend().platform_version,
        "default_matmul_precision": str(jax.config.jax_default_matmul_precision),
        "float32_error": _float32_errors(),
        "peak": {},
    }
    for dtype in ("bfloat16", "float32"):
        if time.time() < options.until:
            flops = roofline.peak_flops(jnp.dtype(dtype), MACHINE_TURNS, MACHINE_TURNS)
            record["peak"][dtype] = {"flops": flops}
    if time.time() < options.until:
        bandwidth = roofline.peak_bandwidth(MACHINE_TURNS, MACHINE_TURNS)
        record["peak"]["any"] = {"bytes": bandwidth}
    print(record, flush=True)
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


if __name__ == "__main__":
    main()
