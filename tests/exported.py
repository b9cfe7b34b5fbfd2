"""Makes model files of random networks, for tests of readers."""

import dataclasses
import string

import jax
import numpy as np

from mcn_jax import models
from mcn_jax.config import BinarizeConfig, Config, ModelConfig
from mcn_jax.deploy.header import InputImages, Network
from mcn_jax.deploy.model_file import Model, packed_tensors
from mcn_jax.layers.formats import Formats
from mcn_jax.models.plan import plan_of, sized

CLASSES = 5
# Fields of the networks that do not take two widths.
TINY = {
    "wide_resnet": {"depth": 8, "widths": (1, 2, 2, 3)},
    "nin": {"widths": (4, 3, 3, 4, 3, 3, 4, 4)},
    "maxout": {"widths": (3, 2, 2)},
    "resnet": {"blocks": (2, 1), "widths": (2, 2, 3)},
    "densenet": {"blocks": (2, 1), "growth": 2, "widths": (3,)},
}


def header_of_version_1(model):
    """Returns the header of a model file as version 1 has it."""
    return {
        "version": 1,
        "network": model.network.to_json(),
        "images": dataclasses.asdict(model.images),
        "class_names": list(model.class_names),
        "filter_shapes": {
            layer.name: list(layer.params[layer.family.filters])
            for layer in model.plan
            if layer.family.quantizes
        },
        "provenance": dict(model.provenance),
    }


def random_images(count, model):
    """Returns random images that a model takes."""
    images = model.images
    shape = (count, images.height, images.width, images.channels)
    return np.random.default_rng(1).integers(0, 256, shape, np.uint8)


def random_model(
    num_centers=2,
    channels=1,
    size=(16, 16),
    image_size=0,
    dense="float32",
    scales="float32",
    classes=CLASSES,
    **fields,
):
    """Returns (model, variables of the network with its own batch norm, config), all random.

    Args:
        num_centers: 0 for filters that are not quantized.
        channels: of the images.
        size: of the images.
        image_size: as in `InputImages`.
        dense: storage format of dense kernels.
        scales: storage format of scales.
        classes: number of logits, at most 26.
        **fields: fields of `ModelConfig`.
    """
    tiny = TINY.get(fields.get("name"), {"widths": (2, 3)})
    fields = {"dense_features": 16} | tiny | fields
    quantized = num_centers > 0
    config = Config(
        model=ModelConfig(**fields), binarize=BinarizeConfig(num_centers=num_centers or 2)
    )
    module = models.make_model(config, classes, quantized=quantized)
    height, width = size
    seen = (image_size, image_size) if image_size else size
    images = jax.ShapeDtypeStruct((1, *seen, channels), np.float32)
    plan = plan_of(config, classes, (*seen, channels))
    shapes = jax.eval_shape(module.init, jax.random.key(0), images)
    generator = np.random.default_rng(0)

    def random(path, leaf):
        name, shape = path[-1].key, leaf.shape
        if name in ("var", "scale", "m_filters"):
            values = generator.uniform(0.5, 2, shape)
        elif name in ("mean", "bias"):
            values = generator.normal(0, 0.5, shape)
        elif name == "strides":
            values = generator.uniform(1.2, 3, shape)
        elif name == "progress":
            values = np.asarray(0.6)
        elif name == "anchors":
            return generator.integers(-1, 2, shape, np.int8)
        elif name == "centers":
            values = np.linspace(-0.3, 0.4, *shape)
        else:
            values = generator.normal(0, (2 / np.prod(shape[:-1])) ** 0.5, shape)
        return values.astype(np.float32)

    variables = jax.tree_util.tree_map_with_path(random, shapes)
    config = sized(config, plan, variables["params"])
    model = Model(
        network=Network(config, quantized),
        images=InputImages(
            height=height, width=width, channels=channels, image_size=image_size,
            mean=(0.3, 0.4, 0.5)[:channels], std=(0.2, 0.3, 0.4)[:channels],
        ),
        class_names=tuple(string.ascii_lowercase[:classes]),
        provenance={"config": dataclasses.asdict(config)},
        tensors=packed_tensors(variables, plan, quantized, Formats(dense, scales)),
    )  # fmt: skip
    return model, variables, config
