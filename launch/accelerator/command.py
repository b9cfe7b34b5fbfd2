"""Runs one stage of the accelerator queue within a time budget; started by accelerator.sh.

The plan of a stage fits the number of epochs to the budget, by times measured on an H100. When the
budget ends, the runs save a checkpoint and stop. All results are then in OUT, in at most 8 files:

    STAGE.txt            the summary; at most 40 lines of it are printed
    STAGE.log            the end of everything that the runs printed
    STAGE.tar.1-of-2 ... pieces of one archive: records, pictures and checkpoints

To continue, carry these files to the next machine and pass their directory as --resume. On the same
machine, the same command continues: runs resume, and what has been measured is not measured again,
unless --only names it.
"""

import argparse
import dataclasses
import fnmatch
import importlib.util
import json
import math
import os
import pathlib
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence

import parcels
import plans
import stages
from delivery import deliver, summary, to_print
from plans import Plan
from runner import Clock, Runner
from source import revision_in

from mcn_jax.config import DataConfig
from mcn_jax.data.packed import missing_files
from mcn_jax.errors import InputError, did_you_mean
from mcn_jax.paths import user_path
from mcn_jax.training.stopping import EXIT_CODE
from mcn_jax.workdirs.files import read_json, write_atomically

STORE = pathlib.Path(tempfile.gettempdir()) / "mcn_jax_accelerator"


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="launch/accelerator.sh",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("stage", nargs="?", help=f"one of {', '.join(stages.STAGES)}")
    add("--list", action="store_true", help="list the stages with their plans and exit")
    add("--budget", type=float, help="time in seconds (default: the stage's, see --list)")
    add("--epochs", type=int, help="epochs of every run (default: as many as fit)")
    add(
        "--only",
        default="",
        help="parts of the stage, separated by commas; * stands for any text (default: all)",
    )
    add(
        "--loads",
        type=pathlib.Path,
        default=pathlib.Path(".carry"),
        help="directory of the loads (default: .carry)",
    )
    add("--resume", type=pathlib.Path, help="directory with the results of an earlier call")
    add(
        "--store",
        type=pathlib.Path,
        default=STORE,
        help=f"directory for data and runs on this machine (default: {STORE})",
    )
    add("--rehearse", action="store_true", help="tiny networks and data, also without accelerator")
    add("--started", type=float, default=time.time(), help=argparse.SUPPRESS)
    return parser


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    options = make_parser().parse_args(arguments)
    if options.list:
        print(describe())
        return 0
    try:
        for name in ("loads", "resume", "store"):
            if getattr(options, name) is not None:
                setattr(options, name, user_path(getattr(options, name)))
        return run(options)
    except (InputError, OSError) as error:
        print(f"launch/accelerator.sh: error: {error}", file=sys.stderr)
        return 1


def describe() -> str:
    """Returns the list of stages, with the epochs and the time of each plan on an H100."""
    lines = []
    for name, stage in stages.STAGES.items():
        plan = f"{stage.budget:.0f} s"
        if stage.trainings:
            epochs = plans.fitted_epochs(stage, stage.budget)
            plan += f", {epochs} epochs" if epochs else ", a fixed number of epochs"
            plan += f" in about {plans.seconds(stage, epochs):.0f} s"
            plan += f"; data: {stage.data}"
        lines.append(f"{name:12} {stage.summary}\n{'':12} {plan}")
        lines += [f"{'':14} {part.name}" for part in stage.parts]
    return "\n".join(lines)


def chosen(options: argparse.Namespace) -> plans.Stage:
    """Returns the stage with the parts of --only.

    Raises:
        InputError: if an option is wrong.
    """
    if options.stage not in stages.STAGES:
        found = f"{options.stage!r} is not a stage" if options.stage else "name a stage"
        raise InputError(
            f"{found}; choose one of {', '.join(stages.STAGES)}"
            f"{did_you_mean(options.stage or '', stages.STAGES)}"
        )
    for name in ("budget", "epochs"):
        value = getattr(options, name)
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"--{name}={value} must be positive and finite")
    stage = stages.STAGES[options.stage]
    known = [part.name for part in stage.parts]
    patterns = [pattern for pattern in options.only.split(",") if pattern] or ["*"]
    names: set[str] = set()
    for pattern in patterns:
        matches = fnmatch.filter(known, pattern)
        names.update(matches)
        if not matches:
            raise InputError(
                f"--only={pattern} is not a part of {options.stage}, which has {', '.join(known)}"
                f"{did_you_mean(pattern, known)}"
            )
    if options.epochs and stage.trainings and not stage.fits_budget:
        raise InputError(
            f"--epochs={options.epochs}: the runs of {options.stage} have epochs of their own;"
            " leave out --epochs"
        )
    groups = (tuple(run for run in group if run.name in names) for group in stage.trainings)
    return dataclasses.replace(
        stage,
        measurements=tuple(one for one in stage.measurements if one.name in names),
        trainings=tuple(group for group in groups if group),
    )


