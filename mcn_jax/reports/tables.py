"""Compares runs: builds the table of settings, its numbers, and the figures of the report."""

import pathlib
import statistics
from collections.abc import Sequence
from typing import Any

import rich.console
import rich.markup
import rich.table

from mcn_jax.reports import figures, health_plots
from mcn_jax.reports.runs import (
    SHORT_NAMES,
    Group,
    differing_fields,
    labels,
    method,
    network,
    sweep,
    text,
)
from mcn_jax.workdirs.files import of_kind, write_atomically


def table(groups: Sequence[Group]) -> list[dict[str, str]]:
    """Returns one row {column: cell} per group. All rows have the same columns.

    Fields that differ between groups have their own columns. Accuracies are in percent. The best
    epoch is chosen by the test split.
    """
    fields = differing_fields([group.setting for group in groups])
    return [
        {
            "method": method(group.setting),
            "data": str(group.setting["data.name"]),
            "network": network(group.setting),
            **{
                SHORT_NAMES.get(name, name): text(group.setting.get(name))
                for name in fields
                if name != "num_epochs"  # always has a column
            },
            "last epoch, %": _accuracies(group),
            "best epoch, %": _mean_and_std(group.results("best_test_accuracy")),
            **_size(group),
            "epochs": str(group.setting["num_epochs"]),
            "time per run": _seconds(group.results("wall_seconds")),
            "seeds": ", ".join(str(run.config["seed"]) for run in group.runs),
        }
        for group in groups
    ]


