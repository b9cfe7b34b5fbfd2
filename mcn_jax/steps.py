"""The training step and the evaluation step, as pure functions of arrays.

They know the name of a mapped axis and nothing else of devices: called with `axis_name=None` they
run as they stand, on one device.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from mcn_jax import losses, optim
from mcn_jax.config import Config
from mcn_jax.data.augment import Inputs, normalise, training_inputs
from mcn_jax.data.batches import Batch, EvalBatch, Split
from mcn_jax.layers import modulated_layers
from mcn_jax.seeds import Purpose, example_keys
from mcn_jax.state import TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepSettings:
    """What the steps need besides arrays.

    mean, std: of each channel of the pixels in [0, 1].
    """

    config: Config
    learning_rate: optax.Schedule
    mean: tuple[float, ...]
    std: tuple[float, ...]


def train_step(
    state: TrainState,
    split: Split,
    batch: Batch,
    *,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    settings: StepSettings,
    binarized: bool,
    axis_name: str | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step: augment, forward, backward, then the updates of C, M and the rest.

    Args:
        state: before the step.
        split: the training split.
        batch: of this device.
        model: from `make_model`, with the same `binarized` and `axis_name`.
        optimizer: from `make_optimizer`.
        settings: see `StepSettings`.
        binarized: whether filter loss and projection penalty apply.
        axis_name: of the mapped axis that gradients and metrics are averaged over.

    Returns:
        The state after the step, and metrics: scalars that are equal on every device.
    """
    config, loss_config = settings.config, settings.config.loss
    inputs = step_inputs(split, batch, state.step, settings)
    dropout_keys = example_keys(config.seed, Purpose.DROPOUT, state.step, batch.positions)

    def data_loss(params):
        outputs, updated = model.apply(
            state.variables | {"params": params},
            inputs.images,
            train=True,
            dropout_keys=dropout_keys,
            mutable=["batch_stats"],
        )
        logits = outputs.logits.astype(jnp.dtype(config.param_dtype))
        softmax = losses.softmax_loss(logits, inputs)
        center = jnp.zeros_like(softmax)
        if state.class_means is not None:
            center = losses.center_loss(outputs.features, inputs.labels, state.class_means)
        accuracy = losses.accuracy(logits, inputs)
        metrics = {"softmax_loss": softmax, "center_loss": center, "accuracy": accuracy}
        total = softmax + loss_config.center_loss_weight * center
        return total, (metrics, updated["batch_stats"], outputs.features)

    gradients, (metrics, batch_stats, features) = jax.grad(data_loss, has_aux=True)(state.params)
    if axis_name is not None:
        gradients, metrics = lax.pmean((gradients, metrics), axis_name)

    metrics["filter_loss"] = jnp.zeros_like(metrics["softmax_loss"])
    learning_rate = jnp.asarray(settings.learning_rate(state.step), metrics["softmax_loss"].dtype)
    if binarized:
        gradients, metrics["filter_loss"] = _add_regularizers(
            gradients, state, loss_config, learning_rate
        )
    metrics["learning_rate"] = learning_rate
    metrics["gradient_norm"] = optax.tree.norm(gradients)

    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics["parameter_norm"] = optax.tree.norm((params, batch_stats))
    metrics |= _m_range(params)
    class_means = state.class_means
    if class_means is not None:
        class_means = losses.moved_class_means(
            class_means, features, inputs.labels, loss_config.center_loss_rate, axis_name
        )
    new_state = TrainState(
        step=state.step + 1,
        params=params,
        batch_stats=batch_stats,
        centers=state.centers,
        class_means=class_means,
        opt_state=opt_state,
    )
    return new_state, metrics


def train_steps(
    state: TrainState, split: Split, batches: Batch, **arguments: Any
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Several steps in one program, so that the host is asked once for all of them.

    Args:
        state: before the first.
        split: the training split.
        batches: of this device, each array with a leading axis of steps.
        **arguments: of `train_step`.

    Returns:
        The state after the last step, and the metrics of each: [steps].
    """
    return lax.scan(
        lambda state, batch: train_step(state, split, batch, **arguments), state, batches
    )


def step_inputs(split: Split, batch: Batch, step: jax.Array, settings: StepSettings) -> Inputs:
    """What a training step is given of the data: rows of the split, augmented, normalised."""
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


def _add_regularizers(gradients: Any, state: TrainState, loss_config, learning_rate: jax.Array):
    """Adds theta times the gradients of the filter loss and of the third term of Eq. 10."""
    terms, filter_gradients = jax.value_and_grad(losses.filter_loss)(
        state.params, state.centers, loss_config.filter_loss
    )
    regularizers = filter_gradients
    if loss_config.projection_penalty:
        penalty = optim.projection_penalty(state.params, state.centers, gradients, learning_rate)
        regularizers = jax.tree.map(jnp.add, regularizers, penalty)
    gradients = jax.tree.map(lambda g, r: g + loss_config.theta * r, gradients, regularizers)
    return gradients, terms


def _m_range(params: Any) -> dict[str, jax.Array]:
    """The smallest and the largest element of all M-filters; nothing in an ordinary CNN."""
    m_filters = [layer["m_filters"] for layer in modulated_layers(params).values()]
    if not m_filters:
        return {}
    return {
        "m_min": jnp.min(jnp.stack([jnp.min(m) for m in m_filters])),
        "m_max": jnp.max(jnp.stack([jnp.max(m) for m in m_filters])),
    }


def eval_step(
    state: TrainState,
    split: Split,
    batch: EvalBatch,
    *,
    model: nn.Module,
    settings: StepSettings,
    axis_name: str | None = None,
) -> dict[str, jax.Array]:
    """Sums over the batch that is not padding: "loss" in nats, "correct" and "examples"."""
    labels = split.labels[batch.indices]
    images = normalise(
        split.images[batch.indices],
        settings.mean,
        settings.std,
        jnp.dtype(settings.config.dtype),
    )
    outputs: Any = model.apply(state.variables, images)
    logits = outputs.logits.astype(jnp.dtype(settings.config.param_dtype))
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    sums = {
        "loss": jnp.sum(jnp.where(batch.mask, loss, 0)),
        "correct": jnp.sum(batch.mask & (jnp.argmax(logits, axis=-1) == labels)),
        "examples": jnp.sum(batch.mask),
    }
    return sums if axis_name is None else lax.psum(sums, axis_name)
