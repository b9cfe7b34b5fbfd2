"""Compares training steps of MCN, U-MCN and WRN of the same channels.

    python benchmarks/step.py

The networks have twenty layers. Images are random, with CIFAR-10's shape. Steps include
augmentation, losses and updates. They run on one device, with as many steps per dispatch as the
training loop uses there. "MCN, direct" convolves with the reconstructed filters. "MCN, Hadamard"
has a pattern of signs per plane.

If PyTorch is installed (benchmarks/requirements.txt), the same WRN is also measured in PyTorch, in
a process of its own and in pairs with the MCN: forward, backward and update on images that need no
augmentation.

"Compile time" is that of the step's program, also with 34 layers.

"Temporary memory" is what XLA allocates besides arguments and results. "Device peak" is the most
memory in use on the device, in a process that compiles and runs only one network. It is shown if
the backend counts it, as on GPUs.
"""

import argparse
import concurrent.futures
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import rich.console
import rich.table
from measure import (
    HAS_PYTORCH,
    PYTORCH,
    ROOT,
    OtherProcess,
    add_out,
    alternated,
    pairs,
    ratio,
    write,
)
from networks import TrainingStep, load

from mcn_jax.data.sources import default_steps_per_dispatch
from mcn_jax.memory import keep_freed_memory
from mcn_jax.models.wide_resnet import blocks_per_stage

CONFIG = ROOT / "configs" / "cifar10_20_16_16_32_64.py"
# Widths in maps: batch size.
WIDTHS = {
    (4, 4, 8, 16): 128, (8, 8, 16, 32): 64, (16, 16, 32, 64): 32, (32, 64, 128, 256): 8,
}  # fmt: skip
DEPTHS = (20, 34)  # in layers; only the first is run
# Widths: targets for the time of MCN over WRN, and over PyTorch's WRN, in float32 on a CPU.
TARGETS = {(16, 16, 32, 64): 0.8, (32, 64, 128, 256): 0.55}
TARGETS_PYTORCH = {(4, 4, 8, 16): 0.9, (16, 16, 32, 64): 0.6, (32, 64, 128, 256): 0.3}
# Name: (fields of the config, arguments of `TrainingStep`).
NETWORKS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "WRN": ({"model.conv": "conv"}, {"quantized": False}),
    "U-MCN": ({}, {"quantized": False}),
    "MCN": ({}, {"quantized": True}),
    "MCN, direct": ({}, {"quantized": True, "form": "direct"}),
    "MCN, Hadamard": ({"model.plane_signs": "hadamard"}, {"quantized": True}),
}


def make_step(
    name: str,
    widths: tuple[int, ...],
    batch_size: int,
    dtype: str,
    steps: int,
    depth: int = DEPTHS[0],
) -> TrainingStep:
    """Returns the training step of one of `NETWORKS`."""
    fields, arguments = NETWORKS[name]
    fields = {"model.widths": widths, "model.depth": depth, "dtype": dtype, **fields}
    config = load(CONFIG, fields)
    return TrainingStep(config, batch_size, steps=steps, **arguments)


def measure(
    widths: tuple[int, ...], batch_size: int, dtype: str, steps: int, repeats: int
) -> dict[str, Any]:
    """Returns median seconds per step, ratios to the WRN, seconds to compile, and bytes of memory.

    "over_pytorch" is {name in `PYTORCH`: median ratio of the MCN to its WRN}, over as many pairs.
    """
    members = {name: make_step(name, widths, batch_size, dtype, steps) for name in NETWORKS}
    compile_seconds = {
        name: [
            seconds_to_compile(step),
            *(
                seconds_to_compile(make_step(name, widths, batch_size, dtype, steps, depth))
                for depth in DEPTHS[1:]
            ),
        ]
        for name, step in members.items()
    }
    memory = {
        name: step.compiled.memory_analysis().temp_size_in_bytes for name, step in members.items()
    }
    times = alternated(members, repeats)
    over_wrn = {name: ratio(times, name, "WRN") for name in times}
    over_pytorch = {}
    for peer, keeps_memory in PYTORCH.items() if HAS_PYTORCH else ():
        arguments = widths, batch_size, dtype, steps
        with OtherProcess(_pytorch_step, *arguments, keeps_memory=keeps_memory) as pytorch:
            found = pairs(members["MCN"], pytorch, repeats)
        times[f"WRN, {peer}"] = [theirs for _, theirs in found]
        over_pytorch[peer] = statistics.median(ours / theirs for ours, theirs in found)
    return {
        "widths": widths,
        "batch_size": batch_size,
        "steps_per_dispatch": steps,
        "median_seconds": {name: statistics.median(times[name]) / steps for name in times},
        "over_wrn": over_wrn,
        "over_pytorch": over_pytorch,
        "depths": DEPTHS,
        "compile_seconds": compile_seconds,
        "temporary_bytes": memory,
    }


