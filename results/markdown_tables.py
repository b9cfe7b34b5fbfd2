"""The tables of documents in Markdown, each made from the records under results/."""

import json
import pathlib
import statistics
from collections.abc import Iterable
from typing import Any

from mcn_jax import report, runs
from mcn_jax.runs import group_runs, read_run

RESULTS = pathlib.Path(__file__).parent

# (data and network, method, accuracy in the paper, names under results/)
ROWS = (
    ("digits, 5-10-20-40 maps", "MCN", "", tuple(f"digits_mcn_seed{s}" for s in range(3))),
    ("", "U-MCN", "", tuple(f"digits_umcn_seed{s}" for s in range(3))),
    ("", "CNN", "", tuple(f"digits_cnn_seed{s}" for s in range(3))),
    ("MNIST, 5-10-20-40 maps, shifts", "MCN", "", ("mnist_cpu_mcn",)),
    ("", "U-MCN", "", ("mnist_cpu_umcn",)),
    ("MNIST, 10-20-40-80 maps, shifts", "MCN", "", ("mnist_cpu_wide_mcn",)),
    ("MNIST at 28x28, 5 epochs", "MCN", "", ("mnist_28_mcn",)),
    ("MNIST, 20-40-80-160 maps", "MCN", "99.52", ()),
    ("CIFAR-10, 20 layers, 4-4-8-16 maps, 12 epochs", "MCN", "", ("cifar10_cpu_mcn",)),
    ("", "U-MCN", "", ("cifar10_cpu_umcn",)),
    ("", "WRN", "", ("cifar10_cpu_wrn",)),
    ("CIFAR-100, 20 layers, 4-4-8-16 maps, 8 epochs", "MCN", "", ("cifar100_cpu_mcn",)),
    ("", "U-MCN", "", ("cifar100_cpu_umcn",)),
    ("CIFAR-10, 20 layers, 16-16-32-64 maps", "MCN", "92.08 (book)", ()),
    ("", "MCN, then center loss", "92.10 (book)", ()),
    ("", "U-MCN", "93.69 (book)", ()),
    ("", "WRN", "95.75 (book)", ()),
    ("CIFAR-10, 20 layers, 16-32-64-128 maps", "MCN", "93.98 (book)", ()),
    ("CIFAR-10, 20 layers, 32-64-128-256 maps", "MCN", "95.13 (book)", ()),
    ("CIFAR-10, 20 layers, 64-64-128-256 maps", "MCN", "95.30 (book)", ()),
    ("CIFAR-10, 34 layers, 64-64-128-256 maps", "MCN", "95.39", ()),
    ("", "U-MCN", "95.75", ()),
    ("CIFAR-100, 34 layers, 64-64-128-256 maps", "MCN", "78.13", ()),
    ("SVHN, 28 layers, 64-64-128-256 maps", "MCN", "96.87", ()),
    ("ImageNet-100, 34 layers, 32-64-128-256 maps", "MCN", "83.82", ()),
)


# Under results/, of benchmarks that were run on two cores of two machines.
MACHINES = ("benchmarks", "benchmarks/epyc")
MEASURED_ON_ALL = ("mcconv", "step", "roofline")
REPEATED = "benchmarks/repeated"


def read(name: str, file: str) -> dict:
    """One of the JSON files of a record."""
    return json.loads((RESULTS / name / file).read_text())


def short_revision(revision: str | None) -> str:
    """Seven digits, and the mark of a changed tree where there is one."""
    if revision is None:
        return "no revision"
    return revision[:7] + ("-dirty" if revision.endswith("-dirty") else "")


