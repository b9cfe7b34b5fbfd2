"""Trains a whole run, from its config to its result."""

import contextlib
import dataclasses
import json
import pathlib
import statistics
from typing import Any

import jax
from absl import logging

from mcn_jax import parallel
from mcn_jax.config import Config
from mcn_jax.data.dataset import Dataset, open_dataset
from mcn_jax.errors import InputError
from mcn_jax.models.plan import Plan, filter_bits
from mcn_jax.training import metrics
from mcn_jax.training.checks import validate, validate_for_data
from mcn_jax.training.loop import Loop, ranked_accuracy
from mcn_jax.training.num_epochs import check_num_epochs
from mcn_jax.training.phases import quantizes
from mcn_jax.training.setup import Setup
from mcn_jax.training.state import (
    PROGRESS,
    Progress,
    TrainState,
    from_saved_tree,
    new_progress,
    saved_tree,
)
from mcn_jax.training.stopping import StopRequests
from mcn_jax.training.teacher import check_teacher, read_teacher
from mcn_jax.training.warm_start import WarmStart, warm_start
from mcn_jax.workdirs.checkpoint import (
    Checkpoints,
    DamagedCheckpointError,
    digests,
    named_leaves,
    saved_steps,
    sha256,
)
from mcn_jax.workdirs.files import (
    as_begun,
    check_workdir,
    locked,
    of_kind,
    read_result,
    reopen,
    write_atomically,
    write_config,
)