def seconds_to_compile(step: TrainingStep) -> float:
    """Compiles a step, which keeps its program, and returns the time."""
    start = time.perf_counter()
    step.compiled  # noqa: B018
    return time.perf_counter() - start


def _pytorch_step(
    widths: tuple[int, ...], batch_size: int, dtype: str, steps: int
) -> Callable[[], None]:
    import pytorch_wrn

    model = load(CONFIG).model
    channels = tuple(width * model.planes for width in widths)
    blocks = blocks_per_stage(model.depth)
    return pytorch_wrn.TrainingStep(channels, blocks, batch_size, dtype, steps)


def device_peaks(
    batch_sizes: Mapping[tuple[int, ...], int], dtype: str, steps: int | None
) -> dict[tuple[int, ...], dict[str, int]]:
    """Returns {widths: {name: bytes}}, empty if the backend does not count memory.

    The counter of a process never falls, so each network runs in a process of its own. That process
    takes the device, so this one must not hold it yet.
    """
    peaks: dict[tuple[int, ...], dict[str, int]] = {}
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context, max_tasks_per_child=1) as pool:
        for widths, batch_size in batch_sizes.items():
            for name in NETWORKS:
                arguments = name, widths, batch_size, dtype, steps
                peak = pool.submit(_device_peak, *arguments).result()
                if peak is None:
                    return {}
                peaks.setdefault(widths, {})[name] = peak
    return peaks


def _device_peak(
    name: str, widths: tuple[int, ...], batch_size: int, dtype: str, steps: int | None
) -> int | None:
    device = jax.local_devices()[0]
    if device.memory_stats() is None:
        return None
    step = make_step(name, widths, batch_size, dtype, steps or default_steps_per_dispatch())
    jax.block_until_ready(step())
    return device.memory_stats()["peak_bytes_in_use"]


def main() -> None:
    """Measures all networks, prints a table and writes a record to --out."""
    keep_freed_memory()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--batch_size", type=int, help="for all networks (default: one for each)")
    parser.add_argument("--maps", type=int, help="only networks with this many in the last stage")
    parser.add_argument(
        "--steps_per_dispatch", type=int, help="default: as in training (CPU: 1, other: 32)"
    )
    parser.add_argument("--repeats", type=int, default=20, help="number of counted turns")
    parser.add_argument("--large_repeats", type=int, default=5, help="of the largest network")
    add_out(parser, "step.json")
    options = parser.parse_args()
    batch_sizes = {
        widths: options.batch_size or size
        for widths, size in WIDTHS.items()
        if options.maps in (None, widths[-1])
    }
    peaks = device_peaks(batch_sizes, options.dtype, options.steps_per_dispatch)
    steps = options.steps_per_dispatch or default_steps_per_dispatch()
    has_targets = (jax.default_backend(), options.dtype) == ("cpu", "float32")
    targets, targets_pytorch = (TARGETS, TARGETS_PYTORCH) if has_targets else ({}, {})
    table = rich.table.Table(
        "maps",
        "batch",
        "network",
        "median",
        "over WRN",
        "target",
        "MCN over this",
        "target",
        "compile time",
        "temporary memory",
        "device peak",
    )
    records = []
    for widths, batch_size in batch_sizes.items():
        repeats = options.large_repeats if widths == max(WIDTHS) else options.repeats
        record = measure(widths, batch_size, options.dtype, steps, repeats)
        record |= {"repeats": repeats, "device_peak_bytes": peaks.get(widths, {})}
        records.append(record)
        for name, median in record["median_seconds"].items():
            ratios = [record["over_wrn"].get(name), None, None, None]
            if name == "MCN":
                ratios[1] = targets.get(widths)
            if name.startswith("WRN, "):
                ratios[2] = record["over_pytorch"][name.removeprefix("WRN, ")]
                ratios[3] = targets_pytorch.get(widths) if name == "WRN, PyTorch" else None
            compiled = record["compile_seconds"].get(name, [])
            memory = [record[key].get(name) for key in ("temporary_bytes", "device_peak_bytes")]
            table.add_row(
                "-".join(map(str, widths)),
                str(batch_size),
                name,
                f"{median:.4f} s",
                *(f"{value:.2f}" if value else "" for value in ratios),
                ", ".join(f"{value:.1f}" for value in compiled) + " s" * bool(compiled),
                *(f"{value / 1e6:,.0f} MB" if value else "" for value in memory),
            )
    rich.console.Console(width=140, highlight=False).print(table)
    device = jax.local_devices()[0].device_kind
    write(options.out, {"device": device, "dtype": options.dtype, "networks": records})


if __name__ == "__main__":
    main()
