"""What a model file says of its network and images, and the checks of what a stranger's says."""

import dataclasses
import math
from typing import Any

import numpy as np

from mcn_jax import layers, models
from mcn_jax.config import ModelConfig
from mcn_jax.errors import InputError
from mcn_jax.ops.packing import MAX_CENTERS

DENSE = ("float32", "float16", "int8")  # how kernels of dense layers may be stored
# What a file may ask for.
MAX_SIZE, MAX_PLANES, MAX_CLASSES, MAX_NAME = 2048, 64, 2**20, 300
MAX_DEPTH, MAX_TENSORS = 200, 1_024  # a network that deep has 1,001
MAX_LAYER_BYTES = 2**28  # of what a layer makes of one image, of the filters it convolves with


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """The architecture; fields as in `ModelConfig`.

    num_centers: U; 0 where filters are not binary.
    """

    name: str = "simple_cnn"
    conv: str = "mcconv"
    widths: tuple[int, ...] = ()
    depth: int = 20
    stem: str = "cifar"
    planes: int = 4
    input_planes: str = "copy"
    dense_features: int = 1024
    num_centers: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputImages:
    """What the network takes: images of uint8.

    height, width, channels: of an image.
    image_size: height and width that images are zero-padded to, half of it on each side; 0 leaves
        them as they are.
    center_crop: share of the shorter side of an image of any size that is cut out and resized.
    mean, std: of each channel, of pixels divided by 255.
    """

    height: int
    width: int
    channels: int
    image_size: int = 0
    center_crop: float = 1.0
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(Y, X, C) as the network sees an image."""
        return (self.image_size or self.height, self.image_size or self.width, self.channels)


def class_names_from_json(names: Any) -> tuple[str, ...]:
    """The "class_names" of a header; raises InputError if they are none, or cannot be printed."""
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError("its class_names are no list of names")
    for name in names:
        _check_printable("class_names", name)
    return tuple(names)


def full_name_from_json(provenance: Any) -> str | None:
    """The full name of the data in the "provenance" of a header, None if it has none; raises
    InputError if it cannot be printed."""
    data = provenance.get("data") if isinstance(provenance, dict) else None
    name = data.get("full_name") if isinstance(data, dict) else None
    if name is not None:
        _check_printable("provenance.data.full_name", name)
    return name


def _check_printable(field: str, name: Any) -> None:
    if not isinstance(name, str) or not name.isprintable() or len(name) > MAX_NAME:
        raise InputError(
            f"{field}={name!a:.100} is no printable text of up to {MAX_NAME} characters"
        )


def images_from_json(values: Any) -> InputImages:
    """The "images" of a header; raises InputError naming what is wrong with them."""
    images = _from_json(InputImages, values, "images")
    for name in ("height", "width"):
        _limit(f"images.{name}", getattr(images, name), 1, MAX_SIZE)
    if images.channels not in (1, 3):
        raise InputError(f"images.channels={images.channels} is neither 1 nor 3")
    if images.image_size:
        _limit("images.image_size", images.image_size, max(images.height, images.width), MAX_SIZE)
    if not 0 < images.center_crop <= 1:
        raise InputError(f"images.center_crop={images.center_crop} does not lie in (0, 1]")
    for name in ("mean", "std"):
        numbers = getattr(images, name)
        if len(numbers) != images.channels or not all(map(math.isfinite, numbers)):
            raise InputError(f"images.{name}={numbers} is no number for each channel")
    # Images are normalised in float32, where these may be zero or infinite.
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
    """The "network" of a header, every size bounded before a network of it is made.

    Args:
        values: of the header.
        images: that it takes.
        classes: number of logits.
        tensors: number of tensors in the file.
        num_bytes: of all tensors together.

    Raises:
        InputError: naming what is wrong.
    """
    network = _from_json(Network, values, "network")
    for name, known in (("name", models.MODELS), ("conv", models.CONVOLUTIONS),
                        ("stem", models.STEMS), ("input_planes", layers.INPUT_PLANES)):  # fmt: skip
        value = getattr(network, name)
        if value not in known:
            raise InputError(f"network.{name}={value!r:.100} must be one of {', '.join(known)}")
    _limit("the number of tensors", tensors, 1, MAX_TENSORS)
    _limit("the number of classes", classes, 1, MAX_CLASSES)
    _limit("network.planes", network.planes, 1, MAX_PLANES)
    _limit("network.depth", network.depth, 0, MAX_DEPTH)
    _limit("the number of network.widths", len(network.widths), 1, tensors)
    for name in ("dense_features", "widths"):
        values = getattr(network, name)
        for value in values if isinstance(values, tuple) else (values,):
            _limit(f"network.{name}", value, 1, 2**20)
    if network.num_centers:
        _limit("network.num_centers", network.num_centers, 2, MAX_CENTERS)
    if network.num_centers and not models.CONVOLUTIONS[network.conv].binarizes:
        raise InputError(
            f"network.num_centers={network.num_centers} with network.conv={network.conv}"
        )
    architecture = models.MODELS[network.name]
    model_config = ModelConfig(
        name=network.name, widths=network.widths, depth=network.depth, stem=network.stem
    )
    architecture.check(model_config)
    height, width, channels = images.shape
    architecture.check_image_size(model_config, height, width)
    output_bytes = layer_bytes(network, images, classes)
    _limit("the bytes of a layer's output", output_bytes, 1, MAX_LAYER_BYTES)
    takes_planes = models.CONVOLUTIONS[network.conv].takes_planes
    rgbx = takes_planes and network.input_planes == "rgbx"
    if rgbx and (channels, network.planes) != (3, 4):
        raise InputError("network.input_planes='rgbx' needs 3 channels and 4 planes")
    _check_filters(network, channels, num_bytes)
    return network


def layer_bytes(network: Network, images: InputImages, classes: int) -> int:
    """An upper bound of the bytes of any array that one image becomes on its way to the logits."""
    height, width, channels = images.shape
    # Both networks halve the image in y and x before each width but the first two.
    outputs = (maps >> 2 * max(i - 1, 0) for i, maps in enumerate(network.widths))
    maps = max(_input_maps(network, channels), *outputs)
    return 4 * max(
        height * width * max(channels, maps * network.planes), network.dense_features, classes
    )


def _input_maps(network: Network, channels: int) -> int:
    copies = network.input_planes == "copy" or not models.CONVOLUTIONS[network.conv].takes_planes
    return channels if copies else 1


def _check_filters(network: Network, channels: int, num_bytes: int) -> None:
    """Bounds the filters by what the file holds of them, and by what they are convolved as."""
    fields = {f.name: getattr(network, f.name) for f in dataclasses.fields(network)}
    del fields["num_centers"]
    input_maps = _input_maps(network, channels)
    maps = models.MODELS[network.name].conv_maps(ModelConfig(**fields), input_maps)
    bits = sum(9 * network.planes * inputs * outputs for inputs, outputs in maps)
    _limit("the filter weights", bits, 1, 8 * num_bytes)
    convolved = max(36 * network.planes**2 * inputs * outputs for inputs, outputs in maps)
    _limit("the bytes of a layer's filters", convolved, 1, MAX_LAYER_BYTES)


def _limit(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise InputError(f"{name}={value!s:.100} does not lie in {least}..{most}")


def _from_json(cls: type, values: Any, name: str) -> Any:
    """A dataclass of numbers, names and tuples of numbers, every field of the right type."""
    fields = {field.name: field.type for field in dataclasses.fields(cls)}
    if not isinstance(values, dict) or values.keys() != fields.keys():
        raise InputError(f"its {name} has not the fields {', '.join(fields)}")
    checked: dict[str, Any] = {}
    for field, value in values.items():
        kind = fields[field]
        items = value if isinstance(value, list) else None
        if kind is float and type(value) is int and abs(value) < 1e9:
            value = float(value)
        if kind == tuple[float, ...] and items is not None:
            items = [
                float(item) if type(item) is int and abs(item) < 1e9 else item for item in items
            ]
        item_type = float if kind == tuple[float, ...] else int
        is_tuple = kind in (tuple[float, ...], tuple[int, ...])
        if is_tuple and items is not None and all(type(item) is item_type for item in items):
            checked[field] = tuple(items)
        elif not is_tuple and type(value) is kind:
            checked[field] = value
        else:
            raise InputError(f"its {name}.{field}={value!r:.100} is not of the right type")
    return cls(**checked)
