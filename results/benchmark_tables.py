"""The tables of benchmarks on CPUs in Markdown, made from the records under results/benchmarks/."""

from collections.abc import Iterable
from typing import Any

from markdown_tables import short_revision
from record_files import read_benchmark

from mcn_jax.models.wide_resnet import blocks_per_stage
from mcn_jax.ops.costs import multiply_adds
from mcn_jax.ops.fastest import Shape
from mcn_jax.ops.mcconv import CHANNELS_TO_SAVE
from mcn_jax.reports import runs

# Directories under results/benchmarks/: the machine of the tables, and earlier ones.
MACHINE, EARLIER = "epyc_avx512", ("xeon", "epyc")
UNNAMED = "unnamed_cpu"  # of records that do not name their CPU
MEASURED_ON_ALL = ("mcconv", "step", "roofline")
# The run of the layers that chose the forms of "auto".
TUNING = (MACHINE, "mcconv", "tuning")
PASSES = ("forward", "with gradient")


def input_table() -> str:
    """What benchmarks/input.py measured."""
    record = read_benchmark(UNNAMED, "input")
    resident, streamed = record["resident"], record["streamed"]
    seconds, rates = resident["median_seconds"], streamed["median_images_per_second"]
    return benchmark(
        "input",
        "what the input costs, and its targets",
        "a | b | a / b | target",
        [
            f"| resident: input function, {1000 * seconds['input function']:.1f} ms"
            f" | training step of `{resident['config']}`, batch {resident['batch_size']}:"
            f" {seconds['training step']:.1f} s | {resident['ratio']:.5f}"
            f" | {resident['target']} |",
            f"| streamed JPEG, {streamed['processes']} workers: {rates['streamed']:.0f} images/s"
            f" | a bare Pillow loop in as many processes: {rates['bare loop']:.0f} images/s"
            f" | {streamed['ratio']:.2f} | {streamed['target']} |",
        ],
        machine=UNNAMED,
    )


def faults_table() -> str:
    """What benchmarks/faults.py counted."""
    record = read_benchmark(UNNAMED, "faults")
    rows = [
        f"| {run['signal']} | {run['kills']} | {_exit_codes(run['exit_codes'])}"
        f" | {run['left_a_checkpoint_half_written']} | {run['resumed_inside_an_epoch']}"
        f" | {'yes' if run['same_state'] and run['same_records'] else 'no'} |"
        for run in record["runs"]
    ]
    seconds = [f"{lost['seconds']:.1f}" for lost in record["two_processes"]]
    table = benchmark(
        "faults",
        "a run on digits, killed and restarted",
        "signal | kills | exit codes | left a half-written checkpoint | resumed inside an epoch"
        " | same state and records as the uninterrupted run",
        rows,
        machine=UNNAMED,
    )
    return (
        f"{table}\n\nIn {len(seconds)} runs of two processes, one process was killed. The other one"
        f" ended {', '.join(seconds[:-1])} and {seconds[-1]} seconds later."
    )


def _exit_codes(counts: dict[str, int]) -> str:
    """Each with its count, as a shell gives them: 128 and the signal's number."""
    codes = {int(code) if int(code) >= 0 else 128 - int(code): n for code, n in counts.items()}
    return ", ".join(f"{code}: {count}" for code, count in codes.items())


def benchmark(
    name: str, what: str, columns: str, lines: Iterable[str], machine: str = MACHINE
) -> str:
    """The table of a benchmark, below where its numbers come from.

    Args:
        name: of benchmarks/NAME.py.
        what: was measured.
        columns: their names with | between.
        lines: of the table.
        machine: whose record it is.
    """
    record = read_benchmark(machine, name)
    on_cpu = record["backend"] == "cpu"
    cores = f"{record['cpu_count']} CPU cores"
    if record.get("cpu"):
        cores = f"{record['cpu_count']} cores of an {record['cpu']}"
    hardware = cores if on_cpu else ", ".join(record["devices"])
    return "\n".join(
        [
            f"`benchmarks/{name}.py` on {hardware}"
            f" ([record](../results/benchmarks/{machine}/{name}.json), revision"
            f" {short_revision(record['git_revision'])}): {what}",
            "",
            f"| {columns} |",
            "|---" * (columns.count("|") + 1) + "|",
            *lines,
        ]
    )


