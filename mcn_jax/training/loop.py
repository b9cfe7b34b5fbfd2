"""Runs the epochs of a training run: steps, evaluation, records and checkpoints."""

import dataclasses
import itertools
import math
import pathlib
import time
from typing import Any, NoReturn

import jax
import numpy as np
from flax import traverse_util

from mcn_jax import parallel
from mcn_jax.config import BinarizeConfig, Config
from mcn_jax.models.plan import Plan, computed_by
from mcn_jax.models.plan import pooled_sizes as plan_sizes
from mcn_jax.training import learned_sizes, metrics, optim, phases
from mcn_jax.training.evaluation import evaluate
from mcn_jax.training.finish import averaged, with_statistics
from mcn_jax.training.health import network_health
from mcn_jax.training.profiling import StepTrace
from mcn_jax.training.setup import Phase, Setup
from mcn_jax.training.state import (
    EPOCH_MEANS,
    Progress,
    TrainState,
    new_progress,
    saved_tree,
)
from mcn_jax.training.stopping import Stopped, StopRequests
from mcn_jax.training.warm_start import WarmStart
from mcn_jax.workdirs.checkpoint import UNRANKED, Checkpoints, named_leaves


def refresh_layers(host_state: TrainState, plan: Plan, config: BinarizeConfig) -> TrainState:
    """Returns the state with recomputed layer state, such as k-means centers."""
    flat = traverse_util.flatten_dict(host_state.layer_state)
    for layer in plan:
        if layer.family.refresh is None:
            continue
        p, s = layer.params_in(host_state.params), layer.state_in(host_state.collections)
        for leaf, value in jax.device_get(layer.family.refresh(p, s, config)).items():
            flat[layer.state[leaf], *layer.path, *leaf.split("/")] = value
    layer_state = traverse_util.unflatten_dict(flat)
    return dataclasses.replace(host_state, layer_state=layer_state)