def row(data: str, method: str, paper: str, names: tuple[str, ...]) -> str:
    """One line of the table."""
    if not names:
        return f"| {data} | {method} | {paper} | not run | | | | | | |"
    try:
        [group] = group_runs(read_run(RESULTS / name) for name in names)
    except ValueError as error:
        # Seeds of one cell share everything else.
        raise SystemExit(f"{', '.join(names)} are not seeds of one config: {error}") from error
    if runs.method(group.setting) != method:  # the method is what its column says
        raise SystemExit(f"results/{names[0]} is a {runs.method(group.setting)}, not a {method}")
    records = [read(name, "config.json") for name in names]
    accuracies = [100 * accuracy for accuracy in group.results("final_test_accuracy")]
    spread = f" ± {statistics.stdev(accuracies):.2f}" if len(accuracies) > 1 else ""
    ours = f"{statistics.mean(accuracies):.2f}{spread} (n = {len(accuracies)})"
    bits, float_bits = (group.results(n)[0] for n in ("filter_bits", "float32_filter_bits"))
    seconds = statistics.mean(group.results("wall_seconds"))
    revisions = sorted({short_revision(record["git_revision"]) for record in records})
    logs = " ".join(f"[{i}](results/{name})" for i, name in enumerate(names))
    epochs = group.setting["num_epochs"]
    cores = records[0]["cpu_count"]
    hardware = f"{cores} CPU core{'s' if cores > 1 else ''}"
    return (
        f"| {data} | {method} | {paper} | {ours} | {bits:,} | {float_bits // bits}x | {epochs}"
        f" | {seconds:,.0f} s | {hardware}; {', '.join(revisions)} | {logs} |"
    )


def results_table() -> str:
    """The README's table of finished runs."""
    return "\n".join(
        [
            "| data and network | method | paper, % | test accuracy, % | filter bits | smaller than"
            " float32 | epochs | time a run | hardware; revision | records |",
            "|---|---|---|---|---|---|---|---|---|---|",
            *(row(*values) for values in ROWS),
        ]
    )


def input_table() -> str:
    """What benchmarks/input.py measured."""
    record = read("benchmarks", "input.json")
    resident, streamed = record["resident"], record["streamed"]
    seconds, rates = resident["median_seconds"], streamed["median_images_per_second"]
    return benchmark(
        "input",
        "two ratios and what is asked of them",
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
        root="",
    )


def faults_table() -> str:
    """What benchmarks/faults.py counted."""
    record = read("benchmarks", "faults.json")
    rows = [
        f"| {run['signal']} | {run['kills']} | {_exit_codes(run['exit_codes'])}"
        f" | {run['left_a_checkpoint_half_written']} | {run['resumed_inside_an_epoch']}"
        f" | {'yes' if run['same_state'] and run['same_records'] else 'no'} |"
        for run in record["runs"]
    ]
    seconds = [f"{lost['seconds']:.1f}" for lost in record["two_processes"]]
    table = benchmark(
        "faults",
        "a run on digits, killed and started again",
        "signal | times | exit codes | a checkpoint was half written | it stood inside an epoch"
        " | same state and records as the unbroken run",
        rows,
        root="",
    )
    return (
        f"{table}\n\nOf two processes one was killed, {len(seconds)} times: the other ended"
        f" {', '.join(seconds)} seconds later."
    )


def _exit_codes(counts: dict[str, int]) -> str:
    """Each with its count, as a shell gives them: 128 and the signal's number."""
    codes = {int(code) if int(code) >= 0 else 128 - int(code): n for code, n in counts.items()}
    return ", ".join(f"{code}: {count}" for code, count in codes.items())


