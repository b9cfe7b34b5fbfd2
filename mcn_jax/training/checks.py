"""Checks a whole config before any work starts."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from mcn_jax import models
from mcn_jax.config import SAME, BinarizeConfig, Config, LossConfig, ModelConfig, flatten
from mcn_jax.data.checks import check_augmentation, check_data
from mcn_jax.data.facts import DATASETS
from mcn_jax.errors import InputError, require, require_one_of
from mcn_jax.layers.family import Family
from mcn_jax.layers.planes import check_input
from mcn_jax.layers.pooling import POOLINGS
from mcn_jax.layers.table import LAYERS
from mcn_jax.models.plan import plan_of
from mcn_jax.ops.binarize import CENTERS
from mcn_jax.training import optim
from mcn_jax.training.losses import DATA_LOSSES, THETA_SCHEDULES
from mcn_jax.training.phases import quantizes
from mcn_jax.training.warm_start import excluded_layers

AT_LEAST_ONE = (
    "batch_size", "eval_batch_size", "num_epochs", "log_every_steps",
    "model.planes", "model.dense_features", "stride_update_steps",
)  # fmt: skip
NOT_NEGATIVE = (
    "seed", "model.m_noise", "loss.theta", "loss.center_loss_weight", "binarize.start_epoch",
    "binarize.refresh_epochs", "optimizer.learning_rate", "optimizer.m_learning_rate",
    "optimizer.filter_map_rate_scale", "optimizer.m_decay",
    "optimizer.weight_decay", "optimizer.warmup_epochs", "steps_per_dispatch",
    "checkpoint_every_steps", "loss.stride_cost", "optimizer.average_epochs", "batch_norm_steps",
)  # fmt: skip
# Fields that some layers read, what these layers are, and how they are known.
OF_LAYERS: tuple[tuple[tuple[str, ...], str, Callable[[Family], Any]], ...] = (
    (
        ("model.plane_signs", "model.m_init", "optimizer.m_momentum", "optimizer.m_decay",
         "optimizer.center_latents", "loss.theta_schedule"),
        "mcconv", lambda family: family.takes_planes,
    ),
    (
        ("binarize.centers", "binarize.num_centers"),
        "mcconv and filter_map_kmeans", lambda family: family.refresh,
    ),
    (("binarize.estimator",), "mcconv, irnet and recu", lambda family: family.advance),
    (("binarize.k_gradient",), "xnor", lambda family: family is LAYERS["xnor"]),
)  # fmt: skip


def validate(config: Config, num_devices: int = 1, *, is_new: bool = True) -> None:
    """Checks every value of a config, and that the devices divide the batch.

    Args:
        config: the run's config.
        num_devices: number of devices over all processes.
        is_new: whether the run begins. A run that resumes may have been begun with fields that no
            layer reads, and must keep them.

    Raises:
        InputError: if a value is wrong. The error names the value and what is allowed.
    """
    flat = flatten(config)
    for name, value in flat.items():
        if isinstance(value, float):
            require(math.isfinite(value), name, value, "must be finite")
    for name in AT_LEAST_ONE:
        require(flat[name] >= 1, name, flat[name], "must be at least 1")
    for name in NOT_NEGATIVE:
        require(flat[name] >= 0, name, flat[name], "must not be negative")
    for name in ("model.dropout_rate", "optimizer.momentum"):
        require(0 <= flat[name] < 1, name, flat[name], "must lie in [0, 1)")
    for name in (
        "loss.center_loss_rate", "loss.distillation", "optimizer.schedule_factor",
        "optimizer.schedule_final",
    ):  # fmt: skip
        require(0 < flat[name] <= 1, name, flat[name], "must lie in (0, 1]")
    decay = config.optimizer.latent_weight_decay
    holds = decay >= 0 or decay == SAME
    message = "must not be negative, except that -1 takes config.optimizer.weight_decay"
    require(holds, "optimizer.latent_weight_decay", decay, message)
    require(config.seed < 2**32, "seed", config.seed, "must be below 2^32")
    require_one_of("dtype", config.dtype, ("float32", "bfloat16", "float64"))
    require_one_of("param_dtype", config.param_dtype, ("float32", "float64"))
    if config.dtype == "float64":
        message = 'must be "float64" if config.dtype is "float64"'
        require(config.param_dtype == "float64", "param_dtype", config.param_dtype, message)
    require_one_of("loss.data", config.loss.data, DATA_LOSSES)
    require_one_of("loss.theta_schedule", config.loss.theta_schedule, THETA_SCHEDULES)
    check_data(config.data)
    models.check(config)
    _check_optimizer(config)
    require_one_of("binarize.centers", config.binarize.centers, CENTERS)
    if is_new:
        _check_of_layers(config)
    _check_centers(config.binarize)
    _check_teacher(config.loss)
    learns = POOLINGS[config.model.pooling].learns_strides
    require(
        not (learns and config.loss.center_loss_weight),
        "model.pooling",
        config.model.pooling,
        "changes the size of images in training, but the center loss has a mean for each pixel; set"
        " config.loss.center_loss_weight=0",
    )
    limit = config.optimizer.stride_limit
    require(limit == 0 or limit >= 1, "optimizer.stride_limit", limit, "must be 0 or at least 1")
    require(
        not config.model.pooled_sizes,
        "model.pooled_sizes",
        config.model.pooled_sizes,
        "is found by training; leave it ()",
    )
    require(
        not (config.data.mixup and config.loss.center_loss_weight),
        "data.mixup",
        config.data.mixup,
        "mixes images of two classes, but the center loss needs one class per image; set it or"
        " config.loss.center_loss_weight to 0",
    )
    facts = DATASETS.get(config.data.name)
    if facts is not None:
        height, width, channels = facts.image_shape
        size = config.data.image_size
        shape = (size or height or 0, size or width or 0, channels)
        known = "train" in facts.examples and config.data.train_split == "train"
        validate_for_data(config, shape, facts.examples["train"] if known else None)
    require(
        bool(config.init_from) or not config.init_exclude,
        "init_exclude",
        config.init_exclude,
        "needs config.init_from, the work directory of the run to start from",
    )
    if quantizes(config):
        require(
            config.binarize.start_epoch < config.num_epochs,
            "binarize.start_epoch",
            config.binarize.start_epoch,
            f"leaves none of the {config.num_epochs} epochs for binary filters; lower it, or set"
            " config.binarize.enabled=False to train a U-MCN",
        )
    _check_end(config)
    _check_batch(config, num_devices)


def validate_for_data(
    config: Config, image_shape: tuple[int, int, int], num_examples: int | None
) -> None:
    """Checks that batch, network and layer names fit the data, and layer options the layer sizes.

    Args:
        config: the run's config.
        image_shape: (Y, X, C) of the images as the model sees them.
        num_examples: size of the training split; None if it is not known yet.

    Raises:
        InputError: if a value does not fit. The error names it.
    """
    if num_examples is not None:
        require(
            config.batch_size <= num_examples,
            "batch_size",
            config.batch_size,
            f"exceeds the {num_examples} training images of {config.data.name}; lower it",
        )
        most = num_examples // config.batch_size
        longest = optim.MOST_STEPS // most
        message = f"exceeds {longest}, the most epochs of {most} batches; lower it"
        require(config.num_epochs <= longest, "num_epochs", config.num_epochs, message)
        warmup = config.optimizer.warmup_epochs
        require(warmup <= longest, "optimizer.warmup_epochs", warmup, message)
        message = f"exceeds the {most} batches of the training images; lower it"
        require(
            config.batch_norm_steps <= most, "batch_norm_steps", config.batch_norm_steps, message
        )
    model = config.model
    height, width, channels = image_shape
    check_augmentation(config.data, height, width)
    models.MODELS[model.name].check_image_size(model, height, width)
    if LAYERS[models.stem_conv(model)].takes_planes:
        check_input(model.input_planes, channels, model.planes, config.data.name)
    # With too many centers, or an M that cannot start so, planning fails, and its error does not
    # name the config field. So plan with 2 centers and the usual M; check_layer then rejects the
    # values in the config with a clear error.
    binarize = dataclasses.replace(config.binarize, num_centers=2)
    usual = dataclasses.replace(model, m_init=ModelConfig.m_init)
    plan = plan_of(dataclasses.replace(config, binarize=binarize, model=usual), 2, image_shape)
    smallest_first = sorted(plan, key=lambda layer: sum(map(math.prod, layer.params.values())))
    for layer in smallest_first:
        layer.family.check_layer(layer, config)
    excluded_layers(config, image_shape)


def _check_optimizer(config: Config) -> None:
    optimizer = config.optimizer
    require_one_of("optimizer.name", optimizer.name, optim.OPTIMIZERS)
    require_one_of("optimizer.schedule", optimizer.schedule, optim.SCHEDULES)
    epochs = optimizer.schedule_epochs
    increase = list(epochs) == sorted(set(epochs)) and min(epochs, default=0) >= 0
    require(increase, "optimizer.schedule_epochs", epochs, "must increase, from 0 or more")
    require_one_of("optimizer.m_decay_target", optimizer.m_decay_target, optim.DECAY_TARGETS)
    momentum = optimizer.m_momentum
    holds = 0 <= momentum < 1 or momentum == SAME
    message = "must lie in [0, 1), except that -1 takes config.optimizer.momentum"
    require(holds, "optimizer.m_momentum", momentum, message)
    message = f"needs config.optimizer.name=sgd, because {optimizer.name} has no momentum to set"
    require(momentum == SAME or optimizer.name == "sgd", "optimizer.m_momentum", momentum, message)


def _check_of_layers(config: Config) -> None:
    """Raises InputError if a field is set that no layer of the network reads."""
    families = [LAYERS[kind] for kind in models.convolution_kinds(config.model).values()]
    flat, default = flatten(config), flatten(Config())
    for names, layers, reads in OF_LAYERS:
        if any(map(reads, families)):
            continue
        message = f"is read only by {layers}, and the network has no such layer; leave it out"
        for name in names:
            require(flat[name] == default[name], name, flat[name], message)


def _check_centers(binarize: BinarizeConfig) -> None:
    holds = binarize.centers != "symmetric" or binarize.num_centers == 2
    message = 'must be 2 with config.binarize.centers="symmetric"'
    require(holds, "binarize.num_centers", binarize.num_centers, message)


def _check_teacher(loss: LossConfig) -> None:
    temperature = loss.temperature
    require(temperature > 0, "loss.temperature", temperature, "must be greater than 0")
    if loss.teacher:
        message = "must be 'softmax' with config.loss.teacher, because softmax outputs are compared"
        require(loss.data == "softmax", "loss.data", loss.data, message)
        return
    for name in ("distillation", "temperature"):
        value, usual = getattr(loss, name), getattr(LossConfig, name)
        require(
            value == usual,
            f"loss.{name}",
            value,
            "is only for runs with a teacher; set config.loss.teacher, or leave this field out",
        )


def _check_end(config: Config) -> None:
    name, epochs = "optimizer.average_epochs", config.optimizer.average_epochs
    if not epochs:
        return
    most, kind = config.num_epochs, "epochs"
    if quantizes(config):
        most, kind = most - config.binarize.start_epoch, "epochs with quantized filters"
    require(epochs <= most, name, epochs, f"must be at most {most}, the number of {kind}")
    message = "needs config.batch_norm_steps, such as 100: averaged weights have other statistics"
    require(config.batch_norm_steps > 0, name, epochs, message)


def _check_batch(config: Config, num_devices: int) -> None:
    unit = (2 if config.data.mixup else 1) * num_devices
    if config.batch_size % unit:
        below = config.batch_size // unit * unit
        nearest = [str(n) for n in (below, below + unit) if n]
        raise InputError(
            f"config.batch_size={config.batch_size} is not divisible by"
            f" {'2 times ' if config.data.mixup else ''}the {num_devices} devices;"
            f" the nearest valid sizes: {' and '.join(nearest)}"
        )
