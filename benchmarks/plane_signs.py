"""Compares the native and the direct form of MCconv with a Hadamard pattern, on a CPU in float32.

    python benchmarks/plane_signs.py      prints a table, writes runs/benchmarks/plane_signs.json

The native form shares the products of a filter between the planes of a map. Narrow layers have the
planes in the lanes of vectors, others use slices of the channels. The direct form is an ordinary
convolution by the same kernel. MCconv without a pattern, "plain", stands beside them. Each layer is
measured forward, and forward with the gradients of features, filters and M. The sides run in turn,
and the table has medians of their ratios. The data are random, and the time includes binarization.
"""

import argparse
import statistics
from typing import Any

import jax
import jax.numpy as jnp
import rich.console
import rich.table
from measure import PASSES, add_out, alternated, compiled_pass, ratio, write

from mcn_jax.memory import keep_freed_memory
from mcn_jax.ops import kmeans_centers, native
from mcn_jax.ops.fastest import Shape
from mcn_jax.ops.mcconv import mcconv, takes_native

PATTERN = "hadamard"
SIDES = {
    "native": {"form": "native", "plane_signs": PATTERN},
    "direct": {"form": "direct", "plane_signs": PATTERN},
    "plain": {"form": "native"},
}
# Shapes, each with the number of images.
LAYERS = (
    (Shape(8, 8, 2, 32, 1), 128),
    (Shape(16, 16, 2, 16, 1), 128),
    (Shape(32, 32, 2, 16, 1), 64),
    (Shape(64, 64, 2, 16, 1), 64),
    (Shape(128, 128, 2, 8, 1), 64),
    (Shape(4, 4, 4, 32, 1), 128),
    (Shape(4, 8, 4, 32, 2), 128),
    (Shape(8, 8, 4, 32, 1), 128),
    (Shape(8, 8, 4, 16, 1), 128),
    (Shape(8, 16, 4, 32, 2), 128),
    (Shape(12, 12, 4, 16, 1), 128),
    (Shape(16, 16, 4, 32, 1), 64),
    (Shape(16, 16, 4, 16, 1), 128),
    (Shape(16, 32, 4, 32, 2), 64),
    (Shape(32, 32, 4, 16, 1), 64),
    (Shape(64, 64, 4, 8, 1), 64),
    (Shape(128, 128, 4, 8, 1), 16),
    (Shape(3, 3, 8, 32, 1), 128),
    (Shape(6, 6, 8, 16, 1), 128),
    (Shape(8, 8, 8, 16, 1), 128),
    (Shape(11, 11, 8, 8, 1), 128),
    (Shape(16, 16, 8, 16, 1), 64),
)


def measure(shape: Shape, batch: int, repeats: int, calls: int) -> dict[str, Any]:
    """Returns median seconds of the sides, and median ratios of sides in the same turn."""
    keys = jax.random.split(jax.random.key(0), 4)
    channels, outputs = shape.in_maps * shape.planes, shape.out_maps * shape.planes
    x = jax.random.normal(keys[0], (batch, shape.size, shape.size, channels))
    latent = jax.random.normal(keys[1], (3, 3, channels, shape.out_maps))
    m = jnp.abs(1 + 0.1 * jax.random.normal(keys[2], (3, 3, shape.planes)))
    centers, strides = kmeans_centers(latent, 2), (shape.stride, shape.stride)
    out_size = -(-shape.size // shape.stride)
    cotangent = jax.random.normal(keys[3], (batch, out_size, out_size, outputs))
    functions = {
        side: lambda x, latent, m, options=options: mcconv(
            x, latent, centers, m, strides=strides, **options
        )
        for side, options in SIDES.items()
    }
    record: dict[str, Any] = shape._asdict() | {"batch": batch}
    for name in PASSES:
        programs = {
            side: compiled_pass(name, function, (x, latent, m), cotangent)
            for side, function in functions.items()
        }
        times = alternated(programs, repeats, calls)
        record[name] = {
            "median_seconds": {side: statistics.median(found) for side, found in times.items()},
            "native_over_direct": ratio(times, "native", "direct"),
            "native_over_plain": ratio(times, "native", "plain"),
        }
    return record


def main() -> None:
    """Measures all layers."""
    keep_freed_memory()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=20, help="number of counted turns")
    parser.add_argument("--calls", type=int, default=2, help="calls per measurement")
    add_out(parser, "plane_signs.json")
    options = parser.parse_args()
    if (reason := native.why_unavailable()) is not None:
        parser.error(reason)
    records = []
    for shape, batch in LAYERS:
        records.append(measure(shape, batch, options.repeats, options.calls))
        print(shape, flush=True)
    table = rich.table.Table(
        "maps", "planes", "size", "stride", "batch", "native / direct, forward",
        "native / direct, with gradients", "native / plain, with gradients", "auto",
    )  # fmt: skip
    for record in records:
        forward, gradients = (record[name] for name in PASSES)
        table.add_row(
            f"{record['in_maps']}-{record['out_maps']}",
            *(str(record[name]) for name in ("planes", "size", "stride", "batch")),
            f"{forward['native_over_direct']:.2f}",
            f"{gradients['native_over_direct']:.2f}",
            f"{gradients['native_over_plain']:.2f}",
            "native" if takes_native(Shape.of(record), PATTERN) else "direct",
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
