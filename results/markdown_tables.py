"""The tables of documents in Markdown, each made from the records under results/."""

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from record_files import config_record, stored_runs

from mcn_jax.reports import runs, tables
from mcn_jax.reports.runs import group_runs


class Row(NamedTuple):
    """A line of the table of results.

    data: the data set and the network.
    method: as `mcn_jax.reports.runs.method` names it, or a description if not run.
    paper: the accuracy of the paper or of the book, in %.
    record: the run, or SWEEP/PATTERN of runs that differ in their seed; empty if not run.
    """

    data: str
    method: str
    paper: str = ""
    record: str = ""


DIGITS = "digits, 5-10-20-40 maps"
DIGITS_DENSE = "digits, 5-10-20-40 maps, the paper's head"
NARROW_MNIST = "MNIST, 5-10-20-40 maps, shifts"
MNIST_28 = "MNIST at 28x28, 5-10-20-40 maps, one dense layer, shifts"
NARROW_CIFAR10 = "CIFAR-10, 20 layers, 4-4-8-16 maps, 12 epochs"
NARROW_CIFAR10_30 = "CIFAR-10, 20 layers, 4-4-8-16 maps, one dense layer, 30 epochs"
CIFAR10_8 = "CIFAR-10, 20 layers, 8-8-16-32 maps, one dense layer, 12 epochs"
NARROW_CIFAR100 = "CIFAR-100, 20 layers, 4-4-8-16 maps, 8 epochs"
CIFAR10_70_EPOCHS = "CIFAR-10, 20 layers, 16-16-32-64 maps, 70 epochs"
CIFAR10_BOOK = "CIFAR-10, 20 layers, 16-16-32-64 maps, 200 epochs"
CIFAR10_PAPER = "CIFAR-10, 34 layers, 64-64-128-256 maps"

ROWS = (
    Row(DIGITS, "MCN", record="digits_linear/mcn_seed?"),
    Row(DIGITS, "U-MCN", record="digits_linear/umcn_seed?"),
    Row(DIGITS, "CNN", record="digits_linear/cnn_seed?"),
    Row(DIGITS_DENSE, "MCN", record="digits/mcn_seed?"),
    Row(DIGITS_DENSE, "U-MCN", record="digits/umcn_seed?"),
    Row(DIGITS_DENSE, "CNN", record="digits/cnn_seed?"),
    Row(NARROW_MNIST, "MCN", record="mnist_cpu_mcn"),
    Row(NARROW_MNIST, "U-MCN", record="mnist_cpu_umcn"),
    Row("MNIST, 10-20-40-80 maps, shifts", "MCN", record="mnist_cpu_wide_mcn"),
    Row(MNIST_28, "MCN", record="mnist_28/mcn_seed?"),
    Row("MNIST, 20-40-80-160 maps", "MCN", "99.52"),
    Row(NARROW_CIFAR10, "MCN", record="cifar10_cpu_mcn"),
    Row(NARROW_CIFAR10, "U-MCN", record="cifar10_cpu_umcn"),
    Row(NARROW_CIFAR10, "WRN", record="cifar10_cpu_wrn"),
    Row(NARROW_CIFAR10_30, "MCN", record="equal_bits/mcn_seed?"),
    Row(NARROW_CIFAR10_30, "MCN, hadamard", record="equal_bits/mcn_hadamard_rate_0.3_seed?"),
    Row(NARROW_CIFAR10_30, "mcdonnell", record="equal_bits/mcdonnell_rate_0.3_seed?"),
    Row(CIFAR10_8, "MCN", record="cifar10_8_8_16_32/mcn_seed?"),
    Row(NARROW_CIFAR100, "MCN", record="cifar100_cpu_mcn"),
    Row(NARROW_CIFAR100, "U-MCN", record="cifar100_cpu_umcn"),
    Row(CIFAR10_70_EPOCHS, "MCN", record="cifar10_20_70_epochs_mcn"),
    Row(CIFAR10_70_EPOCHS, "U-MCN", record="cifar10_20_70_epochs_umcn"),
    Row(CIFAR10_BOOK, "MCN", "92.08 (book)", record="cifar10_20_200_epochs_mcn"),
    Row(CIFAR10_BOOK, "MCN, then center loss", "92.10 (book)"),
    Row(CIFAR10_BOOK, "U-MCN", "93.69 (book)"),
    Row(CIFAR10_BOOK, "WRN", "95.75 (book)"),
    Row("CIFAR-10, 20 layers, 16-32-64-128 maps", "MCN", "93.98 (book)"),
    Row("CIFAR-10, 20 layers, 32-64-128-256 maps", "MCN", "95.13 (book)"),
    Row("CIFAR-10, 20 layers, 64-64-128-256 maps", "MCN", "95.30 (book)"),
    Row(CIFAR10_PAPER, "MCN", "95.39"),
    Row(CIFAR10_PAPER, "U-MCN", "95.75"),
    Row("CIFAR-100, 34 layers, 64-64-128-256 maps", "MCN", "78.13"),
    Row("SVHN, 28 layers, 64-64-128-256 maps", "MCN", "96.87"),
    Row("ImageNet-100, 34 layers, 32-64-128-256 maps", "MCN", "83.82"),
)

