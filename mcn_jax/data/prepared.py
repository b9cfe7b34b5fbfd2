"""Data sets that TFDS prepared as ArrayRecord files; opening one prepares it if need be."""

import pathlib

import numpy as np
import tensorflow_datasets as tfds

from mcn_jax.config import DataConfig
from mcn_jax.data import images
from mcn_jax.data.examples import Examples, readable
from mcn_jax.data.facts import DATASETS, check_stored_shape
from mcn_jax.data.prepare import found_directory, prepared_builder
from mcn_jax.errors import InputError


class Prepared:
    """A data set that TFDS prepared; see `mcn_jax.data.dataset.Store`."""

    def __init__(self, config: DataConfig):
        """Prepares the data set if that has not been done.

        Raises:
            InputError: if it cannot be prepared or read.
        """
        self._builder, self._folder = prepared_builder(config)
        info = self._builder.info
        self.full_name: str = info.full_name
        self.split_names = tuple(info.splits)
        self.path = pathlib.Path(self._builder.data_path)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes in the order of the labels."""
        if self._folder:
            return self._folder.class_names
        return tuple(self._builder.info.features["label"].names)

    @property
    def earlier_name(self) -> str | None:
        """The full name that an earlier version gave to the same data; see `Store`."""
        return self._folder.earlier_name if self._folder else None

    @property
    def findings(self) -> list[str]:
        """Lines about the files that were found; see `Store`."""
        return self._folder.findings() if self._folder else []

    @property
    def sizes_differ(self) -> bool:
        """Whether images differ in size."""
        features = self._builder.info.features
        return "image" in features and None in features["image"].shape

    def examples(self, config: DataConfig, split: str) -> Examples:
        """Opens a split; see `mcn_jax.data.dataset.Store`."""
        features = self._builder.info.features
        found = list(features) if isinstance(features, tfds.features.FeaturesDict) else []
        if "image" not in found or "label" not in found:
            raise InputError(
                f"data set {config.name} has the features {', '.join(found)}; a data set needs"
                " image and label"
            )
        image, label = features["image"], features["label"]
        if not isinstance(label, tfds.features.ClassLabel):
            raise InputError(
                f"the labels of data set {config.name} must be a ClassLabel, not {label}"
            )
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
        with readable(config.name, self.path):
            try:
                source = self._builder.as_data_source(split=split, decoders=decoders)
                count = len(source)  # a ValueError if the bounds of the split are reversed
            except (ValueError, KeyError, AssertionError, NotImplementedError) as error:
                raise InputError(_wrong_split(self._builder, config, split)) from error
        if not count:
            raise InputError(f"split {split!r} of data set {config.name} has no examples")
        return Examples(
            source=source,
            encoded=encoded,
            path=self.path,
            shape=(None, None, shape[2]) if None in shape else tuple(shape),
            classes=label.num_classes,
            config=config,
        )

    def ranges(self, split: str) -> list[tuple[str, int, int]]:
        """Returns the stored examples of a split; see `mcn_jax.data.dataset.Store`."""
        return [
            (part.filename, part.skip, part.skip + part.take)
            for part in self._builder.info.splits[split].file_instructions
        ]


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


def check_found(config: DataConfig) -> None:
    """Raises InputError unless TFDS has prepared the data set in `data_dir`."""
    found_directory(config)