def _auto(layer: dict[str, Any]) -> float:
    """What auto takes at a layer with gradients, over the ordinary convolution."""
    return layer["with gradient"]["over_ordinary"][layer.get("auto", layer["form"])]


def _shape_cells(layer: dict[str, Any]) -> str:
    maps = f"{layer['in_maps']}-{layer['out_maps']}"
    return f"{maps} | {layer['size']}x{layer['size']}"


def mcconv_table() -> str:
    """What benchmarks/mcconv.py measured where maps, strides and K are as in most layers."""
    record = read_benchmark(MACHINE, "mcconv")
    lines, worst, taken = [], (0.0, ""), 0
    forms = ("direct", "factored", "native")
    for layer in record["layers"]:
        auto = _auto(layer)
        taken += layer["auto"] == "native"
        place = _shape_cells(layer).replace(" | ", " maps, ") + f" pixels, K = {layer['planes']}"
        worst = max(worst, (auto, f"{place}, stride {layer['stride']}"))
        if (layer["in_maps"], layer["planes"], layer["stride"]) == (layer["out_maps"], 4, 1):
            cells = [
                f"{layer[name]['over_ordinary'][form]:.2f}" for name in PASSES for form in forms
            ]
            cells += [str(layer["batch"]), f"{layer['auto']}: {auto:.2f}"]
            lines.append(
                f"| {_shape_cells(layer)} | {cells[-2]} | {' | '.join(cells[:-2])} | {cells[-1]} |"
            )
    losses = [
        _auto(layer) / min(layer["with gradient"]["over_ordinary"].values())
        for layer in record["layers"]
    ]
    after = (
        f"Of the {len(losses)} shapes, auto takes the native kernel at {taken}. The highest ratio"
        f" of auto is {worst[0]:.2f}: {worst[1]}. With gradients, auto takes a form that was not"
        f" the fastest at {sum(loss > 1 for loss in losses)} shapes. It then needs at most"
        f" {max(losses):.2f} times the time of the fastest one."
    )
    what = (
        "time over the time of an ordinary convolution with the same channels,"
        f" {record['dtype']}, medians of {record['repeats']} pairs"
    )
    columns = (
        "maps | pixels | batch | direct, forward | factored, forward | native, forward"
        " | direct, with gradients | factored, with gradients | native, with gradients | auto"
    )
    return f"{benchmark('mcconv', what, columns, lines)}\n\n{after}"


def pytorch_layer_table() -> str:
    """What benchmarks/mcconv.py measured in pairs with PyTorch's convolution."""
    record = read_benchmark(MACHINE, "mcconv")
    lines = [
        f"| {_shape_cells(layer)} | {layer['batch']} | {shown} | {peer}"
        f" | {1e3 * layer[name]['median_seconds'][peer]:.2f} ms"
        f" | {over['ordinary']:.2f} | {over['auto']:.2f} |"
        for layer in record["layers"]
        for name, shown in zip(PASSES, ("forward", "with gradients"), strict=True)
        for peer, over in layer[name].get("over_pytorch", {}).items()
    ]
    return benchmark(
        "mcconv",
        "time over the time of PyTorch's convolution with the same channels, float32, medians of"
        f" {record['repeats']} pairs",
        "maps | pixels | batch | pass | peer | its time | XLA's ordinary convolution over it"
        " | MCconv (auto) over it",
        lines,
    )


