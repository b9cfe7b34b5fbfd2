"""Describes the network and images of a model file, and checks untrusted headers."""

import contextlib
import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from mcn_jax import models
from mcn_jax.config import (
    NO_BACKGROUND,
    BinarizeConfig,
    Config,
    ModelConfig,
    flatten,
    from_mapping,
)
from mcn_jax.data.images import PixelFormat
from mcn_jax.errors import InputError, did_you_mean
from mcn_jax.layers.family import FILTERS
from mcn_jax.layers.planes import check_input
from mcn_jax.layers.pooling import POOLINGS
from mcn_jax.layers.table import LAYERS
from mcn_jax.models.heads import HEADS
from mcn_jax.models.plan import Plan, plan_of, specs
from mcn_jax.ops.packing import MAX_CENTERS

# The most that a file may request.
MAX_SIZE, MAX_PLANES, MAX_CLASSES, MAX_NAME = 2048, 64, 2**20, 300
MAX_DEPTH, MAX_TENSORS = 200, 1_024  # a network of depth 200 has 1,001 tensors
MAX_STAGES, BLOCK_TENSORS = 8, 6  # a block has two convolutions and two batch norms, or more
MAX_LAYER_BYTES = 2**28  # for a layer's input or output of one image, and for its filters
BASE_FIELDS = ("model.name", "model.conv", "model.widths", "model.pooling", "model.head")
PLANES = "model.planes"  # comes after the options of network, head and pooling
# Fields of ModelConfig that a header has unless they have their default.
OPTIONAL_FIELDS = ("stem_conv", "pointwise", "strides")


class Network(NamedTuple):
    """The architecture in a model file.

    Attributes:
        config: the run's config. If it was read from a header, missing fields have their defaults.
        quantized: whether quantizable layers store quantized weights.
    """

    config: Config
    quantized: bool

    def plan(self, num_classes: int, image_shape: tuple[int, int, int]) -> Plan:
        """Returns the layers of the network; see `plan_of`."""
        return plan_of(self.config, num_classes, image_shape)

    def to_json(self) -> dict[str, Any]:
        """Returns the "network" of a header: the architecture and the options of its parts."""
        flat = flatten(self.config)
        fields = {name: flat[name] for name in _fields(self.config.model)}
        if not self.quantized:
            fields = {n: v for n, v in fields.items() if not n.startswith("binarize.")}
        return {n.partition(".")[2]: value for n, value in fields.items()} | {
            "quantized": self.quantized
        }


def _fields(model: ModelConfig) -> tuple[str, ...]:
    """Returns the config fields that a header must have."""
    kinds = models.convolution_kinds(model)
    own = [*models.MODELS[model.name].options, *HEADS[model.head].options]
    own += POOLINGS[model.pooling].options
    optional = [name for name in OPTIONAL_FIELDS if name in kinds or name == "strides"]
    optional += dict.fromkeys(n for kind in kinds.values() for n in LAYERS[kind].options_if_set)
    own += [name for name in optional if getattr(model, name) != getattr(ModelConfig, name)]
    options = dict.fromkeys(
        [PLANES, *(name for kind in kinds.values() for name in LAYERS[kind].options)]
    )
    return (*BASE_FIELDS, *(f"model.{name}" for name in own), *options)