def summary(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Returns the records of --json: the numbers of `table`, unrounded, and those of each run.

    Accuracies are from 0 to 1. The standard deviation of a single run is null. Without finished
    runs, the mean is null, too.
    """
    fields = differing_fields([group.setting for group in groups])
    records = []
    for group in groups:
        accuracies = {
            name: _statistics(group.results(name))
            for name in ("final_test_accuracy", "best_test_accuracy")
        }
        sizes = {
            name: next(iter(group.results(name)), None)
            for name in ("filter_bits", "float32_filter_bits")
        }
        runs = [
            {
                "workdir": str(run.workdir),
                "seed": run.config["seed"],
                "epochs_done": run.epochs_done,
                "result": run.result,
            }
            for run in group.runs
        ]
        records.append(
            {
                "method": method(group.setting),
                "data": group.setting["data.name"],
                "network": network(group.setting),
                "fields": {name: group.setting.get(name) for name in fields},
                **accuracies,
                **sizes,
                "num_epochs": group.setting["num_epochs"],
                "wall_seconds": _statistics(group.results("wall_seconds")),
                "runs": runs,
            }
        )
    return records


def draw(groups: Sequence[Group]) -> dict[str, Any]:
    """Draws all figures for which the groups have data, as {file name without suffix: Figure}.

    "curves" is always drawn. "health_RUN" shows the first run of each group with health records.
    "theta", "lambda" and "centers" are drawn if runs differ in this field only.
    """
    names = labels([group.setting for group in groups])
    series: dict[str, list[Any]] = {}
    for name, group in zip(names, groups, strict=True):
        if group.finished:
            series[name] = [run.records for run in group.finished]
        for run in group.running:
            seed = f"seed {run.config['seed']}, running, {_progress(run.epochs_done, group)}"
            series[f"{name}, {seed}"] = [run.records]
    drawn = {"curves": figures.compare(series)}
    for group in groups:
        with_health = [run for run in group.runs if of_kind(run.records, "health")]
        for run in with_health[:1]:
            name = base = f"health_{run.workdir.resolve().name}"
            number = 1
            while name in drawn:  # work directories in different places may have the same name
                number += 1
                name = f"{base}_{number}"
            drawn[name] = health_plots.health(run.records)
    for name, field, label in (
        ("theta", "loss.theta", "theta, weight of the filter loss"),
        ("lambda", "loss.center_loss_weight", "lambda, weight of the center loss"),
    ):
        if points := sweep(groups, field):
            drawn[name] = figures.over_parameter(points, label)
    if points := sweep(groups, "binarize.num_centers"):
        drawn["centers"] = figures.over_centers(points)
    return drawn


def markdown(groups: Sequence[Group], names: Sequence[str]) -> str:
    """Returns the table in Markdown, with the named figures and the work directories."""
    rows = table(groups)
    lines = [
        "# Report",
        "",
        "Test accuracy is mean ± standard deviation over n seeds. The best epoch is chosen by the"
        " test split.",
        "",
        f"| {' | '.join(rows[0])} |",
        f"|{'---|' * len(rows[0])}",
        *(f"| {' | '.join(_escaped(cell) for cell in row.values())} |" for row in rows),
        "",
        *(f"![{name}]({name}.png)\n\n[{name}.svg]({name}.svg)\n" for name in names),
        "Work directories:",
        "",
    ]
    for label, group in zip(labels([group.setting for group in groups]), groups, strict=True):
        places = ", ".join(f"`{run.workdir}`" for run in group.runs)
        lines.append(f"- {_escaped(label)}: {places}")
    return "\n".join(lines) + "\n"


def write_report(groups: Sequence[Group], out: pathlib.Path) -> list[pathlib.Path]:
    """Writes report.md and all figures.

    Args:
        groups: at least one.
        out: the directory, which is created if it does not exist.

    Returns:
        The paths of the files.
    """
    drawn = draw(groups)
    out.mkdir(parents=True, exist_ok=True)
    paths = [path for name, figure in drawn.items() for path in figures.save(figure, out / name)]
    write_atomically(out / "report.md", markdown(groups, list(drawn)))
    return [*paths, out / "report.md"]


def _statistics(values: Sequence[float]) -> dict[str, float | int | None]:
    return {
        "mean": statistics.fmean(values) if values else None,
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "n": len(values),
    }


def _mean_and_std(accuracies: Sequence[float]) -> str:
    percent = [100 * accuracy for accuracy in accuracies]
    if not percent:
        return "-"
    spread = f" ± {statistics.stdev(percent):.2f}" if len(percent) > 1 else ""
    return f"{statistics.fmean(percent):.2f}{spread}"


def _accuracies(group: Group) -> str:
    parts = []
    if values := group.results("final_test_accuracy"):
        parts.append(f"{_mean_and_std(values)} (n = {len(values)})")
    if running := group.running:
        count = f"{len(running)} " if len(running) > 1 else ""
        done = ", ".join(_progress(run.epochs_done, group) for run in running)
        parts.append(f"{count}running, {done}")
    return "; ".join(parts)


def _progress(epochs_done: int, group: Group) -> str:
    return f"epoch {epochs_done}/{group.setting['num_epochs']}"


def _size(group: Group) -> dict[str, str]:
    bits = next(iter(group.results("filter_bits")), None)
    if bits is None:
        return {"filter bits": "-", "smaller than float32": "-"}
    ratio = group.results("float32_filter_bits")[0] / bits
    return {"filter bits": f"{bits:,}", "smaller than float32": f"{ratio:.3g}x"}


def _seconds(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):,.0f} s" if values else "-"


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|").replace("_", "\\_").replace("*", "\\*")


def print_table(rows: Sequence[dict[str, str]], console: rich.console.Console) -> None:
    """Prints one table, or one list per row if the terminal is too narrow for the table."""
    together = rich.table.Table(*rows[0])
    for row in rows:
        together.add_row(*(rich.markup.escape(cell) for cell in row.values()))
    natural = rich.console.Console(width=10**4, emoji=False).measure(together).maximum
    if natural <= console.width:
        console.print(together)
        return
    for row in rows:
        alone = rich.table.Table(show_header=False)
        for name, cell in row.items():
            alone.add_row(name, rich.markup.escape(cell))
        console.print(alone)