def step_table() -> str:
    """What benchmarks/step.py measured."""
    record = read_benchmark(MACHINE, "step")
    lines = []
    for network in record["networks"]:
        for name, median in network["median_seconds"].items():
            over, memory = (network[key].get(name) for key in ("over_wrn", "temporary_bytes"))
            over_pytorch = network["over_pytorch"].get(name.removeprefix("WRN, "))
            compiled = network["compile_seconds"].get(name, [])
            cells = (
                f"{median:.3f} s",
                f"{over:.2f}" if over else "",
                f"{over_pytorch:.2f}" if over_pytorch else "",
                ", ".join(f"{seconds:.1f} s" for seconds in compiled),
                f"{memory / 1e6:,.0f} MB" if memory else "",
            )
            lines.append(
                f"| {runs.text(tuple(network['widths']))} | {network['batch_size']} | {name}"
                f" | {' | '.join(cells)} |"
            )
    counts = ", ".join(str(network["repeats"]) for network in record["networks"])
    return benchmark(
        "step",
        f"{record['dtype']}, medians of {counts} turns",
        "maps | batch | network | time per step | over WRN | MCN over this"
        " | time to compile 20 layers, 34 layers | temporary memory",
        lines,
    )


def later_step_table() -> str:
    """The steps of a later run: the WRN takes the native kernel, too, and one MCN has a pattern."""
    record = read_benchmark(MACHINE, "step", "native_convolution")
    names = "WRN", "MCN", "MCN, Hadamard"
    return "\n".join(
        [
            f"| maps | batch | {' | '.join(names)} | MCN over WRN | Hadamard over WRN | revision |",
            "|---" * 8 + "|",
            *(
                f"| {runs.text(tuple(network['widths']))} | {network['batch_size']} | "
                + " | ".join(f"{network['median_seconds'][name]:.3f} s" for name in names)
                + "".join(f" | {network['over_wrn'][name]:.2f}" for name in names[1:])
                + f" | {short_revision(record['git_revision'])} |"
                for network in record["networks"]
            ),
        ]
    )


def limits_table() -> str:
    """What remains between each step and the machine's limit."""
    step, peak = read_benchmark(MACHINE, "step"), read_benchmark(MACHINE, "roofline")["peak"]
    lines = []
    for network in step["networks"]:
        time = network["median_seconds"]["MCN"]
        flop = 2 * network["batch_size"] * sum(
            multiply_adds(
                Shape(one, two, 4, size, stride),
                "factored",
                gradients=True,
                keeps_products=4 * one >= CHANNELS_TO_SAVE,
            )
            for one, two, size, stride in convolutions(network)
        )  # fmt: skip
        least, layers = flop / peak["flops"], _mcconv_seconds(network)
        lines.append(
            f"| {runs.text(tuple(network['widths']))} | {time:.3f} s | {layers:.3f} s"
            f" | {time - layers:.3f} s | {least:.3f} s | {least / layers:.0%}"
            f" | {least / time:.0%} |"
        )
    return "\n".join(
        [
            "| maps | step of the MCN | its MCconvs | everything else | arithmetic of the MCconvs"
            " at the best rate | of the MCconvs | of the step |",
            "|---|---|---|---|---|---|---|",
            *lines,
        ]
    )


def _mcconv_seconds(network: dict[str, Any]) -> float:
    """What all MCconvs of 20 layers take forward and with gradients, measured one by one."""
    seconds = {}
    for layer in read_benchmark(MACHINE, "mcconv")["layers"]:
        if layer["planes"] == 4:
            key = layer["in_maps"], layer["out_maps"], layer["size"], layer["stride"]
            median = layer["with gradient"]["median_seconds"][layer["auto"]]
            seconds[key] = median / layer["batch"]
    return network["batch_size"] * sum(seconds[key] for key in convolutions(network))


def convolutions(network: dict[str, Any]) -> list[tuple[int, int, int, int]]:
    """Maps in, maps out, pixels and stride of each convolution; 20 layers unless it says more."""
    stem, one, two, three = network["widths"]
    first = [(3, stem, 32, 1), (stem, one, 32, 1), (one, two, 32, 2), (two, three, 16, 2)]
    inner = 2 * blocks_per_stage(network.get("depth", 20)) - 1
    return first + inner * [(one, one, 32, 1), (two, two, 16, 1), (three, three, 8, 1)]


