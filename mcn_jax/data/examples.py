"""Examples of one split, read by row, and statistics of their pixels."""

import collections
import concurrent.futures
import contextlib
import dataclasses
import itertools
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from google.protobuf import json_format

from mcn_jax import parallel
from mcn_jax.config import DataConfig
from mcn_jax.data import images
from mcn_jax.data.batches import Split
from mcn_jax.errors import InputError, first_line

STATISTICS_IMAGES = 1024
# Upper bounds for reading at once: number of examples, and bytes of their images.
CHUNK, CHUNK_BYTES = 256, 2**26
# Errors of TFDS and ArrayRecord for missing, truncated and malformed files.
READ_ERRORS = (OSError, RuntimeError, ValueError, json_format.Error)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Examples:
    """One split, read by row; it can be sent to another process.

    Attributes:
        source: TFDS data source, without decoding of images.
        encoded: whether images are stored as encoded files (such as JPEG or PNG) instead of arrays.
        path: directory of the prepared data set.
        shape: (Y, X, C) as stored, or (None, None, C) if images differ in size.
        classes: number of classes.
        config: config of the data.
    """

    source: Any
    encoded: bool
    path: pathlib.Path
    shape: tuple[int | None, int | None, int]
    classes: int
    config: DataConfig

    def __len__(self) -> int:
        return len(self.source)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape (Y, X, C) of the images that `read` returns."""
        height, width, channels = self.shape
        size = self.config.image_size
        return (size or height or 0, size or width or 0, channels)

    @property
    def pixel_format(self) -> images.PixelFormat:
        """The pixels that encoded images become."""
        config = self.config
        return images.PixelFormat(self.shape[2], config.background, config.exif_orientation)

    def read(
        self, rows: np.ndarray, generators: Sequence[np.random.Generator] | None = None
    ) -> Split:
        """Reads some examples and brings their images to one size.

        Args:
            rows: [N] row numbers.
            generators: one random generator per row. If given, a random part of each image is taken
                instead of its center. This needs a data set whose images differ in size.

        Returns:
            Images [N, Y, X, C] uint8 and labels [N] int32.

        Raises:
            InputError: if a record is damaged or its label is out of range.
        """
        with readable(self.config.name, self.path):
            examples = self.source.__getitems__([int(row) for row in rows])
            labels = np.array([example["label"] for example in examples], np.int32)
            pixels = np.empty((len(examples), *self.image_shape), np.uint8)
            for row, example in enumerate(examples):
                generator = None if generators is None else generators[row]
                pixels[row] = self._image(example["image"], generator)
        wrong = labels[(labels < 0) | (labels >= self.classes)]
        if wrong.size:
            raise InputError(
                f"data set {self.config.name} in {self.path} has the label {wrong[0]}, but only"
                f" {self.classes} classes; prepare it again"
            )
        return Split(pixels, labels)

    def _image(self, stored: Any, generator: np.random.Generator | None) -> np.ndarray:
        pixels, size = self.pixel_format, self.config.image_size
        if self.shape[0] is not None:
            image = images.decode(stored, pixels) if self.encoded else stored
            if image.shape != self.shape:  # such as one that is stored sideways
                raise InputError(
                    f"data set {self.config.name} in {self.path} has an image of"
                    f" {'x'.join(map(str, image.shape))} instead of"
                    f" {'x'.join(map(str, self.shape))}; if its EXIF orientation is wrong, set"
                    " config.data.exif_orientation=False"
                )
            return images.padded_to(image[None], size)[0]
        if generator is not None:
            return images.random_crop(stored, pixels, size, self.config.min_crop_area, generator)
        return images.center_crop(stored, pixels, size, self.config.center_crop)

    def count_transparent(self) -> int:
        """Counts the images with transparent pixels; reads the whole split."""
        if not self.encoded:
            return 0
        with readable(self.config.name, self.path):
            rows = range(len(self))
            return sum(images.has_transparency(self.source[row]["image"]) for row in rows)

    @property
    def chunk_size(self) -> int:
        """Number of examples that `chunks` reads at once."""
        return max(1, min(CHUNK, CHUNK_BYTES // math.prod(self.image_shape)))

    def chunks(self) -> Iterator[Split]:
        """Yields the whole split in order, some examples at a time.

        Several threads decode the images, because Pillow releases Python's global lock.
        """
        threads = (parallel.host_cores() or 1) if self.encoded else 1
        size = self.chunk_size
        parts = iter(np.split(np.arange(len(self)), range(size, len(self), size)))
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            # One task per thread at most, because the split may not fit into memory.
            ahead = collections.deque(
                pool.submit(self.read, rows) for rows in itertools.islice(parts, threads)
            )
            while ahead:
                done = ahead.popleft().result()
                ahead.extend(pool.submit(self.read, rows) for rows in itertools.islice(parts, 1))
                yield done

    def read_all(self) -> Split:
        """Reads the whole split."""
        return Split(*(np.concatenate(parts) for parts in zip(*self.chunks(), strict=True)))


def pixel_statistics(examples: Examples) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Computes mean and standard deviation of each channel, for pixels divided by 255.

    They are taken over at most 1,024 examples, evenly spread over the split and prepared as in
    evaluation.
    """
    rows = np.unique(np.linspace(0, len(examples) - 1, STATISTICS_IMAGES).round().astype(int))
    parts = np.array_split(rows, -(-len(rows) // 32))
    counts = [histograms(examples.read(part).images) for part in parts]
    mean, std = mean_and_std(np.sum(counts, axis=0))
    # Four digits, so rounding errors do not differ between machines. A constant channel gets a
    # standard deviation of 1, because it is a divisor.
    mean, std = mean.round(4), std.round(4)
    return tuple(mean.tolist()), tuple(np.where(std > 0, std, 1.0).tolist())


def histograms(images: np.ndarray) -> np.ndarray:
    """Counts the values of each channel of images [N, Y, X, C] uint8: [C, 256]."""
    channels = np.moveaxis(images, -1, 0)
    return np.stack([np.bincount(values.ravel(), minlength=256) for values in channels])


def mean_and_std(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Computes mean and standard deviation [C] of values divided by 255.

    Args:
        counts: [C, 256] histograms of the values.
    """
    values, shares = np.arange(256) / 255, counts / counts.sum(1, keepdims=True)
    mean = shares @ values
    return mean, np.sqrt(np.sum(shares * (values - mean[:, None]) ** 2, axis=1))


@contextlib.contextmanager
def readable(name: str, path: pathlib.Path) -> Iterator[None]:
    """Turns the errors of TFDS and ArrayRecord for damaged files into an InputError.

    Args:
        name: name of the data set.
        path: directory where it is prepared.
    """
    try:
        yield
    except InputError:
        raise
    except READ_ERRORS as error:
        if isinstance(error, OSError) and error.filename:
            file = pathlib.Path(error.filename)
            if path not in file.parents and file not in path.parents:
                message = f"{file} cannot be read ({error.strerror}); make it readable"
                raise InputError(message) from error
        raise InputError(
            f"data set {name} in {path} cannot be read ({first_line(error)}); delete {path} and"
            " start again"
        ) from error
