"""Builds the optimizer: parameter groups, learning-rate schedules and one chain per group."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from mcn_jax.config import OptimizerConfig
from mcn_jax.layers.family import Group
from mcn_jax.layers.table import GROUPS
from mcn_jax.models.plan import Plan
from mcn_jax.ops.binarize import centered

MOST_STEPS = 2**31 - 1  # of a run, because they are counted in int32


def parameter_groups(plan: Plan) -> dict[str, Any]:
    """Returns every parameter's group name, as a tree like the network's "params"."""
    return traverse_util.unflatten_dict(
        {
            (*layer.path, *leaf.split("/")): layer.family.groups[leaf].name
            for layer in plan
            for leaf in layer.params
        }
    )


def describe_groups(plan: Plan) -> str:
    """Returns one line with the number of parameters and of arrays in every group."""
    sizes: dict[str, list[int]] = {}
    for layer in plan:
        for leaf, shape in layer.params.items():
            sizes.setdefault(layer.family.groups[leaf].name, []).append(math.prod(shape))
    return "parameters: " + ", ".join(
        f"{group} {sum(leaves):,} in {len(leaves)}" for group, leaves in sorted(sizes.items())
    )


def _step_schedule(config: OptimizerConfig, steps_per_epoch: int, num_epochs: int):
    del num_epochs
    steps = [epoch * steps_per_epoch for epoch in config.schedule_epochs]
    return optax.piecewise_constant_schedule(
        1.0, {step: config.schedule_factor for step in steps if step <= MOST_STEPS}
    )


def _cosine_schedule(config: OptimizerConfig, steps_per_epoch: int, num_epochs: int):
    del config
    total = num_epochs * steps_per_epoch
    return lambda step: 0.5 * (1 + jnp.cos(math.pi * jnp.minimum(step / total, 1.0)))


def _exponential_schedule(config: OptimizerConfig, steps_per_epoch: int, num_epochs: int):
    final = config.schedule_final
    return lambda step: final ** jnp.minimum(step // steps_per_epoch / num_epochs, 1.0)


def _constant_schedule(config: OptimizerConfig, steps_per_epoch: int, num_epochs: int):
    del config, steps_per_epoch, num_epochs
    return optax.constant_schedule(1.0)


SCHEDULES = {
    "step": _step_schedule,
    "cosine": _cosine_schedule,
    "exponential": _exponential_schedule,
    "constant": _constant_schedule,
}
OPEN_ENDED = ("step", "constant")  # schedules that do not depend on num_epochs


def rate_scale(config: OptimizerConfig, steps_per_epoch: int, num_epochs: int) -> optax.Schedule:
    """Returns the schedule step -> factor in [0, 1] that scales both learning rates.

    During the first `warmup_epochs` the factor is multiplied by (step + 1) / warm-up steps.
    """
    scale = SCHEDULES[config.schedule](config, steps_per_epoch, num_epochs)
    warmup_steps = config.warmup_epochs * steps_per_epoch
    if not warmup_steps:
        return scale
    return lambda step: scale(step) * jnp.minimum((step + 1) / warmup_steps, 1.0)


def learning_rate(config: OptimizerConfig, steps_per_epoch: int, num_epochs: int) -> optax.Schedule:
    """Returns the schedule step -> eta1."""
    scale = rate_scale(config, steps_per_epoch, num_epochs)
    return lambda step: config.learning_rate * scale(step)


def projected(projection: Callable[[jax.Array], jax.Array]) -> optax.GradientTransformation:
    """Returns a transformation that makes updated parameters projection(p + u) instead of p + u.

    p is a parameter and u its update. The emitted update is projection(p + u) - p. Adding it to p
    may miss projection(p + u) by a rounding error. The transformation must be the last of its
    chain.

    Args:
        projection: maps an array to an array of the same shape.
    """

    def update(updates, state, params):
        if params is None:
            raise ValueError("a projection needs params: update(updates, state, params)")
        return jax.tree.map(lambda u, p: projection(p + u) - p, updates, params), state

    return optax.GradientTransformation(optax.init_empty_state, update)


def absolute_projection() -> optax.GradientTransformation:
    """Returns a transformation that makes updated parameters |p + u| instead of p + u.

    This is Eq. 15: M <- |M - eta2 * dM|. Despite rounding, see `projected`, the sum is never
    negative: |p + u| - p >= -p, and rounding keeps that order.
    """
    return projected(jnp.abs)


def pulled(weight: float, target: float) -> optax.GradientTransformation:
    """Returns a transformation that adds weight * (p - target) to the gradient of a parameter p.

    This is the gradient of weight/2 * ||p - target||^2; with a target of zero it is ordinary weight
    decay.
    """

    def update(updates, params):
        if params is None:
            raise ValueError("a decay needs params: update(updates, state, params)")
        return jax.tree.map(lambda u, p: u + weight * (p - target), updates, params)

    return optax.stateless(update)


class Averaged(NamedTuple):
    """State of `averaged`.

    updates: number of updates done, a scalar.
    mean: mean of the parameters, a tree like them; until an update counts, the parameters.
    inner: state of the averaged optimizer.
    """

    updates: jax.Array
    mean: Any
    inner: Any


def averaged(optimizer: optax.GradientTransformation, first: int) -> optax.GradientTransformation:
    """Returns an optimizer that also keeps the mean of the parameters after each of its updates.

    The updates are those of `optimizer`. This is the average of Polyak and Juditsky 1992 over the
    end of a training.

    Args:
        optimizer: the optimizer.
        first: how many updates are done before the first one that counts.
    """

    def init(params):
        return Averaged(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    def update(updates, state, params):
        updates, inner = optimizer.update(updates, state.inner, params)
        done = state.updates + 1
        counted = jnp.maximum(done - first, 1)
        moved = optax.apply_updates(params, updates)
        mean = jax.tree.map(lambda m, p: m + (p - m) / counted.astype(m.dtype), state.mean, moved)
        return updates, Averaged(done, mean, inner)

    return optax.GradientTransformation(init, update)


def _in_turn(functions: Sequence[Callable[[jax.Array], jax.Array]], x: jax.Array) -> jax.Array:
    for function in functions:
        x = function(x)
    return x


def _sgd(rate: optax.Schedule, config: OptimizerConfig) -> optax.GradientTransformation:
    return optax.sgd(rate, momentum=config.momentum, nesterov=config.nesterov)


def _adadelta(rate: optax.Schedule, config: OptimizerConfig) -> optax.GradientTransformation:
    del config
    return optax.adadelta(rate)


def _adam(rate: optax.Schedule, config: OptimizerConfig) -> optax.GradientTransformation:
    del config
    return optax.adam(rate)


DECAY_TARGETS = {"one": 1.0, "none": 0.0}
OPTIMIZERS = {"sgd": _sgd, "adadelta": _adadelta, "adam": _adam}


def _pull_of(group: Group, config: OptimizerConfig) -> tuple[float, float]:
    """Returns the weight and the target of the decay of a group; the weight 0 means none."""
    if group.pull is None:
        return 0.0, 0.0
    weight, target = (getattr(config, field) for field in group.pull)
    return weight, DECAY_TARGETS[target]


def make_optimizer(
    config: OptimizerConfig, steps_per_epoch: int, num_epochs: int, plan: Plan
) -> optax.GradientTransformation:
    """Builds one chain for each group of `parameter_groups`, as its `Group` describes it.

    Weight decay comes before momentum, so it acts as an L2 term of the loss. A projection ends its
    chain: a transformation after it could, for example, make parameters negative again. With
    `average_epochs`, the optimizer also averages the parameters over the last epochs; see
    `averaged`.
    """
    scale = rate_scale(config, steps_per_epoch, num_epochs)
    make = OPTIMIZERS[config.name]

    def chain(group: Group) -> optax.GradientTransformation:
        rate = getattr(config, group.rate)
        own = dataclasses.replace(config, momentum=getattr(config, group.momentum))
        base = make(lambda step: rate * scale(step), own)
        if group.decay is not None:
            base = optax.chain(optax.add_decayed_weights(getattr(config, group.decay)), base)
        weight, target = _pull_of(group, config)
        if weight:
            base = optax.chain(pulled(weight, target), base)
        limit = getattr(config, group.limit) if group.limit else 0
        projections: list[Callable[[jax.Array], jax.Array]] = []
        projections += [centered] if group.centered and getattr(config, group.centered) else []
        projections += [group.projection] if group.projection else []
        projections += [lambda x: jnp.minimum(x, limit)] if limit else []
        if not projections:
            return base
        return optax.chain(base, projected(lambda x: _in_turn(projections, x)))

    groups = dict(GROUPS)
    for layer in plan:
        for group in layer.family.groups.values():
            if groups.setdefault(group.name, group) != group:
                raise ValueError(
                    f"group {group.name!r} of {layer.name} is {group}, but elsewhere it is"
                    f" {groups[group.name]}; give it another name"
                )
    chains = {name: chain(group) for name, group in groups.items()}
    optimizer = optax.partition(chains, parameter_groups(plan))
    if config.average_epochs:
        optimizer = averaged(optimizer, (num_epochs - config.average_epochs) * steps_per_epoch)
    return optimizer
