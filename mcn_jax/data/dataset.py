"""A data set opened for reading: its splits as sequences, and what a run needs to know."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any, Protocol

from mcn_jax.config import DataConfig
from mcn_jax.data.examples import Examples, pixel_statistics
from mcn_jax.data.facts import DATASETS
from mcn_jax.data.packed import Packed, is_packed
from mcn_jax.errors import InputError


class Store(Protocol):
    """A data set on the disk, in one of two formats."""

    @property
    def full_name(self) -> str:
        """TFDS's name of the data set, see `Dataset`."""

    @property
    def earlier_name(self) -> str | None:
        """The full name that an earlier version gave to the same data, see `Dataset`."""

    @property
    def findings(self) -> list[str]:
        """Lines for the user about the files that were found and skipped."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes in the order of the labels."""

    @property
    def split_names(self) -> tuple[str, ...]:
        """Names of the stored splits."""

    @property
    def path(self) -> pathlib.Path:
        """Directory of the data set."""

    @property
    def sizes_differ(self) -> bool:
        """Whether images differ in size."""

    def examples(self, config: DataConfig, split: str) -> Examples:
        """Opens a split in TFDS's notation.

        Raises:
            InputError: if the split does not exist, or does not hold images with one label each.
        """

    def ranges(self, split: str) -> list[tuple[str, int, int]]:
        """Returns the stored examples of a split: file or stored split, first row, end row."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """An open data set.

    Attributes:
        class_names: names of the classes in the order of the labels.
        full_name: TFDS's name of the prepared data set. For an image folder, it identifies the
            names and contents of its images.
        earlier_name: the full name that an earlier version gave to the same data, made of the times
            of its files; None if it gave the same name.
        findings: lines for the user about the files that were found and skipped.
        mean: mean of each channel, for pixels divided by 255.
        std: standard deviation of each channel, for pixels divided by 255.
        train: the split that the config names as `train_split`.
        test: the split that the config names as `test_split`.
    """

    class_names: tuple[str, ...]
    full_name: str
    earlier_name: str | None = None
    findings: Sequence[str] = ()
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train: Examples
    test: Examples

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape (Y, X, C) of an image at the input of the model."""
        return self.train.image_shape

    def is_named(self, full_name: str | None) -> bool:
        """Returns whether a full name that was recorded earlier is a name of these data."""
        return full_name in {self.full_name, self.earlier_name or self.full_name}

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


def open_store(config: DataConfig) -> Store:
    """Opens a data set on the disk: a packed one, else one that TFDS prepares if need be.

    Args:
        config: config of the data.

    Raises:
        InputError: if it cannot be prepared or read.
    """
    if is_packed(config):
        return Packed(config)
    return _prepared_module(config).Prepared(config)


def check_name(config: DataConfig) -> None:
    """Raises InputError unless the data set has a builder here, or lies in `data_dir`."""
    if config.name not in DATASETS and not is_packed(config):
        _prepared_module(config).check_found(config)


def _prepared_module(config: DataConfig) -> Any:
    try:
        from mcn_jax.data import prepared  # packed data sets do not need TFDS
    except ModuleNotFoundError as error:
        raise InputError(
            f"data set {config.name} is not packed in {config.data_dir}, and preparing it needs the"
            f" package {error.name}, which is not installed; install it, or pack the data set on"
            f" another machine by python -m mcn_jax.data {config.name} --pack=DIR, and pass DIR as"
            " --config.data.data_dir"
        ) from error
    return prepared


def open_dataset(config: DataConfig) -> Dataset:
    """Opens a data set, and prepares it first if that has not been done.

    Args:
        config: validated config of the data.

    Raises:
        InputError: if it cannot be prepared or read, or does not consist of labelled images.
    """
    store = open_store(config)
    train = store.examples(config, config.train_split)
    test = store.examples(config, config.test_split)
    if shared := _shared_examples(store, config):
        raise InputError(
            f"config.data.train_split={config.train_split!r} and test_split={config.test_split!r}"
            f" share {shared} examples of {config.name}; the test split must be held out"
        )
    facts = DATASETS.get(config.name)
    if facts is None or facts.mean is None or facts.std is None:
        mean, std = pixel_statistics(train)
    else:
        mean, std = facts.mean, facts.std
    return Dataset(
        class_names=store.class_names,
        full_name=store.full_name,
        earlier_name=store.earlier_name,
        findings=store.findings,
        mean=mean,
        std=std,
        train=train,
        test=test,
    )


def _shared_examples(store: Store, config: DataConfig) -> int:
    """Counts the examples that are in both splits."""
    return sum(
        max(0, min(stop_a, stop_b) - max(start_a, start_b))
        for file_a, start_a, stop_a in store.ranges(config.train_split)
        for file_b, start_b, stop_b in store.ranges(config.test_split)
        if file_a == file_b
    )
