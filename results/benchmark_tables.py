"""The tables of benchmarks in Markdown, made from the records under results/benchmarks/."""

from collections.abc import Iterable
from typing import Any

from markdown_tables import short_revision
from record_files import read_benchmark

from mcn_jax.models.wide_resnet import blocks_per_stage
from mcn_jax.ops.costs import multiply_adds
from mcn_jax.ops.fastest import Shape
from mcn_jax.reports import runs

# Directories under results/benchmarks/. The tables of CPUs show the first machine.
XEON, EPYC, EPYC_AVX512, H100 = "xeon", "epyc", "epyc_avx512", "h100"
UNNAMED = "unnamed_cpu"  # of records that do not name their CPU
MACHINES = (XEON, EPYC)
MEASURED_ON_ALL = ("mcconv", "step", "roofline")
# The run that measured the native kernel for the table of "auto".
NATIVE = (EPYC_AVX512, "mcconv", "main")
# More runs of the layers on the first machine: the run that chose the forms, and a later one.
TUNING = (XEON, "mcconv", "tuning")
THIRD = (XEON, "mcconv", "third")


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


def benchmark(name: str, what: str, columns: str, lines: Iterable[str], machine: str = XEON) -> str:
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
    return layer["with gradient"]["over_ordinary"][layer["form"]]


def mcconv_table() -> str:
    """What benchmarks/mcconv.py measured where maps, strides and K are as in most layers."""
    record = read_benchmark(XEON, "mcconv")
    lines, worst = [], (0.0, "")
    for layer in record["layers"]:
        maps = f"{layer['in_maps']}-{layer['out_maps']}"
        forward, ratios = (layer[k]["over_ordinary"] for k in ("forward", "with gradient"))
        auto = _auto(layer)
        place = f"{maps} maps, {layer['size']}x{layer['size']} pixels, K = {layer['planes']}"
        worst = max(worst, (auto, f"{place}, stride {layer['stride']}"))
        if (layer["in_maps"], layer["planes"], layer["stride"]) == (layer["out_maps"], 4, 1):
            lines.append(
                f"| {maps} | {layer['size']}x{layer['size']} | {layer['batch']}"
                f" | {forward['direct']:.2f} | {forward['factored']:.2f} | {ratios['direct']:.2f}"
                f" | {ratios['factored']:.2f} | {layer['form']}: {auto:.2f} |"
            )
    count = len(record["layers"])
    after = f"The highest ratio of auto over all {count} shapes is {worst[0]:.2f}: {worst[1]}."
    losses = [
        _auto(layer) / min(layer["with gradient"]["over_ordinary"].values())
        for layer in record["layers"]
    ]
    after += (
        f" With gradients, auto takes the slower form at {sum(loss > 1 for loss in losses)} of"
        f" these shapes. It then needs at most {max(losses):.2f} times the time of the other form."
    )
    what = (
        "time over the time of an ordinary convolution with the same channels,"
        f" {record['dtype']}, medians of {record['repeats']} pairs"
    )
    columns = (
        "maps | pixels | batch | direct, forward | factored, forward | direct, with gradients"
        " | factored, with gradients | auto"
    )
    peaks = [(layer["form"], layer["with gradient"]["peak_bytes"]) for layer in record["layers"]]
    over_direct = max(peak[form] / peak["direct"] for form, peak in peaks)
    after += (
        " Its memory with gradients (arguments, results and temporaries) is at most"
        f" {over_direct:.2f} times the memory of the direct form."
    )
    return f"{benchmark('mcconv', what, columns, lines)}\n\n{after}"


def step_table() -> str:
    """What benchmarks/step.py measured."""
    record = read_benchmark(XEON, "step")
    lines = []
    for network in record["networks"]:
        for name, median in network["median_seconds"].items():
            over, memory = (network[key].get(name) for key in ("over_wrn", "temporary_bytes"))
            lines.append(
                f"| {runs.text(tuple(network['widths']))} | {network['batch_size']} | {name}"
                f" | {median:.3f} s | {f'{over:.2f}' if over else ''}"
                f" | {f'{memory / 1e6:,.0f} MB' if memory else ''} |"
            )
    counts = ", ".join(str(network["repeats"]) for network in record["networks"])
    table = benchmark(
        "step",
        f"{record['dtype']}, medians of {counts} turns",
        "maps | batch | network | time per step | over WRN | temporary memory",
        lines,
    )
    medians = [network["median_seconds"] for network in record["networks"]]
    peer = "WRN, PyTorch"
    over_pytorch = [f"{times['MCN'] / times[peer]:.2f}" for times in medians if peer in times]
    layers = [
        f"{_mcconv_seconds(network) / times['MCN']:.0%}"
        for network, times in zip(record["networks"], medians, strict=True)
    ]
    return (
        f"{table}\n\nThe MCN's median time over the median time of PyTorch's WRN:"
        f" {', '.join(over_pytorch)}. The MCN's layers, measured one by one, add up to"
        f" {', '.join(layers)} of its time."
    )


def _mcconv_seconds(network: dict[str, Any]) -> float:
    """What all MCconvs of 20 layers take forward and with gradients, measured one by one."""
    seconds = {}
    for layer in read_benchmark(XEON, "mcconv")["layers"]:
        if layer["planes"] == 4:
            key = layer["in_maps"], layer["out_maps"], layer["size"], layer["stride"]
            median = layer["with gradient"]["median_seconds"][layer["form"]]
            seconds[key] = median / layer["batch"]
    return network["batch_size"] * sum(seconds[key] for key in _convolutions(network))


