"""Compares MCconv, direct and factored, with the ordinary convolution of the same channels.

    python benchmarks/mcconv.py           prints a table, writes runs/benchmarks/mcconv.json
    python benchmarks/mcconv.py --tune    also writes mcn_jax/ops/fastest.json, by which
                                          form="auto" chooses

The layer shapes are all those of three groups of networks: the four widths of the authors' book on
CIFAR-10, an MCN with 4-4-8-16 maps, and the MNIST networks. The data are random. Each layer is
measured forward, and forward with the gradients of features, filters and M. The time of an MCconv
includes binarization. The native kernel is measured too where it is available, on a CPU in float32.
"auto" is what the table chooses.

If PyTorch is installed (benchmarks/requirements.txt), four layers on a CPU in float32 are also
measured in pairs with PyTorch's convolution, which runs in a process of its own.
"""

import argparse
import collections
import functools
import json
import pathlib
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import rich.console
import rich.table
from measure import (
    HAS_PYTORCH,
    PASSES,
    PYTORCH,
    OtherProcess,
    add_out,
    alternated,
    compiled_pass,
    pairs,
    print_failure,
    ratio,
    write,
)

from mcn_jax.errors import InputError
from mcn_jax.memory import keep_freed_memory
from mcn_jax.ops import kmeans_centers, native
from mcn_jax.ops.convolution import xla_convolve
from mcn_jax.ops.costs import multiply_adds
from mcn_jax.ops.fastest import TABLE, Shape, fastest_form, native_is_faster
from mcn_jax.ops.mcconv import mcconv
from mcn_jax.workdirs.files import read_json, write_atomically

CIFAR_WIDTHS = (
    (4, 4, 8, 16), (16, 16, 32, 64), (16, 32, 64, 128), (32, 64, 128, 256), (64, 64, 128, 256),
)  # fmt: skip
MNIST_WIDTHS = ((5, 10, 20, 40), (10, 20, 40, 80), (20, 40, 80, 160))
# Layers at which K other than 4 is measured.
OTHER_PLANES = (Shape(4, 4, 4, 32, 1), Shape(16, 16, 4, 16, 1), Shape(64, 64, 4, 8, 1))
FORMS = ("direct", "factored")
# Targets for the time of "auto" over the ordinary convolution, in float32 on two CPU cores.
TARGETS = {
    Shape(16, 16, 4, 32, 1): 0.75, Shape(32, 32, 4, 16, 1): 0.85, Shape(64, 64, 4, 8, 1): 0.55,
    Shape(256, 256, 4, 8, 1): 0.30,
}  # fmt: skip
TARGET_ELSEWHERE = 1.05
# Targets for the time of "auto" over PyTorch's convolution, with gradients.
TARGETS_PYTORCH = {
    Shape(16, 16, 4, 32, 1): 0.6, Shape(32, 32, 4, 16, 1): 0.5, Shape(64, 64, 4, 8, 1): 0.35,
    Shape(256, 256, 4, 8, 1): 0.13,
}  # fmt: skip


def shapes() -> list[Shape]:
    """Returns all layer shapes to measure, each once."""
    found = set()
    for stem, one, two, three in CIFAR_WIDTHS:
        found |= {
            Shape(3, stem, 4, 32, 1), Shape(stem, one, 4, 32, 1), Shape(one, one, 4, 32, 1),
            Shape(one, two, 4, 32, 2), Shape(two, two, 4, 16, 1),
            Shape(two, three, 4, 16, 2), Shape(three, three, 4, 8, 1),
        }  # fmt: skip
    for widths in MNIST_WIDTHS:
        maps = (1, *widths)
        found |= {Shape(maps[i], maps[i + 1], 4, 32 >> i, 1) for i in range(4)}
    found |= {shape._replace(planes=k) for shape in OTHER_PLANES for k in (1, 2, 8)}
    return sorted(found)