def _known_fields() -> dict[str, str]:
    """Returns {field: its group in a config} for every field that a header may have."""
    options = [f"model.{name}" for model in models.MODELS.values() for name in model.options]
    options += [f"model.{name}" for head in HEADS.values() for name in head.options]
    options += [f"model.{name}" for pooling in POOLINGS.values() for name in pooling.options]
    options += [PLANES, *(name for family in LAYERS.values() for name in family.options)]
    options += [f"model.{name}" for name in OPTIONAL_FIELDS]
    options += [f"model.{name}" for family in LAYERS.values() for name in family.options_if_set]
    parts = (name.partition(".") for name in (*BASE_FIELDS, *options))
    return {field: group for group, _, field in parts}


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputImages:
    """The uint8 images that a network takes.

    Attributes:
        height: pixels in y, before padding.
        width: pixels in x, before padding.
        channels: 1 or 3.
        image_size: height and width that images are zero-padded to, with half of the padding on
            each side; 0 for no padding.
        center_crop: side of the center crop that is resized, as a share of the shorter side.
        mean: mean of each channel, for pixels divided by 255.
        std: standard deviation of each channel, for pixels divided by 255.
        background: gray level behind transparent pixels, 0 to 255; `NO_BACKGROUND` ignores
            transparency. A missing field means what older versions did.
        exif_orientation: whether images are turned upright as their EXIF data say; likewise.
    """

    height: int
    width: int
    channels: int
    image_size: int = 0
    center_crop: float = 1.0
    mean: tuple[float, ...]
    std: tuple[float, ...]
    background: int = NO_BACKGROUND
    exif_orientation: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape (Y, X, C) of an image after padding."""
        return (self.image_size or self.height, self.image_size or self.width, self.channels)

    @property
    def pixel_format(self) -> PixelFormat:
        """The pixels that an encoded image becomes."""
        return PixelFormat(self.channels, self.background, self.exif_orientation)


def class_names_from_json(names: Any) -> tuple[str, ...]:
    """Returns the "class_names" of a header, which may contain any characters.

    Whoever shows a name escapes it with `mcn_jax.escapes.shown`.

    Raises:
        InputError: if they are not a list of names.
    """
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError("its class_names are not a list of names")
    for name in names:
        if len(name) > MAX_NAME or not _is_unicode(name):
            raise InputError(
                f"class_names={name!a:.100} is not text of up to {MAX_NAME} characters"
            )
    return tuple(names)


def full_name_from_json(provenance: Any) -> str | None:
    """Returns the data set's full name from the "provenance" of a header, or None if missing.

    Raises:
        InputError: if the name is not printable.
    """
    data = provenance.get("data") if isinstance(provenance, dict) else None
    name = data.get("full_name") if isinstance(data, dict) else None
    if name is not None:
        _check_printable("provenance.data.full_name", name)
    return name


def _is_unicode(name: str) -> bool:
    """Returns whether a string has no half of a surrogate pair, so it can be encoded."""
    return not any(0xD800 <= ord(char) < 0xE000 for char in name)


def _check_printable(field: str, name: Any) -> None:
    if not isinstance(name, str) or not name.isprintable() or len(name) > MAX_NAME:
        raise InputError(
            f"{field}={name!a:.100} is not printable text of up to {MAX_NAME} characters"
        )


def images_from_json(values: Any) -> InputImages:
    """Returns the "images" of a header.

    Raises:
        InputError: naming the field that is wrong.
    """
    images = _from_json(InputImages, values, "images")
    for name in ("height", "width"):
        _limit(f"images.{name}", getattr(images, name), 1, MAX_SIZE)
    if images.channels not in (1, 3):
        raise InputError(f"images.channels={images.channels} is neither 1 nor 3")
    if images.image_size:
        _limit("images.image_size", images.image_size, max(images.height, images.width), MAX_SIZE)
    if not 0 < images.center_crop <= 1:
        raise InputError(f"images.center_crop={images.center_crop} does not lie in (0, 1]")
    if images.center_crop < 1 and images.height != images.width:
        raise InputError(
            f"images.center_crop={images.center_crop} is for square images, not"
            f" {images.height}x{images.width}"
        )
    _limit("images.background", images.background, NO_BACKGROUND, 255)
    for name in ("mean", "std"):
        numbers = getattr(images, name)
        if len(numbers) != images.channels or not all(map(math.isfinite, numbers)):
            raise InputError(f"images.{name}={numbers} is not one number per channel")
    # Images are normalised in float32, where finite float64 numbers may become 0 or infinite.
    with np.errstate(over="ignore"):
        mean, std = np.float32(images.mean), np.float32(images.std)
    if not np.isfinite(mean).all():
        raise InputError(f"images.mean={images.mean} is not finite in float32")
    if not (np.isfinite(std) & (std >= np.finfo(np.float32).tiny)).all():
        raise InputError(f"images.std={images.std} is not positive in float32")
    return images


def network_from_json(
    values: Any, images: InputImages, classes: int, tensors: int, num_bytes: int
) -> Network:
    """Returns the "network" of a header, and checks every size before memory is allocated.

    A missing field takes its default, which gives the behavior of older versions.

    Args:
        values: the header's "network".
        images: the images that the network takes.
        classes: number of logits.
        tensors: number of tensors in the file.
        num_bytes: size of all tensors together.

    Raises:
        InputError: naming what is wrong.
    """
    _limit("the number of tensors", tensors, 1, MAX_TENSORS)
    _limit("the number of classes", classes, 1, MAX_CLASSES)
    network = _network(values, tensors)
    model = network.config.model
    kinds = models.convolution_kinds(model).values()
    if network.quantized and not any(LAYERS[kind].quantizes for kind in kinds):
        raise InputError(
            f"network.conv={model.conv} does not support quantized weights, but the file has them"
        )
    height, width, channels = images.shape
    with _named_as_here():
        models.MODELS[model.name].check_image_size(model, height, width)
        if LAYERS[models.stem_conv(model)].takes_planes:
            check_input(model.input_planes, channels, model.planes, "the file")
    with _named_as_here():
        plan = network.plan(classes, images.shape)
    _limit("the bytes of a layer's output", layer_bytes(plan, images), 1, MAX_LAYER_BYTES)
    filters = [t for t in specs(plan, *network).values() if t.part == FILTERS]
    _limit("the bits of the filters", sum(t.bits for t in filters), 1, 8 * num_bytes)
    _limit("the bytes of a layer's filters", _most_filter_bytes(plan), 1, MAX_LAYER_BYTES)
    return network


def _network(values: Any, tensors: int) -> Network:
    """Returns the network of a header, with its names and the range of its numbers checked."""
    if not isinstance(values, dict):
        raise InputError("its network is not an object")
    known = _known_fields()
    groups: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        if name == "quantized":
            continue
        if name not in known:
            nearest = did_you_mean(name[:MAX_NAME], [*known, "quantized"])
            raise InputError(f"unknown field network.{name!a:.100}{nearest}")
        if isinstance(value, str) and len(value) > MAX_NAME:
            raise InputError(f"network.{name}={value!a:.100} is too long for a name")
        groups.setdefault(known[name], {})[name] = value
    config = Config(
        **{
            group: from_mapping(type(getattr(Config, group)), fields, "network")
            for group, fields in groups.items()
        }
    )
    model, num_centers = config.model, values.get("num_centers", 0)
    quantized = values.get("quantized", bool(num_centers))  # version 0.1 has only num_centers
    if type(quantized) is not bool:
        raise InputError(f"network.quantized={quantized!r:.100} must be true or false")
    _limit("network.planes", model.planes, 1, MAX_PLANES)
    _limit("network.depth", model.depth, 0, MAX_DEPTH)
    _limit("the number of network.widths", len(model.widths), 1, tensors)
    if "blocks" in values:
        _limit("the number of network.blocks", len(model.blocks), 1, MAX_STAGES)
        _limit("the sum of network.blocks", sum(model.blocks), 1, tensors // BLOCK_TENSORS)
        _limit("the least of network.blocks", min(model.blocks), 1, tensors)
    _limit("the number of network.strides", len(model.strides), 0, tensors)
    _limit("the number of network.pooled_sizes", len(model.pooled_sizes), 0, 2 * tensors)
    for size in model.pooled_sizes:
        _limit("network.pooled_sizes", size, 1, MAX_SIZE)
    _limit("network.growth", model.growth, 1, 2**20)
    for size in model.widths:
        _limit("network.widths", size, 1, 2**20)
    _limit("network.dense_features", model.dense_features, 1, 2**20)
    if num_centers or (quantized and "num_centers" in values):
        _limit("network.num_centers", num_centers, 2, MAX_CENTERS)
    else:  # version 0.1 wrote 0 where filters are not binary
        default = dataclasses.replace(config.binarize, num_centers=BinarizeConfig.num_centers)
        config = dataclasses.replace(config, binarize=default)
    with _named_as_here():
        models.check(config)
    return Network(config, quantized)


@contextlib.contextmanager
def _named_as_here() -> Iterator[None]:
    """Rewrites errors about config fields so that they name the header's fields."""
    try:
        yield
    except InputError as error:
        message = re.sub(r"\bconfig\.\w+\.(?=\w+=)", "network.", str(error))
        raise InputError(message) from error


