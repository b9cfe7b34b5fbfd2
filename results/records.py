"""Stores the records of finished runs, and makes the tables and figures of the documents from them.

    python results/records.py add WORKDIR NAME         copies a run's records to results/NAME, and
                                                       draws its figures; --bare draws none
    python results/records.py add WORKDIR SWEEP/RUN    puts a run into results/SWEEP.jsonl, as the
                                                       line RUN
    python results/records.py add-benchmark FILE MACHINE BENCHMARK [--run RUN]
                                                       puts a benchmark's JSON into
                                                       results/benchmarks/MACHINE/BENCHMARK.json
    python results/records.py table                    prints the table of all results
    python results/records.py write                    puts this and all other tables into
                                                       README.md and docs/
    python results/records.py draw                     draws the figures beside the records

A copied config.json has the default data directories and the bare name of the run that it started
from: a record does not say where files lay.
"""

import argparse
import json
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import record_files
from benchmark_tables import (
    c_inference_table,
    cortex_m4_table,
    faults_table,
    inference_table,
    input_table,
    later_step_table,
    limits_table,
    machines_table,
    mcconv_table,
    packing_table,
    pytorch_layer_table,
    roofline_table,
    spectral_table,
    step_table,
)
from comparison_tables import (
    digits_table,
    equal_bits_cpu_table,
    equal_bits_sizes_table,
    equal_bits_table,
    equal_channels_table,
    mnist_table,
    new_statistics_table,
    own_networks_table,
)
from export_tables import deployed_table, exports_table
from file_sizes import file_sizes_table
from gpu_tables import h100_fused_table, h100_layer_table, h100_step_table
from kernel_tables import convolution_table, plane_signs_table
from markdown_tables import all_results_table, results_table, sweep_table
from trial_tables import idle_planes_table, planes_table, poolings_table

from mcn_jax.config import DataConfig
from mcn_jax.reports import figures, health_plots, tables
from mcn_jax.reports.runs import group_runs
from mcn_jax.workdirs.files import of_kind, read_json, read_metrics

# {file under results/: (which figure of a report, of these records)}
COMPARISONS = {
    "cifar10_cpu_curves": ("curves", ("cifar10_cpu_mcn", "cifar10_cpu_umcn", "cifar10_cpu_wrn")),
    "figure5_cpu_theta": ("theta", ("figure5_cpu/theta_*",)),
    "figure5_cpu_lambda": ("lambda", ("figure5_cpu/lambda_*",)),
    "figure7_cpu_centers": ("centers", ("figure7_cpu/*",)),
}

ROOT = record_files.RESULTS.parent
DOCS = ROOT / "docs"
# {document: {the name of a table in it: what makes the table}}
TABLES = {
    ROOT / "README.md": {"results": results_table},
    DOCS / "data.md": {"input": input_table},
    DOCS / "training.md": {"faults": faults_table},
    DOCS / "export.md": {
        "exports": exports_table, "cortex m4": cortex_m4_table, "file sizes": file_sizes_table
    },
    DOCS / "deploy.md": {"deployed": deployed_table},
    DOCS / "pooling.md": {"spectral": spectral_table, "poolings": poolings_table},
    DOCS / "planes.md": {"idle planes": idle_planes_table, "planes": planes_table},
    DOCS / "comparison.md": {
        "sizes at equal bits": equal_bits_sizes_table,
        "equal bits": equal_bits_table,
        "equal bits on a CPU": equal_bits_cpu_table,
        "new statistics": new_statistics_table,
        "equal channels": equal_channels_table,
        "own networks": own_networks_table,
        "networks on MNIST": mnist_table,
        "digits": digits_table,
    },
    DOCS / "experiments.md": {
        "all results": all_results_table,
        "theta": lambda: sweep_table("figure5_cpu/theta_*", "theta"),
        "lambda": lambda: sweep_table("figure5_cpu/lambda_*", "lambda"),
        "centers": lambda: sweep_table("figure7_cpu/*", "centers", "lambda"),
    },
    DOCS / "performance.md": {
        "mcconv": mcconv_table, "convolution": convolution_table,
        "plane signs": plane_signs_table, "step": step_table,
        "later steps": later_step_table,
        "roofline": roofline_table, "machines": machines_table,
        "pytorch layers": pytorch_layer_table, "limits": limits_table,
        "inference": inference_table, "c inference": c_inference_table, "packing": packing_table,
        "h100 steps": h100_step_table, "h100 layers": h100_layer_table,
        "h100 pallas": h100_fused_table,
    },
}  # fmt: skip


