"""Decoding and cropping of images with Pillow, on the host.

Every encoded image is opened and converted here, so all commands treat transparency and EXIF
orientation alike. The crops are for data sets whose images differ in size. Images of equal size are
augmented inside the step.
"""

import contextlib
import io
import math
import pathlib
import struct
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from mcn_jax.config import NO_BACKGROUND
from mcn_jax.errors import InputError

MODES = {1: "L", 3: "RGB"}  # channels -> mode of Pillow for the converted image
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")

# Pillow's errors for files that are not images, are damaged or claim an absurd size.
UNREADABLE = (
    OSError, SyntaxError, ValueError, RuntimeError, LookupError, EOFError, struct.error,
    Image.DecompressionBombError,
)  # fmt: skip

# Pillow warns of damaged EXIF data and of dropped transparency. Damaged pixels raise.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

Box = tuple[float, float, float, float]  # left, upper, right, lower, in pixels of the whole image

# EXIF orientation -> how to turn the stored image upright; 1 is upright.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = tuple(TURNS[orientation] for orientation in (5, 6, 7, 8))  # these swap the sides

Turn = Image.Transpose | None  # None leaves an image as it is


class PixelFormat(NamedTuple):
    """The pixels that an encoded image becomes.

    Attributes:
        channels: 1 or 3.
        background: gray level behind transparent pixels, 0 to 255. `NO_BACKGROUND` ignores
            transparency, and shows what is stored in transparent pixels.
        exif_orientation: whether images are turned upright as their EXIF data say.
    """

    channels: int
    background: int
    exif_orientation: bool


