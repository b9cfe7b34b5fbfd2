"""A folder of the user's own images, with one folder per class, as a TFDS builder."""

import hashlib
import io
import itertools
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from mcn_jax.data.archives import unreadable
from mcn_jax.data.images import SUFFIXES, check_readable, image_files
from mcn_jax.errors import InputError
from mcn_jax.paths import user_path

DIGEST_DIGITS = 12
TRAIN_FOLDERS = ("train", "training")
TEST_FOLDERS = ("test", "testing", "val", "valid", "validation")

Files = dict[str, list[pathlib.Path]]  # class -> its images, sorted


class ImageFolder(tfds.core.GeneratorBasedBuilder):
    """Images in `ROOT/train/CLASS/*` and `ROOT/test/CLASS/*`, or in `ROOT/CLASS/*`.

    Without a test folder, the same share of every class is taken for testing, chosen at random with
    `split_seed`. Files are stored unchanged; each is decoded once to check that it can be read.

    The prepared data set is identified by the names, sizes and times of the files below ROOT. When
    they change, the folder is prepared again; the earlier data set is kept.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(
        self, *, root: str, test_fraction: float = 0.2, split_seed: int = 0, **kwargs: Any
    ):
        """Finds the images.

        Args:
            root: the folder.
            test_fraction: share of each class for testing if there is no test folder, in (0, 1).
            split_seed: seed of the choice of these images.
            **kwargs: arguments of the base class.

        Raises:
            InputError: if the folder does not hold images in class folders; the error names the
                folder.
        """
        self._splits = find_splits(root, test_fraction, split_seed)
        self._classes = sorted(self._splits["train"])
        base = user_path(root)
        digest = hashlib.sha256()
        for split, files in self._splits.items():
            for path in itertools.chain.from_iterable(files[name] for name in self._classes):
                status = path.stat()
                place = os.fsencode(f"{split}/{path.relative_to(base)}")
                digest.update(place + b"\0%d\0%d\n" % (status.st_size, status.st_mtime_ns))
        name = digest.hexdigest()[:DIGEST_DIGITS]
        super().__init__(config=tfds.core.BuilderConfig(name=name, version=self.VERSION), **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="the user's own images, one folder per class",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "label": tfds.features.ClassLabel(names=self._classes),
                }
            ),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager
        return {split: self._generate_examples(files) for split, files in self._splits.items()}

    def _generate_examples(self, files: Files) -> Iterator[tuple[bytes, Any]]:
        for label, name in enumerate(self._classes):
            for path in files[name]:
                try:
                    content = path.read_bytes()
                except OSError as error:
                    raise unreadable(path, error) from error
                check_readable(content, str(path))
                yield (
                    os.fsencode(f"{name}/{path.name}"),
                    {"image": io.BytesIO(content), "label": label},
                )


def find_splits(root: str, test_fraction: float, split_seed: int) -> dict[str, Files]:
    """Finds the images of "train" and "test" by class.

    A folder "test" has precedence over a folder of validation images.

    Raises:
        InputError: if there are no class folders, a class is empty, or the splits have different
            classes; the error names the folder.
    """
    if not root:
        raise InputError(
            "config.data.root='' names no folder; pass a directory with one folder per class as"
            " --config.data.root"
        )
    directory = user_path(root)
    if not directory.is_dir():
        raise InputError(f"config.data.root={root!r} is not a directory")
    # A folder with such a name but without class folders may be a class: a train is also a vehicle.
    folders = {path.name.lower(): path for path in _folders(directory) if _folders(path)}
    train = next((folders[name] for name in TRAIN_FOLDERS if name in folders), None)
    test = next((folders[name] for name in TEST_FOLDERS if name in folders), None)
    if train is None:
        return _cut(directory, class_files(directory), test_fraction, split_seed)
    if test is None:
        for path in _folders(directory):
            if path.name.lower() in TEST_FOLDERS:
                raise InputError(
                    f"{path} has no class folders; put its images into {path}/CLASS, or rename it"
                    " to take a part of the training images for testing"
                )
        return _cut(train, class_files(train), test_fraction, split_seed)
    splits = {"train": class_files(train), "test": class_files(test)}
    differing = sorted(set(splits["train"]) ^ set(splits["test"]))
    if differing:
        here, there = (train, test) if differing[0] in splits["train"] else (test, train)
        raise InputError(
            f"class folder {here / differing[0]} has no partner in {there}; every class needs both"
        )
    return splits


def class_files(directory: pathlib.Path) -> Files:
    """Returns class -> its image files, for a directory with one folder per class.

    Raises:
        InputError: if there are fewer than two classes, or a class has no images; the error names
            the folder.
    """
    files = {folder.name: image_files(folder) for folder in _folders(directory)}
    for name, paths in files.items():
        if not paths:
            raise InputError(
                f"class folder {directory / name} has no images ({', '.join(SUFFIXES)}); fill or"
                " remove it"
            )
    if len(files) < 2:
        raise InputError(
            f"{directory} has {len(files)} class folders, at least two are needed; put images into"
            f" {directory}/CLASS, or into {directory}/train/CLASS and {directory}/test/CLASS"
        )
    return files


def _folders(directory: pathlib.Path) -> list[pathlib.Path]:
    return sorted(
        path for path in directory.iterdir() if path.is_dir() and not path.name.startswith(".")
    )


def _cut(
    directory: pathlib.Path, files: Files, test_fraction: float, split_seed: int
) -> dict[str, Files]:
    """Takes the same share of every class for testing, at least one image and never all."""
    splits: dict[str, Files] = {"train": {}, "test": {}}
    for label, (name, paths) in enumerate(sorted(files.items())):
        if len(paths) < 2:
            raise InputError(
                f"class folder {directory / name} has one image, so none is left for testing;"
                " add images, or make train and test folders"
            )
        tests = min(max(round(test_fraction * len(paths)), 1), len(paths) - 1)
        order = np.random.default_rng([split_seed, label]).permutation(len(paths))
        splits["test"][name] = [paths[i] for i in sorted(order[:tests])]
        splits["train"][name] = [paths[i] for i in sorted(order[tests:])]
    return splits