class Loop:
    """Runs the epochs of a training run."""

    def __init__(
        self,
        config: Config,
        setup: Setup,
        checkpoints: Checkpoints,
        writer: metrics.MetricsWriter | metrics.NoWriter,
        stop: StopRequests,
        traces: pathlib.Path | None,
    ):
        self.config = config
        self.setup = setup
        self.checkpoints = checkpoints
        self.writer = writer
        self.stop = stop
        self.traces = traces
        self._traced: set[bool] = set()  # phases already traced
        self._compiled: set[Phase] = set()
        self._start_time = time.perf_counter()
        self._seconds_before = 0.0

    def seconds(self) -> float:
        """Returns the seconds that the run has taken, including those before it resumed."""
        return self._seconds_before + time.perf_counter() - self._start_time

    def epochs(
        self, host_state: TrainState, progress: Progress | None, start: WarmStart | None
    ) -> TrainState:
        """Trains from the step of `host_state` to the last step; returns the last state.

        Args:
            host_state: the state to start from, on the host.
            progress: progress of a half-finished epoch; None at the start of an epoch.
            start: the warm start of a new run; None if its filters are random.

        Raises:
            Stopped: if a signal or a lost output asked for it; all steps so far are saved.
        """
        config, steps_per_epoch = self.config, self.setup.steps_per_epoch
        first_epoch, steps_done = divmod(int(host_state.step), steps_per_epoch)
        if first_epoch:
            self._seconds_before = self.writer.seconds_at(first_epoch * steps_per_epoch)
        if progress is not None:
            self._seconds_before = float(progress.seconds)
        state = parallel.replicate(host_state)
        step, quiet = int(host_state.step), not parallel.is_primary()
        with metrics.ProgressBar(config.num_epochs, steps_per_epoch, step, quiet=quiet) as bar:
            kinds = {device.device_kind for device in parallel.local_devices()}
            bar.say(f"devices: {parallel.num_devices()} {', '.join(sorted(kinds))}")
            if jax.default_backend() == "cpu":
                for line in computed_by(self.setup.plan, config.dtype):
                    bar.say(line)
            bar.say(optim.describe_groups(self.setup.plan))
            if step:
                inside = f" and {steps_done} steps" if steps_done else ""
                bar.say(f"resuming after epoch {first_epoch}{inside}")
            if start:
                bar.say(start.summary())
            for epoch in range(first_epoch, config.num_epochs):
                if progress is None:
                    keeps_centers = start is not None and start.keeps_centers and epoch == 0
                    if phases.refreshes_before(config, epoch) and not keeps_centers:
                        host_state = refresh_layers(host_state, self.setup.plan, config.binarize)
                        state = parallel.replicate(host_state)
                    progress = new_progress(host_state, self.setup.plan, self.seconds())
                with self._trace(phases.quantized_in(config, epoch)) as trace:
                    state, progress, rate = self._train(state, epoch, progress, bar, trace)
                host_state, record = self._end_epoch(state, epoch, progress, rate)
                progress = None
                # Write the record before the checkpoint: resuming drops a surplus record, but
                # cannot restore a missing one. Print last, because the reader may have left.
                self.writer.write(record)
                accuracy = ranked_accuracy(config, record)
                self.checkpoints.save(record["step"], saved_tree(host_state), accuracy)
                bar.epoch(record)
                if epoch + 1 < config.num_epochs and self.stop.pending():
                    self._stop(record["step"])
        return host_state

    def _trace(self, quantized: bool) -> StepTrace:
        """Returns the trace of an epoch; it records only if the epoch is the first of its phase."""
        if self.traces is None or quantized in self._traced:
            return StepTrace(None)
        self._traced.add(quantized)
        return StepTrace(self.traces / ("binary" if quantized else "float"))

    def _train(
        self,
        state: TrainState,
        epoch: int,
        progress: Progress,
        bar: metrics.ProgressBar,
        trace: StepTrace,
    ) -> tuple[TrainState, Progress, float]:
        """Runs the remaining steps of an epoch; also returns their images per second."""
        config, setup = self.config, self.setup
        quantized = phases.quantized_in(config, epoch)
        sums = {name: float(total) for name, total in progress.sums.items()}
        first = int(parallel.unreplicate(state.step))
        last = (epoch + 1) * setup.steps_per_epoch
        steps = itertools.count(first + 1)
        start_time = time.perf_counter()

        def account(values: Any) -> None:
            host = {name: np.atleast_1d(v) for name, v in parallel.unreplicate(values).items()}
            for index in range(setup.source.together):
                step = next(steps)
                scalars = {name: value[index].item() for name, value in host.items()}
                _check_finite(scalars, step, state)
                for name in EPOCH_MEANS:
                    sums[name] += scalars[name]
                bar.step(epoch, scalars["softmax_loss"])
                if step % config.log_every_steps == 0:
                    self.writer.write({"kind": "step", "step": step, "epoch": epoch, **scalars})

        def so_far() -> Progress:
            totals = {name: np.float64(total) for name, total in sums.items()}
            sizes = np.asarray(pooled_sizes, np.int32) if pooled_sizes else None
            return dataclasses.replace(
                progress, sums=totals, seconds=np.float64(self.seconds()), pooled_sizes=sizes
            )

        pooled_sizes: tuple[int, ...] = ()
        if progress.pooled_sizes is not None:
            pooled_sizes = tuple(map(int, progress.pooled_sizes))
        # Metrics are read one dispatch late, so the device never waits for the host.
        pending: Any = None
        done = first
        dispatches = (last - first) // setup.source.together
        batches = setup.source.train_batches(epoch, first - epoch * setup.steps_per_epoch)
        for dispatch, (split, batch) in enumerate(batches):
            step_of_epoch = done - epoch * setup.steps_per_epoch
            earlier = pooled_sizes
            if pooled_sizes and step_of_epoch % config.stride_update_steps == 0:
                if pending is not None:  # strides that are not finite have no sizes
                    account(pending)
                    pending = None
                pooled_sizes = learned_sizes.sizes_for(state, setup.plan)
            phase = setup.phase(quantized, pooled_sizes)
            trace.before(dispatch, dispatches, state)
            begun = time.perf_counter()
            state, values = phase.train(state, split, batch)
            if pooled_sizes and phase not in self._compiled:
                seconds = time.perf_counter() - begun
                bar.say(f"{learned_sizes.described(pooled_sizes)}: compiled in {seconds:.1f} s")
                self._compiled.add(phase)
            # Also once per epoch, so a resumed run writes the same records.
            if pooled_sizes and (pooled_sizes != earlier or step_of_epoch == 0):
                record = {"kind": "sizes", "step": done + 1, "epoch": epoch}
                self.writer.write(record | learned_sizes.named(pooled_sizes))
            trace.after(dispatch, values)
            if parallel.must_await_steps():
                jax.block_until_ready(values)
            if pending is not None:
                account(pending)
            pending = values
            done += setup.source.together
            stopping = self.stop.pending()
            before = done - setup.source.together
            if done < last and (stopping or phases.saves_between(config, before, done)):
                account(pending)
                pending = None
                tree = saved_tree(parallel.unreplicate(state), so_far())
                self.checkpoints.save(done, tree, UNRANKED)
                if stopping:
                    self._stop(done)
        if pending is not None:
            account(pending)
        rate = (last - first) * config.batch_size / (time.perf_counter() - start_time)
        return state, so_far(), rate

    def _end_epoch(
        self, state: TrainState, epoch: int, progress: Progress, rate: float
    ) -> tuple[TrainState, dict[str, Any]]:
        """Evaluates the network; returns the state on the host and the epoch's record."""
        setup, config = self.setup, self.config
        host_state = parallel.unreplicate(state)
        ends = epoch + 1 == config.num_epochs and phases.finishes(config)
        if ends:
            host_state = averaged(host_state, config)
        pooled_sizes = plan_sizes(setup.plan, host_state.params)
        phase = setup.phase(phases.quantized_in(config, epoch), pooled_sizes)
        if ends:
            host_state = with_statistics(host_state, setup, phase)
            state = parallel.replicate(host_state)
        test = evaluate(phase.eval_step, state, setup.source.test_batches(epoch))
        step = int(host_state.step)
        _check_finite(test, step, state)
        health: dict[str, float] = {}
        if phase.quantized:
            by_layer, health = network_health(
                progress.filters_before, host_state.params, host_state.collections, setup.plan
            )
            if by_layer:
                self.writer.write({"kind": "health", "step": step, "epoch": epoch, **by_layer})
        if strides := learned_sizes.strides_of(setup.plan, host_state.params):
            self.writer.write({"kind": "strides", "step": step, "epoch": epoch, **strides})
        means = {
            f"train_{name.removeprefix('softmax_')}": total.item() / setup.steps_per_epoch
            for name, total in progress.sums.items()
        }
        return host_state, {
            "kind": "epoch",
            "step": step,
            "epoch": epoch,
            "binarized": phase.quantized,
            **means,
            **test,
            **health,
            "images_per_second": rate,
            "wall_seconds": self.seconds(),
        }

    def _stop(self, step: int) -> NoReturn:
        self.checkpoints.wait()
        raise Stopped(
            f"stopped by {self.stop.reason()} after step {step}, which is saved; the same command"
            " resumes"
        )