def image_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the image files in a folder, by suffix and sorted, without hidden files.

    Raises:
        InputError: if one is a pipe, socket or device, which could block reading forever.
    """
    found = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and not path.is_dir()
    )
    for path in found:
        check_regular(path)
    return found


def check_regular(path: pathlib.Path) -> None:
    """Raises InputError if a path is a pipe, socket or device, and not a file."""
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is a pipe, socket or device and not an image file; remove it")


@contextlib.contextmanager
def _opened(content: bytes) -> Iterator[Image.Image]:
    """Opens an image without decoding it."""
    try:
        image = Image.open(io.BytesIO(content))
    except UnidentifiedImageError as error:
        # Pillow's text names the buffer in memory.
        raise UnidentifiedImageError("its format is unknown") from error
    with image:
        key = image.info.get("transparency")
        if image.format == "PNG" and image.mode in ("L", "RGB") and key is not None:
            # Pillow scales pixels to 8 bits, but not the color that is transparent.
            key = _to_8_bits(np.array(key), depth=content[24]).tolist()
            image.info["transparency"] = tuple(key) if image.mode == "RGB" else key
        yield image


def _to_8_bits(values: np.ndarray, depth: int) -> np.ndarray:
    """Scales values of 1 to 16 bits as Pillow scales the pixels of a PNG."""
    return values >> 8 if depth == 16 else values % 2**depth * (255 // (2**depth - 1))


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
        with _opened(content) as image:
            mode = image.mode
            image.draft("RGB", (1, 1))
            image.load()
    except UNREADABLE as error:
        raise InputError(
            f"{name} cannot be read as an image ({error}); replace or remove it"
        ) from error
    if mode[0] in "IF":
        raise InputError(
            f"{name} has more than 8 bits per channel (Pillow's mode {mode}) and would be clipped;"
            " convert it"
        )


def has_transparency(content: bytes) -> bool:
    """Returns whether any pixel of an encoded image is not opaque."""
    with _opened(content) as image:
        if not image.has_transparency_data:
            return False
        return _with_alpha(image).getchannel("A").getextrema()[0] != 255


def upright_size(content: bytes, pixels: PixelFormat) -> tuple[int, int]:
    """Returns the width and height that `decode` gives an image."""
    with _opened(content) as image:
        turn = _turn(image, pixels)
        return _turned(image.size, turn)


def decode(content: bytes, pixels: PixelFormat) -> np.ndarray:
    """Decodes an image to [Y, X, channels] uint8; converts gray, palette and CMYK images."""
    with _opened(content) as image:
        turn = _turn(image, pixels)
        return _array(_converted(image, turn, pixels))


def center_crop(content: bytes, pixels: PixelFormat, size: int, share: float) -> np.ndarray:
    """Crops the center of an image and resizes it, for evaluation.

    Args:
        content: the encoded image.
        pixels: the pixels that it becomes.
        size: height and width of the result, pixels.
        share: side of the cropped square as a share of the image's shorter side.

    Returns:
        [size, size, channels] uint8.
    """
    with _opened(content) as image:
        turn = _turn(image, pixels)
        width, height = _turned(image.size, turn)
        side = share * min(width, height)
        left, upper = (width - side) / 2, (height - side) / 2
        return _resized(image, turn, (left, upper, left + side, upper + side), pixels, size)


def random_crop(
    content: bytes,
    pixels: PixelFormat,
    size: int,
    min_area: float,
    generator: np.random.Generator,
) -> np.ndarray:
    """Crops a random part of an image and resizes it to a square.

    Ten rectangles are drawn, each from a share of the area, uniform in [min_area, 1], and an aspect
    ratio, log-uniform in [3/4, 4/3]. The first rectangle that fits is placed uniformly. If none
    fits, the result is the largest centered rectangle with an allowed ratio (Szegedy et al. 2015,
    as commonly implemented).

    Args:
        content: the encoded image.
        pixels: the pixels that it becomes.
        size: height and width of the result, pixels.
        min_area: in (0, 1].
        generator: random generator.

    Returns:
        [size, size, channels] uint8.
    """
    with _opened(content) as image:
        turn = _turn(image, pixels)
        box = random_box(*_turned(image.size, turn), min_area, generator)
        return _resized(image, turn, box, pixels, size)


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


def _turn(image: Image.Image, pixels: PixelFormat) -> Turn:
    """Returns how to turn an open image upright; this decodes a PNG or TIFF."""
    if not pixels.exif_orientation:
        return None
    if image.format == "TIFF":
        image.load()  # Pillow turns a TIFF upright when it decodes it
    try:
        return TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Pillow's errors for damaged EXIF data have no other common class
        return None


def _turned(size: tuple[int, int], turn: Turn) -> tuple[int, int]:
    return (size[1], size[0]) if turn in SIDEWAYS else size


def _converted(image: Image.Image, turn: Turn, pixels: PixelFormat) -> Image.Image:
    """Returns an image on its background, upright, in gray or RGB."""
    if image.has_transparency_data and pixels.background != NO_BACKGROUND:
        front = _with_alpha(image)
        image = Image.new("RGB", image.size, (pixels.background,) * 3)
        image.paste(front, mask=front.getchannel("A"))
    image = image.convert(MODES[pixels.channels])
    return image if turn is None else image.transpose(turn)


def _with_alpha(image: Image.Image) -> Image.Image:
    """Returns an image of any mode that has transparency as RGBA."""
    straight = {"La": "LA", "RGBa": "RGBA"}.get(image.mode)  # colors not multiplied by alpha
    if straight is not None:
        image = image.convert(straight)
    return image.convert("RGBA")


def _resized(
    image: Image.Image, turn: Turn, box: Box, pixels: PixelFormat, size: int
) -> np.ndarray:
    """Cuts a box, in pixels of the upright image, out of an open image and resizes it."""
    width, height = _turned(image.size, turn)
    left, upper, right, lower = box
    # JPEG can be decoded at 1/2, 1/4 or 1/8 of its size; never smaller than the result needs.
    enough = (
        math.ceil(width * size / (right - left)),
        math.ceil(height * size / (lower - upper)),
    )
    image.draft(MODES[pixels.channels], _turned(enough, turn))
    image = _converted(image, turn, pixels)
    x, y = image.width / width, image.height / height
    part = (left * x, upper * y, min(right * x, image.width), min(lower * y, image.height))
    return _array(image.resize((size, size), Image.Resampling.BILINEAR, part))


def _array(image: Image.Image) -> np.ndarray:
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