def run(options: argparse.Namespace) -> int:
    """Runs a stage and delivers its results; returns the exit code."""
    stage = chosen(options)
    budget = options.budget or stage.budget
    store, loads = options.store.resolve(), options.loads.resolve()
    directory, data = store / options.stage, store / "data"
    out = pathlib.Path(os.environ.get("OUT") or store / "out").resolve()
    summary_file = out / f"{options.stage}.txt"
    notes = []
    if options.resume and directory.exists():
        notes.append(f"{directory} exists, so --resume={options.resume} was not read")
    elif options.resume:
        if not options.resume.is_dir():
            raise InputError(
                f"--resume={options.resume} is not a directory; pass the directory with the results"
                " of an earlier call"
            )
        parcels.unpack(options.resume, options.stage, store)
    plan = make_plan(directory / "plan.json", stage, budget, options)
    for load in sorted(loads.glob("*/data")):
        shutil.copytree(load, data, dirs_exist_ok=True)
    if stage.data and (missing := missing_files(DataConfig(name=stage.data, data_dir=str(data)))):
        raise InputError(
            f"{options.stage} needs {missing[0]}, which is not in {loads}/*/data; make the loads by"
            f" launch/accelerator/pack.py, and carry all loads of {stage.data}"
        )
    if any(loads.glob("*/revision")):
        revisions = {revision for load in loads.glob("*") if (revision := revision_in(load))}
        os.environ["MCN_JAX_REVISION"] = " ".join(revisions)
        if not revisions:
            notes.append(f"{loads} was made from other sources, so records name no revision")
    try:
        out.mkdir(parents=True, exist_ok=True)
        summary_file.touch()
    except OSError as error:
        raise InputError(f"OUT={out} cannot be written ({error.strerror}); set another") from error
    for one in stage.measurements:
        if one.needs and importlib.util.find_spec(one.needs) is None:
            notes.append(f"{one.name} is left out, because {one.needs} is not installed")
            others = tuple(other for other in stage.measurements if other != one)
            stage = dataclasses.replace(stage, measurements=others)
    directory.mkdir(parents=True, exist_ok=True)
    write_atomically(directory / "plan.json", json.dumps(dataclasses.asdict(plan)) + "\n")
    clock = Clock(options.started + budget)
    with (directory / "log.txt").open("a+") as log, clock.listening():
        runner = Runner(directory, data, log, clock, plan)
        if stage.measurements:
            runner.measure(stage.measurements, again=bool(options.only))
        runner.train(stage.trainings, stage.at_once)
        notes += runner.notes
        ended, states, told = summary(stage, plan, directory, notes, runner.printed())
        told += deliver(stages.STAGES[options.stage], directory, out)
        kind = "rehearsal of " if plan.rehearse else ""
        first = f"{kind}{options.stage}: {stage.summary}"
        last = [
            f"{time.time() - options.started:.0f} of {budget:.0f} s",
            f"  results: {out}/{options.stage}.*; --resume={out} continues from them",
        ]
        write_atomically(summary_file, "\n".join([first, *states, *told, *last]) + "\n")
        print("\n".join([first, *to_print(states, told, summary_file), *last]), flush=True)
    return 1 if runner.failures else 0 if ended else EXIT_CODE


def make_plan(
    path: pathlib.Path, stage: plans.Stage, budget: float, options: argparse.Namespace
) -> Plan:
    """Returns the plan of a stage that has begun, or makes one.

    Raises:
        InputError: if an option contradicts the plan of a stage that has begun, or the budget is
            too short for a plan.
    """
    if path.exists():
        plan = Plan(**read_json(path))
        if plan.rehearse != options.rehearse:
            raise InputError(
                f"{path.parent} {'is' if plan.rehearse else 'is not'} a rehearsal;"
                f" {'add' if plan.rehearse else 'leave out'} --rehearse, or use another --store"
            )
        if options.epochs and options.epochs != plan.epochs:
            raise InputError(
                f"{path.parent} began with {plan.epochs} epochs, not {options.epochs}; leave out"
                " --epochs, or use another --store"
            )
        return plan
    epochs = options.epochs
    if epochs is None:
        epochs = plans.fitted_epochs(stage, budget)
        if options.rehearse:
            epochs = plans.FEWEST_EPOCHS
        if stage.fits_budget and epochs < plans.FEWEST_EPOCHS:
            least = plans.seconds(stage, plans.FEWEST_EPOCHS) / plans.PLANNED_SHARE
            raise InputError(
                f"--budget={budget:g} is too short for {plans.FEWEST_EPOCHS} epochs of"
                f" {options.stage}, which take {least:.0f} s on an H100; raise it, choose runs by"
                " --only, or pass --epochs to train in several calls"
            )
    return Plan(stage=options.stage, epochs=epochs, rehearse=options.rehearse)
