"""What a run does after its last update: averaged weights, and new statistics of batch norm."""

import dataclasses
import math
from typing import Any

import jax
import numpy as np

from mcn_jax import parallel
from mcn_jax.training.setup import Phase, Setup
from mcn_jax.training.state import TrainState


def finish(host_state: TrainState, setup: Setup, phase: Phase) -> TrainState:
    """Returns the state that a run ends with, on the host.

    With `optimizer.average_epochs` the parameters become their mean over the updates of the last
    epochs. With `batch_norm_steps` the statistics of batch norm become the mean of those of so many
    batches, which are what the epoch after the last one would begin with.

    Args:
        host_state: state after the last update, on the host.
        setup: setup of the run.
        phase: the steps of the last epoch.
    """
    config = setup.config
    if config.optimizer.average_epochs:
        host_state = dataclasses.replace(host_state, params=host_state.opt_state.mean)
    if config.batch_norm_steps:
        statistics = _statistics(host_state, setup, phase)
        host_state = dataclasses.replace(host_state, batch_stats=statistics)
    return host_state


def _statistics(host_state: TrainState, setup: Setup, phase: Phase) -> Any:
    """Returns the mean statistics of batch norm over the first batches of a further epoch."""
    count = setup.config.batch_norm_steps
    state = parallel.replicate(host_state)
    found: list[Any] = []
    batches = setup.source.train_batches(setup.config.num_epochs)
    for _, (split, batch) in zip(
        range(math.ceil(count / setup.source.together)), batches, strict=False
    ):
        state, values = phase.statistics(state, split, batch)
        if parallel.must_await_steps():
            jax.block_until_ready(values)
        found.append(parallel.unreplicate(values))

    def mean(like: np.ndarray, *parts: np.ndarray) -> np.ndarray:
        steps = np.concatenate([part.reshape(-1, *like.shape) for part in parts])
        return np.mean(steps[:count], axis=0, dtype=np.float64).astype(like.dtype)

    return jax.tree.map(mean, host_state.batch_stats, *found)
