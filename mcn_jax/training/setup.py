"""Builds what a run needs before its first epoch: plan, optimizer, batches and steps."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax

from mcn_jax import models, parallel
from mcn_jax.config import Config, with_fields
from mcn_jax.data.dataset import Dataset
from mcn_jax.data.sources import make_source
from mcn_jax.layers.pooling import POOLINGS
from mcn_jax.models.plan import plan_of
from mcn_jax.training import optim, phases
from mcn_jax.training.state import TrainState, create_state
from mcn_jax.training.steps import (
    StepSettings,
    eval_step,
    in_turn,
    statistics_step,
    train_step,
)
from mcn_jax.training.teacher import Teacher


@dataclasses.dataclass(frozen=True)
class Phase:
    """The compiled steps of one part of the schedule: with float or with quantized weights.

    train: runs one step, or several steps if the source delivers several batches at once.
    statistics: computes statistics of batch norm; it takes the same batches.
    """

    quantized: bool
    train: Callable[..., Any]
    eval_step: Callable[..., Any]
    statistics: Callable[..., Any]


class Setup:
    """The plan, optimizer and compiled steps of a run, and the source of its batches."""

    def __init__(self, config: Config, dataset: Dataset, teacher: Teacher | None = None):
        self.config = config
        self.dataset = dataset
        self.steps_per_epoch = len(dataset.train) // config.batch_size
        schedule = (config.optimizer, self.steps_per_epoch, config.num_epochs)
        self.plan = plan_of(config, len(dataset.class_names), dataset.image_shape)
        self.optimizer = optim.make_optimizer(*schedule, self.plan)
        self.settings = StepSettings(
            config=config,
            plan=self.plan,
            learning_rate=optim.learning_rate(*schedule),
            num_steps=config.num_epochs * self.steps_per_epoch,
            mean=dataset.mean,
            std=dataset.std,
            teacher=teacher.model if teacher else None,
        )
        learns_strides = POOLINGS[config.model.pooling].learns_strides
        pause_steps = config.stride_update_steps if learns_strides else 0
        self.source = make_source(config, dataset, pause_steps=pause_steps)
        self._phases: dict[tuple[bool, tuple[int, ...]], Phase] = {}

    def initial_state(self) -> TrainState:
        """Returns the state before the first step, on the host."""
        config, shape = self.config, self.dataset.image_shape
        num_classes = len(self.dataset.class_names)
        model = models.make_model(config, num_classes, quantized=phases.quantizes(config))
        return jax.device_get(create_state(config, model, self.optimizer, self.plan, shape))

    def phase(self, quantized: bool, pooled_sizes: tuple[int, ...] = ()) -> Phase:
        """Returns the steps with or without quantized weights; they compile at their first use.

        Args:
            quantized: whether the weights are quantized.
            pooled_sizes: as in `ModelConfig`; empty without learned strides.
        """
        key = quantized, pooled_sizes
        if key not in self._phases:
            self._phases[key] = self._make_phase(*key)
        return self._phases[key]

    def _make_phase(self, quantized: bool, pooled_sizes: tuple[int, ...]) -> Phase:
        config, classes = self.config, len(self.dataset.class_names)
        if pooled_sizes:
            config = with_fields(config, {"model.pooled_sizes": pooled_sizes})
        model = models.make_model(config, classes, quantized=quantized, axis_name=parallel.AXIS)
        plan = plan_of(config, classes, self.dataset.image_shape)
        common: dict[str, Any] = {
            "model": model,
            "settings": dataclasses.replace(self.settings, plan=plan),
            "axis_name": parallel.AXIS,
        }
        one_step = functools.partial(
            train_step, optimizer=self.optimizer, quantized=quantized, **common
        )
        train, statistics = (
            functools.partial(in_turn, step) if self.source.together > 1 else step
            for step in (one_step, functools.partial(statistics_step, **common))
        )
        return Phase(
            quantized=quantized,
            train=parallel.parallel(train, donate_state=True),
            eval_step=parallel.parallel(functools.partial(eval_step, **common), donate_state=False),
            statistics=parallel.parallel(statistics, donate_state=True),
        )