def add(workdir: pathlib.Path, name: str, *, draws: bool) -> None:
    """Copies the records of a finished run.

    Args:
        workdir: of the run.
        name: NAME for a directory of its own, SWEEP/RUN for a line of a sweep file.
        draws: whether a directory gets the figures of its curves and of its filters' health.
    """
    if not (workdir / "result.json").exists():
        raise SystemExit(f"{workdir} has no result.json: its run has not ended")
    config = _without_places(read_json(workdir / "config.json"))
    sweep, _, run = name.partition("/")
    if run:
        line = {
            "name": run,
            "config": config,
            "result": read_json(workdir / "result.json"),
            "metrics": read_metrics(workdir / "metrics.jsonl"),
        }
        record_files.write_sweep_line(record_files.RESULTS / f"{sweep}.jsonl", line)
        return
    target = record_files.RESULTS / name
    target.mkdir(parents=True, exist_ok=True)
    for file in ("metrics.jsonl", "result.json"):
        shutil.copy(workdir / file, target / file)
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if draws:
        draw_run(target)


def _without_places(record: dict[str, Any]) -> dict[str, Any]:
    """A config.json that does not say where files lay."""
    default = DataConfig()
    places = {name: getattr(default, name) for name in ("archive_dir", "data_dir", "root")}
    record["config"]["data"] |= places
    if record.get("init_from"):
        source = pathlib.Path(record["init_from"]["workdir"]).name
        record["config"]["init_from"] = record["init_from"]["workdir"] = source
    if record.get("teacher"):
        source = pathlib.Path(record["teacher"]["workdir"]).name
        record["config"]["loss"]["teacher"] = record["teacher"]["workdir"] = source
    return record


def draw_run(record: pathlib.Path) -> None:
    """The curves, and an MCN's health, of one record beside it."""
    records = read_metrics(record / "metrics.jsonl")
    figures.save(figures.curves(records), record / "curves", formats=("png",))
    if of_kind(records, "health"):
        figures.save(health_plots.health(records), record / "health", formats=("png",))


def draw_comparisons(target: pathlib.Path) -> None:
    """The figures that compare records, into a directory."""
    for file, (name, patterns) in COMPARISONS.items():
        members = [run for pattern in patterns for run in record_files.stored_runs(pattern)]
        drawn = tables.draw(group_runs(members))
        figures.save(drawn[name], target / file, formats=("png",))


def with_tables(text: str, makers: Mapping[str, Callable[[], str]]) -> str:
    """A document with its tables replaced by the current ones."""
    for name, make in makers.items():
        begin, end = f"<!-- {name}: made by results/records.py -->", f"<!-- end of {name} -->"
        if (text.count(begin), text.count(end)) != (1, 1):
            raise SystemExit(f"a document needs one line {begin!r}, and one {end!r} after it")
        before, rest = text.split(begin)
        _, after = rest.split(end)
        text = f"{before}{begin}\n{make()}\n{end}{after}"
    return text


def main() -> None:
    """Runs one of the commands."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    adding = commands.add_parser("add", help="copy the records of a finished run")
    adding.add_argument("workdir", type=pathlib.Path)
    adding.add_argument("name", help="NAME of a directory, or SWEEP/RUN of a line in a sweep file")
    adding.add_argument("--bare", action="store_true", help="draw no figures")
    benchmark = commands.add_parser("add-benchmark", help="copy the JSON of a benchmark")
    benchmark.add_argument("file", type=pathlib.Path, help="the --out of the benchmark")
    benchmark.add_argument("machine", help="such as xeon")
    benchmark.add_argument("benchmark", help="such as mcconv")
    benchmark.add_argument("--run", default="main", help="its name beside other runs of it")
    commands.add_parser("table", help="print the table of all results")
    commands.add_parser("write", help="put the tables into the documents")
    commands.add_parser("draw", help="redraw the figures of all records")
    options = parser.parse_args()
    if options.command == "add":
        add(options.workdir, options.name, draws=not options.bare)
    elif options.command == "add-benchmark":
        record = read_json(options.file)
        record_files.write_benchmark(options.machine, options.benchmark, options.run, record)
    elif options.command == "table":
        print(all_results_table())
    elif options.command == "draw":
        for curves in sorted(record_files.RESULTS.glob("*/curves.png")):
            draw_run(curves.parent)
        draw_comparisons(record_files.RESULTS)
    else:
        for path, makers in TABLES.items():
            path.write_text(with_tables(path.read_text(), makers))


if __name__ == "__main__":
    main()
