"""The files under results/: a directory per run, a line per run of a sweep, a file per benchmark.

A run is named NAME or SWEEP/RUN:

    NAME         the directory NAME with config.json, metrics.jsonl and result.json
    SWEEP/RUN    the line of SWEEP.jsonl with this name:
                 {"name": RUN, "config": ..., "result": ..., "metrics": [...]}

A benchmark's file, benchmarks/MACHINE/BENCHMARK.json, is one record, or {"records": {RUN: record}}.
"""

import fnmatch
import functools
import json
import pathlib
from typing import Any

from mcn_jax.reports.runs import Run, read_runs
from mcn_jax.workdirs.files import read_json, write_atomically

RESULTS = pathlib.Path(__file__).parent


def stored_runs(pattern: str) -> list[Run]:
    """The runs of one name, or those of a sweep whose names match, such as "digits/mcn_seed?"."""
    path, run_names = _place(pattern)
    if not run_names:
        return read_runs(path)
    written = path.stat().st_mtime_ns if path.exists() else None
    found = [
        r for r in _sweep_runs(path, written) if fnmatch.fnmatchcase(r.workdir.name, run_names)
    ]
    if not found:
        raise SystemExit(f"{path} has no run {run_names!r}")
    return found


@functools.lru_cache
def _sweep_runs(path: pathlib.Path, written: int | None) -> tuple[Run, ...]:
    """The runs of a sweep file; tables ask for single ones of a file of many a hundred times.

    Args:
        path: the file.
        written: when it was written, because it is read again if it has changed.
    """
    del written
    return tuple(read_runs(path))


def has_run(pattern: str) -> bool:
    """Whether a sweep has a run whose name matches, such as "digits/mcn_seed?"."""
    path, run_names = _place(pattern)
    return any(fnmatch.fnmatchcase(line["name"], run_names) for line in sweep_lines(path))


def config_record(name: str) -> dict[str, Any]:
    """The config.json of a run."""
    path, run = _place(name)
    if not run:
        return read_json(path / "config.json")
    [line] = [line for line in sweep_lines(path) if line["name"] == run]
    return line["config"]


def sweep_lines(path: pathlib.Path) -> list[dict[str, Any]]:
    """The runs of a sweep file, which are not to be changed; none if it does not exist yet."""
    return _kept_lines(path, path.stat().st_mtime_ns) if path.exists() else []


@functools.lru_cache
def _kept_lines(path: pathlib.Path, written: int) -> list[dict[str, Any]]:
    """The runs of a sweep file; see `_sweep_runs`."""
    del written
    return _read_lines(path)


def _read_lines(path: pathlib.Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_sweep_line(path: pathlib.Path, line: dict[str, Any]) -> None:
    """Puts a run into a sweep file, in the order of names, in place of the run of this name."""
    # Not the kept lines: two writes may have the same time.
    others = _read_lines(path) if path.exists() else []
    lines = {other["name"]: other for other in others} | {line["name"]: line}
    text = "".join(json.dumps(lines[name]) + "\n" for name in sorted(lines))
    write_atomically(path, text)


def benchmark_path(machine: str, benchmark: str) -> pathlib.Path:
    """Where the record of a benchmark on a machine lies."""
    return RESULTS / "benchmarks" / machine / f"{benchmark}.json"


def benchmark_runs(machine: str, benchmark: str) -> dict[str, dict[str, Any]]:
    """{run: record} of a benchmark; a file with a single record has the run "main"."""
    content = read_json(benchmark_path(machine, benchmark))
    return content.get("records", {"main": content})


def read_benchmark(machine: str, benchmark: str, run: str = "main") -> dict[str, Any]:
    """The record of one run of a benchmark."""
    return benchmark_runs(machine, benchmark)[run]


def write_benchmark(machine: str, benchmark: str, run: str, record: dict[str, Any]) -> None:
    """Puts a record beside those of other runs, in place of the record of this run."""
    path = benchmark_path(machine, benchmark)
    content = read_json(path) if path.exists() else {}
    if "records" in content:
        content["records"][run] = record
    elif run == "main":
        content = record
    else:
        content = {"records": ({"main": content} if content else {}) | {run: record}}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(content, indent=2) + "\n")


def _place(name: str) -> tuple[pathlib.Path, str]:
    """The directory and "", or the sweep file and the name of the run in it."""
    sweep, _, run = name.partition("/")
    return (RESULTS / f"{sweep}.jsonl", run) if run else (RESULTS / name, "")
