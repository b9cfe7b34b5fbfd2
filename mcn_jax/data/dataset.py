"""A data set opened for reading: its splits as sequences, and what a run needs to know."""

import collections
import concurrent.futures
import dataclasses
import itertools
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from mcn_jax import parallel
from mcn_jax.config import DataConfig
from mcn_jax.data import images
from mcn_jax.data.batches import Split
from mcn_jax.data.facts import DATASETS, check_stored_shape
from mcn_jax.data.prepare import prepared_builder, readable
from mcn_jax.errors import InputError

STATISTICS_IMAGES = 1024
# Upper bounds for reading at once: number of examples, and bytes of their images.
CHUNK, CHUNK_BYTES = 256, 2**26


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
        channels, size = self.shape[2], self.config.image_size
        if self.shape[0] is not None:
            image = images.decode(stored, channels) if self.encoded else stored
            return images.padded_to(image[None], size)[0]
        if generator is not None:
            return images.random_crop(stored, channels, size, self.config.min_crop_area, generator)
        return images.center_crop(stored, channels, size, self.config.center_crop)

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """An open data set.

    Attributes:
        class_names: names of the classes in the order of the labels.
        full_name: TFDS's name of the prepared data set. For an image folder, it identifies the
            names, sizes and times of its files.
        mean: mean of each channel, for pixels divided by 255.
        std: standard deviation of each channel, for pixels divided by 255.
        train: the split that the config names as `train_split`.
        test: the split that the config names as `test_split`.
    """

    class_names: tuple[str, ...]
    full_name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train: Examples
    test: Examples

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape (Y, X, C) of an image at the input of the model."""
        return self.train.image_shape

    def description(self) -> dict[str, Any]:
        """Returns what config.json records about the data.

        This is enough to detect that the data have changed, and to prepare an image as the run did.
        """
        return {
            "train_examples": len(self.train),
            "test_examples": len(self.test),
            "full_name": self.full_name,
            "image_shape": list(self.image_shape),
            "mean": list(self.mean),
            "std": list(self.std),
            "class_names": list(self.class_names),
        }


def open_dataset(config: DataConfig) -> Dataset:
    """Opens a data set, and prepares it first if that has not been done.

    Args:
        config: validated config of the data.

    Raises:
        InputError: if it cannot be prepared or read, or does not consist of labelled images.
    """
    builder = prepared_builder(config)
    train = open_examples(builder, config, config.train_split)
    test = open_examples(builder, config, config.test_split)
    if shared := _shared_examples(builder, config):
        raise InputError(
            f"config.data.train_split={config.train_split!r} and test_split={config.test_split!r}"
            f" share {shared} examples of {config.name}; the test split must be held out"
        )
    facts = DATASETS.get(config.name)
    if facts is None or facts.mean is None or facts.std is None:
        mean, std = pixel_statistics(train)
    else:
        mean, std = facts.mean, facts.std
    names = tuple(builder.info.features["label"].names)
    return Dataset(
        class_names=names,
        full_name=builder.info.full_name,
        mean=mean,
        std=std,
        train=train,
        test=test,
    )


def open_examples(builder: tfds.core.DatasetBuilder, config: DataConfig, split: str) -> Examples:
    """Opens one split of a prepared data set.

    Args:
        builder: builder from `prepared_builder`.
        config: config of the data.
        split: the split in TFDS's notation.

    Raises:
        InputError: if the split does not exist, or does not hold images with one label each.
    """
    features = builder.info.features
    found = list(features) if isinstance(features, tfds.features.FeaturesDict) else []
    if "image" not in found or "label" not in found:
        raise InputError(
            f"data set {config.name} has the features {', '.join(found)}; a data set needs image"
            " and label"
        )
    image, label = features["image"], features["label"]
    if not isinstance(label, tfds.features.ClassLabel):
        raise InputError(f"the labels of data set {config.name} must be a ClassLabel, not {label}")
    shape = image.shape
    if (
        type(image) not in (tfds.features.Image, tfds.features.Tensor)
        or image.np_dtype != np.uint8
        or len(shape) != 3
        or shape[2] not in images.MODES
    ):
        raise InputError(
            f"the images of data set {config.name} are {image}; they must be uint8 arrays or"
            " encoded images with 1 or 3 channels"
        )
    encoded = isinstance(image, tfds.features.Image)
    if None in shape and not encoded:
        raise InputError(f"the images of data set {config.name} are arrays that differ in size")
    check_stored_shape(config, shape)
    decoders = {"image": tfds.decode.SkipDecoding()} if encoded else None
    path = pathlib.Path(builder.data_path)
    with readable(config.name, path):
        try:
            source = builder.as_data_source(split=split, decoders=decoders)
        except (ValueError, KeyError, AssertionError) as error:
            raise InputError(_wrong_split(builder, config, split)) from error
    if not len(source):
        raise InputError(f"split {split!r} of data set {config.name} has no examples")
    return Examples(
        source=source,
        encoded=encoded,
        path=path,
        shape=(None, None, shape[2]) if None in shape else tuple(shape),
        classes=label.num_classes,
        config=config,
    )


def _wrong_split(builder: tfds.core.DatasetBuilder, config: DataConfig, split: str) -> str:
    facts = DATASETS.get(config.name)
    absent = [
        name for name in facts.examples if name in split and name not in builder.info.splits
    ] if facts else []  # fmt: skip
    remedy = "set config.data.train_split and config.data.test_split"
    if absent:
        remedy = (
            f"to add {absent[0]}, delete {builder.data_path} and prepare it with its archive in"
            " --config.data.archive_dir"
        )
    return (
        f"split {split!r} does not fit data set {config.name}, which has"
        f" {', '.join(builder.info.splits)}; {remedy}"
    )


def _shared_examples(builder: tfds.core.DatasetBuilder, config: DataConfig) -> int:
    """Counts the examples that are in both splits."""

    def ranges(split: str) -> list[tuple[str, int, int]]:
        return [
            (part.filename, part.skip, part.skip + part.take)
            for part in builder.info.splits[split].file_instructions
        ]

    return sum(
        max(0, min(stop_a, stop_b) - max(start_a, start_b))
        for file_a, start_a, stop_a in ranges(config.train_split)
        for file_b, start_b, stop_b in ranges(config.test_split)
        if file_a == file_b
    )


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
