"""The network architectures, and the construction of a network from a config."""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax.numpy as jnp

from mcn_jax.config import Config, ModelConfig
from mcn_jax.errors import InputError, require, require_one_of
from mcn_jax.layers.planes import INPUT_PLANES
from mcn_jax.layers.pooling import POOLINGS
from mcn_jax.layers.table import LAYERS
from mcn_jax.models import convnet, densenet, lbcnn, maxout, nin, resnet, simple_cnn, wide_resnet
from mcn_jax.models.classifier import Classifier, Outputs
from mcn_jax.models.convnet import ConvNet
from mcn_jax.models.densenet import DenseNet
from mcn_jax.models.halving import check_pooling, pooling_options
from mcn_jax.models.heads import HEADS
from mcn_jax.models.lbcnn import LBCNN
from mcn_jax.models.maxout import LAYOUTS, Maxout
from mcn_jax.models.nin import NetworkInNetwork
from mcn_jax.models.resnet import ResNet
from mcn_jax.models.simple_cnn import SimpleCNN
from mcn_jax.models.wide_resnet import STEMS, WideResNet

__all__ = [
    "LBCNN", "MODELS", "Classifier", "ConvNet", "DenseNet", "Maxout", "NetworkInNetwork", "Outputs",
    "ResNet", "SimpleCNN", "WideResNet", "convolution_kinds", "make_model",
]  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
    """A network that a config can choose as `model.name`.

    Attributes:
        module: class of the network.
        title: name in tables if its convolutions are ordinary ones.
        options: fields of `ModelConfig` that it takes in addition to those of every `Classifier`.
        averages: whether dense layers take the global average of the maps, so their parameters do
            not depend on the number of pixels.
        has_pointwise: whether it has convolutions of 1x1 pixels, which `model.pointwise` chooses.
        shown: fields of `ModelConfig` that tell its depth in tables, each with its unit.
        usual_strides: ModelConfig -> strides of its pooling layers where the config names none;
            None if its pooling cannot be chosen.
        check: ModelConfig -> None; raises InputError unless the network can be built.
        check_image_size: (ModelConfig, height, width) -> None; raises InputError unless the network
            can take images of this size.
        takes_signs: whether layers that take the signs of their input may follow each other in it.
    """

    module: type[Classifier]
    title: str
    options: tuple[str, ...] = ()
    averages: bool = False
    has_pointwise: bool = False
    shown: Mapping[str, str] = dataclasses.field(default_factory=dict)
    usual_strides: Callable[[ModelConfig], tuple[int, ...]] | None = None
    check: Callable[[ModelConfig], None]
    check_image_size: Callable[[ModelConfig, int, int], None]
    takes_signs: bool = True


MODELS = {
    "simple_cnn": Architecture(
        module=SimpleCNN,
        title="CNN",
        usual_strides=simple_cnn.usual_strides,
        check=simple_cnn.check,
        check_image_size=simple_cnn.check_image_size,
    ),
    "wide_resnet": Architecture(
        module=WideResNet,
        title="WRN",
        options=("depth", "stem"),
        shown={"depth": "layers"},
        averages=True,
        usual_strides=wide_resnet.usual_strides,
        check=wide_resnet.check,
        check_image_size=wide_resnet.check_image_size,
    ),
    "nin": Architecture(
        module=NetworkInNetwork,
        title="NIN",
        has_pointwise=True,
        check=nin.check,
        check_image_size=nin.check_image_size,
        takes_signs=False,
    ),
    "maxout": Architecture(
        module=Maxout,
        title="Maxout, BN",
        options=("layout",),
        check=maxout.check,
        check_image_size=maxout.check_image_size,
        takes_signs=False,
    ),
    "convnet": Architecture(
        module=ConvNet,
        title="ConvNet",
        usual_strides=convnet.usual_strides,
        check=convnet.check,
        check_image_size=convnet.check_image_size,
    ),
    "lbcnn": Architecture(
        module=LBCNN,
        title="LBCNN with ordinary convolutions",
        options=("depth",),
        shown={"depth": "modules"},
        check=lbcnn.check,
        check_image_size=lbcnn.check_image_size,
    ),
    "resnet": Architecture(
        module=ResNet,
        title="ResNet",
        options=("blocks", "block", "shortcut", "preactivation"),
        has_pointwise=True,
        shown={"blocks": "blocks"},
        averages=True,
        usual_strides=resnet.usual_strides,
        check=resnet.check,
        check_image_size=resnet.check_image_size,
    ),
    "densenet": Architecture(
        module=DenseNet,
        title="DenseNet",
        options=("blocks", "growth"),
        has_pointwise=True,
        shown={"blocks": "blocks"},
        averages=True,
        usual_strides=densenet.usual_strides,
        check=densenet.check,
        check_image_size=densenet.check_image_size,
    ),
}