def compiled(
    shape: Shape,
    batch: int,
    dtype: jnp.dtype,
    name: str,
    forms: Sequence[str],
    *,
    skips_failures: bool = False,
) -> dict[str, functools.partial[Any]]:
    """Returns the compiled program of each form, and of the ordinary convolution.

    Each has been called once. Arguments are those of `measure`; `name` is one of `PASSES`.
    """
    keys = jax.random.split(jax.random.key(0), 5)
    size, strides = shape.size, (shape.stride, shape.stride)
    channels, outputs = shape.in_maps * shape.planes, shape.out_maps * shape.planes
    x = jax.random.normal(keys[0], (batch, size, size, channels), dtype)
    latent = jax.random.normal(keys[1], (3, 3, channels, shape.out_maps))
    centers = kmeans_centers(latent, 2)
    m = jnp.abs(1 + 0.1 * jax.random.normal(keys[2], (3, 3, shape.planes)))
    kernel = jax.random.normal(keys[3], (3, 3, channels, outputs))
    out_size = -(-size // shape.stride)
    cotangent = jax.random.normal(keys[4], (batch, out_size, out_size, outputs), dtype)
    functions = {"ordinary": (lambda x, k: xla_convolve(x, k, strides, "SAME"), (kernel,))}
    for form in forms:
        functions[form] = (
            lambda x, c, m, form=form: mcconv(x, c, centers, m, strides=strides, form=form),
            (latent, m),
        )
    programs = {}
    for form, (function, parameters) in functions.items():
        try:
            program = compiled_pass(name, function, (x, *parameters), cotangent)
            jax.block_until_ready(program())
        except Exception as error:
            if form == "ordinary" or not skips_failures:
                raise
            print_failure(f"{form}, {name}, {dtype} {tuple(shape)}", error)
            continue
        programs[form] = program
    return programs


def measure_pytorch(record: dict[str, Any], repeats: int) -> None:
    """Adds PyTorch's convolution to the record of a layer.

    "over_pytorch" is {name in `PYTORCH`: {"auto" or "ordinary": ratio}}, each of pairs of its own.
    """
    shape, batch = Shape.of(record), record["batch"]
    channels, outputs = shape.in_maps * shape.planes, shape.out_maps * shape.planes
    layer = channels, outputs, shape.size, shape.stride, batch
    for name in PASSES:
        programs = compiled(shape, batch, jnp.dtype("float32"), name, ("auto",))
        record[name]["over_pytorch"] = {peer: {} for peer in PYTORCH}
        for peer, keeps_memory in PYTORCH.items():
            arguments = *layer, name == "with gradient"
            with OtherProcess(_convolution, *arguments, keeps_memory=keeps_memory) as pytorch:
                for form, program in programs.items():
                    found = pairs(program, pytorch, repeats)
                    over = statistics.median(ours / theirs for ours, theirs in found)
                    record[name]["over_pytorch"][peer][form] = over
            record[name]["median_seconds"][peer] = statistics.median(b for _, b in found)


def _convolution(*arguments: Any) -> Callable[[], None]:
    import pytorch_wrn

    return pytorch_wrn.Convolution(*arguments)


def measure(
    shape: Shape,
    batch: int,
    dtype: jnp.dtype,
    repeats: int,
    calls: int,
    forms: Sequence[str] = FORMS,
    *,
    skips_failures: bool = False,
) -> dict[str, Any]:
    """Returns median seconds, ratios to the ordinary convolution, and bytes of memory.

    "temporary_bytes" has temporary memory only; "peak_bytes" also has arguments and results.

    Args:
        shape: of the layer.
        batch: number of images.
        dtype: of the features.
        repeats: number of counted turns.
        calls: number of calls in a turn.
        forms: forms of MCconv to measure.
        skips_failures: whether a form that fails is named in one line and left out. Otherwise it
            raises its error, as the ordinary convolution always does.
    """
    record: dict[str, Any] = {**shape._asdict(), "batch": batch}
    for name in PASSES:
        programs = compiled(shape, batch, dtype, name, forms, skips_failures=skips_failures)
        memory = {form: program.func.memory_analysis() for form, program in programs.items()}
        times = alternated(programs, repeats, calls)
        record[name] = {
            "median_seconds": {form: statistics.median(times[form]) for form in times},
            "over_ordinary": {
                form: ratio(times, form, "ordinary") for form in times if form != "ordinary"
            },
            "temporary_bytes": {name: memory[name].temp_size_in_bytes for name in memory},
            "peak_bytes": {name: peak_bytes(memory[name]) for name in memory},
        }
        if {"direct", "factored"} <= times.keys():
            record[name]["factored_over_direct"] = ratio(times, "factored", "direct")
        if "native" in times:
            others = [form for form in times if form not in ("native", "ordinary")]
            record[name]["native_over"] = {form: ratio(times, "native", form) for form in others}
    return record


def peak_bytes(memory: Any) -> int:
    """Returns the bytes of a program's arguments, results and temporary memory together.

    A result that reuses the memory of an argument is counted once.

    Args:
        memory: from `compiled.memory_analysis()`.
    """
    whole = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return whole - memory.alias_size_in_bytes


def batch_of(shape: Shape, work: float, largest: int) -> int:
    """Returns the batch size, from 4 to `largest`, that takes about `work` multiply-adds.

    It is a power of two.
    """
    batch = 4
    while 2 * batch <= largest and 2 * batch * multiply_adds(shape, "direct") <= work:
        batch *= 2
    return batch


def jax_platform() -> str:
    """Returns the platform's name in `lax.platform_dependent` and in the table of "auto"."""
    return "cuda" if jax.default_backend() == "gpu" else jax.default_backend()


def faster_form(record: dict[str, Any]) -> str:
    """Returns the fastest form of a measured layer, forward with gradients, besides "native"."""
    ratios = dict(record["with gradient"]["over_ordinary"])
    ratios.pop("native", None)
    if set(ratios) == set(FORMS):  # measured in the same turns
        return "factored" if record["with gradient"]["factored_over_direct"] < 1 else "direct"
    return min(ratios, key=ratios.__getitem__)


def native_over_form(record: dict[str, Any]) -> float | None:
    """Returns the time of the native kernel over the time of the record's form, with gradients."""
    return record["with gradient"].get("native_over", {}).get(record["form"])


def auto(record: dict[str, Any], *, by_table: bool) -> str:
    """Returns what "auto" takes for a measured layer whose "form" is chosen.

    Args:
        record: of the layer.
        by_table: whether the present table decides about native code, instead of this measurement.
    """
    gain = native_over_form(record)
    if gain is None:
        return record["form"]
    is_faster = native_is_faster("cpu", "float32", Shape.of(record)) if by_table else gain < 1
    return "native" if is_faster else record["form"]


def measured_forms(platform: str, dtype: str) -> tuple[str, ...]:
    """Returns the forms to measure on this machine."""
    if (platform, dtype) != ("cpu", "float32"):
        return FORMS
    if (reason := native.why_unavailable()) is not None:
        print(f"native: not measured: {reason}")
        return FORMS
    return *FORMS, "native"


def tune(records: list[dict[str, Any]], platform: str, dtype: str) -> None:
    """Replaces the rows of this platform and dtype in the table of "auto"."""
    rows = json.loads(TABLE.read_text()) if TABLE.exists() else []
    rows = [row for row in rows if (row["platform"], row["dtype"]) != (platform, dtype)]
    for record in records:
        row = {"platform": platform, "dtype": dtype}
        row |= {name: record[name] for name in (*Shape._fields, "form")}
        gains = {
            "factored_over_direct": record["with gradient"].get("factored_over_direct"),
            "native_over_form": native_over_form(record),
        }
        rows.append(row | {name: gain for name, gain in gains.items() if gain is not None})
    lines = ",\n".join(json.dumps(row) for row in rows)
    write_atomically(TABLE, f"[\n{lines}\n]\n")


def tune_from(path: pathlib.Path) -> None:
    """Replaces rows in the table of "auto" by the fastest forms of a record.

    Args:
        path: a record of this file, or of `gpu.py layers`, whose forms are those that it measured.

    Raises:
        InputError: if it is not such a record.
    """
    record = read_json(path)
    try:
        kind = record["platform"], record["dtype"]
        measured = [one for one in record["layers"] if one["with gradient"]["over_ordinary"]]
        layers = [one | {"form": faster_form(one)} for one in measured]
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{path} is not a record of layers ({error!r}); pass a file that benchmarks/mcconv.py"
            " or gpu.py layers wrote"
        ) from error
    tune(layers, *kind)
    forms = collections.Counter(one["form"] for one in layers)
    print(f"{TABLE}: {len(layers)} layers on {kind[0]} in {kind[1]}: {dict(forms)}")