# The rows that the README shows.
README_RECORDS = (
    "digits_linear/mcn_seed?", "digits_linear/umcn_seed?", "mnist_cpu_wide_mcn",
    "cifar10_20_200_epochs_mcn", "cifar10_20_70_epochs_mcn", "cifar10_20_70_epochs_umcn",
    "equal_bits/mcn_seed?", "equal_bits/mcn_hadamard_rate_0.3_seed?",
    "equal_bits/mcdonnell_rate_0.3_seed?",
)  # fmt: skip


class Cells(NamedTuple):
    """What the records of a row say, in the words of its table."""

    accuracy: str
    filter_bits: str
    smaller: str
    epochs: str
    seconds: str
    hardware: str
    revisions: str
    links: str


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


def cells(row: Row, root: str) -> Cells:
    """The cells of a row that was run; `root` of the project, seen from the document."""
    members = stored_runs(row.record)
    try:
        [group] = group_runs(members)
    except ValueError as error:
        # Seeds of one cell share everything else.
        raise SystemExit(f"{row.record}: not seeds of one config: {error}") from error
    if runs.method(group.setting) != row.method:  # the method is what its column says
        raise SystemExit(f"{row.record} is a {runs.method(group.setting)}, not a {row.method}")
    sweep, _, is_sweep = row.record.partition("/")
    names = [run.workdir.name for run in members]
    file = f"{sweep}.jsonl" if is_sweep else sweep
    records = [config_record(f"{sweep}/{name}" if is_sweep else name) for name in names]
    bits, float_bits = (group.results(n)[0] for n in ("filter_bits", "float32_filter_bits"))
    return Cells(
        accuracy=mean_accuracy(group.results("final_test_accuracy")),
        filter_bits=f"{bits:,}",
        smaller=f"{float_bits // bits}x",
        epochs=str(group.setting["num_epochs"]),
        seconds=f"{statistics.mean(group.results('wall_seconds')):,.0f} s",
        hardware=" or ".join(dict.fromkeys(map(hardware, records))),
        revisions=", ".join(sorted({short_revision(r["git_revision"]) for r in records})),
        links=f"[{file}]({root}results/{file})" + (f" {', '.join(names)}" if is_sweep else ""),
    )


def mean_accuracy(accuracies: Sequence[float]) -> str:
    """The mean of accuracies from 0 to 1, their standard deviation, and their number, in %."""
    percent = [100 * accuracy for accuracy in accuracies]
    spread = f" ± {statistics.stdev(percent):.2f}" if len(percent) > 1 else ""
    return f"{statistics.mean(percent):.2f}{spread} (n = {len(percent)})"


def results_table() -> str:
    """The README's table of some finished runs."""
    lines, shown = [], ""
    for row in ROWS:
        if row.record in README_RECORDS:
            c = cells(row, root="")
            lines.append(
                f"| {'' if row.data == shown else row.data} | {row.method} | {c.accuracy}"
                f" | {c.filter_bits} | {c.smaller} | {c.hardware} | {c.seconds} | {c.links} |"
            )
            shown = row.data
    return "\n".join(
        [
            "| data and network | method | test accuracy, % | filter bits | smaller than float32"
            " | hardware | time per run | record |",
            "|---|---|---|---|---|---|---|---|",
            *lines,
        ]
    )


def all_results_table() -> str:
    """The table of all rows, those of the paper that were not run among them."""
    lines, shown = [], ""
    for row in ROWS:
        start = f"| {'' if row.data == shown else row.data} | {row.method} | {row.paper}"
        shown = row.data
        if not row.record:
            lines.append(f"{start} | not run | | | | | | |")
            continue
        c = cells(row, root="../")
        lines.append(
            f"{start} | {c.accuracy} | {c.filter_bits} | {c.smaller} | {c.epochs} | {c.seconds}"
            f" | {c.hardware}; {c.revisions} | {c.links} |"
        )
    return "\n".join(
        [
            "| data and network | method | paper, % | test accuracy, % | filter bits | smaller than"
            " float32 | epochs | time per run | hardware; revision | record |",
            "|---|---|---|---|---|---|---|---|---|---|",
            *lines,
        ]
    )


def sweep_table(pattern: str, *columns: str) -> str:
    """The runs of a sweep in Markdown, these columns of the report's and the results; seeds are
    together."""
    rows = tables.table(group_runs(stored_runs(pattern)))
    columns += ("last epoch, %", "filter bits", "epochs", "seeds")
    return markdown(columns, [[row[name] for name in columns] for row in rows])


def in_millions(count: float) -> str:
    """Multiply-adds as text."""
    return f"{count / 1e6:,.2f} M" if count >= 10_000 else f"{count:,}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