def check(config: Config) -> None:
    """Raises InputError unless the network of a config can be built, apart from the image size."""
    model = config.model
    for field, value, allowed in (
        ("model.name", model.name, MODELS),
        ("model.conv", model.conv, LAYERS),
        ("model.stem_conv", stem_conv(model), LAYERS),
        ("model.pointwise", model.pointwise, LAYERS),
        ("model.stem", model.stem, STEMS),
        ("model.layout", model.layout, LAYOUTS),
        ("model.input_planes", model.input_planes, INPUT_PLANES),
        ("model.pooling", model.pooling, POOLINGS),
        ("model.head", model.head, HEADS),
    ):
        require_one_of(field, value, allowed)
    for family in LAYERS.values():
        family.check(config)
    if min(model.widths, default=1) < 1:
        raise InputError(f"config.model.widths={model.widths} must each be at least 1 feature map")
    with_dense = ", ".join(name for name, family in LAYERS.items() if family.has_dense)
    require(
        LAYERS[model.conv].has_dense or not HEADS[model.head].of_family,
        "model.head",
        model.head,
        f"needs config.model.conv to be one of {with_dense}, not {model.conv!r}; or set"
        " config.model.head=dense_batch_norm for float32 dense layers",
    )
    architecture = MODELS[model.name]
    check_pooling(model, usual_strides(model))
    averaging = ", ".join(name for name, head in HEADS.items() if head.averages)
    require(
        not POOLINGS[model.pooling].learns_strides
        or architecture.averages
        or HEADS[model.head].averages,
        "model.pooling",
        model.pooling,
        f"changes the size of images in training, but the network {model.name!r} with"
        f" config.model.head={model.head!r} has parameters for each pixel; set config.model.head to"
        f" one of {averaging}",
    )
    of_one_pixel = ", ".join(name for name, family in LAYERS.items() if family.pointwise)
    require(
        LAYERS[model.pointwise].pointwise,
        "model.pointwise",
        model.pointwise,
        f"cannot be used for convolutions of 1x1 pixels; it must be one of {of_one_pixel}",
    )
    with_signs = ", ".join(name for name, other in MODELS.items() if other.takes_signs)
    require(
        architecture.takes_signs or not LAYERS[model.conv].takes_signs,
        "model.conv",
        model.conv,
        f"takes the signs of its input, which are mostly positive in the network {model.name!r};"
        f" set config.model.name to one of {with_signs}",
    )
    architecture.check(model)


def usual_strides(model: ModelConfig) -> tuple[int, ...] | None:
    """Returns the strides of the pooling layers where the config names none.

    None is for networks whose pooling cannot be chosen.
    """
    find = MODELS[model.name].usual_strides
    return None if find is None else find(model)


def stem_conv(model: ModelConfig) -> str:
    """Returns the name in `LAYERS` of the first convolution."""
    return model.stem_conv or model.conv


def convolution_kinds(model: ModelConfig) -> dict[str, str]:
    """Returns {field of ModelConfig: name in LAYERS} for all convolutions of a network."""
    kinds = {"conv": model.conv, "stem_conv": stem_conv(model)}
    if MODELS[model.name].has_pointwise:
        kinds["pointwise"] = model.pointwise
    return kinds


def make_model(
    config: Config,
    num_classes: int,
    *,
    quantized: bool,
    axis_name: str | None = None,
    deployed: bool = False,
) -> Classifier:
    """Makes the network that a config describes.

    Args:
        config: validated config.
        num_classes: number of logits.
        quantized: whether to convolve with quantized weights, if the layers have any. An MCN
            without them is a U-MCN.
        axis_name: name of the mapped axis over which batch statistics are averaged.
        deployed: whether the network is for inference from a file, see `Classifier`.

    Raises:
        ValueError: if the layer family cannot be chosen for a network.
    """
    model = config.model
    architecture = MODELS[model.name]
    makers = {}
    for field, name in convolution_kinds(model).items():
        make = LAYERS[name].deployed if deployed else LAYERS[name].make
        if make is None:
            raise ValueError(f"the layer family {name!r} cannot be chosen for a network")
        makers[field] = make(config, quantized)
    family, first = LAYERS[model.conv], LAYERS[stem_conv(model)]
    takes_image = {"signs_input": False} if first.takes_signs else {}
    if first.pads_image and not deployed:
        takes_image["pads_input"] = True
    first_conv = functools.partial(makers["stem_conv"], **takes_image)
    return architecture.module(
        conv=makers["conv"],
        first_conv=first_conv if model.stem_conv or takes_image else None,
        pointwise_conv=makers.get("pointwise"),
        relu=family.follows_relu,
        widths=model.widths,
        num_classes=num_classes,
        planes=model.planes,
        input_planes=model.input_planes if first.takes_planes else None,
        pooling=model.pooling,
        strides=model.strides or usual_strides(model) or (),
        pooling_options=pooling_options(
            model, deployed=deployed, param_dtype=jnp.dtype(config.param_dtype)
        ),
        pooled_sizes=model.pooled_sizes,
        head=model.head,
        dense_features=model.dense_features,
        dropout_rate=model.dropout_rate,
        axis_name=axis_name,
        deployed=deployed,
        dtype=jnp.dtype(config.dtype),
        param_dtype=jnp.dtype(config.param_dtype),
        **{name: getattr(model, name) for name in architecture.options},
    )
