"""The heads of the networks, from feature maps to logits."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mcn_jax.layers.conv import ordinary_conv
from mcn_jax.layers.pooling import max_over_pieces

DENSE_PIECES = 5  # pieces of a hidden maxout unit (Goodfellow et al. 2013)


class HeadContext(NamedTuple):
    """What a head knows about its network.

    Attributes:
        num_classes: number of logits.
        dense_features: see `ModelConfig`.
        vector: maps [N, Y, X, C] -> [N, F], the input of a dense layer.
        conv: makes a convolution of the network's layer family from its number of output maps.
        relu: whether a ReLU precedes these convolutions.
        batch_norm: makes a batch norm from its name.
        deployed: whether the network is for inference from a file.
        dropout: maps [N, ...] to the same with dropout, in training.
        dtype: dtype of the computation.
        param_dtype: dtype of the parameters.
    """

    num_classes: int
    dense_features: int
    vector: Callable[[jax.Array], jax.Array]
    conv: Callable[..., nn.Module]
    relu: bool
    batch_norm: Callable[..., nn.Module]
    deployed: bool
    dropout: Callable[[jax.Array], jax.Array]
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
    size = (math.prod(x.shape[1:]),)  # one axis: see mcn_jax.ops.draws
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, size))(keys).reshape(x.shape)
    return jnp.where(keep, x / (1 - rate), 0)


def _dense_layer(
    context: HeadContext, features: int, name: str, *, use_bias: bool = True
) -> nn.Module:
    return nn.Dense(
        features,
        use_bias=use_bias,
        kernel_init=nn.initializers.he_normal(),
        dtype=context.dtype,
        param_dtype=context.param_dtype,
        name=name,
    )


def _dense(context: HeadContext, maps: jax.Array) -> jax.Array:
    """The paper's head: dense layer, ReLU, dropout, dense layer."""
    x = context.vector(maps)
    x = nn.relu(_dense_layer(context, context.dense_features, "dense_1")(x))
    return _dense_layer(context, context.num_classes, "dense_2")(context.dropout(x))


def _dense_batch_norm(context: HeadContext, maps: jax.Array) -> jax.Array:
    """BinaryConnect's head: three dense layers with batch norm, and a ReLU after the first two."""
    x = context.vector(maps)
    widths = (context.dense_features, context.dense_features, context.num_classes)
    for layer, width in enumerate(widths, start=1):
        x = _dense_layer(context, width, f"dense_{layer}", use_bias=False)(x)
        x = context.batch_norm(name=f"batch_norm_dense_{layer}", relu=layer < len(widths))(x)
    return x


def _one_bit_dense(context: HeadContext, maps: jax.Array) -> jax.Array:
    """BinaryConnect's and BNN's head: like "dense_batch_norm", of the network's layer family."""
    x = _hidden_layers(context, maps, last_relu=context.relu)
    x = _dense_of_family(context, context.num_classes, "dense_3")(x)
    return context.batch_norm(name="batch_norm_dense_3", relu=False)(x)


def _one_bit_hidden(context: HeadContext, maps: jax.Array) -> jax.Array:
    """XNOR-Net's head: only the two hidden layers are of the network's layer family."""
    x = _hidden_layers(context, maps, last_relu=True)
    return _dense_layer(context, context.num_classes, "dense_3")(x)


def _hidden_layers(context: HeadContext, maps: jax.Array, *, last_relu: bool) -> jax.Array:
    """Two dense layers of the network's layer family, with batch norm and perhaps ReLU."""
    x = context.vector(maps)
    for layer, relu in ((1, context.relu), (2, last_relu)):
        x = _dense_of_family(context, context.dense_features, f"dense_{layer}")(x)
        x = context.batch_norm(name=f"batch_norm_dense_{layer}", relu=relu)(x)
    return x


def _dense_of_family(
    context: HeadContext, features: int, name: str
) -> Callable[[jax.Array], jax.Array]:
    """Makes a dense layer [N, F] -> [N, features]: a 1x1 convolution of a single pixel."""
    conv = context.conv(features, planes=1, kernel_size=1, name=name)
    return lambda x: conv(x.reshape(x.shape[0], 1, 1, -1)).reshape(x.shape[0], features)


def _maxout(context: HeadContext, maps: jax.Array) -> jax.Array:
    """Maxout's head: dense layer, maximum over five pieces of each unit, dropout, dense layer."""
    pieces = _dense_layer(context, context.dense_features * DENSE_PIECES, "dense_1")
    x = max_over_pieces(pieces(context.vector(maps)), DENSE_PIECES)
    return _dense_layer(context, context.num_classes, "dense_2")(context.dropout(x))


def _linear(context: HeadContext, maps: jax.Array) -> jax.Array:
    """One dense layer."""
    return _dense_layer(context, context.num_classes, "dense")(context.vector(maps))


def _conv(context: HeadContext, maps: jax.Array) -> jax.Array:
    """1x1 convolution to one channel per class, batch norm, global average."""
    return _class_maps(context, maps, relu=False)


def _conv_relu(context: HeadContext, maps: jax.Array) -> jax.Array:
    """Network in Network's head: like "conv", with a ReLU before the average."""
    return _class_maps(context, maps, relu=True)


def _class_maps(context: HeadContext, maps: jax.Array, *, relu: bool) -> jax.Array:
    conv = ordinary_conv(
        deployed=context.deployed, dtype=context.dtype, param_dtype=context.param_dtype
    )
    x = conv(context.num_classes, planes=1, kernel_size=1, name="head")(maps)
    x = context.batch_norm(name="batch_norm_head", relu=relu)(x)
    return jnp.mean(x, axis=(1, 2))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Head:
    """A head that a config can choose as `model.head`.

    Attributes:
        apply: (context, maps [N, Y, X, C]) -> logits [N, classes]. It is called inside the
            network's `__call__`, so its layers become submodules of the network.
        options: fields of `ModelConfig` that a model file must store.
        of_family: whether its first layer is of the network's layer family, see `Family.has_dense`.
            If no ReLU precedes the family's layers, then no ReLU precedes the head.
        averages: whether it averages over pixels, so its parameters do not depend on their number.
    """

    apply: Callable[[HeadContext, jax.Array], jax.Array]
    options: tuple[str, ...] = ()
    of_family: bool = False
    averages: bool = False


HEADS = {
    "dense": Head(apply=_dense, options=("dense_features",)),
    "linear": Head(apply=_linear),
    "conv": Head(apply=_conv, averages=True),
    "conv_relu": Head(apply=_conv_relu, averages=True),
    "dense_batch_norm": Head(apply=_dense_batch_norm, options=("dense_features",)),
    "one_bit_dense": Head(apply=_one_bit_dense, options=("dense_features",), of_family=True),
    "one_bit_hidden": Head(apply=_one_bit_hidden, options=("dense_features",), of_family=True),
    "maxout": Head(apply=_maxout, options=("dense_features",)),
}
