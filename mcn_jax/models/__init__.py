"""Networks, the convolutions they are built of, and the construction of one from a config."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from mcn_jax.config import Config
from mcn_jax.layers import Conv, MCConv
from mcn_jax.models.simple_cnn import Outputs, SimpleCNN

__all__ = ["CONVOLUTIONS", "MODELS", "Conv", "MCConv", "Outputs", "SimpleCNN", "make_model"]


def _mcconv(config: Config, binarized: bool) -> Callable[..., nn.Module]:
    return functools.partial(
        MCConv,
        planes=config.model.planes,
        binarized=binarized,
        num_centers=config.binarize.num_centers,
        m_gradient=config.binarize.m_gradient,
        m_noise=config.model.m_noise,
        param_dtype=jnp.dtype(config.param_dtype),
    )


def _conv(config: Config, binarized: bool) -> Callable[..., nn.Module]:
    del binarized  # an ordinary convolution has nothing to binarize
    return functools.partial(
        Conv,
        planes=config.model.planes,
        dtype=jnp.dtype(config.dtype),
        param_dtype=jnp.dtype(config.param_dtype),
    )


CONVOLUTIONS = {"mcconv": _mcconv, "conv": _conv}
MODELS = {"simple_cnn": SimpleCNN}


def make_model(
    config: Config, num_classes: int, *, binarized: bool, axis_name: str | None = None
) -> nn.Module:
    """The network that a config describes.

    Args:
        config: validated.
        num_classes: number of logits.
        binarized: convolve with binary filters, or with the latent ones as a U-MCN does.
        axis_name: of the mapped axis that batch statistics are reduced over.
    """
    model = config.model
    return MODELS[model.name](
        conv=CONVOLUTIONS[model.conv](config, binarized),
        widths=model.widths,
        num_classes=num_classes,
        planes=model.planes,
        # An ordinary CNN sees the image as it is.
        input_planes=model.input_planes if model.conv == "mcconv" else None,
        dense_features=model.dense_features,
        dropout_rate=model.dropout_rate,
        axis_name=axis_name,
        dtype=jnp.dtype(config.dtype),
        param_dtype=jnp.dtype(config.param_dtype),
    )
