"""Compares layers with the peak rates of the machine: `python benchmarks/roofline.py`.

First, the peak rates are measured. They are the FLOP/s of a large matrix product, and the bytes/s
of reading and writing an array larger than any cache.

Then layers of the authors' four widths are measured, forward with gradients. Their rates are the
FLOP that a form must compute, and the bytes that must move at least, over the measured time. The
bytes count features, output, cotangent and filters, each once per pass. "auto" is the form that
"auto" takes here.

At the peak rates, a layer would take at least the time of its FLOP or of its bytes, whichever is
longer. "Of attainable" is this least time over the measured time.
"""

import argparse
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import rich.console
import rich.table
from mcconv import add_options, batch_of, jax_platform, measure, measured_forms
from measure import add_out, seconds, write

from mcn_jax.memory import keep_freed_memory
from mcn_jax.ops.costs import TAPS, multiply_adds
from mcn_jax.ops.fastest import Shape, fastest_form
from mcn_jax.ops.mcconv import CHANNELS_TO_SAVE, takes_native

SHAPES = tuple(
    Shape(maps, maps, 4, size, 1)
    for maps, size in (
        (16, 32), (32, 32), (64, 32), (32, 16), (64, 16), (128, 16), (64, 8), (128, 8), (256, 8),
    )
)  # fmt: skip
SIZES = (1024, 2048, 4096)  # of the square matrices whose products are measured
ARRAY_BYTES = 2**30


def peak_flops(dtype: jnp.dtype, repeats: int, calls: int) -> float:
    """Returns the FLOP/s of the fastest of several large matrix products."""
    rates = []
    for size in SIZES:
        a, b = (jax.random.normal(jax.random.key(i), (size, size), dtype) for i in (0, 1))
        product = jax.jit(jnp.matmul)
        rates.append(2 * size**3 / _best(lambda f=product, a=a, b=b: f(a, b), repeats, calls))
    return max(rates)


def peak_bandwidth(repeats: int, calls: int) -> float:
    """Returns the bytes/s of reading an array and writing it in place.

    Writing to a new array would also measure the time to map its memory.
    """
    array = jax.random.normal(jax.random.key(0), (ARRAY_BYTES // 4,))
    add = jax.jit(lambda x: x + 1, donate_argnums=0)

    def add_in_place() -> jax.Array:
        nonlocal array
        array = add(array)
        return array

    jax.block_until_ready(add_in_place())  # compiles
    return 2 * ARRAY_BYTES / _best(add_in_place, repeats, calls)


def _best(function: Callable[[], Any], repeats: int, calls: int) -> float:
    return min(seconds(function, calls) for _ in range(repeats))


def bytes_moved(shape: Shape, form: str, batch: int, itemsize: int) -> int:
    """Returns the least number of bytes that a layer moves, forward with gradients.

    The forward pass reads features and filters, and writes the output. The backward pass reads
    features, filters and cotangent, and writes the gradients of features and filters. Filters are
    those that are convolved with: the binary filters for "factored" and "native", Q for "direct".
    """
    features = shape.size**2 * shape.in_maps * shape.planes
    output = math.ceil(shape.size / shape.stride) ** 2 * shape.out_maps * shape.planes
    filters = TAPS * shape.in_maps * shape.planes * shape.out_maps
    if form not in ("factored", "native"):
        filters *= shape.planes
    return itemsize * (batch * (3 * features + 2 * output) + 3 * filters)


def flop_of(shape: Shape, form: str, batch: int) -> int:
    """Returns the FLOP that a form computes for a layer, forward with gradients."""
    keeps_products = form == "native" and shape.in_maps * shape.planes >= CHANNELS_TO_SAVE
    return (
        2
        * batch
        * multiply_adds(
            shape,
            {"ordinary": "direct", "native": "factored"}.get(form, form),
            gradients=True,
            keeps_products=keeps_products,
        )
    )


def main() -> None:
    """Measures the machine and the layers, prints a table and writes a record to --out."""
    keep_freed_memory()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    add_out(parser, "roofline.json")
    options = parser.parse_args()
    dtype = jnp.dtype(options.dtype)
    turns = options.repeats, options.calls
    flops, bandwidth = peak_flops(dtype, *turns), peak_bandwidth(*turns)
    console = rich.console.Console(width=120, highlight=False)
    console.print(
        f"a matrix product reaches {flops / 1e9:,.0f} GFLOP/s in {options.dtype}, "
        f"a sum in place {bandwidth / 1e9:,.1f} GB/s"
    )
    table = rich.table.Table(
        "maps", "size", "batch", "form", "GFLOP/s", "of peak", "GB/s", "of peak", "of attainable"
    )
    records, kind = [], (jax_platform(), options.dtype)
    forms = measured_forms(*kind)
    for shape in SHAPES:
        if options.maps not in (None, shape.out_maps):
            continue
        batch = batch_of(shape, options.work, options.largest_batch)
        measured = measure(shape, batch, dtype, *turns, forms)["with gradient"]
        is_native = "native" in forms and takes_native(shape)
        auto = "native" if is_native else fastest_form(*kind, shape)
        for form in dict.fromkeys(("ordinary", "direct", auto)):
            time = measured["median_seconds"][form]
            moved = bytes_moved(shape, form, batch, dtype.itemsize)
            flop = flop_of(shape, form, batch)
            least = max(flop / flops, moved / bandwidth)
            rates = {"flops": flop / time, "bytes": moved / time, "of_attainable": least / time}
            records.append({**shape._asdict(), "batch": batch, "form": form, **rates})
            table.add_row(
                f"{shape.in_maps}-{shape.out_maps}", str(shape.size), str(batch), form,
                f"{rates['flops'] / 1e9:,.1f}", f"{rates['flops'] / flops:.0%}",
                f"{rates['bytes'] / 1e9:,.1f}", f"{rates['bytes'] / bandwidth:.0%}",
                f"{rates['of_attainable']:.0%}",
            )  # fmt: skip
    console.print(table)
    write(
        options.out,
        {
            "device": jax.local_devices()[0].device_kind,
            "dtype": options.dtype,
            "repeats": options.repeats,
            "calls": options.calls,
            "peak": {"flops": flops, "bytes": bandwidth},
            "layers": records,
        },
    )


if __name__ == "__main__":
    main()
