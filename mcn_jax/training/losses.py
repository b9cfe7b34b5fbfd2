"""The losses of a network: softmax, center loss, and the penalties that its layers bring."""

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


def softmax_loss(logits: jax.Array, inputs: Inputs) -> jax.Array:
    """Mean cross entropy, in nats, of logits [N, classes]; for mixed images that of both labels in
    their shares."""
    entropy = optax.softmax_cross_entropy_with_integer_labels
    return _of_both_labels(lambda labels: entropy(logits, labels), inputs)


def accuracy(logits: jax.Array, inputs: Inputs) -> jax.Array:
    """Share of examples whose largest logit is their label's; of mixed ones both labels count, in
    their shares."""
    predictions = jnp.argmax(logits, axis=-1)
    return _of_both_labels(lambda labels: predictions == labels, inputs)


def _of_both_labels(measure: Callable[[jax.Array], jax.Array], inputs: Inputs) -> jax.Array:
    values = measure(inputs.labels)
    if inputs.other_labels is not None and inputs.shares is not None:
        values = inputs.shares * values + (1 - inputs.shares) * measure(inputs.other_labels)
    return jnp.mean(values)


def with_penalties(
    gradients: Mapping[str, Any],
    params: Mapping[str, Any],
    collections: Mapping[str, Any],
    plan: Plan,
    config: LossConfig,
    learning_rate: jax.Array,
) -> tuple[dict[str, Any], jax.Array]:
    """Adds to gradients what the layers' own losses bring; see `Family.penalty`.

    Args:
        gradients: of the softmax loss (and center loss, where it is used), as params.
        params: tree of parameters.
        collections: all others of the model.
        plan: of the network.
        config: of the losses.
        learning_rate: eta1 of this step.

    Returns:
        The gradients with all penalties, and the sum of the layers' losses.
    """
    total = jnp.zeros(())
    flat = traverse_util.flatten_dict(gradients)
    for layer in plan:
        if layer.family.penalty is None:
            continue
        p, s = layer.params_in(params), layer.state_in(collections)
        own = layer.params_in(gradients)
        value, own = layer.family.penalty(p, s, own, config, learning_rate)
        total += value
        flat |= {(*layer.path, *leaf.split("/")): g for leaf, g in own.items()}
    return traverse_util.unflatten_dict(flat), total


def center_loss(features: jax.Array, labels: jax.Array, class_means: jax.Array) -> jax.Array:
    """Half the mean squared distance of features to the mean of their class (Wen et al. 2016).

    A mean over the batch, as the softmax loss is, so that lambda does not depend on the batch
    size. The means are constants.

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
    """Class means after a step (Wen et al. 2016).

    c_j <- c_j - rate * sum over the n_j examples i of class j of (c_j - x_i) / (1 + n_j)

    Args:
        class_means: [classes, Y, X, C].
        features: [N, Y, X, C].
        labels: [N], integers.
        rate: alpha.
        axis_name: of the mapped axis whose devices see parts of one batch; the sums run over all
            of it, so that the result is the same on every device.
    """
    num_classes = class_means.shape[0]
    counts = jnp.zeros(num_classes, class_means.dtype).at[labels].add(1)
    sums = jnp.zeros_like(class_means).at[labels].add(features.astype(class_means.dtype))
    if axis_name is not None:
        counts, sums = lax.psum((counts, sums), axis_name)
    counts = counts.reshape(-1, *[1] * (class_means.ndim - 1))
    return class_means - rate * (counts * class_means - sums) / (1 + counts)
