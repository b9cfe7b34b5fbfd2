"""Delivers the results of a stage: a summary, the log, and pieces of an archive."""

import pathlib
import statistics
from collections.abc import Mapping
from typing import Any

import stages
from parcels import pack

from mcn_jax.workdirs.checkpoint import saved_steps
from mcn_jax.workdirs.files import of_kind, read_metrics, write_atomically

LOG_BYTES = 2**20
SUMMARY_LINES = 40


def last_checkpoint(workdir: pathlib.Path) -> pathlib.Path | None:
    """Returns the directory of a run's last checkpoint."""
    steps = saved_steps(workdir / "checkpoints")
    return workdir / "checkpoints" / str(max(steps)) if steps else None


def summary(
    stage: stages.Stage, epochs: int, directory: pathlib.Path, failures: Mapping[str, int]
) -> tuple[bool, list[str]]:
    """Returns whether all runs and measurements have ended, and a line for each.

    Args:
        stage: the stage, or a part of it.
        epochs: planned epochs of every run.
        directory: where its results lie.
        failures: exit codes of the processes that failed, by name.
    """
    lines = []
    ended = True
    for member in (member for group in stage.trainings for member in group):
        line, has_ended = describe_run(directory / member.name, epochs)
        lines.append(f"  {member.name}: {line}")
        ended &= has_ended
    for one in stage.measurements:
        found = [*directory.glob(f"{one.name}.json"), *directory.glob(f"{one.name}/*.json")]
        names = ", ".join(str(path.relative_to(directory)) for path in sorted(found))
        lines.append(f"  {one.name}: {names or 'nothing measured'}")
        ended &= bool(found)
    for name, code in failures.items():
        lines.append(f"  {name} failed with code {code}; see the log")
    if stage.measurements:
        marks = ("ms per step", "of ordinary", "rror")
        log = (directory / "log.txt").read_text(errors="replace").splitlines()
        lines += [f"    {line[:150]}" for line in log if any(mark in line for mark in marks)]
    if len(lines) > SUMMARY_LINES - 5:
        lines[SUMMARY_LINES - 5 :] = ["    (more lines in the log)"]
    return ended, lines


def epochs_of(workdir: pathlib.Path) -> list[Mapping[str, Any]]:
    """Returns the records of the epochs that a run has ended."""
    path = workdir / "metrics.jsonl"
    return list(of_kind(read_metrics(path), "epoch")) if path.exists() else []


def describe_run(workdir: pathlib.Path, epochs: int) -> tuple[str, bool]:
    """Describes a run in one line; returns also whether it has ended."""
    if not (workdir / "metrics.jsonl").exists():
        return "not started", False
    records = epochs_of(workdir)
    ended = (workdir / "result.json").exists()
    state = "ended" if ended else "stopped; the same stage resumes it"
    if not records:
        return state, ended
    last = records[-1]
    rate = statistics.median(record["images_per_second"] for record in records)
    return (
        f"{last['epoch'] + 1} of {epochs} epochs, {100 * last['test_accuracy']:.2f} %,"
        f" {last['wall_seconds']:.0f} s, {rate:,.0f} images/s; {state}"
    ), ended


def deliver(stage: str, directory: pathlib.Path, out: pathlib.Path, lines: list[str]) -> None:
    """Writes the results into OUT and adds lines about them to the summary."""
    out.mkdir(parents=True, exist_ok=True)
    runs = [path.parent for path in directory.glob("*/config.json")]
    runs.sort(key=lambda workdir: (workdir / "result.json").exists())  # unfinished runs first
    checkpoints = [found for workdir in runs if (found := last_checkpoint(workdir))]
    write_atomically(directory / "summary.txt", "\n".join(lines) + "\n")
    for checkpoint in pack(directory, out, checkpoints):
        lines.append(
            f"  the checkpoint of {checkpoint.parent.parent.name} is too large to be returned; it"
            f" stays in {checkpoint}"
        )
    log = (directory / "log.txt").read_bytes()
    (out / f"{stage}.log").write_bytes(log[-LOG_BYTES:])
    lines.append(f"  results: {out}/{stage}.tar.*; --resume={out} continues from them")
    write_atomically(out / f"{stage}.txt", "\n".join(lines) + "\n")
