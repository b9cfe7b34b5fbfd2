"""Data sets: TFDS builders without TensorFlow, and splits as arrays for the device.

A split of these data sets fits on every device as uint8. A training step gets row numbers, and
augmentation and normalisation (`mcn_jax.data.augment`) run inside it.
"""

import contextlib
import dataclasses
import io
import pathlib
from typing import Any

import numpy as np
import requests
import tensorflow_datasets as tfds
from google.protobuf import json_format

from mcn_jax.config import DataConfig
from mcn_jax.data.archives import ArchiveBuilder
from mcn_jax.data.cifar import Cifar10, Cifar100
from mcn_jax.data.digits import Digits
from mcn_jax.data.mnist import Mnist
from mcn_jax.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetFacts:
    """What is known of a data set without reading it.

    builder: the class of its TFDS builder.
    examples: of each split. classes: their number. image_shape: (Y, X, C) as stored.
    mean, std: of each channel over the pixels of the training split, divided by 255.
    """

    builder: type[tfds.core.GeneratorBasedBuilder]
    examples: dict[str, int]
    classes: int
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]


DATASETS = {
    "digits": DatasetFacts(
        builder=Digits,
        examples={"train": 1437, "test": 360},
        classes=10,
        image_shape=(32, 32, 1),
        mean=(0.3057,),
        std=(0.3235,),
    ),
    "mnist": DatasetFacts(
        builder=Mnist,
        examples={"train": 60000, "test": 10000},
        classes=10,
        image_shape=(28, 28, 1),
        mean=(0.1307,),
        std=(0.3081,),
    ),
    "cifar10": DatasetFacts(
        builder=Cifar10,
        examples={"train": 50000, "test": 10000},
        classes=10,
        image_shape=(32, 32, 3),
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
    ),
    "cifar100": DatasetFacts(
        builder=Cifar100,
        examples={"train": 50000, "test": 10000},
        classes=100,
        image_shape=(32, 32, 3),
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
    ),
}


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set in memory: images [N, Y, X, C] uint8 and labels [N] int32 of both splits."""

    facts: DatasetFacts
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


DOWNLOAD_ERRORS: tuple[type[Exception], ...] = (
    requests.RequestException,
    tfds.download.download_manager.NonMatchingChecksumError,
    tfds.download.util.DownloadError,
)


def load_dataset(config: DataConfig) -> Dataset:
    """Prepares a data set where that has not been done, and reads it.

    Args:
        config: `name`, `archive_dir`, `data_dir` and `image_size` are used.

    Returns:
        Images zero-padded to `image_size` on all sides.

    Raises:
        InputError: if an archive is missing, damaged or cannot be downloaded.
    """
    facts = DATASETS[config.name]
    arrays = prepare(config)
    for split, (images, labels) in arrays.items():
        if len(images) != facts.examples[split]:
            raise InputError(
                f"prepared data set {config.name} in {config.data_dir} has {len(images)}"
                f" {split} examples instead of {facts.examples[split]}; delete"
                f" {config.data_dir}/{config.name} and start again"
            )
        arrays[split] = (padded_to(images, config.image_size), labels)
    return Dataset(facts, *arrays["train"], *arrays["test"])


def prepare(config: DataConfig) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Writes the data set as ArrayRecord under `data_dir` unless it is there; reads it back.

    Returns:
        split -> (images as stored, labels).

    Raises:
        InputError: if it cannot be prepared, or what was prepared is damaged.
    """
    try:
        builder = _prepared_builder(config)
        return {split: _read(builder, split) for split in ("train", "test")}
    except InputError:
        raise
    # What TFDS and ArrayRecord raise for missing, truncated and malformed files.
    except (OSError, RuntimeError, ValueError, json_format.Error) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"data set {config.name} in {config.data_dir} cannot be read ({reason}); delete"
            f" {config.data_dir}/{config.name} and start again"
        ) from error


def _prepared_builder(config: DataConfig) -> tfds.core.DatasetBuilder:
    def make_builder() -> tfds.core.DatasetBuilder:
        builder = DATASETS[config.name].builder
        archives = (
            {"archive_dir": config.archive_dir} if issubclass(builder, ArchiveBuilder) else {}
        )
        data_dir = str(pathlib.Path(config.data_dir).expanduser())
        return builder(data_dir=data_dir, file_format="array_record", **archives)

    builder = make_builder()
    if not pathlib.Path(builder.data_path).exists():
        print(f"preparing {config.name} in {builder.data_path}")
    tfds.disable_progress_bar()
    download_config = tfds.download.DownloadConfig(
        force_checksums_validation=True, try_download_gcs=False
    )
    try:
        # Without its own words on sizes that it does not know.
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(download_config=download_config)
    except DOWNLOAD_ERRORS as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"data set {config.name} could not be prepared in {config.data_dir}: {reason}; get its"
            " official archives and pass their directory as --config.data.archive_dir"
        ) from error
    except FileExistsError:
        # Another process has prepared it meanwhile, and TFDS renames a whole directory or none.
        return make_builder()
    return builder


def _read(builder: tfds.core.DatasetBuilder, split: str) -> tuple[np.ndarray, np.ndarray]:
    source: Any = builder.as_data_source(split=split)
    examples = source.__getitems__(list(range(len(source))))
    images = np.stack([example["image"] for example in examples])
    labels = np.array([example["label"] for example in examples], np.int32)
    return images, labels


def padded_to(images: np.ndarray, size: int) -> np.ndarray:
    """Zero-pads [N, Y, X, C] on all sides to [N, size, size, C]; size 0 leaves it as it is.

    Raises:
        InputError: if the images are larger than that.
    """
    if not size:
        return images
    height, width = images.shape[1:3]
    if max(height, width) > size:
        raise InputError(
            f"config.data.image_size={size} is smaller than the images of {height}x{width}; use 0"
            " to leave them as stored"
        )
    top, left = (size - height) // 2, (size - width) // 2
    margins = ((0, 0), (top, size - height - top), (left, size - width - left), (0, 0))
    return np.pad(images, margins)
