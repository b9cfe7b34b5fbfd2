"""The heads of the networks: from feature maps to logits."""

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import flax.linen as nn
import jax
import jax.numpy as jnp

from mcn_jax.layers.conv import Conv, KernelConv

if TYPE_CHECKING:
    from mcn_jax.models.classifier import Classifier


def example_dropout(x: jax.Array, keys: jax.Array, rate: float) -> jax.Array:
    """Inverted dropout with one key per example, so no mask depends on the device it falls on.

    Args:
        x: [N, ...].
        keys: [N] random keys.
        rate: share of elements set to zero, in [0, 1).
    """
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(keys)
    return jnp.where(keep, x / (1 - rate), 0)


def _dense_layer(model: "Classifier", features: int, name: str) -> nn.Module:
    return nn.Dense(
        features,
        kernel_init=nn.initializers.he_normal(),
        dtype=model.dtype,
        param_dtype=model.param_dtype,
        name=name,
    )


def _dense(
    model: "Classifier", maps: jax.Array, train: bool, dropout_keys: jax.Array | None
) -> jax.Array:
    """Dense, ReLU, dropout, dense: the paper's."""
    x = model.vector(maps)
    x = nn.relu(_dense_layer(model, model.dense_features, "dense_1")(x))
    if train and model.dropout_rate:
        if dropout_keys is None:
            raise ValueError("training with dropout needs dropout_keys, one per example")
        x = example_dropout(x, dropout_keys, model.dropout_rate)
    return _dense_layer(model, model.num_classes, "dense_2")(x)


def _linear(
    model: "Classifier", maps: jax.Array, train: bool, dropout_keys: jax.Array | None
) -> jax.Array:
    """One dense layer."""
    del train, dropout_keys
    return _dense_layer(model, model.num_classes, "dense")(model.vector(maps))


def _conv(
    model: "Classifier", maps: jax.Array, train: bool, dropout_keys: jax.Array | None
) -> jax.Array:
    """1x1 convolution to one channel per class, batch norm, global average."""
    del dropout_keys
    conv = (
        KernelConv
        if model.deployed
        else functools.partial(Conv, dtype=model.dtype, param_dtype=model.param_dtype)
    )
    x = conv(model.num_classes, planes=1, kernel_size=1, name="head")(maps)
    x = model.batch_norm(train)(name="batch_norm_head")(x)
    return jnp.mean(x, axis=(1, 2))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Head:
    """A head that a config can choose as `model.head`.

    apply: (model, maps [N, Y, X, C], train, dropout_keys) -> logits [N, classes], called inside the
        model's `__call__`, whose submodules its layers are.
    options: fields of `ModelConfig` that a model file must know.
    """

    apply: Callable[["Classifier", jax.Array, bool, jax.Array | None], jax.Array]
    options: tuple[str, ...] = ()


HEADS = {
    "dense": Head(apply=_dense, options=("dense_features",)),
    "linear": Head(apply=_linear),
    "conv": Head(apply=_conv),
}