def roofline_table() -> str:
    """What benchmarks/roofline.py measured."""
    record = read_benchmark(MACHINE, "roofline")
    peak = record["peak"]
    lines = [
        f"| {layer['in_maps']}-{layer['out_maps']} | {layer['size']}x{layer['size']}"
        f" | {layer['form']} | {layer['flops'] / 1e9:.0f} | {layer['flops'] / peak['flops']:.0%}"
        f" | {layer['bytes'] / 1e9:.1f} | {layer['bytes'] / peak['bytes']:.0%}"
        f" | {layer['of_attainable']:.0%} |"
        for layer in record["layers"]
    ]
    return benchmark(
        "roofline",
        f"the best of this machine was {peak['flops'] / 1e9:.0f} GFLOP/s"
        f" and {peak['bytes'] / 1e9:.1f} GB/s, {record['dtype']}",
        "maps | pixels | form | GFLOP/s | of the best | GB/s | of the best | of attainable",
        lines,
    )


def machines_table() -> str:
    """The ratios that are asked for, on the machine of the tables above and on earlier ones."""
    lines = []
    for machine in (MACHINE, *EARLIER):
        layers, steps, peaks = (read_benchmark(machine, name) for name in MEASURED_ON_ALL)
        over_wrn = [network["over_wrn"]["MCN"] for network in steps["networks"]]
        cells = [f"{ratio:.2f}" for ratio in (*_asked_ratios(layers), *over_wrn)]
        links = ", ".join(_link(machine, name) for name in MEASURED_ON_ALL)
        name = f"{layers['cpu']}, {peaks['peak']['flops'] / 1e9:.0f} GFLOP/s"
        lines.append(f"| {name} | {' | '.join(cells)} | {links} |")
    ratios = " | ".join(f"{ratio:.2f}" for ratio in _asked_ratios(read_benchmark(*TUNING)))
    lines.append(f"| the first, the run that chose the forms | {ratios} | | | | {_link(*TUNING)} |")
    return "\n".join(
        [
            "| machine, its best matrix product | 16-16, 32x32 | 32-32, 16x16 | 64-64, 8x8"
            " | 256-256, 8x8 | highest of 47 | step, 4-4-8-16 | 16-16-32-64 | 32-64-128-256"
            " | records and revisions |",
            "|---|---|---|---|---|---|---|---|---|---|",
            *lines,
        ]
    )


def _link(machine: str, benchmark: str, run: str = "main") -> str:
    revision = short_revision(read_benchmark(machine, benchmark, run)["git_revision"])
    of_run = "" if run == "main" else f" (`{run}`)"
    return f"[{benchmark}](../results/benchmarks/{machine}/{benchmark}.json){of_run} {revision}"


def _asked_ratios(record: dict[str, Any]) -> list[float]:
    """Of auto, at the four layers that are asked for, and the highest of all."""
    auto = {
        (layer["in_maps"], layer["size"]): _auto(layer)
        for layer in record["layers"]
        if (layer["planes"], layer["stride"], layer["out_maps"]) == (4, 1, layer["in_maps"])
    }
    asked = [auto[maps, size] for maps, size in ((16, 32), (32, 16), (64, 8), (256, 8))]
    return [*asked, max(map(_auto, record["layers"]))]


def inference_table() -> str:
    """What benchmarks/inference.py measured."""
    record = read_benchmark(MACHINE, "inference")
    lines = []
    for network in record["networks"]:
        ratios = {"WRN, JAX": network["over_wrn"]} | {
            f"{name}, ONNX Runtime": over for name, over in network["over_onnx_runtime"].items()
        }
        for name, median in network["median_seconds"].items():
            over = ratios.get(name)
            lines.append(
                f"| {runs.text(tuple(network['maps']))} | {network['batch_size']} | {name}"
                f" | {1e3 * median:.1f} ms | {f'{over:.2f}' if over else ''}"
                f" | {network['bytes'][name]:,} |"
            )
    return benchmark(
        "inference",
        f"medians of {record['repeats']} turns",
        "maps | batch | network | time | MCN in JAX over this | bytes of the file",
        lines,
    )


