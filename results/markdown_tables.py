"""The tables of documents in Markdown, each made from the records under results/."""

import json
import pathlib
import statistics

from mcn_jax.reports import runs, tables
from mcn_jax.reports.runs import group_runs, read_run

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
    (
        "CIFAR-10, 20 layers, 16-16-32-64 maps, 70 epochs", "MCN", "",
        ("cifar10_20_70_epochs_mcn",),
    ),
    ("", "U-MCN", "", ("cifar10_20_70_epochs_umcn",)),
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
)  # fmt: skip


def read(name: str, file: str) -> dict:
    """One of the JSON files of a record."""
    return json.loads((RESULTS / name / file).read_text())


def short_revision(revision: str | None) -> str:
    """Seven digits, and the mark of a changed tree where there is one."""
    if revision is None:
        return "no revision"
    return revision[:7] + ("-dirty" if revision.endswith("-dirty") else "")


def hardware(record: dict) -> str:
    """What a run used: CPU cores, or the names of its accelerators."""
    if record["backend"] != "cpu":
        return ", ".join(record["devices"])
    cores = record["cpu_count"]
    return f"{cores} CPU core{'s' if cores > 1 else ''}"


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
    return (
        f"| {data} | {method} | {paper} | {ours} | {bits:,} | {float_bits // bits}x | {epochs}"
        f" | {seconds:,.0f} s | {hardware(records[0])}; {', '.join(revisions)} | {logs} |"
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


def sweep_table(pattern: str, *columns: str) -> str:
    """The runs of a sweep in Markdown, these columns of the report's and the results; seeds are
    together."""
    paths = sorted(RESULTS.glob(pattern))
    rows = tables.table(group_runs(map(read_run, paths)))
    columns += ("last epoch, %", "filter bits", "epochs", "seeds")
    lines = [columns, ["---"] * len(columns), *([row[name] for name in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


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
