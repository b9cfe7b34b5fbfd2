"""The heads of the networks, from feature maps to logits."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mcn_jax.layers.conv import Conv, KernelConv


class HeadContext(NamedTuple):
    """What a head knows about its network.

    Attributes:
        num_classes: number of logits.
        dense_features: see `ModelConfig`.
        dropout_rate: see `ModelConfig`.
        vector: maps [N, Y, X, C] -> [N, F], the input of a dense layer.
        batch_norm: makes a batch norm from its name.
        deployed: whether the network is for inference from a file.
        train: whether dropout applies.
        dropout_keys: [N] random keys, needed for training with dropout.
        dtype: dtype of the computation.
        param_dtype: dtype of the parameters.
    """

    num_classes: int
    dense_features: int
    dropout_rate: float
    vector: Callable[[jax.Array], jax.Array]
    batch_norm: Callable[..., nn.Module]
    deployed: bool
    train: bool
    dropout_keys: jax.Array | None
    dtype: Any
    param_dtype: Any


def example_dropout(x: jax.Array, keys: jax.Array, rate: float) -> jax.Array:
    """Applies inverted dropout with one key per example.

    So no mask depends on the device that an example is on.

    Args:
        x: [N, ...].
        keys: [N] random keys.
        rate: share of elements set to zero, in [0, 1).
    """
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(keys)
    return jnp.where(keep, x / (1 - rate), 0)


def _dense_layer(context: HeadContext, features: int, name: str) -> nn.Module:
    return nn.Dense(
        features,
        kernel_init=nn.initializers.he_normal(),
        dtype=context.dtype,
        param_dtype=context.param_dtype,
        name=name,
    )


def _dense(context: HeadContext, maps: jax.Array) -> jax.Array:
    """The paper's head: dense layer, ReLU, dropout, dense layer."""
    x = context.vector(maps)
    x = nn.relu(_dense_layer(context, context.dense_features, "dense_1")(x))
    if context.train and context.dropout_rate:
        if context.dropout_keys is None:
            raise ValueError("training with dropout needs dropout_keys, one per example")
        x = example_dropout(x, context.dropout_keys, context.dropout_rate)
    return _dense_layer(context, context.num_classes, "dense_2")(x)


def _linear(context: HeadContext, maps: jax.Array) -> jax.Array:
    """One dense layer."""
    return _dense_layer(context, context.num_classes, "dense")(context.vector(maps))


def _conv(context: HeadContext, maps: jax.Array) -> jax.Array:
    """1x1 convolution to one channel per class, batch norm, global average."""
    conv = (
        KernelConv
        if context.deployed
        else functools.partial(Conv, dtype=context.dtype, param_dtype=context.param_dtype)
    )
    x = conv(context.num_classes, planes=1, kernel_size=1, name="head")(maps)
    x = context.batch_norm(name="batch_norm_head")(x)
    return jnp.mean(x, axis=(1, 2))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Head:
    """A head that a config can choose as `model.head`.

    Attributes:
        apply: (context, maps [N, Y, X, C]) -> logits [N, classes]. It is called inside the
            network's `__call__`, so its layers become submodules of the network.
        options: fields of `ModelConfig` that a model file must store.
    """

    apply: Callable[[HeadContext, jax.Array], jax.Array]
    options: tuple[str, ...] = ()


HEADS = {
    "dense": Head(apply=_dense, options=("dense_features",)),
    "linear": Head(apply=_linear),
    "conv": Head(apply=_conv),
}
