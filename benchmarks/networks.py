"""Builds whole training steps, as the training loop runs them, on random data."""

import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from mcn_jax import models
from mcn_jax.config import Config, from_config_dict, load_config_file
from mcn_jax.data.batches import Batch, Split
from mcn_jax.data.facts import DATASETS
from mcn_jax.models.plan import plan_of
from mcn_jax.training import optim
from mcn_jax.training.state import TrainState, create_state
from mcn_jax.training.steps import StepSettings, train_step, train_steps


class TrainingStep:
    """A program of one or several training steps on one device, compiled when it is first used.

    Each call continues from the state after the previous call. The device is not used before
    something is compiled or called.

    Attributes:
        lowered: see `jax.stages.Lowered`.
        settings: see `mcn_jax.training.steps.StepSettings`.
    """

    def __init__(
        self,
        config: Config,
        batch_size: int,
        *,
        quantized: bool,
        form: str = "auto",
        steps: int = 1,
    ):
        """Builds and lowers the program.

        Args:
            config: of the run. Random images of the same shape replace its data set.
            batch_size: replaces the batch size of the config.
            quantized: whether the step uses quantized weights.
            form: of MCconv.
            steps: number of steps in one program, all with the same batch.
        """
        facts = DATASETS[config.data.name]
        generator = np.random.default_rng(0)
        count = facts.examples["train"]
        self._split = Split(
            generator.integers(0, 256, (count, *facts.image_shape), np.uint8),
            generator.integers(0, facts.classes, count).astype(np.int32),
        )
        rows = generator.choice(count, batch_size, replace=False).astype(np.int32)
        positions = np.arange(batch_size, dtype=np.int32)
        batch = Batch(rows, positions)
        if steps > 1:
            batch = jax.tree.map(lambda array: np.stack(steps * [array]), batch)
        self._batch = batch
        schedule = (config.optimizer, count // config.batch_size, config.num_epochs)
        plan = plan_of(config, facts.classes, facts.image_shape)
        optimizer = optim.make_optimizer(*schedule, plan)
        model = models.make_model(config, facts.classes, quantized=quantized)
        if config.model.conv == "mcconv":
            model = model.clone(conv=functools.partial(model.conv, form=form))
        rate = optim.learning_rate(*schedule)
        self.settings = StepSettings(
            config=config, plan=plan, learning_rate=rate, mean=facts.mean, std=facts.std,
            num_steps=schedule[1] * schedule[2],
        )  # fmt: skip
        self._create_state = functools.partial(
            create_state, config, model, optimizer, plan, facts.image_shape
        )
        step = functools.partial(
            train_steps if steps > 1 else train_step, model=model, optimizer=optimizer,
            settings=self.settings, quantized=quantized,
        )  # fmt: skip
        state = jax.eval_shape(self._create_state)
        self.lowered = jax.jit(step, donate_argnums=0).lower(state, self._split, self._batch)

    @functools.cached_property
    def compiled(self) -> jax.stages.Compiled:
        """The compiled program; the first use compiles it."""
        return self.lowered.compile()

    @functools.cached_property
    def split(self) -> Split:
        """The training images and labels, on the device."""
        return jax.device_put(self._split)

    @functools.cached_property
    def batch(self) -> Batch:
        """The rows of `split` in the batch, and their positions, on the device."""
        return jax.device_put(self._batch)

    @functools.cached_property
    def state(self) -> TrainState:
        """The training state after the last call."""
        return self._create_state()

    def __call__(self) -> dict[str, jax.Array]:
        """Runs the steps and returns their metrics."""
        self.state, metrics = self.compiled(self.state, self.split, self.batch)
        return metrics


def load(path: pathlib.Path, fields: Mapping[str, Any] | None = None) -> Config:
    """Returns the config of a file with some fields changed, such as {"model.conv": "conv"}."""
    config = load_config_file(path)
    config.update_from_flattened_dict(dict(fields or {}))
    return from_config_dict(config)