def c_inference_table() -> str:
    """What benchmarks/c_inference.py measured."""
    record = read_benchmark(MACHINE, "c_inference")
    lines = []
    for network in record["networks"]:
        times, memory = network["median_seconds"], network["memory_bytes"]
        sides = (f"{1e3 * times[side]:.2f} ms | {memory[side] / 2**20:.2f} MiB" for side in times)
        lines.append(
            f"| {network['network']} | {' | '.join(sides)} | {network['over_onnx_runtime']:.2f}"
            f" | {network['memory_over']:.2f} |"
        )
    return benchmark(
        "c_inference",
        f"medians of {record['repeats']} turns",
        "network | MCN in C | its memory | float network in ONNX Runtime | its memory"
        " | C over ONNX Runtime, time | memory",
        lines,
    )


def cortex_m4_table() -> str:
    """What benchmarks/cortex_m4.py counted."""
    record = read_benchmark(MACHINE, "cortex_m4")
    lines = []
    for network in record["networks"]:
        flash = [
            f"{size['flash']:,}" for levels in network["sizes"].values() for size in levels.values()
        ]
        [ram] = {size["ram"] for levels in network["sizes"].values() for size in levels.values()}
        lines.append(f"| {network['network']} | {' | '.join(flash)} | {ram:,} |")
    difference = max(network["difference"] for network in record["networks"])
    columns = [
        f"flash, {level}{'' if storage == 'float32' else f', `{storage}`'}"
        for storage, levels in record["networks"][0]["sizes"].items()
        for level in levels
    ]
    table = benchmark(
        "cortex_m4",
        f"bytes with {record['compiler']}",
        f"network | {' | '.join(columns)} | RAM",
        lines,
    )
    return (
        f"{table}\n\nOn QEMU, the largest difference of a logit from JAX's is {difference:.0e} of"
        " the largest logit."
    )


def spectral_table() -> str:
    """What benchmarks/spectral.py measured: products of matrices over Fourier transforms."""
    record = read_benchmark(MACHINE, "spectral")
    poolings = tuple(record["layers"][0]["pooled"])
    lines, ratios = [], []
    for layer in record["layers"]:
        found = [
            layer[name]["products_over_fourier"][pooling] for pooling in poolings for name in PASSES
        ]
        ratios += found
        cells = (f"{ratio:.2f}" for ratio in found)
        lines.append(
            f"| {layer['size']}x{layer['size']} | {layer['channels']} | {' | '.join(cells)} |"
        )
    columns = [f"{pooling}, {name}" for pooling in poolings for name in PASSES]
    table = benchmark(
        "spectral",
        "time of products of matrices over time of Fourier transforms, batches of"
        f" {record['layers'][0]['batch']}, {record['dtype']}, medians of {record['repeats']} turns",
        f"pixels | channels | {' | '.join(columns)}",
        lines,
    )
    return f"{table}\n\nThe ratios lie between {min(ratios):.2f} and {max(ratios):.2f}."


def packing_table() -> str:
    """What benchmarks/packing.py measured."""
    record = read_benchmark("xeon", "packing")
    lines = [
        f"| {codes['centers']} | {name} | {1e3 * codes['median_seconds'][name]:.0f} ms"
        f" | {over:.2f} |"
        for codes in record["codes"]
        for name, over in codes["over_numpy"].items()
    ]
    return benchmark(
        "packing",
        f"{record['weights'] / 1e6:.1f} million weights, medians of {record['repeats']} turns",
        "centers | what | time | over NumPy's packbits or unpackbits of the same number of bits",
        lines,
        machine="xeon",
    )