def print_table(records: list[dict[str, Any]], *, has_targets: bool) -> None:
    """Prints the ratios to the ordinary convolution, and their targets if `has_targets`."""
    table = rich.table.Table(
        "maps", "K", "size", "stride", "batch", "direct, forward", "factored, forward",
        "direct", "factored", "native", "factored / direct", "auto", "auto / ordinary", "target",
    )  # fmt: skip
    for record in records:
        shape = Shape.of(record)
        forward = record["forward"]["over_ordinary"]
        whole = record["with gradient"]["over_ordinary"]
        form = record["auto"]
        limit = TARGETS.get(shape, TARGET_ELSEWHERE)
        table.add_row(
            f"{shape.in_maps}-{shape.out_maps}",
            *map(str, (shape.planes, shape.size, shape.stride, record["batch"])),
            *(f"{forward[name]:.2f}" for name in FORMS),
            *(f"{whole[name]:.2f}" for name in FORMS),
            f"{whole['native']:.2f}" if "native" in whole else "",
            f"{record['with gradient']['factored_over_direct']:.2f}",
            form,
            f"{whole[form]:.2f}",
            f"{limit:.2f}" if has_targets else "",
        )
    rich.console.Console(width=160, highlight=False).print(table)


def print_pytorch(records: list[dict[str, Any]]) -> None:
    """Prints the ratios to PyTorch's convolution, and their targets."""
    if not records:
        return
    table = rich.table.Table(
        "maps",
        "size",
        "batch",
        "pass",
        "peer",
        "its time",
        "ordinary / peer",
        "auto / peer",
        "target",
    )
    for record in records:
        for name in PASSES:
            target = TARGETS_PYTORCH[Shape.of(record)]
            for peer, over in record[name]["over_pytorch"].items():
                table.add_row(
                    f"{record['in_maps']}-{record['out_maps']}",
                    *map(str, (record["size"], record["batch"], name, peer)),
                    f"{1e3 * record[name]['median_seconds'][peer]:.2f} ms",
                    f"{over['ordinary']:.2f}",
                    f"{over['auto']:.2f}",
                    f"{target:.2f}" if (name, peer) == ("with gradient", "PyTorch") else "",
                )
    rich.console.Console(width=160, highlight=False).print(table)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options for the arguments of `measure` and `batch_of`."""
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--repeats", type=int, default=20, help="number of counted turns")
    parser.add_argument("--work", type=float, default=1e9, help="multiply-adds per batch")
    parser.add_argument("--largest_batch", type=int, default=128, help="limit of the batch size")
    parser.add_argument("--calls", type=int, default=1, help="calls per measurement")
    parser.add_argument("--maps", type=int, help="only shapes with this many output maps")


def main() -> None:
    """Measures all shapes."""
    keep_freed_memory()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tune", action="store_true", help="write the table of form='auto'")
    parser.add_argument(
        "--tune_from",
        metavar="FILE",
        type=pathlib.Path,
        help="measure nothing; write the table from a record, also one of some shapes only",
    )
    add_options(parser)
    add_out(parser, "mcconv.json")
    options = parser.parse_args()
    if options.tune and options.maps:
        parser.error("--tune needs all shapes: leave out --maps")
    if options.tune_from:
        try:
            tune_from(options.tune_from)
        except (InputError, OSError) as error:
            sys.exit(f"mcconv.py: error: {error}")
        return
    kind = jax_platform(), options.dtype
    has_targets = kind == ("cpu", "float32")
    records, forms = [], measured_forms(*kind)
    for shape in shapes():
        if options.maps in (None, shape.out_maps):
            batch = batch_of(shape, options.work, options.largest_batch)
            dtype = jnp.dtype(options.dtype)
            record = measure(shape, batch, dtype, options.repeats, options.calls, forms)
            form = faster_form(record) if options.tune else fastest_form(*kind, shape)
            record |= {"form": form}
            records.append(record | {"auto": auto(record, by_table=not options.tune)})
            if has_targets and HAS_PYTORCH and shape in TARGETS_PYTORCH:
                measure_pytorch(records[-1], options.repeats)
            print(f"{shape}, batch {batch}", flush=True)
    print_table(records, has_targets=has_targets)
    print_pytorch([record for record in records if "over_pytorch" in record["forward"]])
    write(
        options.out,
        {
            "platform": kind[0],
            "device": jax.local_devices()[0].device_kind,
            "dtype": options.dtype,
            "repeats": options.repeats,
            "calls": options.calls,
            "layers": records,
        },
    )
    if options.tune:
        tune(records, *kind)


if __name__ == "__main__":
    main()
