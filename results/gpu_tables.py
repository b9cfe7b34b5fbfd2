"""The tables of benchmarks on a GPU in Markdown, made from results/benchmarks/."""

from typing import Any

from benchmark_tables import convolutions
from record_files import read_benchmark

from mcn_jax.ops.costs import multiply_adds
from mcn_jax.ops.fastest import Shape
from mcn_jax.reports import runs

H100 = "h100"  # a directory under results/benchmarks/


def h100_step_table() -> str:
    """Training steps on one H100."""
    lines = []
    for name in ("16-16-32-64_bfloat16", "16-16-32-64_float32", "64-64-128-256_bfloat16"):
        record = read_benchmark(H100, "step", name)
        [network] = record["networks"]
        flop = 2 * network["batch_size"] * sum(
            multiply_adds(Shape(one, two, 4, size, stride), "direct", gradients=True)
            for one, two, size, stride in convolutions(network)
        )  # fmt: skip
        for method, median in network["median_seconds"].items():
            rate = "" if method == "MCN, factored" else f"{flop / median / 1e12:.0f}"
            lines.append(
                f"| {_step_cells(record, network)} | {method} | {1e3 * median:.2f} ms"
                f" | {network['images_per_second'][method]:,.0f}"
                f" | {network['over_wrn'][method]:.2f} | {rate}"
                f" | {network['temporary_bytes'][method] / 1e6:,.0f} MB"
                f" | {network['compile_seconds'][method]:.1f} s | {network['repeats']} |"
            )
    record = read_benchmark(H100, "step", "pytorch_16-16-32-64_bfloat16")
    [network] = record["networks"]
    for method, median in network["median_seconds"].items():
        method_and_version = method.replace("PyTorch", f"PyTorch {record['torch']}")
        lines.append(
            f"| {_step_cells(record, network)} | {method_and_version} | {1e3 * median:.2f} ms"
            f" | {network['images_per_second'][method]:,.0f} | | | | | |"
        )
    return "\n".join(
        [
            "| maps | dtype | batch | network | time per step | images/s | over WRN"
            " | TFLOP/s of the convolutions | temporary memory | compile time | turns |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
            *lines,
        ]
    )


def _step_cells(record: dict[str, Any], network: dict[str, Any]) -> str:
    maps = runs.text(tuple(network["widths"]))
    return f"{maps} | {record['dtype']} | {network['batch_size']}"


def h100_fused_table() -> str:
    """The fused form of one layer on one H100."""
    lines = []
    for dtype in ("bfloat16", "float32"):
        [layer] = read_benchmark(H100, "mcconv", f"pallas_{dtype}")["layers"]
        for name in ("forward", "with gradient"):
            over, memory = layer[name]["over_ordinary"], layer[name]["temporary_bytes"]
            cells = [f"{over[form]:.2f} ({memory[form] / 1e6:,.1f} MB)" for form in over]
            lines.append(f"| {dtype} | {name} | {' | '.join(cells)} |")
    header = " | ".join(f"{form} (temporary memory)" for form in over)
    return "\n".join([f"| dtype | what | {header} |", "|---|---|" + "---|" * len(over), *lines])


def h100_layer_table() -> str:
    """Single layers on one H100."""
    lines = []
    for dtype in ("bfloat16", "float32"):
        for layer in read_benchmark(H100, "mcconv", dtype)["layers"]:
            shape, cells = Shape.of(layer), []
            for name in ("forward", "with gradient"):
                over = layer[name]["over_ordinary"]
                cells += [f"{over['direct']:.2f}", f"{over['factored']:.2f}"]
            times = layer["with gradient"]["median_seconds"]
            lines.append(
                f"| {shape.in_maps}-{shape.out_maps} | {shape.size}x{shape.size} | {shape.stride}"
                f" | {dtype} | {layer['batch']} | {' | '.join(cells)}"
                f" | {1e3 * times['ordinary']:.2f} ms |"
            )
    return "\n".join(
        [
            "| maps | pixels | stride | dtype | batch | direct, forward | factored, forward"
            " | direct, with gradients | factored, with gradients"
            " | ordinary, with gradients |",
            "|---|---|---|---|---|---|---|---|---|---|",
            *lines,
        ]
    )
