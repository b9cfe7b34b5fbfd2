"""Computes the losses of a network: data loss, center loss and penalties of its layers."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util
from jax import lax

from mcn_jax.config import LossConfig
from mcn_jax.data.augment import Inputs
from mcn_jax.models.plan import Plan
from mcn_jax.ops import diffstride


def squared_hinge(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Computes the mean over classes of max(0, 1 - t*y)^2 of each example, as in BinaryConnect.

    Args:
        logits: y, [N, classes].
        labels: [N], integers; t is +1 for the class of the label and -1 for all others.

    Returns:
        [N].
    """
    targets = 2 * jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype) - 1
    return jnp.mean(jnp.maximum(0, 1 - targets * logits) ** 2, axis=-1)


# {name for config.loss.data: (logits [N, classes], labels [N]) -> loss of each example [N]}
DATA_LOSSES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "softmax": optax.softmax_cross_entropy_with_integer_labels,
    "squared_hinge": squared_hinge,
}


def data_loss(logits: jax.Array, inputs: Inputs, name: str = "softmax") -> jax.Array:
    """Computes the mean loss of logits [N, classes]; "softmax" is the cross entropy in nats.

    A mixed image has two labels; their losses are weighted by the labels' shares.

    Args:
        logits: [N, classes].
        inputs: the labels.
        name: a name in `DATA_LOSSES`.
    """
    return _of_both_labels(lambda labels: DATA_LOSSES[name](logits, labels), inputs)


def distillation(logits: jax.Array, taught: jax.Array, temperature: float) -> jax.Array:
    """Computes how far the outputs are from a teacher's (Hinton et al. 2015), a scalar in nats.

    This is the Kullback-Leibler divergence of softmax(logits / T) from softmax(taught / T), times
    T^2, which keeps its gradients at the size of those of the cross entropy; the mean of the batch.

    Args:
        logits: [N, classes].
        taught: the teacher's logits, [N, classes]; they get no gradient.
        temperature: T, greater than 0.
    """
    target = jax.nn.log_softmax(lax.stop_gradient(taught).astype(logits.dtype) / temperature)
    own = jax.nn.log_softmax(logits / temperature)
    return temperature**2 * jnp.mean(jnp.sum(jnp.exp(target) * (target - own), axis=-1))


def accuracy(logits: jax.Array, inputs: Inputs) -> jax.Array:
    """Computes the share of examples whose label has the largest logit.

    A mixed image has two labels; each counts by its share.
    """
    predictions = jnp.argmax(logits, axis=-1)
    return _of_both_labels(lambda labels: predictions == labels, inputs)


def stride_cost(params: Any, plan: Plan) -> jax.Array:
    """Computes the cost of learned strides, a scalar; see `mcn_jax.ops.diffstride.stride_cost`.

    Args:
        params: the "params" collection of the network.
        plan: plan of the network, for the present sizes of images.
    """
    return diffstride.stride_cost(
        layer.family.effective_strides(layer.params_in(params), layer)
        for layer in plan
        if layer.family.effective_strides is not None
    )


def _of_both_labels(measure: Callable[[jax.Array], jax.Array], inputs: Inputs) -> jax.Array:
    values = measure(inputs.labels)
    if inputs.other_labels is not None and inputs.shares is not None:
        values = inputs.shares * values + (1 - inputs.shares) * measure(inputs.other_labels)
    return jnp.mean(values)


def _constant(theta: float, progress: jax.Array) -> float:
    del progress
    return theta


def _linear(theta: float, progress: jax.Array) -> jax.Array:
    return theta * progress


# {name: (theta, share of the training that is done) -> weight of the filter loss}
THETA_SCHEDULES: Mapping[str, Callable[[float, jax.Array], float | jax.Array]] = {
    "constant": _constant,
    "linear": _linear,
}


def with_penalties(
    gradients: Mapping[str, Any],
    params: Mapping[str, Any],
    collections: Mapping[str, Any],
    plan: Plan,
    config: LossConfig,
    learning_rate: jax.Array,
    progress: jax.Array,
) -> tuple[dict[str, Any], jax.Array]:
    """Adds the gradients of the layers' own losses; see `Family.penalty`.

    Args:
        gradients: gradients of the softmax and center loss, a tree like `params`.
        params: tree of parameters.
        collections: all other collections of the model.
        plan: plan of the network.
        config: config of the losses.
        learning_rate: eta1 of this step.
        progress: share of the training that is done, of the dtype of the parameters.

    Returns:
        The gradients including all penalties, and the sum of the layers' losses.
    """
    total = jnp.zeros(())
    theta = THETA_SCHEDULES[config.theta_schedule](config.theta, progress)
    flat = traverse_util.flatten_dict(gradients)
    for layer in plan:
        if layer.family.penalty is None:
            continue
        p, s = layer.params_in(params), layer.state_in(collections)
        own = layer.params_in(gradients)
        value, own = layer.family.penalty(p, s, own, config, theta, learning_rate)
        total += value
        flat |= {(*layer.path, *leaf.split("/")): g for leaf, g in own.items()}
    return traverse_util.unflatten_dict(flat), total


def center_loss(features: jax.Array, labels: jax.Array, class_means: jax.Array) -> jax.Array:
    """Computes half the mean squared distance of features to their class mean.

    This is the center loss of Wen et al. 2016, averaged over the batch like the softmax loss. So
    its weight lambda does not depend on the batch size. The class means get no gradient.

    Args:
        features: [N, Y, X, C].
        labels: [N], integers.
        class_means: [classes, Y, X, C].
    """
    distances = features - lax.stop_gradient(class_means)[labels]
    return 0.5 * jnp.sum(distances**2) / features.shape[0]


def moved_class_means(
    class_means: jax.Array,
    features: jax.Array,
    labels: jax.Array,
    rate: float,
    axis_name: str | None = None,
) -> jax.Array:
    """Computes the class means after a step (Wen et al. 2016).

    c_j <- c_j - rate * sum over the n_j examples i of class j of (c_j - x_i) / (1 + n_j)

    Args:
        class_means: [classes, Y, X, C].
        features: [N, Y, X, C].
        labels: [N], integers.
        rate: alpha.
        axis_name: the mapped axis over whose devices the batch is split. The sums run over the
            whole axis, so the result is the same on every device.
    """
    num_classes = class_means.shape[0]
    counts = jnp.zeros(num_classes, class_means.dtype).at[labels].add(1)
    sums = jnp.zeros_like(class_means).at[labels].add(features.astype(class_means.dtype))
    if axis_name is not None:
        counts, sums = lax.psum((counts, sums), axis_name)
    counts = counts.reshape(-1, *[1] * (class_means.ndim - 1))
    return class_means - rate * (counts * class_means - sums) / (1 + counts)
