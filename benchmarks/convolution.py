"""Compares ordinary convolutions by the native kernel with XLA's, on a CPU in float32.

    python benchmarks/convolution.py      prints a table, writes runs/benchmarks/convolution.json

Each layer is measured forward, and forward with the gradients of input and filters. Both sides run
in turn, and the table has medians of their ratios. Where the kernel has code for few channels, its
general code is a third side. The data are random.
"""

import argparse
import functools
import statistics
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from unittest import mock

import jax
import rich.console
import rich.table
from measure import PASSES, add_out, alternated, compiled_pass, ratio, write

from mcn_jax.memory import keep_freed_memory
from mcn_jax.ops import native
from mcn_jax.ops.convolution import native_passes, xla_convolve


class Layer(NamedTuple):
    """An ordinary convolution with SAME padding.

    Attributes:
        taps: height and width of the filters in pixels.
        channels: of the input.
        outputs: channels of the output.
        size: height and width of the input in pixels.
        stride: in pixels.
        batch: images.
    """

    taps: int
    channels: int
    outputs: int
    size: int
    stride: int
    batch: int


SHAPES = (
    (1, 32, 28, 1, 128),
    (3, 16, 32, 1, 128),
    (3, 32, 32, 1, 64),
    (4, 4, 32, 1, 128),
    (8, 8, 32, 1, 128),
    (8, 16, 32, 2, 128),
    (16, 16, 32, 1, 128),
    (16, 32, 32, 2, 128),
    (32, 32, 16, 1, 128),
    (64, 64, 8, 1, 128),
    (64, 64, 32, 1, 16),
    (64, 128, 32, 2, 16),
    (64, 256, 16, 1, 16),
    (256, 64, 16, 1, 16),
    (128, 128, 16, 1, 16),
    (256, 256, 8, 1, 16),
    (512, 512, 4, 1, 32),
    (64, 64, 32, 1, 1),
)
LAYERS = tuple(Layer(taps, *shape) for taps in (3, 1, 5) for shape in SHAPES)


def native_convolve(layer: Layer, is_general: bool = False) -> jax.custom_vjp:
    """Returns the convolution of a layer by the kernel, whatever `convolve` would take.

    Args:
        layer: the layer.
        is_general: whether to take the kernel's general code also for few channels.
    """
    options = {"strides": (layer.stride, layer.stride), "padding": "SAME"}

    def with_code(function: Callable[..., Any], *arrays: Any) -> Any:
        if not is_general:
            return function(*arrays, **options)
        with mock.patch.object(native, "is_narrow", return_value=False):
            return function(*arrays, **options)

    @jax.custom_vjp
    def convolve(x: jax.Array, filters: jax.Array) -> jax.Array:
        return with_code(native.convolve, x, filters)

    convolve.defvjp(
        lambda *arrays: (convolve(*arrays), arrays),
        lambda arrays, cotangent: with_code(native.convolution_gradients, *arrays, cotangent),
    )
    return convolve


def taken(layer: Mapping[str, Any]) -> str:
    """Returns which passes of a layer take the kernel in `convolve`."""
    taps, channels, outputs = (layer[name] for name in ("taps", "channels", "outputs"))
    passes = native_passes("float32", (taps, taps, channels, outputs))
    return ", ".join(name for name, taken in passes._asdict().items() if taken)


def measure(layer: Layer, repeats: int, calls: int) -> dict[str, Any]:
    """Returns median seconds of both sides, and the median ratio of sides in the same turn."""
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (layer.batch, layer.size, layer.size, layer.channels))
    filters = jax.random.normal(keys[1], (layer.taps, layer.taps, layer.channels, layer.outputs))
    strides = (layer.stride, layer.stride)
    sides = {
        "native": native_convolve(layer),
        "xla": functools.partial(xla_convolve, strides=strides, padding="SAME"),
    }
    if native.is_narrow(filters.shape):
        sides["general"] = native_convolve(layer, is_general=True)
    output = jax.eval_shape(sides["xla"], x, filters)
    cotangent = jax.random.normal(keys[2], output.shape)
    record: dict[str, Any] = layer._asdict()
    for name in PASSES:
        programs = {
            side: compiled_pass(name, function, (x, filters), cotangent)
            for side, function in sides.items()
        }
        times = alternated(programs, repeats, calls)
        record[name] = {
            "median_seconds": {side: statistics.median(found) for side, found in times.items()},
            **{
                f"native_over_{side}": ratio(times, "native", side)
                for side in sides
                if side != "native"
            },
        }
    return record


def main() -> None:
    """Measures all layers."""
    keep_freed_memory()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=20, help="number of counted turns")
    parser.add_argument("--calls", type=int, default=1, help="calls per measurement")
    add_out(parser, "convolution.json")
    options = parser.parse_args()
    if (reason := native.why_unavailable()) is not None:
        parser.error(reason)
    records = []
    for layer in LAYERS:
        records.append(measure(layer, options.repeats, options.calls))
        print(layer, flush=True)
    table = rich.table.Table(
        "taps", "channels", "size", "stride", "batch", "native / XLA, forward",
        "native / XLA, with gradients", "native / its general code", "native in convolve",
    )  # fmt: skip
    for record in records:
        table.add_row(
            str(record["taps"]),
            f"{record['channels']}-{record['outputs']}",
            *(str(record[name]) for name in ("size", "stride", "batch")),
            *(f"{record[name]['native_over_xla']:.2f}" for name in PASSES),
            ", ".join(
                f"{record[name]['native_over_general']:.2f}"
                for name in PASSES
                if "native_over_general" in record[name]
            ),
            taken(record),
        )
    rich.console.Console(width=120, highlight=False).print(table)
    write(
        options.out,
        {
            "device": jax.local_devices()[0].device_kind,
            "dtype": "float32",
            "repeats": options.repeats,
            "calls": options.calls,
            "layers": records,
        },
    )


if __name__ == "__main__":
    main()