def sweep_table(pattern: str, *columns: str) -> str:
    """The runs of a sweep in Markdown, these columns of the report's and the results; seeds are
    together."""
    paths = sorted(RESULTS.glob(pattern))
    rows = report.table(group_runs(map(read_run, paths)))
    columns += ("last epoch, %", "filter bits", "epochs", "seeds")
    lines = [columns, ["---"] * len(columns), *([row[name] for name in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def benchmark(name: str, what: str, columns: str, lines: Iterable[str], root: str = "../") -> str:
    """The table of a benchmark, below where its numbers come from.

    Args:
        name: of benchmarks/NAME.py.
        what: was measured.
        columns: their names with | between.
        lines: of the table.
        root: of the project, seen from the document.
    """
    record = read("benchmarks", f"{name}.json")
    on_cpu = record["backend"] == "cpu"
    cores = f"{record['cpu_count']} CPU cores"
    if record.get("cpu"):
        cores = f"{record['cpu_count']} cores of an {record['cpu']}"
    hardware = cores if on_cpu else ", ".join(record["devices"])
    return "\n".join(
        [
            f"`benchmarks/{name}.py` on {hardware}"
            f" ([record]({root}results/benchmarks/{name}.json), revision"
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
    record = read("benchmarks", "mcconv.json")
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
    after = f"The highest ratio of auto at any of the {count} shapes is {worst[0]:.2f}: {worst[1]}."
    losses = [
        _auto(layer) / min(layer["with gradient"]["over_ordinary"].values())
        for layer in record["layers"]
    ]
    after += (
        f" With gradients auto takes the slower form at {sum(loss > 1 for loss in losses)} of them,"
        f" and then at most {max(losses):.2f} of the other's time."
    )
    what = (
        "time over that of the ordinary convolution of the same channels,"
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
        f" {over_direct:.2f} of that of the direct form."
    )
    return f"{benchmark('mcconv', what, columns, lines)}\n\n{after}"


def step_table() -> str:
    """What benchmarks/step.py measured."""
    record = read("benchmarks", "step.json")
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
        "maps | batch | network | time a step | over WRN | temporary memory",
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
        f"{table}\n\nThe MCN's median over that of PyTorch's WRN: {', '.join(over_pytorch)}. The"
        f" MCN's layers, measured one by one, add up to {', '.join(layers)} of its time."
    )


def _mcconv_seconds(network: dict[str, Any]) -> float:
    """What all MCconvs of 20 layers take forward and with gradients, measured one by one."""
    stem, one, two, three = network["widths"]
    maps = [(3, stem, 32, 1), (stem, one, 32, 1), (one, two, 32, 2), (two, three, 16, 2)]
    maps += 5 * [(one, one, 32, 1), (two, two, 16, 1), (three, three, 8, 1)]
    seconds = {}
    for layer in read("benchmarks", "mcconv.json")["layers"]:
        if layer["planes"] == 4:
            key = layer["in_maps"], layer["out_maps"], layer["size"], layer["stride"]
            median = layer["with gradient"]["median_seconds"][layer["form"]]
            seconds[key] = median / layer["batch"]
    return network["batch_size"] * sum(seconds[key] for key in maps)


def roofline_table() -> str:
    """What benchmarks/roofline.py measured."""
    record = read("benchmarks", "roofline.json")
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
    """The ratios that are asked for, on the machine of the tables above and on another one."""
    lines = []
    for place in MACHINES:
        layers, steps, peaks = (read(place, f"{name}.json") for name in MEASURED_ON_ALL)
        auto = {
            (layer["in_maps"], layer["size"]): _auto(layer)
            for layer in layers["layers"]
            if (layer["planes"], layer["stride"], layer["out_maps"]) == (4, 1, layer["in_maps"])
        }
        asked = [auto[maps, size] for maps, size in ((16, 32), (32, 16), (64, 8), (256, 8))]
        over_wrn = [network["over_wrn"]["MCN"] for network in steps["networks"]]
        cells = [f"{ratio:.2f}" for ratio in (*asked, max(map(_auto, layers["layers"])), *over_wrn)]
        links = " ".join(f"[{name}](../results/{place}/{name}.json)" for name in MEASURED_ON_ALL)
        lines.append(
            f"| {layers['cpu']}, {peaks['peak']['flops'] / 1e9:.0f} GFLOP/s | {' | '.join(cells)}"
            f" | {links} |"
        )
    return "\n".join(
        [
            "| machine, its best matrix product | 16-16, 32x32 | 32-32, 16x16 | 64-64, 8x8"
            " | 256-256, 8x8 | highest of 47 | step, 4-4-8-16 | 16-16-32-64 | 32-64-128-256"
            " | records |",
            "|---|---|---|---|---|---|---|---|---|---|",
            *lines,
            "",
            f"Two more runs on the first, of the shapes with 64 output maps alone"
            f" ([records](../results/{REPEATED})): {_repeated_ratios()}.",
        ]
    )


def _repeated_ratios() -> str:
    """Of auto, at the shapes whose ratio came out highest beside what is asked."""
    texts = []
    for planes in (4, 2):
        ratios = [
            _auto(layer)
            for path in sorted((RESULTS / REPEATED).iterdir())
            for layer in json.loads(path.read_text())["layers"]
            if (layer["in_maps"], layer["planes"], layer["size"]) == (64, planes, 8)
        ]
        shown = " and ".join(f"{ratio:.2f}" for ratio in ratios)
        texts.append(f"{shown} at 64-64 maps, 8x8 pixels, K = {planes}")
    return ", ".join(texts)


def inference_table() -> str:
    """What benchmarks/inference.py measured."""
    record = read("benchmarks", "inference.json")
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
    record = read("benchmarks", "packing.json")
    lines = [
        f"| {codes['centers']} | {name} | {1e3 * codes['median_seconds'][name]:.0f} ms"
        f" | {over:.2f} |"
        for codes in record["codes"]
        for name, over in codes["over_numpy"].items()
    ]
    return benchmark(
        "packing",
        f"{record['weights'] / 1e6:.1f} million weights, medians of {record['repeats']} turns",
        "centers | what | time | over that of NumPy's packbits or unpackbits of as many bits",
        lines,
    )


def exports_table() -> str:
    """What was in the files of some networks that were exported."""
    names = {"digits": "digits", "mnist": "MNIST at 28x28", "cifar10": "CIFAR-10, 20 layers"}
    kinds = ("filters", "M-filters", "centers", "batch norm", "dense layers", "header")
    lines = []
    for name, shown in names.items():
        record = read("exports", f"{name}.json")
        parts, file = record["parts"], record["model.safetensors"]
        filters, whole = parts["filters"], sum(part["float32_bytes"] for part in parts.values())
        maps = "-".join(map(str, record["network"]["widths"]))
        cells = [f"{parts[kind]['bytes']:,}" for kind in kinds]
        networks = ("checkpoint", "model.safetensors", "model.onnx")
        accuracies = [f"{record[network]['accuracy']:.2%}" for network in networks]
        lines.append(
            f"| {shown}, {maps} maps, {record['provenance']['epoch']} epochs | {cells[0]}"
            f" ({filters['float32_bytes'] / filters['bytes']:.1f}x) | {' | '.join(cells[1:])}"
            f" | {file['bytes']:,} ({whole / file['bytes']:.1f}x)"
            f" | {record['model.onnx']['bytes']:,}"
            f" | {', '.join(accuracies)} |"
        )
    return "\n".join(
        [
            "| network | filters (smaller than float32) | M-filters | centers | batch norm | dense"
            " | header | `model.safetensors` (whole, smaller) | `model.onnx` | test accuracy:"
            " checkpoint, safetensors, ONNX |",
            "|---|---|---|---|---|---|---|---|---|---|",
            *lines,
        ]
    )


ROOT = RESULTS.parent
# {document: {the name of a table in it: what makes the table}}
TABLES = {
    ROOT / "README.md": {
        "results": results_table, "input": input_table, "faults": faults_table,
        "exports": exports_table,
    },
    ROOT / "docs" / "experiments.md": {
        "theta": lambda: sweep_table("figure5_cpu/theta_*", "theta"),
        "lambda": lambda: sweep_table("figure5_cpu/lambda_*", "lambda"),
        "centers": lambda: sweep_table("figure7_cpu/*", "centers", "lambda"),
    },
    ROOT / "docs" / "performance.md": {
        "mcconv": mcconv_table, "step": step_table, "roofline": roofline_table,
        "machines": machines_table, "inference": inference_table, "packing": packing_table,
    },
}  # fmt: skip
