"""Makes model files of random networks, for tests of readers."""

import dataclasses

import jax
import numpy as np

from mcn_jax import models
from mcn_jax.config import BinarizeConfig, Config, ModelConfig
from mcn_jax.deploy.header import InputImages, Network
from mcn_jax.deploy.model_file import Model, packed_tensors
from mcn_jax.models.plan import plan_of

CLASSES = 5


def random_images(count, model):
    """Returns random images that a model takes."""
    images = model.images
    shape = (count, images.height, images.width, images.channels)
    return np.random.default_rng(1).integers(0, 256, shape, np.uint8)


def random_model(num_centers=2, channels=1, size=(16, 16), image_size=0, dense="float32", **fields):
    """Returns (model, variables of the network with its own batch norm, config), all random.

    Args:
        num_centers: 0 for filters that are not quantized.
        channels: of the images.
        size: of the images.
        image_size: as in `InputImages`.
        dense: storage format of dense kernels.
        **fields: fields of `ModelConfig`.
    """
    fields = {"widths": (2, 3), "dense_features": 16} | fields
    if fields.get("name") == "wide_resnet":
        fields = {"depth": 8} | fields | {"widths": (1, 2, 2, 3)}
    if fields.get("name") == "nin":
        fields |= {"widths": (4, 3, 3, 4, 3, 3, 4, 4)}
    if fields.get("name") == "resnet":
        fields = {"blocks": (2, 1)} | fields | {"widths": (2, 2, 3)}
    if fields.get("name") == "densenet":
        fields = {"blocks": (2, 1), "growth": 2} | fields | {"widths": (3,)}
    if fields.get("name") == "maxout":
        fields |= {"widths": (3, 2, 2)}
    quantized = num_centers > 0
    config = Config(
        model=ModelConfig(**fields), binarize=BinarizeConfig(num_centers=num_centers or 2)
    )
    module = models.make_model(config, CLASSES, quantized=quantized)
    height, width = size
    seen = (image_size, image_size) if image_size else size
    images = jax.ShapeDtypeStruct((1, *seen, channels), np.float32)
    plan = plan_of(config, CLASSES, (*seen, channels))
    shapes = jax.eval_shape(module.init, jax.random.key(0), images)
    generator = np.random.default_rng(0)

    def random(path, leaf):
        name, shape = path[-1].key, leaf.shape
        if name in ("var", "scale", "m_filters"):
            values = generator.uniform(0.5, 2, shape)
        elif name in ("mean", "bias"):
            values = generator.normal(0, 0.5, shape)
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
    model = Model(
        network=Network(config, quantized),
        images=InputImages(
            height=height, width=width, channels=channels, image_size=image_size,
            mean=(0.3, 0.4, 0.5)[:channels], std=(0.2, 0.3, 0.4)[:channels],
        ),
        class_names=tuple("abcde"),
        provenance={"config": dataclasses.asdict(config)},
        tensors=packed_tensors(variables, plan, quantized, dense),
    )  # fmt: skip
    return model, variables, config
