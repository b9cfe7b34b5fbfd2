"""The strides of a network's pooling layers, and the sizes of images after them."""

import math
from typing import Any

import jax.numpy as jnp

from mcn_jax.config import ModelConfig
from mcn_jax.errors import InputError, require, require_one_of
from mcn_jax.layers.pooling import POOLINGS, PoolingOptions, Size
from mcn_jax.ops.diffstride import READINGS
from mcn_jax.ops.spectral import GAINS

MOST_STRIDE = 64  # published networks have at most 4


def pooling_options(
    model: ModelConfig, *, deployed: bool = False, param_dtype: Any = jnp.float32
) -> PoolingOptions:
    """Returns the settings of the pooling layers; see `PoolingOptions`."""
    return PoolingOptions(
        gain=model.spectral_gain,
        reading=model.reading,
        smoothness=model.smoothness,
        shares_stride=model.shares_stride,
        deployed=deployed,
        param_dtype=param_dtype,
    )


def check_pooling(model: ModelConfig, usual: tuple[int, ...] | None) -> None:
    """Raises InputError unless a network can have the pooling layers of its config.

    Args:
        model: config of the network, with a name in `POOLINGS`.
        usual: strides of its pooling layers where the config names none; None for a network whose
            pooling cannot be chosen.
    """
    if usual is None:
        require(
            model.pooling == "strided",
            "model.pooling",
            model.pooling,
            f"cannot be chosen for the network {model.name!r}, which has its own; set"
            " config.model.pooling=strided",
        )
    layers = len(usual or ())
    require(
        len(model.strides) in (0, layers),
        "model.strides",
        model.strides,
        f"must name one stride for each of the {layers} pooling layers of the network"
        f" {model.name!r}, or be ()",
    )
    for stride in model.strides:
        require(
            1 <= stride <= MOST_STRIDE,
            "model.strides",
            model.strides,
            f"must each lie in 1..{MOST_STRIDE}",
        )
    require_one_of("model.spectral_gain", model.spectral_gain, GAINS)
    require_one_of("model.reading", model.reading, READINGS)
    smoothness = model.smoothness
    holds = math.isfinite(smoothness) and smoothness > 0
    require(holds, "model.smoothness", smoothness, "must be above 0 pixels")
    sizes = model.pooled_sizes
    learns = POOLINGS[model.pooling].learns_strides
    require(
        not sizes or (learns and len(sizes) == 2 * layers and min(sizes) >= 2),
        "model.pooled_sizes",
        sizes,
        "must be height and width, at least 2, after each pooling layer with learned strides, or"
        " be ()",
    )


def check_sizes(model: ModelConfig, strides: tuple[int, ...], size: Size) -> None:
    """Checks that each pooling layer can take images of its size.

    The sizes are those for the initial strides, unless `model.pooled_sizes` names others.

    Args:
        model: checked config of the network.
        strides: of its pooling layers.
        size: (Y, X) of the images before the first of them.

    Raises:
        InputError: if a layer cannot take images of its size.
    """
    pooling, options = POOLINGS[model.pooling], pooling_options(model)
    for number, stride in enumerate(strides, start=1):
        if stride == 1 and not pooling.learns_strides:
            continue  # no layer
        least = pooling.least_size(stride, options)
        if min(size) < least:
            raise InputError(
                f"images of {size[0]}x{size[1]} pixels reach pooling layer {number} of the network,"
                f" which needs at least {least}; use larger images, smaller config.model.strides or"
                " another config.model.pooling"
            )
        before = size
        try:
            size = pooling.out_size(size, stride, options)
        except ValueError as error:
            raise InputError(
                f"config.model.pooling={model.pooling!r} cannot take images of"
                f" {size[0]}x{size[1]} pixels: {error}"
            ) from error
        if model.pooled_sizes:
            given = model.pooled_sizes[2 * number - 2], model.pooled_sizes[2 * number - 1]
            holds = given[0] <= before[0] and given[1] <= before[1]
            require(
                holds,
                "model.pooled_sizes",
                model.pooled_sizes,
                f"make images larger in pooling layer {number}, which takes"
                f" {before[0]}x{before[1]} pixels",
            )
            size = given
