"""Delivers the results of a stage: a summary, the log, and pieces of an archive."""

import pathlib
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

import plans
from parcels import pack

from mcn_jax.workdirs.checkpoint import saved_steps
from mcn_jax.workdirs.files import of_kind, read_metrics

LOG_BYTES = 2**20
STATE_LINES, NOTE_LINES = 20, 17  # of a summary that is printed; its file has all
RESULTS = ("ms per step", "of ordinary", "peak rates", "rror")  # lines of a log to be shown


def last_checkpoint(workdir: pathlib.Path) -> pathlib.Path | None:
    """Returns the directory of a run's last checkpoint."""
    steps = saved_steps(workdir / "checkpoints")
    return workdir / "checkpoints" / str(max(steps)) if steps else None


def has_ended(workdir: pathlib.Path) -> bool:
    """Returns whether a run has trained all its epochs."""
    return (workdir / "result.json").exists()


def epochs_done(workdir: pathlib.Path) -> list[Mapping[str, Any]]:
    """Returns the records of the epochs from which a run resumes; none without a checkpoint."""
    path = workdir / "metrics.jsonl"
    if not path.exists() or not (has_ended(workdir) or last_checkpoint(workdir)):
        return []
    return list(of_kind(read_metrics(path), "epoch"))


def records_of(measurement: plans.Measurement, directory: pathlib.Path) -> list[pathlib.Path]:
    """Returns the records of a measurement, also those of its repetitions."""
    name, suffix = measurement.name, measurement.suffix
    found = [*directory.glob(name + suffix), *directory.glob(f"{name}_again_*{suffix}")]
    return sorted(
        file for path in found for file in (path.glob("*.json") if path.is_dir() else [path])
    )


def summary(
    stage: plans.Stage,
    plan: plans.Plan,
    directory: pathlib.Path,
    notes: Iterable[str],
    printed: Iterable[str],
) -> tuple[bool, list[str], list[str]]:
    """Returns whether all parts have ended, lines with the state of each, and lines of notes.

    Args:
        stage: the stage, or a part of it.
        plan: its plan.
        directory: where its results lie.
        notes: what happened to the processes.
        printed: lines that the processes printed.
    """
    lines = []
    ended = True
    for one in stage.parts:
        if isinstance(one, plans.Training):
            epochs = one.epochs_of(plan.epochs, rehearse=plan.rehearse)
            lines.append(f"  {one.name}: {describe_run(directory / one.name, epochs)}")
            ended &= has_ended(directory / one.name)
        else:
            found = [str(path.relative_to(directory)) for path in records_of(one, directory)]
            lines.append(f"  {one.name}: {', '.join(found) or 'nothing measured'}")
            ended &= bool(found)
    if len(stage.runs) > STATE_LINES // 2:
        count = sum(has_ended(directory / run.name) for run in stage.runs)
        lines.insert(0, f"  {count} of {len(stage.runs)} runs have ended")
    told = [f"  {note}" for note in notes]
    if stage.measurements:
        told += [f"    {line[:150]}" for line in printed if any(mark in line for mark in RESULTS)]
    return ended, lines, told


def to_print(states: list[str], notes: list[str], file: pathlib.Path) -> list[str]:
    """Returns the lines of a summary, shortened so that the states never crowd out the notes.

    Args:
        states: lines with the state of each part.
        notes: further lines.
        file: where all lines are written.
    """
    most = STATE_LINES + NOTE_LINES
    shown = _shortened(states, max(STATE_LINES, most - len(notes)), file)
    return shown + _shortened(notes, most - len(shown), file)


def _shortened(lines: list[str], most: int, file: pathlib.Path) -> list[str]:
    if len(lines) <= most:
        return lines
    return [*lines[: most - 1], f"    ({len(lines) - most + 1} more lines in {file})"]


def describe_run(workdir: pathlib.Path, epochs: int) -> str:
    """Describes a run in one line."""
    done = epochs_done(workdir)
    if has_ended(workdir):
        state = "ended"
    elif last_checkpoint(workdir):
        state = "stopped; the same stage resumes it"
    elif (workdir / "config.json").exists():
        return "has no checkpoint; the same stage starts it again"
    else:
        return "not started"
    if not done:
        return state
    last = done[-1]
    rate = statistics.median(record["images_per_second"] for record in done)
    return (
        f"{last['epoch'] + 1} of {epochs} epochs, {100 * last['test_accuracy']:.2f} %,"
        f" {last['wall_seconds']:.0f} s, {rate:,.0f} images/s; {state}"
    )


def deliver(stage: plans.Stage, directory: pathlib.Path, out: pathlib.Path) -> list[str]:
    """Writes the archive and the end of the log into OUT; returns lines about what is not there.

    The checkpoints of unfinished runs come first, then those of teachers that have runs to teach.

    Args:
        stage: the whole stage.
        directory: where its results lie.
        out: OUT.
    """
    teachers = {run.teacher for run in stage.runs if not has_ended(directory / run.name)}
    runs = sorted(path.parent for path in directory.glob("*/config.json"))
    runs.sort(key=lambda workdir: (has_ended(workdir), workdir.name not in teachers))
    checkpoints = [found for workdir in runs if (found := last_checkpoint(workdir))]
    lines = []
    for checkpoint in pack(directory, out, checkpoints):
        workdir = checkpoint.parent.parent
        rest = ""
        if not has_ended(workdir):
            rest = "; another machine starts this run again"
        elif workdir.name in teachers:
            rest = "; runs that are distilled from it can start only there"
        lines.append(
            f"  there is no room in {out} for the checkpoint of {workdir.name}, which stays in"
            f" {checkpoint}{rest}"
        )
    log = directory / "log.txt"
    if log.exists():
        (out / f"{directory.name}.log").write_bytes(log.read_bytes()[-LOG_BYTES:])
    return lines