def train_and_evaluate(
    config: Config, workdir: str | pathlib.Path, *, profile: bool = False
) -> dict[str, Any]:
    """Trains to the end of the schedule, or resumes an interrupted run in the same directory.

    It also continues a run to another number of epochs if `check_num_epochs` allows that.

    In a run of several processes, each process calls it with the same shared directory.

    Args:
        config: the run's config.
        workdir: directory for the files that the README lists, except the pictures. If its run
            has ended with this number of epochs, nothing is trained.
        profile: also write traces of a few steps to WORKDIR/profile: from the first epoch with
            float filters and from the first with binary filters.

    Returns:
        The content of result.json.

    Raises:
        InputError: if the config, the data or the work directory do not fit.
        FloatingPointError: if a loss, gradient or parameter is not finite. The last checkpoint is
            kept.
        Stopped: if SIGTERM or SIGINT stopped the run. Its state is saved; the same call resumes.
    """
    workdir = pathlib.Path(workdir)
    parallel.check_devices()
    config = as_begun(workdir, config)
    if jax.device_count() != parallel.num_devices() and jax.process_count() > 1:
        raise InputError(
            f"this process has {len(parallel.local_devices())} of all {jax.device_count()} devices;"
            f" give each of the {jax.process_count()} processes the same number of devices"
        )
    has_config = (workdir / "config.json").exists()
    validate(config, parallel.num_devices(), is_new=not has_config)
    if any(jax.dtypes.canonicalize_dtype(d) != d for d in (config.dtype, config.param_dtype)):
        raise InputError("float64 needs JAX's 64-bit mode; set JAX_ENABLE_X64=1 in the environment")
    # Processes connect at the first barrier, which times out after seconds. So it must come before
    # the data are prepared, which can take much longer.
    parallel.barrier("joined")
    if not parallel.is_primary():
        parallel.barrier("prepared")
    dataset = open_dataset(config.data)  # the first process prepares it if need be
    if parallel.is_primary():
        parallel.barrier("prepared")
    validate_for_data(config, dataset.image_shape, len(dataset.train))
    before = check_workdir(
        workdir, config, dataset.description(), dataset.earlier_name, may_change=("num_epochs",)
    )
    reopens = before is not None and before.num_epochs != config.num_epochs
    if before is not None and reopens:
        check_num_epochs(workdir, before, config, len(dataset.train) // config.batch_size)
    elif (result := read_result(workdir)) is not None:
        if profile:
            logging.warning("%s has ended, so no steps are traced; use another --workdir", workdir)
        return result
    if parallel.is_primary():
        for line in dataset.findings:
            print(line)

    with contextlib.ExitStack() as closing:
        stop = closing.enter_context(StopRequests())
        teacher = read_teacher(config, dataset.description())
        setup = Setup(config, dataset, teacher)
        closing.callback(setup.source.close)
        state = setup.initial_state()
        progress: Progress | None = None
        start: WarmStart | None = None
        # Nothing is written until all input has been checked.
        steps = saved_steps(workdir / "checkpoints")
        is_new = not parallel.from_primary(len(steps))
        if is_new and config.init_from:
            start = warm_start(config, state, dataset.image_shape)
            state = start.state
        if not is_new and teacher:
            check_teacher(workdir, teacher)
        parallel.barrier("checked")
        if parallel.is_primary():
            closing.enter_context(locked(workdir))
            if saved_steps(workdir / "checkpoints") != steps:
                raise InputError(f"another process has just trained in {workdir}; start again")
            if is_new:
                description = start.description if start else None
                taught_by = teacher.description if teacher else None
                write_config(workdir, config, dataset.description(), description, taught_by)
        parallel.barrier("locked")
        checkpoints = Checkpoints(workdir / "checkpoints")
        closing.callback(checkpoints.close)
        if not is_new:
            state, progress = restore_last(checkpoints, state, setup.plan)
        if teacher:
            state = dataclasses.replace(state, teacher=teacher.variables)
        begun = (
            digests(named_leaves(saved_tree(state, progress))),
            teacher and teacher.description,
        )
        if not parallel.all_equal(sha256(begun)):
            raise InputError(
                "the processes of this run start from different states; check that all see the same"
                f" files in {workdir}, and that config.init_from and config.loss.teacher name runs"
                " that have ended"
            )
        if reopens and not is_new and parallel.is_primary():
            reopen(workdir, config.num_epochs)
        with metrics.make_writer(workdir, int(state.step)) as writer:
            traces = workdir / "profile" if profile and parallel.is_primary() else None
            run = Loop(config, setup, checkpoints, writer, stop, traces)
            state = run.epochs(state, progress, start)
            checkpoints.wait()
            if parallel.is_primary():
                epochs = of_kind(writer.records, "epoch")
                result = _result(config, dataset, setup.plan, epochs)
                # Written last, because its presence means that the run has ended.
                write_atomically(workdir / "result.json", json.dumps(result, indent=2) + "\n")
    parallel.barrier("ended")
    if (result := read_result(workdir)) is None:
        raise InputError(
            f"the first process has written {workdir / 'result.json'}, but this process does not"
            " see it; use a --workdir that all processes share"
        )
    return result


def restore_last(
    checkpoints: Checkpoints, template: TrainState, plan: Plan
) -> tuple[TrainState, Progress | None]:
    """Restores the last undamaged checkpoint, the same one in all processes of a run.

    Damaged checkpoints after it are moved out of the way, with a warning that names them.

    Args:
        checkpoints: the run's checkpoints, at least one.
        template: the run's state before the first step.
        plan: plan of the network.

    Returns:
        The state, and the progress of its epoch. The progress is None at the end of an epoch.

    Raises:
        InputError: if a checkpoint belongs to another model, or all are damaged. No checkpoint is
            moved then.
    """
    damaged: dict[int, str] = {}
    for step in reversed(checkpoints.steps()):
        reason = ""
        try:
            saved = checkpoints.digests(step)
            is_inside = any(name.startswith(f"{PROGRESS}/") for name in saved)
            progress = new_progress(template, plan, 0.0) if is_inside else None
            tree = checkpoints.restore(step, saved_tree(template, progress))
        except DamagedCheckpointError as error:
            reason = str(error)
        if parallel.anywhere(bool(reason)):
            damaged[step] = reason or f"another process cannot read checkpoint {step}"
            continue
        for other, reason in damaged.items():
            place = checkpoints.set_aside(other)
            logging.warning("%s; moved it to %s; resuming from step %d", reason, place, step)
        return from_saved_tree(tree)
    reason = next(iter(damaged.values()), f"{checkpoints.directory} has no undamaged checkpoint")
    raise InputError(
        f"{reason}, and no earlier checkpoint can be read; use another --workdir to start again"
    )


def _result(
    config: Config, dataset: Dataset, plan: Plan, epochs: list[dict[str, Any]]
) -> dict[str, Any]:
    bits, float32_bits = filter_bits(plan, config, quantizes(config))
    return {
        "final_test_accuracy": epochs[-1]["test_accuracy"],
        "best_test_accuracy": max(ranked_accuracy(config, record) for record in epochs),
        "test_examples": epochs[-1]["test_examples"],
        "filter_bits": bits,
        "float32_filter_bits": float32_bits,
        "wall_seconds": epochs[-1]["wall_seconds"],
        "images_per_second": statistics.median(r["images_per_second"] for r in epochs),
        "seed": config.seed,
        "class_names": list(dataset.class_names),
    }
