"""Defines the training step and the evaluation step as pure functions of arrays.

The name of a mapped axis is all they know about devices. With `axis_name=None` they run unmapped
on one device.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import traverse_util
from jax import lax

from mcn_jax.config import Config
from mcn_jax.data.augment import Inputs, normalise, training_inputs
from mcn_jax.data.batches import Batch, EvalBatch, Split
from mcn_jax.layers.batch_norm import MOMENTUM
from mcn_jax.models.plan import Plan
from mcn_jax.seeds import Purpose, example_keys
from mcn_jax.training import losses
from mcn_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepSettings:
    """What the steps need besides arrays.

    plan: plan of the network.
    learning_rate: schedule step -> eta1.
    num_steps: steps of the whole training.
    mean, std: mean and standard deviation of each channel, for pixels in [0, 1].
    teacher: the network of `TrainState.teacher`; None without a teacher.
    """

    config: Config
    plan: Plan
    learning_rate: optax.Schedule
    num_steps: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    teacher: nn.Module | None = None


def train_step(
    state: TrainState,
    split: Split,
    batch: Batch,
    *,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    settings: StepSettings,
    quantized: bool,
    axis_name: str | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Runs one step: augmentation, forward pass, backward pass and update of all parameters.

    Args:
        state: state before the step.
        split: the training split.
        batch: this device's part of the batch.
        model: from `make_model`, with the same `quantized` and `axis_name`.
        optimizer: from `make_optimizer`.
        settings: see `StepSettings`.
        quantized: whether the penalties of quantized layers apply.
        axis_name: the mapped axis over which gradients and metrics are averaged.

    Returns:
        The state after the step, and the metrics: scalars that are equal on every device.
    """
    config, loss_config, plan = settings.config, settings.config.loss, settings.plan
    inputs = step_inputs(split, batch, state.step, settings)
    dropout_keys = _dropout_keys(batch, inputs, state.step, config.seed)
    taught = None
    if settings.teacher is not None:
        outputs: Any = settings.teacher.apply(state.teacher, inputs.images)
        taught = outputs.logits
    progress = state.step / settings.num_steps
    if quantized:
        state = _advanced(state, plan, progress)

    def data_loss(params):
        outputs, updated = model.apply(
            state.variables | {"params": params},
            inputs.images,
            train=True,
            dropout_keys=dropout_keys,
            mutable=["batch_stats"],
        )
        logits = outputs.logits.astype(jnp.dtype(config.param_dtype))
        softmax = losses.data_loss(logits, inputs, loss_config.data)
        center = jnp.zeros_like(softmax)
        if state.class_means is not None:
            center = losses.center_loss(outputs.features, inputs.labels, state.class_means)
        accuracy = losses.accuracy(logits, inputs)
        metrics = {"softmax_loss": softmax, "center_loss": center, "accuracy": accuracy}
        total = softmax
        if taught is not None:
            distillation = losses.distillation(logits, taught, loss_config.temperature)
            metrics["distillation_loss"] = distillation
            share = loss_config.distillation
            total = (1 - share) * softmax + share * distillation
        total += loss_config.center_loss_weight * center
        if loss_config.stride_cost:
            metrics["stride_cost"] = losses.stride_cost(params, plan).astype(softmax.dtype)
            total += loss_config.stride_cost * metrics["stride_cost"]
        return total, (metrics, updated["batch_stats"], outputs.features)

    gradients, (metrics, batch_stats, features) = jax.grad(data_loss, has_aux=True)(state.params)
    if axis_name is not None:
        gradients, metrics = lax.pmean((gradients, metrics), axis_name)

    metrics["filter_loss"] = jnp.zeros_like(metrics["softmax_loss"])
    learning_rate = jnp.asarray(settings.learning_rate(state.step), metrics["softmax_loss"].dtype)
    if quantized:
        gradients, metrics["filter_loss"] = losses.with_penalties(
            gradients,
            state.params,
            state.collections,
            plan,
            loss_config,
            learning_rate,
            progress.astype(learning_rate.dtype),
        )
    metrics["learning_rate"] = learning_rate
    metrics["gradient_norm"] = optax.tree.norm(gradients)

    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics["parameter_norm"] = optax.tree.norm((params, batch_stats))
    metrics |= _ranges(params, plan)
    class_means = state.class_means
    if class_means is not None:
        class_means = losses.moved_class_means(
            class_means, features, inputs.labels, loss_config.center_loss_rate, axis_name
        )
    new_state = TrainState(
        step=state.step + 1,
        params=params,
        batch_stats=batch_stats,
        layer_state=state.layer_state,
        class_means=class_means,
        opt_state=opt_state,
        teacher=state.teacher,
    )
    return new_state, metrics