def _check_finite(values: dict[str, float], step: int, state: TrainState) -> None:
    """Raises FloatingPointError if a value is not finite, before it is recorded or saved."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise FloatingPointError(
                f"{name} is {value} at step {step}; {_largest_leaf(state)}; training stops and"
                " keeps the last checkpoint; lower config.optimizer.learning_rate or raise"
                " config.optimizer.warmup_epochs"
            )


def _largest_leaf(state: TrainState) -> str:
    """Describes the current model: its first leaf that is not finite, or its largest value."""
    tree = {"params": state.params, "batch_stats": state.batch_stats}
    leaves = named_leaves(parallel.unreplicate(tree))
    bad = [name for name, leaf in leaves.items() if not np.isfinite(leaf).all()]
    if bad:
        return f"{bad[0]} is now the first of {len(bad)} leaves with values that are not finite"
    sizes = {name: np.abs(leaf).max() for name, leaf in leaves.items() if leaf.size}
    name = max(sizes, key=lambda name: sizes[name])
    return f"the largest value is now {sizes[name]:.3g}, in {name}"


def ranked_accuracy(config: Config, record: dict[str, Any]) -> float:
    """Returns the accuracy that ranks a checkpoint; it is 0 for an MCN's float epochs."""
    return record["test_accuracy"] if record["binarized"] == phases.quantizes(config) else 0.0