def _convolutions(network: dict[str, Any]) -> list[tuple[int, int, int, int]]:
    """Maps in, maps out, pixels and stride of each convolution; 20 layers unless it says more."""
    stem, one, two, three = network["widths"]
    first = [(3, stem, 32, 1), (stem, one, 32, 1), (one, two, 32, 2), (two, three, 16, 2)]
    inner = 2 * blocks_per_stage(network.get("depth", 20)) - 1
    return first + inner * [(one, one, 32, 1), (two, two, 16, 1), (three, three, 8, 1)]


def native_layer_table() -> str:
    """What benchmarks/mcconv.py measured of the native kernel."""
    record = read_benchmark(*NATIVE)
    lines, highest = [], 0.0
    for layer in record["layers"]:
        forward, whole = layer["forward"], layer["with gradient"]
        highest = max(highest, whole["over_ordinary"]["native"])
        if (layer["in_maps"], layer["planes"], layer["stride"]) == (layer["out_maps"], 4, 1):
            work = layer["batch"] * multiply_adds(Shape.of(layer), "factored", gradients=True)
            rate = 2 * work / whole["median_seconds"]["native"]
            best = min(whole["over_ordinary"][form] for form in ("direct", "factored"))
            lines.append(
                f"| {layer['in_maps']}-{layer['out_maps']} | {layer['size']}x{layer['size']}"
                f" | {layer['batch']} | {forward['over_ordinary']['native']:.2f}"
                f" | {best:.2f} | {whole['over_ordinary']['native']:.2f} | {rate / 1e9:.0f} |"
            )
    table = benchmark(
        "mcconv",
        "time over the time of XLA's ordinary convolution with the same channels, float32, medians"
        f" of {record['repeats']} pairs",
        "maps | pixels | batch | native, forward | XLA's best form, with gradients"
        " | native, with gradients | GFLOP/s of native",
        lines,
        machine=EPYC_AVX512,
    )
    return (
        f"{table}\n\nThe highest ratio of native over all {len(record['layers'])} shapes is"
        f" {highest:.2f}."
    )


def native_step_table() -> str:
    """What benchmarks/step.py measured with the native kernel."""
    record = read_benchmark(EPYC_AVX512, "step")
    lines = []
    for network in record["networks"]:
        times = network["median_seconds"]
        for name, median in times.items():
            lines.append(
                f"| {runs.text(tuple(network['widths']))} | {network['batch_size']} | {name}"
                f" | {median:.3f} s | {median / times['WRN, PyTorch']:.2f} |"
            )
    counts = ", ".join(str(network["repeats"]) for network in record["networks"])
    return benchmark(
        "step",
        f"{record['dtype']}, medians of {counts} turns",
        "maps | batch | network | time per step | over PyTorch",
        lines,
        machine=EPYC_AVX512,
    )


def roofline_table() -> str:
    """What benchmarks/roofline.py measured."""
    record = read_benchmark(XEON, "roofline")
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
    """The ratios that are asked for: on the machine of the tables above, on another one, and of
    layers in the run that chose their forms."""
    lines = []
    for machine in MACHINES:
        layers, steps, peaks = (read_benchmark(machine, name) for name in MEASURED_ON_ALL)
        over_wrn = [network["over_wrn"]["MCN"] for network in steps["networks"]]
        cells = [f"{ratio:.2f}" for ratio in (*_asked_ratios(layers), *over_wrn)]
        links = ", ".join(_link(machine, name) for name in MEASURED_ON_ALL)
        name = f"{layers['cpu']}, {peaks['peak']['flops'] / 1e9:.0f} GFLOP/s"
        lines.append(f"| {name} | {' | '.join(cells)} | {links} |")
    for run, record in (("the run that chose the forms", TUNING), ("a third run", THIRD)):
        ratios = " | ".join(f"{ratio:.2f}" for ratio in _asked_ratios(read_benchmark(*record)))
        lines.append(f"| the first, {run} | {ratios} | | | | {_link(*record)} |")
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
    record = read_benchmark(XEON, "inference")
    lines = []
    for network in record["networks"]:
        for name, median in network["median_seconds"].items():
            over = network["over_wrn"].get(name)
            lines.append(
                f"| {runs.text(tuple(network['maps']))} | {network['batch_size']} | {name}"
                f" | {1e3 * median:.1f} ms | {f'{over:.2f}' if over else ''}"
                f" | {network['bytes'][name]:,} |"
            )
    return benchmark(
        "inference",
        f"medians of {record['repeats']} turns",
        "maps | batch | network | time | over WRN | bytes of the file",
        lines,
    )


def packing_table() -> str:
    """What benchmarks/packing.py measured."""
    record = read_benchmark(XEON, "packing")
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
    )


def h100_step_table() -> str:
    """Training steps on one H100."""
    lines = []
    for name in ("16-16-32-64_bfloat16", "16-16-32-64_float32", "64-64-128-256_bfloat16"):
        record = read_benchmark(H100, "step", name)
        [network] = record["networks"]
        flop = 2 * network["batch_size"] * sum(
            multiply_adds(Shape(one, two, 4, size, stride), "direct", gradients=True)
            for one, two, size, stride in _convolutions(network)
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
        lines.append(
            f"| {_step_cells(record, network)} | {method} {record['torch']} | {1e3 * median:.2f} ms"
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
                f"| {shape.in_maps}-{shape.out_maps} | {shape.size}x{shape.size} | {dtype}"
                f" | {layer['batch']} | {' | '.join(cells)} | {1e3 * times['ordinary']:.2f} ms |"
            )
    return "\n".join(
        [
            "| maps | pixels | dtype | batch | direct, forward | factored, forward"
            " | direct, with gradients | factored, with gradients"
            " | ordinary, with gradients |",
            "|---|---|---|---|---|---|---|---|---|",
            *lines,
        ]
    )