def in_turn(
    step: Callable[..., tuple[TrainState, Any]],
    state: TrainState,
    split: Split,
    batches: Batch,
    **arguments: Any,
) -> tuple[TrainState, Any]:
    """Runs several steps in one program, so the host dispatches only once.

    Args:
        step: `train_step` or `statistics_step`.
        state: state before the first step.
        split: the training split.
        batches: this device's part of the batches; each array has a leading axis of steps.
        **arguments: keyword arguments of the step.

    Returns:
        The state after the last step, and each other result of all steps, such as [steps] of a
        metric.
    """
    return lax.scan(lambda state, batch: step(state, split, batch, **arguments), state, batches)


train_steps = functools.partial(in_turn, train_step)


def step_inputs(split: Split, batch: Batch, step: jax.Array, settings: StepSettings) -> Inputs:
    """Returns the data of a training step: rows of the split, augmented and normalised."""
    config = settings.config
    return training_inputs(
        split,
        batch,
        lambda purpose: example_keys(config.seed, purpose, step, batch.positions),
        config.data,
        mean=settings.mean,
        std=settings.std,
        dtype=jnp.dtype(config.dtype),
    )


def statistics_step(
    state: TrainState,
    split: Split,
    batch: Batch,
    *,
    model: nn.Module,
    settings: StepSettings,
    axis_name: str | None = None,
) -> tuple[TrainState, Any]:
    """Computes the statistics of batch norm for one training batch, without an update.

    Args:
        state: state before the step, whose running statistics do not matter.
        split: the training split.
        batch: this device's part of the batch.
        model: from `make_model`, with the same `axis_name`.
        settings: see `StepSettings`.
        axis_name: the mapped axis over whose devices the batch is split.

    Returns:
        The state, whose step alone is one greater, and a tree like its `batch_stats`.
    """
    del axis_name  # the model reduces over it
    inputs = step_inputs(split, batch, state.step, settings)
    _, updated = model.apply(
        state.variables | {"batch_stats": jax.tree.map(jnp.zeros_like, state.batch_stats)},
        inputs.images,
        train=True,
        dropout_keys=_dropout_keys(batch, inputs, state.step, settings.config.seed),
        mutable=["batch_stats"],
    )
    statistics = jax.tree.map(lambda x: x / (1 - MOMENTUM), updated["batch_stats"])
    return dataclasses.replace(state, step=state.step + 1), statistics


def _dropout_keys(batch: Batch, inputs: Inputs, step: jax.Array, seed: int) -> jax.Array:
    """Returns a key for each image of a step; a mixed image takes that of its first one."""
    positions = batch.positions[:: len(batch.positions) // len(inputs.labels)]
    return example_keys(seed, Purpose.DROPOUT, step, positions)


def _advanced(state: TrainState, plan: Plan, progress: jax.Array) -> TrainState:
    """Returns the state with the layers' state of this step; see `Family.advance`."""
    flat = traverse_util.flatten_dict(state.layer_state)
    for layer in plan:
        if layer.family.advance is None:
            continue
        own = layer.state_in(state.collections)
        for leaf, value in layer.family.advance(own, progress).items():
            path = (layer.state[leaf], *layer.path, *leaf.split("/"))
            flat[path] = value.astype(flat[path].dtype)
    return dataclasses.replace(state, layer_state=traverse_util.unflatten_dict(flat))


def _ranges(params: Any, plan: Plan) -> dict[str, jax.Array]:
    """Returns {"m_min": ..., "m_max": ...}, the range over all layers of watched parameters."""
    watched: dict[str, list[jax.Array]] = {}
    for layer in plan:
        p = layer.params_in(params)
        for leaf, name in layer.family.watched.items():
            watched.setdefault(name, []).append(p[leaf])
    found: dict[str, jax.Array] = {}
    for name, leaves in watched.items():
        found[f"{name}_min"] = jnp.min(jnp.stack([jnp.min(leaf) for leaf in leaves]))
        found[f"{name}_max"] = jnp.max(jnp.stack([jnp.max(leaf) for leaf in leaves]))
    return found


def eval_step(
    state: TrainState,
    split: Split,
    batch: EvalBatch,
    *,
    model: nn.Module,
    settings: StepSettings,
    axis_name: str | None = None,
) -> dict[str, jax.Array]:
    """Sums "loss", "correct" and "examples" over a batch, leaving out its padding."""
    labels = split.labels[batch.indices]
    images = normalise(
        split.images[batch.indices],
        settings.mean,
        settings.std,
        jnp.dtype(settings.config.dtype),
    )
    outputs: Any = model.apply(state.variables, images)
    logits = outputs.logits.astype(jnp.dtype(settings.config.param_dtype))
    loss = losses.DATA_LOSSES[settings.config.loss.data](logits, labels)
    sums = {
        "loss": jnp.sum(jnp.where(batch.mask, loss, 0)),
        "correct": jnp.sum(batch.mask & (jnp.argmax(logits, axis=-1) == labels)),
        "examples": jnp.sum(batch.mask),
    }
    return sums if axis_name is None else lax.psum(sums, axis_name)
