"""Decoding and cropping of images with Pillow, on the host.

The crops are for data sets whose images differ in size. Images of equal size are augmented inside
the step.
"""

import io
import math
import pathlib
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError

from mcn_jax.errors import InputError

MODES = {1: "L", 3: "RGB"}  # channels -> mode of Pillow for the converted image
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")

# Pillow's errors for files that are not images, are truncated or claim an absurd size.
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)

# These warnings are about EXIF data and transparency, which are not used. Damaged pixels raise.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

Box = tuple[float, float, float, float]  # left, upper, right, lower, in pixels of the whole image


def image_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the image files in a folder, by suffix and sorted, without hidden files."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    )


def check_readable(content: bytes, name: str) -> None:
    """Decodes an image and drops the pixels, at a fraction of its size if the format allows that.

    Args:
        content: the encoded image.
        name: name of the file, for the error.

    Raises:
        InputError: if decoding fails or the image has more than 8 bits per channel; the error names
            the file.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            mode = image.mode
            image.draft("RGB", (1, 1))
            image.load()
    except UNREADABLE as error:
        # The text of an unknown format names the buffer in memory.
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "its format is unknown" if unknown else error
        raise InputError(
            f"{name} cannot be read as an image ({reason}); replace or remove it"
        ) from error
    if mode[0] in "IF":
        raise InputError(
            f"{name} has more than 8 bits per channel (Pillow's mode {mode}) and would be clipped;"
            " convert it"
        )


def decode(content: bytes, channels: int) -> np.ndarray:
    """Decodes an image to [Y, X, channels] uint8; converts gray, palette and CMYK images."""
    with Image.open(io.BytesIO(content)) as image:
        return _pixels(image.convert(MODES[channels]))


def center_crop(content: bytes, channels: int, size: int, share: float) -> np.ndarray:
    """Crops the center of an image and resizes it, for evaluation.

    Args:
        content: the encoded image.
        channels: 1 or 3.
        size: height and width of the result, pixels.
        share: side of the cropped square as a share of the image's shorter side.

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
    """Crops a random part of an image and resizes it to a square.

    Ten rectangles are drawn, each from a share of the area, uniform in [min_area, 1], and an aspect
    ratio, log-uniform in [3/4, 4/3]. The first rectangle that fits is placed uniformly. If none
    fits, the result is the largest centered rectangle with an allowed ratio (Szegedy et al. 2015,
    as commonly implemented).

    Args:
        content: the encoded image.
        channels: 1 or 3.
        size: height and width of the result, pixels.
        min_area: in (0, 1].
        generator: random generator.

    Returns:
        [size, size, channels] uint8.
    """
    with Image.open(io.BytesIO(content)) as image:
        box = random_box(*image.size, min_area, generator)
        return _resized(image, box, channels, size)


def random_box(width: int, height: int, min_area: float, generator: np.random.Generator) -> Box:
    """Draws the rectangle of `random_crop`, in whole pixels."""
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
    # JPEG can be decoded at 1/2, 1/4 or 1/8 of its size; never smaller than the result needs.
    enough = (width * size / (right - left), height * size / (lower - upper))
    image.draft(MODES[channels], (math.ceil(enough[0]), math.ceil(enough[1])))
    image = image.convert(MODES[channels])
    x, y = image.width / width, image.height / height
    part = (left * x, upper * y, min(right * x, image.width), min(lower * y, image.height))
    return _pixels(image.resize((size, size), Image.Resampling.BILINEAR, part))


def _pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).reshape(image.height, image.width, -1)


def padded_to(images: np.ndarray, size: int) -> np.ndarray:
    """Zero-pads [N, Y, X, C] on all sides to [N, size, size, C].

    Args:
        images: [N, Y, X, C].
        size: at least Y and X; 0 leaves the images unchanged.
    """
    if not size:
        return images
    height, width = images.shape[1:3]
    top, left = (size - height) // 2, (size - width) // 2
    margins = ((0, 0), (top, size - height - top), (left, size - width - left), (0, 0))
    return np.pad(images, margins)
