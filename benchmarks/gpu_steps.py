"""Measures training steps on one GPU within a given time, for `gpu.py`."""

import argparse
import concurrent.futures
import importlib.util
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from measure import alternated, print_failure, ratio, write
from networks import TrainingStep, load
from turns import DeadlineError, Turn

from mcn_jax.config import Config
from mcn_jax.data.facts import DATASETS
from mcn_jax.errors import InputError
from mcn_jax.models.wide_resnet import blocks_per_stage
from mcn_jax.training.checks import validate

# Name: (fields of the config, arguments of `TrainingStep`).
NETWORKS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "MCN": ({}, {"quantized": True}),
    "WRN": ({"model.conv": "conv"}, {"quantized": False}),
    "U-MCN": ({}, {"quantized": False}),
    "MCN, factored": ({}, {"quantized": True, "form": "factored"}),
}


def steps(options: argparse.Namespace, turn: Turn) -> None:
    """Measures steps of the networks at one width, in one dtype."""
    config = network_config(options)
    members, compile_seconds = _compiled(options, turn)
    if not members:
        turn.check()
        raise InputError(f"none of --networks={';'.join(options.networks)} could be measured")
    times = alternated(members, options.repeats, until=turn.until)
    record = _network_record(options, config, times) | {
        "over_wrn": {name: ratio(times, name, "WRN") for name in times if "WRN" in times},
        "temporary_bytes": {
            name: step.compiled.memory_analysis().temp_size_in_bytes
            for name, step in members.items()
        },
        "compile_seconds": compile_seconds,
        "repeats": min(map(len, times.values())),
        "device_peak_bytes": {},
    }
    for name in times:
        _print_median(name, options.dtype, record)
    device = jax.local_devices()[0].device_kind
    write(options.out, {"device": device, "dtype": options.dtype, "networks": [record]})


def _compiled(
    options: argparse.Namespace, turn: Turn
) -> tuple[dict[str, TrainingStep], dict[str, float]]:
    """Returns the networks that can run, and the compile time of each.

    A thread lowers the networks. Each is compiled here as soon as it is lowered.
    """
    members: dict[str, TrainingStep] = {}
    compile_seconds: dict[str, float] = {}
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        lowered = {name: thread.submit(_lowered, name, options, turn) for name in options.networks}
        for name in options.networks:
            try:
                step = lowered.pop(name).result()
                turn.wait()
                start = time.perf_counter()
                _ = step.compiled
                elapsed = time.perf_counter() - start
                jax.block_until_ready(step())
            except DeadlineError as error:
                print(f"{name}: not measured: {error}", flush=True)
                continue
            except Exception as error:  # the others are still measured
                print_failure(name, error)
                continue
            members[name], compile_seconds[name] = step, elapsed
            print(f"{name}: compiled in {elapsed:.1f} s", flush=True)
    return members, compile_seconds


def _lowered(name: str, options: argparse.Namespace, turn: Turn) -> TrainingStep:
    turn.check()
    fields, arguments = NETWORKS[name]
    config = network_config(options, fields)
    return TrainingStep(config, options.batch_size, steps=options.steps, **arguments)


def network_config(options: argparse.Namespace, fields: Mapping[str, Any] | None = None) -> Config:
    """Returns the config whose network is measured, with some fields changed, and checks it."""
    chosen = {
        "model.widths": options.widths,
        "model.depth": options.depth,
        "dtype": options.dtype,
        "batch_size": options.batch_size,
    }
    changes = {name: value for name, value in chosen.items() if value is not None}
    config = load(options.config, changes | dict(fields or {}))
    facts = DATASETS.get(config.data.name)
    if config.model.name != "wide_resnet" or facts is None or not facts.examples:
        raise InputError(
            f"--config={options.config} has a {config.model.name} on {config.data.name}; choose a"
            " wide_resnet on CIFAR or SVHN, such as configs/cifar10.py"
        )
    validate(config)
    return config


def _network_record(
    options: argparse.Namespace, config: Config, times: Mapping[str, Sequence[float]]
) -> dict[str, Any]:
    """Returns what was measured, and the medians of all turns."""
    medians = {name: statistics.median(values) / options.steps for name, values in times.items()}
    return {
        "config": options.config.stem,
        "depth": config.model.depth,
        "widths": config.model.widths,
        "batch_size": options.batch_size,
        "steps_per_dispatch": options.steps,
        "median_seconds": medians,
        "images_per_second": {name: options.batch_size / s for name, s in medians.items()},
    }


def _print_median(name: str, dtype: str, record: Mapping[str, Any]) -> None:
    print(
        f"{dtype} {record['widths']} depth {record['depth']} {name}:"
        f" {1e3 * record['median_seconds'][name]:.3f} ms per step,"
        f" {record['images_per_second'][name]:,.0f} images/s",
        flush=True,
    )


def pytorch(options: argparse.Namespace, turn: Turn) -> None:
    """Measures steps of the same WRN in PyTorch, without and with `cudnn.benchmark`."""
    if importlib.util.find_spec("torch") is None:
        raise InputError("PyTorch is not installed; pip install -r benchmarks/requirements.txt")
    config = network_config(options)
    import pytorch_wrn
    import torch

    channels = tuple(width * config.model.planes for width in config.model.widths)
    blocks = blocks_per_stage(config.model.depth)
    classes = DATASETS[config.data.name].classes
    times: dict[str, list[float]] = {}
    turn.wait()
    for name, tries_all in (("WRN, PyTorch", False), ("WRN, PyTorch, cudnn.benchmark", True)):
        turn.check()
        torch.backends.cudnn.benchmark = tries_all
        try:
            step = pytorch_wrn.TrainingStep(
                channels, blocks, options.batch_size, options.dtype, options.steps, classes
            )
            times |= alternated({name: step}, options.repeats, until=turn.until)
        except Exception as error:  # the other choice of algorithms is still measured
            print_failure(name, error)
            continue
        record = _network_record(options, config, times)
        _print_median(name, options.dtype, record)
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
                "networks": [record],
            },
        )
    if not times:
        raise InputError("PyTorch's WRN could not be measured")
