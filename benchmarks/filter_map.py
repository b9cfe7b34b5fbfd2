"""Compares the two forms of convolution with a filter map, and the ordinary convolution.

    python benchmarks/filter_map.py       prints a table, writes runs/benchmarks/filter_map.json

The layers are those of ResNets and DenseNets on CIFAR-10. The data are random. Each layer is
measured forward, and forward with the gradients of input and map. The three sides run in turn, and
the table has medians of their ratios. "auto" is the form that `mcn_jax.ops.filter_map.cpu_form`
takes.
"""

import argparse
import functools
import statistics
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import rich.console
import rich.table
from measure import PASSES, add_out, alternated, compiled_pass, ratio, write

from mcn_jax.memory import keep_freed_memory
from mcn_jax.ops.convolution import convolve
from mcn_jax.ops.filter_map import (
    Geometry,
    cpu_form,
    cut_filters,
    filter_map_convolution,
    geometry_for,
    multiply_adds,
)

FORMS = ("direct", "circulant")
# Targets, with gradients, for the time over that of the direct form: of the circulant form in
# layers of at least `TARGET_CHANNELS` channels, and of "auto" everywhere.
TARGET, TARGET_CHANNELS, TARGET_AUTO = 0.5, 128, 1.05


class Layer(NamedTuple):
    """A convolution with 3x3 pixels.

    Attributes:
        channels: of the input.
        outputs: channels of the output.
        size: height and width of the input in pixels.
        stride: in pixels.
        batch: images.
    """

    channels: int
    outputs: int
    size: int
    stride: int
    batch: int

    @property
    def geometry(self) -> Geometry:
        """How its filters lie in its map."""
        return geometry_for(self.outputs, self.channels, (3, 3))


LAYERS = (
    Layer(3, 64, 32, 1, 32),
    Layer(16, 16, 32, 1, 32),
    Layer(32, 32, 16, 1, 64),
    Layer(64, 64, 32, 1, 8),
    Layer(64, 64, 8, 1, 128),
    Layer(64, 128, 32, 2, 16),
    Layer(128, 128, 16, 1, 16),
    Layer(128, 256, 16, 2, 32),
    Layer(256, 256, 8, 1, 32),
    Layer(256, 512, 8, 2, 32),
    Layer(512, 512, 4, 1, 64),
    Layer(128, 32, 32, 1, 8),
    Layer(128, 32, 4, 1, 128),
)


def programs(layer: Layer, name: str, dtype: jnp.dtype) -> dict[str, functools.partial[Any]]:
    """Returns the compiled program of each form and of the ordinary convolution.

    Args:
        layer: the layer.
        name: one of `PASSES`.
        dtype: of the input.
    """
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (layer.batch, layer.size, layer.size, layer.channels), dtype)
    filter_map = jax.random.normal(keys[1], layer.geometry.map_shape)
    strides = (layer.stride, layer.stride)
    kernel = cut_filters(filter_map, layer.geometry)
    functions = {"ordinary": (lambda x, kernel: convolve(x, kernel, strides, "SAME"), kernel)}
    for form in FORMS:
        function = functools.partial(
            filter_map_convolution, geometry=layer.geometry, strides=strides, form=form
        )
        functions[form] = (function, filter_map)
    output = jax.eval_shape(functions["ordinary"][0], x, kernel)
    cotangent = jax.random.normal(keys[2], output.shape, dtype)
    return {
        form: compiled_pass(name, function, (x, parameter), cotangent)
        for form, (function, parameter) in functions.items()
    }


def measure(layer: Layer, dtype: jnp.dtype, repeats: int, calls: int) -> dict[str, Any]:
    """Returns median seconds of each side, and median ratios of sides in the same turn."""
    adds = multiply_adds(layer.geometry)
    record: dict[str, Any] = {
        **layer._asdict(),
        "samples": layer.geometry.samples,
        "auto": cpu_form(layer.geometry, dtype.name),
        "fewer_multiply_adds": adds["factored"] / adds["direct"],
    }
    for name in PASSES:
        times = alternated(programs(layer, name, dtype), repeats, calls)
        record[name] = {
            "median_seconds": {side: statistics.median(found) for side, found in times.items()},
            "over_ordinary": {form: ratio(times, form, "ordinary") for form in FORMS},
            "circulant_over_direct": ratio(times, "circulant", "direct"),
        }
    return record


def print_table(records: list[dict[str, Any]]) -> None:
    """Prints the ratios of the layers, and their targets."""
    table = rich.table.Table(
        "channels", "size", "stride", "batch", "K3", "multiply-adds", "direct / ordinary",
        "circulant / direct, forward", "circulant / direct", "target", "auto", "auto / direct",
    )  # fmt: skip
    for record in records:
        whole = record["with gradient"]
        is_wide = min(record["channels"], record["outputs"]) >= TARGET_CHANNELS
        over_direct = whole["circulant_over_direct"] if record["auto"] == "circulant" else 1.0
        table.add_row(
            f"{record['channels']}-{record['outputs']}",
            *(str(record[name]) for name in ("size", "stride", "batch")),
            str(record["samples"][2]),
            f"{record['fewer_multiply_adds']:.2f}",
            f"{whole['over_ordinary']['direct']:.2f}",
            f"{record['forward']['circulant_over_direct']:.2f}",
            f"{whole['circulant_over_direct']:.2f}",
            str(TARGET) if is_wide else "",
            record["auto"],
            f"{over_direct:.2f} (target {TARGET_AUTO})",
        )
    rich.console.Console(width=160, highlight=False).print(table)


def main() -> None:
    """Measures all layers."""
    keep_freed_memory()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--repeats", type=int, default=25, help="number of counted turns")
    parser.add_argument("--calls", type=int, default=4, help="calls per measurement")
    add_out(parser, "filter_map.json")
    options = parser.parse_args()
    dtype = jnp.dtype(options.dtype)
    records = []
    for layer in LAYERS:
        records.append(measure(layer, dtype, options.repeats, options.calls))
        print(layer, flush=True)
    print_table(records)
    write(
        options.out,
        {
            "device": jax.local_devices()[0].device_kind,
            "dtype": options.dtype,
            "repeats": options.repeats,
            "calls": options.calls,
            "layers": records,
        },
    )


if __name__ == "__main__":
    main()
