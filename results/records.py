"""The records of finished runs, and the documents' figures and tables (markdown_tables,
benchmark_tables) of them.

    python results/records.py add WORKDIR NAME   copies a run's records to results/NAME; --bare
                                                 without figures
    python results/records.py table              prints the table of results
    python results/records.py write              puts this and all others into README.md
                                                 and docs/
    python results/records.py draw               draws the figures beside the records

A copied config.json has the default data directories and the bare name of the run that it started
from: where these lay is no part of a result.
"""

import argparse
import json
import pathlib
import shutil
from collections.abc import Callable, Mapping

from benchmark_tables import (
    faults_table,
    h100_layer_table,
    h100_step_table,
    inference_table,
    input_table,
    machines_table,
    mcconv_table,
    packing_table,
    roofline_table,
    step_table,
)
from markdown_tables import RESULTS, exports_table, results_table, sweep_table

from mcn_jax.config import DataConfig
from mcn_jax.reports import figures, health_plots, tables
from mcn_jax.reports.runs import group_runs, read_run
from mcn_jax.workdirs.files import of_kind, read_metrics

# {file under results/: (which figure of a report, of these records)}
COMPARISONS = {
    "cifar10_cpu_curves": ("curves", ("cifar10_cpu_mcn", "cifar10_cpu_umcn", "cifar10_cpu_wrn")),
    "figure5_cpu_theta": ("theta", ("figure5_cpu/theta_*",)),
    "figure5_cpu_lambda": ("lambda", ("figure5_cpu/lambda_*",)),
    "figure7_cpu_centers": ("centers", ("figure7_cpu/*",)),
}

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
        "h100 steps": h100_step_table, "h100 layers": h100_layer_table,
    },
}  # fmt: skip


def add(workdir: pathlib.Path, name: str, *, draws: bool) -> None:
    """Copies the records of one finished run, and draws its curves and its filters' health unless
    `draws` is False."""
    if not (workdir / "result.json").exists():
        raise SystemExit(f"{workdir} has no result.json: its run has not ended")
    target = RESULTS / name
    target.mkdir(parents=True, exist_ok=True)
    for file in ("metrics.jsonl", "result.json"):
        shutil.copy(workdir / file, target / file)
    record = json.loads((workdir / "config.json").read_text())
    default = DataConfig()
    places = {name: getattr(default, name) for name in ("archive_dir", "data_dir", "root")}
    record["config"]["data"] |= places
    if record.get("init_from"):
        source = pathlib.Path(record["init_from"]["workdir"]).name
        record["config"]["init_from"] = record["init_from"]["workdir"] = source
    (target / "config.json").write_text(json.dumps(record, indent=2) + "\n")
    if draws:
        draw_run(target)


def draw_run(record: pathlib.Path) -> None:
    """The curves, and an MCN's health, of one record beside it."""
    records = read_metrics(record / "metrics.jsonl")
    figures.save(figures.curves(records), record / "curves", formats=("png",))
    if of_kind(records, "health"):
        figures.save(health_plots.health(records), record / "health", formats=("png",))


def draw_comparisons(target: pathlib.Path) -> None:
    """The figures that compare records, into a directory."""
    for file, (name, patterns) in COMPARISONS.items():
        paths = [path for pattern in patterns for path in sorted(RESULTS.glob(pattern))]
        drawn = tables.draw(group_runs(map(read_run, paths)))
        figures.save(drawn[name], target / file, formats=("png",))


def with_tables(text: str, makers: Mapping[str, Callable[[], str]]) -> str:
    """A document with its tables replaced by the current ones."""
    for name, make in makers.items():
        begin, end = f"<!-- {name}: made by results/records.py -->", f"<!-- end of {name} -->"
        before, rest = text.split(begin)
        _, after = rest.split(end)
        text = f"{before}{begin}\n{make()}\n{end}{after}"
    return text


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    adding = commands.add_parser("add", help="copy the records of a finished run")
    adding.add_argument("workdir", type=pathlib.Path)
    adding.add_argument("name")
    adding.add_argument("--bare", action="store_true", help="no figures, for a run of a sweep")
    commands.add_parser("table", help="print the table")
    commands.add_parser("write", help="put the tables into the documents")
    commands.add_parser("draw", help="draw the figures of all records anew")
    arguments = parser.parse_args()
    if arguments.command == "add":
        add(arguments.workdir, arguments.name, draws=not arguments.bare)
    elif arguments.command == "table":
        print(results_table())
    elif arguments.command == "draw":
        for curves in sorted(RESULTS.glob("*/curves.png")):
            draw_run(curves.parent)
        draw_comparisons(RESULTS)
    else:
        for path, makers in TABLES.items():
            path.write_text(with_tables(path.read_text(), makers))
