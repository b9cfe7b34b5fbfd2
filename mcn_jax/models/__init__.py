"""Networks, the convolutions they are built of, and the construction of one from a config."""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from mcn_jax.config import Config, ModelConfig
from mcn_jax.layers import Conv, MCConv
from mcn_jax.models import simple_cnn, wide_resnet
from mcn_jax.models.classifier import Classifier, Outputs
from mcn_jax.models.simple_cnn import SimpleCNN
from mcn_jax.models.wide_resnet import STEMS, WideResNet

__all__ = [
    "CONVOLUTIONS", "MODELS", "STEMS", "Classifier", "Conv", "MCConv", "Outputs", "SimpleCNN",
    "WideResNet", "make_model",
]  # fmt: skip


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Convolution:
    """A kind of convolution that a config can choose.

    make: (config, binarized) -> what makes one from its number of output maps.
    takes_planes: whether its input is made of maps of K planes, so that the image is expanded.
    binarizes: whether its filters can be binary.
    """

    make: Callable[[Config, bool], Callable[..., nn.Module]]
    takes_planes: bool
    binarizes: bool


CONVOLUTIONS = {
    "mcconv": Convolution(make=_mcconv, takes_planes=True, binarizes=True),
    "conv": Convolution(make=_conv, takes_planes=False, binarizes=False),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
    """A network that a config can choose.

    module: its class.
    own_fields: what it takes of `ModelConfig` besides what every `Classifier` does.
    conv_maps: (ModelConfig, maps of its input) -> (input maps, output maps) of every convolution.
    check: of a ModelConfig; raises InputError unless the network can be built.
    check_image_size: of (ModelConfig, height, width); raises InputError unless the images fit.
    """

    module: type[Classifier]
    own_fields: tuple[str, ...]
    conv_maps: Callable[[ModelConfig, int], list[tuple[int, int]]]
    check: Callable[[ModelConfig], None]
    check_image_size: Callable[[ModelConfig, int, int], None]


MODELS = {
    "simple_cnn": Architecture(
        module=SimpleCNN,
        own_fields=(),
        conv_maps=simple_cnn.conv_maps,
        check=simple_cnn.check,
        check_image_size=simple_cnn.check_image_size,
    ),
    "wide_resnet": Architecture(
        module=WideResNet,
        own_fields=("depth", "stem"),
        conv_maps=wide_resnet.conv_maps,
        check=wide_resnet.check,
        check_image_size=wide_resnet.check_image_size,
    ),
}


def make_model(
    config: Config,
    num_classes: int,
    *,
    binarized: bool,
    axis_name: str | None = None,
    folded_batch_norm: bool = False,
) -> Classifier:
    """The network that a config describes.

    Args:
        config: validated.
        num_classes: number of logits.
        binarized: convolve with binary filters, or with the latent ones as a U-MCN does.
        axis_name: of the mapped axis that batch statistics are reduced over.
        folded_batch_norm: for inference, see `Classifier`.
    """
    model = config.model
    convolution, architecture = CONVOLUTIONS[model.conv], MODELS[model.name]
    return architecture.module(
        conv=convolution.make(config, binarized),
        widths=model.widths,
        num_classes=num_classes,
        planes=model.planes,
        input_planes=model.input_planes if convolution.takes_planes else None,
        dense_features=model.dense_features,
        dropout_rate=model.dropout_rate,
        axis_name=axis_name,
        folded_batch_norm=folded_batch_norm,
        dtype=jnp.dtype(config.dtype),
        param_dtype=jnp.dtype(config.param_dtype),
        **{name: getattr(model, name) for name in architecture.own_fields},
    )