def layer_bytes(plan: Plan, images: InputImages) -> int:
    """Returns the bytes of the largest array of one image in any layer, in float32."""
    shapes: list[tuple[int, ...]] = [images.shape]
    for layer in plan:
        shapes += [layer.in_shape, layer.out_shape, *layer.family.inner_shapes(layer)]
    return 4 * max(math.prod(shape) for shape in shapes)


def _most_filter_bytes(plan: Plan) -> int:
    """Returns the bytes of the largest kernel that a layer convolves with, in float32."""
    convolutions = [layer for layer in plan if layer.family.filters is not None]
    sizes = [math.prod(shape) for layer in convolutions for shape in layer.params.values()]
    sizes += [
        max(layer.family.multiply_adds(layer).values()) // layer.out_pixels
        for layer in convolutions
    ]
    return 4 * max(sizes)


def _limit(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise InputError(f"{name}={value!s:.100} does not lie in {least}..{most}")


def _from_json(cls: type, values: Any, name: str) -> Any:
    """Returns a dataclass of numbers and tuples of numbers; checks the type of every field."""
    fields = {field.name: field for field in dataclasses.fields(cls)}
    if not isinstance(values, dict):
        raise InputError(f"its {name} is not an object")
    for field in values:
        if field not in fields:
            nearest = did_you_mean(field[:MAX_NAME], fields)
            raise InputError(f"unknown field {name}.{field!a:.100}{nearest}")
    for field, described in fields.items():
        if field not in values and described.default is dataclasses.MISSING:
            raise InputError(f"its {name} does not have the field {field}")
    checked: dict[str, Any] = {}
    for field, value in values.items():
        kind = fields[field].type
        items = value if isinstance(value, list) else None
        if kind is float and type(value) is int and abs(value) < 1e9:
            value = float(value)
        if items is not None:
            items = [
                float(item) if type(item) is int and abs(item) < 1e9 else item for item in items
            ]
        is_tuple = kind == tuple[float, ...]
        if is_tuple and items is not None and all(type(item) is float for item in items):
            checked[field] = tuple(items)
        elif not is_tuple and type(value) is kind:
            checked[field] = value
        else:
            raise InputError(f"its {name}.{field}={value!r:.100} is not of the right type")
    return cls(**checked)
