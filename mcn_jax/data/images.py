"""Images with Pillow, on the host: decoding, the center crop of evaluation and the random crop of
training. For sets whose images differ in size; the others are augmented inside the step."""

import io
import math
import pathlib
import warnings

import numpy as np
from PIL import Image

from mcn_jax.errors import InputError

MODES = {1: "L", 3: "RGB"}  # channels -> Pillow's mode, which every image is converted to
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")

# What Pillow raises for a file that is no image, is truncated or claims an absurd size.
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)

# Of EXIF data and transparency, which are not used; what is wrong with pixels is an exception.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

Box = tuple[float, float, float, float]  # left, upper, right, lower, pixels of the whole image


def image_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The images in a folder, by their suffix, sorted; hidden files are left out."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    )


def check_readable(content: bytes, name: str) -> None:
    """Decodes an image, at a fraction of its size where the format can, and drops the pixels.

    Raises:
        InputError: naming the file, if that fails.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            mode = image.mode
            image.draft("RGB", (1, 1))
            image.load()
    except UNREADABLE as error:
        raise InputError(
            f"{name} cannot be read as an image ({error}); replace or remove it"
        ) from error
    if mode[0] in "IF":
        raise InputError(
            f"{name} has more than 8 bits a channel (Pillow's mode {mode}), which would be clipped;"
            " convert it"
        )


def decode(content: bytes, channels: int) -> np.ndarray:
    """An encoded image as [Y, X, channels] uint8; gray, palette and CMYK are converted."""
    with Image.open(io.BytesIO(content)) as image:
        return _pixels(image.convert(MODES[channels]))


def center_crop(content: bytes, channels: int, size: int, share: float) -> np.ndarray:
    """The center of an image, for evaluation.

    Args:
        content: the encoded image.
        channels: 1 or 3.
        size: height and width of the result, pixels.
        share: side of the square that is cut out, as a share of the image's shorter side.

    Returns:
        [size, size, channels] uint8.
    """
    with Image.open(io.BytesIO(content)) as image:
        width, height = image.size
        side = share * min(width, height)
        left, upper = (width - side) / 2, (height - side) / 2
        return _resized(image, (left, upper, left + side, upper + side), channels, size)


def random_crop(
    content: bytes, channels: int, size: int, min_area: float, generator: np.random.Generator
) -> np.ndarray:
    """A random part of an image, resized to a square.

    Ten times a share of the area, uniform in [min_area, 1], and an aspect ratio,
    log-uniform in [3/4, 4/3], are drawn; the first rectangle that fits is placed uniformly.
    If none does, it is the largest one at the center with an allowed ratio (Szegedy et al. 2015, as
    commonly implemented).

    Args:
        content: the encoded image.
        channels: 1 or 3.
        size: height and width of the result, pixels.
        min_area: in (0, 1].
        generator: for the random choices.

    Returns:
        [size, size, channels] uint8.
    """
    with Image.open(io.BytesIO(content)) as image:
        box = random_box(*image.size, min_area, generator)
        return _resized(image, box, channels, size)


def random_box(width: int, height: int, min_area: float, generator: np.random.Generator) -> Box:
    """The rectangle of `random_crop`, whole pixels."""
    shares = generator.uniform(min_area, 1, 10)
    ratios = np.exp(generator.uniform(math.log(3 / 4), math.log(4 / 3), 10))
    places = generator.uniform(size=2)
    widths = np.maximum(np.round(np.sqrt(width * height * shares * ratios)), 1)
    heights = np.maximum(np.round(np.sqrt(width * height * shares / ratios)), 1)
    fitting = np.flatnonzero((widths <= width) & (heights <= height))
    if fitting.size:
        box_width, box_height = int(widths[fitting[0]]), int(heights[fitting[0]])
        left = int(places[0] * (width - box_width + 1))
        upper = int(places[1] * (height - box_height + 1))
    else:
        box_width = min(width, round(height * 4 / 3))
        box_height = min(height, round(width * 4 / 3))
        left, upper = (width - box_width) // 2, (height - box_height) // 2
    return left, upper, left + box_width, upper + box_height


def _resized(image: Image.Image, box: Box, channels: int, size: int) -> np.ndarray:
    width, height = image.size
    left, upper, right, lower = box
    # JPEG can be decoded at 1/2, 1/4 or 1/8 of its size, as long as the part is not enlarged.
    enough = (width * size / (right - left), height * size / (lower - upper))
    image.draft(MODES[channels], (math.ceil(enough[0]), math.ceil(enough[1])))
    image = image.convert(MODES[channels])
    x, y = image.width / width, image.height / height
    part = (left * x, upper * y, min(right * x, image.width), min(lower * y, image.height))
    return _pixels(image.resize((size, size), Image.Resampling.BILINEAR, part))


def _pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).reshape(image.height, image.width, -1)


def padded_to(images: np.ndarray, size: int) -> np.ndarray:
    """Zero-pads [N, Y, X, C] on all sides to [N, size, size, C], which is not smaller; size 0
    leaves it as it is."""
    if not size:
        return images
    height, width = images.shape[1:3]
    top, left = (size - height) // 2, (size - width) // 2
    margins = ((0, 0), (top, size - height - top), (left, size - width - left), (0, 0))
    return np.pad(images, margins)
