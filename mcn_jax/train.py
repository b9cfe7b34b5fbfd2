"""The training loop."""

import contextlib
import dataclasses
import functools
import itertools
import json
import math
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from mcn_jax import figures, layers, metrics, models, optim, parallel
from mcn_jax.checkpoint import Checkpoints, saved_steps
from mcn_jax.config import Config, validate, validate_for_data
from mcn_jax.data import Dataset, make_source, open_dataset
from mcn_jax.errors import InputError
from mcn_jax.evaluate import evaluate
from mcn_jax.health import filter_health
from mcn_jax.profiling import StepTrace
from mcn_jax.state import TrainState, create_state
from mcn_jax.steps import StepSettings, eval_step, train_step, train_steps
from mcn_jax.warm_start import WarmStart, warm_start
from mcn_jax.workdir import check_workdir, read_result, write_atomically, write_config


@dataclasses.dataclass(frozen=True)
class Phase:
    """The compiled steps of one part of the schedule: as a U-MCN, or with binary filters.

    train: one step, or as many as the source gives batches at a time.
    """

    binarized: bool
    train: Callable[..., Any]
    eval_step: Callable[..., Any]


def train_and_evaluate(
    config: Config, workdir: str | pathlib.Path, *, profile: bool = False
) -> dict[str, Any]:
    """Trains to the end of the schedule, or goes on where a run in the same directory stopped.

    Args:
        config: of the run.
        workdir: gets the files that the README lists. If its run has ended, nothing is done.
        profile: also write traces of a few steps to its directory `profile`, of the first epoch
            that is trained without and with binary filters.

    Returns:
        The content of result.json.

    Raises:
        InputError: if the config, the data or the work directory do not fit.
        FloatingPointError: if a loss or gradient is not finite; the last checkpoint stays.
    """
    workdir = pathlib.Path(workdir)
    if jax.process_count() > 1:
        raise InputError(
            f"this run has {jax.process_count()} processes; one process with all its devices is"
            " what is supported yet"
        )
    validate(config, len(parallel.local_devices()))
    if any(jax.dtypes.canonicalize_dtype(d) != d for d in (config.dtype, config.param_dtype)):
        raise InputError("float64 needs JAX's 64-bit mode; set the environment's JAX_ENABLE_X64=1")
    dataset = open_dataset(config.data)
    validate_for_data(config, dataset.image_shape, len(dataset.train))
    check_workdir(workdir, config, dataset.description())
    if (result := read_result(workdir)) is not None:
        return result

    with contextlib.ExitStack() as closing:
        setup = _Setup(config, dataset)
        closing.callback(setup.source.close)
        state = setup.initial_state()
        start: WarmStart | None = None
        steps = saved_steps(workdir / "checkpoints")
        # Nothing is written before everything that can be wrong with the input has been seen.
        if not steps:
            if config.init_from:
                start = warm_start(pathlib.Path(config.init_from).expanduser(), state)
                state = start.state
            write_config(
                workdir, config, dataset.description(), start.description if start else None
            )
        checkpoints = Checkpoints(workdir / "checkpoints")
        closing.callback(checkpoints.close)
        if steps:
            state = checkpoints.restore(steps[-1], state)
        with metrics.MetricsWriter(workdir, int(state.step)) as writer:
            traces = workdir / "profile" if profile else None
            state = _run_epochs(config, setup, state, start, checkpoints, writer, traces)
            result = _result(config, dataset, state, writer.epochs())
        figures.save(figures.curves(writer.records), workdir / "curves", formats=("png",))
        if figures.of_kind(writer.records, "health"):
            figures.save(figures.health(writer.records), workdir / "health", formats=("png",))
        # Last, because its presence says that the run has ended.
        write_atomically(workdir / "result.json", json.dumps(result, indent=2) + "\n")
    return result


class _Setup:
    """Model, optimizer and compiled steps of a run, and the source of its batches."""

    def __init__(self, config: Config, dataset: Dataset):
        self.config = config
        self.dataset = dataset
        self.steps_per_epoch = len(dataset.train) // config.batch_size
        schedule = (config.optimizer, self.steps_per_epoch, config.num_epochs)
        self.optimizer = optim.make_optimizer(*schedule)
        self.settings = StepSettings(
            config=config,
            learning_rate=optim.learning_rate(*schedule),
            mean=dataset.mean,
            std=dataset.std,
        )
        self.source = make_source(config, dataset)
        self._phases: dict[bool, Phase] = {}

    def initial_state(self) -> TrainState:
        model = models.make_model(
            self.config, len(self.dataset.class_names), binarized=self.config.binarizes
        )
        shape = self.dataset.image_shape
        return jax.device_get(create_state(self.config, model, self.optimizer, shape))

    def phase(self, binarized: bool) -> Phase:
        """The steps with or without binary filters; compiled at their first use."""
        if binarized not in self._phases:
            self._phases[binarized] = self._make_phase(binarized)
        return self._phases[binarized]

    def _make_phase(self, binarized: bool) -> Phase:
        model = models.make_model(
            self.config,
            len(self.dataset.class_names),
            binarized=binarized,
            axis_name=parallel.AXIS,
        )
        common: dict[str, Any] = {
            "model": model,
            "settings": self.settings,
            "axis_name": parallel.AXIS,
        }
        train = functools.partial(
            train_steps if self.source.together > 1 else train_step,
            optimizer=self.optimizer,
            binarized=binarized,
            **common,
        )
        return Phase(
            binarized=binarized,
            train=parallel.parallel(train, donate_state=True),
            eval_step=parallel.parallel(functools.partial(eval_step, **common), donate_state=False),
        )


