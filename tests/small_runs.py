"""Trains small but real runs that several test files share."""

import dataclasses
import shutil
from typing import NamedTuple

import jax
import numpy as np

from mcn_jax import models
from mcn_jax.config import (
    BinarizeConfig,
    Config,
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
)
from mcn_jax.data.batches import Split
from mcn_jax.data.dataset import open_dataset
from mcn_jax.data.facts import DATASETS
from mcn_jax.layers.family import PlannedLayer
from mcn_jax.models.plan import plan_of
from mcn_jax.training import optim
from mcn_jax.training.state import create_state, from_saved_tree, saved_tree
from mcn_jax.training.steps import StepSettings
from mcn_jax.workdirs.checkpoint import Checkpoints

STEPS_PER_EPOCH = 44
TIMES = ("wall_seconds", "images_per_second")


def digits_config(data_dir="", **changes):
    """Returns the config of a narrow two-layer MCN on digits; `changes` are fields of `Config`."""
    config = Config(
        batch_size=32,
        num_epochs=4,
        eval_batch_size=100,
        log_every_steps=10,
        data=DataConfig(name="digits", data_dir=data_dir, crop_padding=2),
        model=ModelConfig(widths=(2, 4), dense_features=32, dropout_rate=0.2),
        binarize=BinarizeConfig(start_epoch=2),
        loss=LossConfig(theta=1e-3),
        optimizer=OptimizerConfig(learning_rate=0.05, schedule="cosine", warmup_epochs=1),
    )
    return dataclasses.replace(config, **changes)


def random_split(examples=64, size=16, seed=0):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 10, examples).astype(np.int32)
    images = generator.integers(0, 256, (examples, size, size, 1)).astype(np.uint8)
    return Split(images, labels)


def train_step_arguments(config, quantized, image_shape, axis_name=None):
    """Returns the keyword arguments of `train_step`, without a data set."""
    facts = DATASETS[config.data.name]
    channels = image_shape[2]
    classes = facts.classes or 10  # any number for an image folder
    plan = plan_of(config, classes, image_shape)
    schedule = (config.optimizer, STEPS_PER_EPOCH, config.num_epochs)
    return {
        "model": models.make_model(config, classes, quantized=quantized, axis_name=axis_name),
        "optimizer": optim.make_optimizer(*schedule, plan),
        "settings": StepSettings(
            config=config,
            plan=plan,
            learning_rate=optim.learning_rate(*schedule),
            num_steps=STEPS_PER_EPOCH * config.num_epochs,
            mean=facts.mean or (0.5,) * channels,
            std=facts.std or (0.25,) * channels,
        ),
        "quantized": quantized,
        "axis_name": axis_name,
    }


def step_arguments(config, quantized, axis_name=None, image_size=16, channels=1):
    """Returns (initial state, keyword arguments of `train_step`)."""
    image_shape = (image_size, image_size, channels)
    arguments = train_step_arguments(config, quantized, image_shape, axis_name)
    model = models.make_model(config, arguments["model"].num_classes, quantized=quantized)
    plan = arguments["settings"].plan
    state = create_state(config, model, arguments["optimizer"], plan, image_shape)
    return jax.device_get(state), arguments


def without_times(records):
    """Returns records without what differs between equal runs."""
    return [{k: v for k, v in record.items() if k not in TIMES} for record in records]


def copy_after(patch, step, copy):
    """Makes `patch` copy the work directory of a run once its checkpoint of a step is written.

    The copy is what a kill at that moment would leave.
    """
    save = Checkpoints.save

    def save_and_copy(self, saved, *arguments):
        save(self, saved, *arguments)
        if saved == step:
            self.wait()
            shutil.copytree(self.directory.parent, copy)

    patch.setattr(Checkpoints, "save", save_and_copy)


def restored(checkpoints, step, template):
    """Restores the state of a checkpoint from the end of an epoch."""
    state, progress = from_saved_tree(checkpoints.restore(step, saved_tree(template)))
    assert progress is None
    return state


def planned(name, family, state=(), settings=(), **params):
    """Returns a planned layer with these parameters; its other sizes are left empty."""
    shapes = {leaf: np.shape(value) for leaf, value in params.items()}
    return PlannedLayer(
        name=name,
        family=family,
        params=shapes,
        state=dict(state),
        settings=dict(settings),
        in_shape=(),
        out_shape=(),
    )


def relative_distance(a, b):
    """Returns ||a - b|| / ||b||, or 0 if both are zero."""
    norm = np.linalg.norm(np.asarray(b, np.float64))
    distance = np.linalg.norm(np.asarray(a, np.float64) - np.asarray(b, np.float64))
    return distance / norm if norm else distance


class Loaded(NamedTuple):
    """Both splits of a data set in memory."""

    train: Split
    test: Split


def load(**config):
    """Prepares and reads a data set; `config` are fields of `DataConfig`."""
    dataset = open_dataset(DataConfig(**config))
    return Loaded(dataset.train.read_all(), dataset.test.read_all())
