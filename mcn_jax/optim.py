"""Parameter groups, learning-rate schedules and the optax chains of an MCN."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from mcn_jax import ops
from mcn_jax.config import OptimizerConfig
from mcn_jax.layers import modulated_layers

# The last name of a parameter's path decides its group.
GROUPS = {
    "latent_filters": "latent_filters",
    "m_filters": "m_filters",
    "kernel": "kernels",
    "bias": "biases_and_batch_norm",
    "scale": "biases_and_batch_norm",
}


def parameter_groups(params: Mapping[str, Any]) -> dict[str, Any]:
    """The group of every parameter, as a tree of names like `params`.

    Raises:
        ValueError: naming the parameter that belongs to no group.
    """
    flat = traverse_util.flatten_dict(params)
    for path in flat:
        if path[-1] not in GROUPS:
            raise ValueError(
                f"parameter {'/'.join(path)} belongs to no group of the optimizer; its name must"
                f" be one of {', '.join(GROUPS)}"
            )
    return traverse_util.unflatten_dict({path: GROUPS[path[-1]] for path in flat})


def describe_groups(params: Mapping[str, Any]) -> str:
    """One line with the number of arrays and of parameters in every group."""
    sizes: dict[str, list[int]] = {}
    groups = jax.tree.leaves(parameter_groups(params))
    for group, leaf in zip(groups, jax.tree.leaves(params), strict=True):
        sizes.setdefault(group, []).append(leaf.size)
    return "parameters: " + ", ".join(
        f"{group} {sum(leaves):,} in {len(leaves)}" for group, leaves in sorted(sizes.items())
    )


def _step_schedule(config: OptimizerConfig, steps_per_epoch: int, num_epochs: int):
    del num_epochs
    return optax.piecewise_constant_schedule(
        1.0, {epoch * steps_per_epoch: config.schedule_factor for epoch in config.schedule_epochs}
    )


def _cosine_schedule(config: OptimizerConfig, steps_per_epoch: int, num_epochs: int):
    del config
    total = num_epochs * steps_per_epoch
    return lambda step: 0.5 * (1 + jnp.cos(math.pi * jnp.minimum(step / total, 1.0)))


def _constant_schedule(config: OptimizerConfig, steps_per_epoch: int, num_epochs: int):
    del config, steps_per_epoch, num_epochs
    return optax.constant_schedule(1.0)


SCHEDULES = {"step": _step_schedule, "cosine": _cosine_schedule, "constant": _constant_schedule}


def rate_scale(config: OptimizerConfig, steps_per_epoch: int, num_epochs: int) -> optax.Schedule:
    """step -> factor in [0, 1] of both learning rates.

    During the first `warmup_epochs` the schedule's factor is multiplied by (step + 1) / warm-up
    steps; after that it is left as it is.
    """
    scale = SCHEDULES[config.schedule](config, steps_per_epoch, num_epochs)
    warmup_steps = config.warmup_epochs * steps_per_epoch
    if not warmup_steps:
        return scale
    return lambda step: scale(step) * jnp.minimum((step + 1) / warmup_steps, 1.0)


def learning_rate(config: OptimizerConfig, steps_per_epoch: int, num_epochs: int) -> optax.Schedule:
    """step -> eta1."""
    scale = rate_scale(config, steps_per_epoch, num_epochs)
    return lambda step: config.learning_rate * scale(step)


def absolute_projection() -> optax.GradientTransformation:
    """Makes the parameters |p + u| after the update u (Eq. 15: M <- |M - eta2 * dM|).

    The emitted update is |p + u| - p. In floating point p + (|p + u| - p) may miss |p + u| by a
    rounding, and yet is never negative: |p + u| - p >= -p, and rounding keeps that order.
    Must be the last transformation of its chain.
    """

    def update(updates, state, params):
        if params is None:
            raise ValueError("absolute_projection needs params: update(updates, state, params)")
        return jax.tree.map(lambda u, p: jnp.abs(p + u) - p, updates, params), state

    return optax.GradientTransformation(optax.init_empty_state, update)


def _sgd(rate: optax.Schedule, config: OptimizerConfig) -> optax.GradientTransformation:
    return optax.sgd(rate, momentum=config.momentum, nesterov=True)


def _adadelta(rate: optax.Schedule, config: OptimizerConfig) -> optax.GradientTransformation:
    del config
    return optax.adadelta(rate)


OPTIMIZERS = {"sgd": _sgd, "adadelta": _adadelta}


def make_optimizer(
    config: OptimizerConfig, steps_per_epoch: int, num_epochs: int
) -> optax.GradientTransformation:
    """One chain for each group of `parameter_groups`.

    Weight decay comes before the momentum, so that it is an L2 term of the loss; it is kept from
    M, biases and batch norm. M has a learning rate of its own, and its chain ends in the
    absolute-value projection: whatever comes after it could make M negative again.
    """
    scale = rate_scale(config, steps_per_epoch, num_epochs)
    make = OPTIMIZERS[config.name]

    def base(rate: float) -> optax.GradientTransformation:
        return make(lambda step: rate * scale(step), config)

    decay = optax.add_decayed_weights(config.weight_decay)
    return optax.partition(
        {
            "latent_filters": optax.chain(decay, base(config.learning_rate)),
            "kernels": optax.chain(decay, base(config.learning_rate)),
            "biases_and_batch_norm": base(config.learning_rate),
            "m_filters": optax.chain(base(config.m_learning_rate), absolute_projection()),
        },
        parameter_groups,
    )


def projection_penalty(
    params: Mapping[str, Any],
    centers: Mapping[str, Any],
    data_gradients: Mapping[str, Any],
    learning_rate: jax.Array,
) -> dict[str, Any]:
    """The third term of Eq. 10 without theta: C - C-hat + eta1 * dL_S/dC for latent filters.

    It is the gradient of 1/2 * ||C-hat - eta1 * dL_S/dC-hat - C||^2 with the first two terms held
    constant, as the authors' book prints it (its Eq. 3.19); the sign in the paper would push C
    away from its center. Straight through, dL_S/dC-hat is dL_S/dC, so that no second backward
    pass is needed.

    Args:
        params: tree of parameters.
        centers: the "centers" collection.
        data_gradients: gradient of the softmax loss (and center loss, where it is used), as params.
        learning_rate: eta1 of this step.

    Returns:
        A tree like `params`, zero outside latent filters.
    """
    flat_centers = traverse_util.flatten_dict(centers)
    flat_gradients = traverse_util.flatten_dict(data_gradients)
    penalty = {path: jnp.zeros_like(value) for path, value in flat_gradients.items()}
    for path, layer in modulated_layers(params).items():
        latent = layer["latent_filters"]
        binary = ops.nearest_center(latent, flat_centers[*path, "centers"])
        gradient = flat_gradients[*path, "latent_filters"]
        penalty[*path, "latent_filters"] = latent - binary + learning_rate * gradient
    return traverse_util.unflatten_dict(penalty)
