"""What a run does after its last update: averaged weights, and new statistics of batch norm."""

import dataclasses
import itertools
import math
from typing import Any

import jax
import numpy as np

from mcn_jax import parallel
from mcn_jax.config import Config
from mcn_jax.training.setup import Phase, Setup
from mcn_jax.training.state import TrainState


def averaged(host_state: TrainState, config: Config) -> TrainState:
    """Returns the state with the mean of the parameters, if the run averages them.

    Args:
        host_state: state after the last update, on the host.
        config: the run's config.
    """
    if not config.optimizer.average_epochs:
        return host_state
    return dataclasses.replace(host_state, params=host_state.opt_state.mean)


def with_statistics(host_state: TrainState, setup: Setup, phase: Phase) -> TrainState:
    """Returns the state with new statistics of batch norm, if the run asks for them.

    They are the mean of the statistics of `batch_norm_steps` training batches, the first ones of
    the epoch that would follow.

    Args:
        host_state: state with the parameters that the run ends with, on the host.
        setup: setup of the run.
        phase: the steps for these parameters.
    """
    if not setup.config.batch_norm_steps:
        return host_state
    statistics = _statistics(host_state, setup, phase)
    return dataclasses.replace(host_state, batch_stats=statistics)


def _statistics(host_state: TrainState, setup: Setup, phase: Phase) -> Any:
    count = setup.config.batch_norm_steps
    state = parallel.replicate(host_state)
    found: list[Any] = []
    batches = setup.source.train_batches(setup.config.num_epochs)
    for split, batch in itertools.islice(batches, math.ceil(count / setup.source.together)):
        state, values = phase.statistics(state, split, batch)
        if parallel.must_await_steps():
            jax.block_until_ready(values)
        found.append(parallel.unreplicate(values))

    def mean(like: np.ndarray, *parts: np.ndarray) -> np.ndarray:
        steps = np.concatenate([part.reshape(-1, *like.shape) for part in parts])
        return np.mean(steps[:count], axis=0, dtype=np.float64).astype(like.dtype)

    return jax.tree.map(mean, host_state.batch_stats, *found)