def _run_epochs(
    config: Config,
    setup: _Setup,
    host_state: TrainState,
    start: WarmStart | None,
    checkpoints: Checkpoints,
    writer: metrics.MetricsWriter,
    traces: pathlib.Path | None,
) -> TrainState:
    """Trains from the epoch that `host_state` stands at to the last; returns the last state."""
    traced: set[bool] = set()  # phases
    first_epoch = int(host_state.step) // setup.steps_per_epoch
    seconds_before = writer.last_epoch()["wall_seconds"] if first_epoch else 0.0
    start_time = time.perf_counter()
    state = parallel.replicate(host_state)
    with metrics.Progress(config.num_epochs, setup.steps_per_epoch, first_epoch) as progress:
        progress.say(optim.describe_groups(host_state.params))
        if first_epoch:
            progress.say(f"resuming after epoch {first_epoch}")
        if start:
            progress.say(start.summary())
        for epoch in range(first_epoch, config.num_epochs):
            phase = setup.phase(config.binarized_in(epoch))
            keeps_centers = start is not None and start.keeps_centers and epoch == 0
            if config.computes_centers_before(epoch) and not keeps_centers:
                centers = layers.updated_centers(host_state.params, config.binarize.num_centers)
                host_state = dataclasses.replace(host_state, centers=jax.device_get(centers))
                state = parallel.replicate(host_state)
            params_before = host_state.params
            epoch_start = time.perf_counter()
            trace = StepTrace(None)
            if traces and phase.binarized not in traced:
                trace = StepTrace(traces / ("binary" if phase.binarized else "float"))
                traced.add(phase.binarized)
            state, means = _train_epoch(config, setup, phase, state, epoch, writer, progress, trace)
            train_seconds = time.perf_counter() - epoch_start
            test = evaluate(phase.eval_step, state, setup.source.test_batches(epoch))
            host_state = parallel.unreplicate(state)
            _check_finite(test, int(host_state.step))
            health: dict[str, float] = {}
            if phase.binarized:
                by_layer, health = filter_health(
                    params_before, host_state.params, host_state.centers
                )
                place = {"kind": "health", "step": int(host_state.step), "epoch": epoch}
                writer.write(place | by_layer)
            images = setup.steps_per_epoch * config.batch_size
            record: dict[str, Any] = {
                "kind": "epoch",
                "step": int(host_state.step),
                "epoch": epoch,
                "binarized": phase.binarized,
                **{f"train_{name.removeprefix('softmax_')}": v for name, v in means.items()},
                **test,
                **health,
                "images_per_second": images / train_seconds,
                "wall_seconds": seconds_before + time.perf_counter() - start_time,
            }
            # The record first: on resumption a surplus one is cut, a missing one would be lost.
            writer.write(record)
            progress.epoch(record)
            checkpoints.save(record["step"], host_state, _ranked_accuracy(config, record))
    return host_state


def _train_epoch(
    config: Config,
    setup: _Setup,
    phase: Phase,
    state: TrainState,
    epoch: int,
    writer: metrics.MetricsWriter,
    progress: metrics.Progress,
    trace: StepTrace,
) -> tuple[TrainState, dict[str, float]]:
    """One pass over the training split; returns the state and the means of its metrics."""
    sums: dict[str, float] = {}
    steps = itertools.count(epoch * setup.steps_per_epoch + 1)

    def account(values: Any) -> None:
        host = {name: np.atleast_1d(v) for name, v in parallel.unreplicate(values).items()}
        for index in range(setup.source.together):
            step = next(steps)
            scalars = {name: value[index].item() for name, value in host.items()}
            _check_finite(scalars, step)
            for name in ("softmax_loss", "accuracy", "filter_loss", "center_loss"):
                sums[name] = sums.get(name, 0.0) + scalars[name]
            progress.step(epoch, scalars["softmax_loss"])
            if step % config.log_every_steps == 0:
                writer.write({"kind": "step", "step": step, "epoch": epoch, **scalars})

    # Metrics are read one dispatch late, so that the device always has the next one at hand.
    pending: Any = None
    for dispatch, (split, batch) in enumerate(setup.source.train_batches(epoch)):
        trace.before(dispatch, state)
        state, values = phase.train(state, split, batch)
        trace.after(dispatch, values)
        if parallel.must_await_steps():
            jax.block_until_ready(values)
        if pending is not None:
            account(pending)
        pending = values
    trace.close()
    if pending is not None:
        account(pending)
    return state, {name: total / setup.steps_per_epoch for name, total in sums.items()}


def _check_finite(values: dict[str, float], step: int) -> None:
    """Stops a run that has diverged, before anything of it is recorded or saved."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise FloatingPointError(
                f"{name} is {value} at step {step}; training stops, the last checkpoint stays;"
                " lower config.optimizer.learning_rate or raise config.optimizer.warmup_epochs"
            )


def _ranked_accuracy(config: Config, record: dict[str, Any]) -> float:
    """The accuracy by which checkpoints are ranked: an MCN's float epochs do not count."""
    return record["test_accuracy"] if record["binarized"] == config.binarizes else 0.0


def _result(
    config: Config, dataset: Dataset, state: TrainState, epochs: list[dict[str, Any]]
) -> dict[str, Any]:
    bits, float32_bits = layers.filter_bits(
        state.params, config.binarize.num_centers if config.binarizes else None
    )
    return {
        "final_test_accuracy": epochs[-1]["test_accuracy"],
        "best_test_accuracy": max(_ranked_accuracy(config, record) for record in epochs),
        "test_examples": epochs[-1]["test_examples"],
        "filter_bits": bits,
        "float32_filter_bits": float32_bits,
        "wall_seconds": epochs[-1]["wall_seconds"],
        "images_per_second": statistics.median(r["images_per_second"] for r in epochs),
        "seed": config.seed,
        "class_names": list(dataset.class_names),
    }
