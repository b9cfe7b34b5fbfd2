"""A folder of the user's own images, with one folder per class, as a TFDS builder."""

import collections
import concurrent.futures
import hashlib
import io
import os
import pathlib
import urllib.parse
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from mcn_jax import parallel
from mcn_jax.data.archives import unreadable
from mcn_jax.data.file_digests import FileDigests, raise_together
from mcn_jax.data.folder_listing import (
    Skipped,
    entries,
    images_below,
    is_hidden,
    is_loop,
    skipped_lines,
    suffixes,
)
from mcn_jax.data.images import check_readable, has_transparency
from mcn_jax.errors import InputError
from mcn_jax.escapes import shown
from mcn_jax.paths import user_path

DIGEST_DIGITS = 12
TRAIN_FOLDERS = ("train", "training")
TEST_FOLDERS = ("test", "testing", "val", "valid", "validation")
SHOWN_CLASSES = 20

Files = dict[str, list[pathlib.Path]]  # class -> its images, sorted


class Found(NamedTuple):
    """What a folder contains.

    Attributes:
        splits: the images of "train" and "test" by class.
        folders: of "train" and "test", the directory with the class folders.
        skipped: what is not used.
    """

    splits: dict[str, Files]
    folders: dict[str, pathlib.Path]
    skipped: list[Skipped]


class ImageFolder(tfds.core.GeneratorBasedBuilder):
    """Images below `ROOT/train/CLASS` and `ROOT/test/CLASS`, or below `ROOT/CLASS`.

    Without a test folder, the same share of every class is taken for testing, chosen at random with
    `split_seed`. Files are stored unchanged; each is decoded once to check that it can be read.

    The prepared data set is identified by the classes, names and contents of the images of each
    split. When they change, the folder is prepared again; the earlier data set is kept. Times of
    files and the place of ROOT do not matter.

    Attributes:
        class_names: names of the class folders, exactly, in the order of the labels.
        earlier_name: the full name that version 1.0.0 of this builder gave to the same data. It was
            made of the names, sizes and times of the files.
    """

    VERSION = tfds.core.Version("2.0.0")

    def __init__(
        self, *, root: str, data_dir: str, test_fraction: float = 0.2, split_seed: int = 0,
        **kwargs: Any,
    ):  # fmt: skip
        """Finds the images, and reads those whose digests are not known yet.

        Args:
            root: the folder.
            data_dir: directory of prepared data sets; known digests are kept there.
            test_fraction: share of each class for testing if there is no test folder, in (0, 1).
            split_seed: seed of the choice of these images.
            **kwargs: arguments of the base class.

        Raises:
            InputError: if the folder does not hold images in class folders, or images cannot be
                read; the error names the folder or the images.
        """
        self._found = find_images(root, test_fraction, split_seed)
        self._root = user_path(root)
        self.class_names = tuple(sorted(self._found.splits["train"]))
        paths = [path for *_, path in self._images()]
        place = hashlib.sha256(os.fsencode(os.path.abspath(self._root))).hexdigest()
        directory = pathlib.Path(data_dir, self.name)
        self._file_digests = FileDigests(directory / f"digests_{place[:DIGEST_DIGITS]}.json")
        self._digests = dict(zip(paths, self._file_digests.of(paths), strict=True))
        self._transparent = 0
        self.earlier_name = f"{self.name}/{self._digest_of_times()}/1.0.0"
        config = tfds.core.BuilderConfig(name=self._digest_of_contents(), version=self.VERSION)
        super().__init__(config=config, data_dir=data_dir, **kwargs)

    def _images(self) -> Iterator[tuple[str, str, pathlib.Path]]:
        """Yields split, class and path of each image, in an order that is always the same."""
        for split, files in self._found.splits.items():
            for name in self.class_names:
                for path in files[name]:
                    yield split, name, path

    def _digest_of_contents(self) -> str:
        digest = hashlib.sha256()
        for split, _, path in self._images():
            parts = (split, self._key(split, path), self._digests[path])
            digest.update(b"\0".join(map(os.fsencode, parts)) + b"\0")
        return digest.hexdigest()[:DIGEST_DIGITS]

    def _digest_of_times(self) -> str:
        digest = hashlib.sha256()
        for split, _, path in self._images():
            status = path.stat()
            place = os.fsencode(f"{split}/{path.relative_to(self._root)}")
            digest.update(place + b"\0%d\0%d\n" % (status.st_size, status.st_mtime_ns))
        return digest.hexdigest()[:DIGEST_DIGITS]

    def _key(self, split: str, path: pathlib.Path) -> str:
        """Returns CLASS/NAME of an image."""
        return str(path.relative_to(self._found.folders[split]))

    def keep_digests(self) -> None:
        """Spares the next start from reading files that have not changed."""
        self._file_digests.save()

    def findings(self) -> list[str]:
        """Returns lines that say how many images were found of each class, and what was skipped."""
        splits = self._found.splits
        counts = {
            name: [len(files[name]) for files in splits.values()] for name in self.class_names
        }
        kinds = collections.Counter(path.suffix.lower() for *_, path in self._images())
        formats = ", ".join(
            f"{count:,} {shown(kind) or 'without a suffix'}" for kind, count in kinds.most_common()
        )
        train, test = (sum(column) for column in zip(*counts.values(), strict=True))
        lines = [
            f"{shown(self._root)} has {train:,} training and {test:,} test images ({formats}) of"
            f" {len(counts):,} classes"
        ]
        for name in self.class_names[:SHOWN_CLASSES]:
            lines.append(f"class {shown(name)}: {counts[name][0]:,} and {counts[name][1]:,} images")
        if rest := [counts[name] for name in self.class_names[SHOWN_CLASSES:]]:
            few, many = min(map(sum, rest)), max(map(sum, rest))
            lines.append(f"{len(rest):,} more classes: {few:,} to {many:,} images")
        if self._transparent:  # counted when the folder is prepared
            lines.append(
                f"{self._transparent:,} images have transparent pixels;"
                " config.data.background says what is shown there"
            )
        return lines + skipped_lines(self._found.skipped, self._root)

    def _info(self) -> tfds.core.DatasetInfo:
        # TFDS writes the names to a text file, one per line, and removes spaces around them.
        names = [urllib.parse.quote(name, safe="") for name in self.class_names]
        return tfds.core.DatasetInfo(
            builder=self,
            description="the user's own images, one folder per class",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "label": tfds.features.ClassLabel(names=names),
                }
            ),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager
        self._check_all()
        return {split: self._generate_examples(split) for split in self._found.splits}

    def _check_all(self) -> None:
        """Counts transparent images; raises InputError that names all that cannot be decoded."""

        def check(path: pathlib.Path) -> InputError | bool:
            try:
                content = self._content(path)
                check_readable(content, shown(path))
            except InputError as error:
                return error
            return has_transparency(content)

        with concurrent.futures.ThreadPoolExecutor(parallel.host_cores() or 1) as pool:
            found = list(pool.map(check, self._digests))
        raise_together([error for error in found if isinstance(error, InputError)], len(found))
        self._transparent = found.count(True)

    def _content(self, path: pathlib.Path) -> bytes:
        """Reads an image that must still be the one whose digest identifies the data set."""
        try:
            content = path.read_bytes()
        except OSError as error:
            raise unreadable(shown(path), error) from error
        if hashlib.sha256(content).hexdigest() != self._digests[path]:
            raise InputError(f"{shown(path)} changed while it was read; start again")
        return content

    def _generate_examples(self, split: str) -> Iterator[tuple[bytes, Any]]:
        for label, name in enumerate(self.class_names):
            for path in self._found.splits[split][name]:
                example = {"image": io.BytesIO(self._content(path)), "label": label}
                yield os.fsencode(self._key(split, path)), example


def find_images(root: str, test_fraction: float, split_seed: int) -> Found:
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
    folders = {
        path.name.lower(): path
        for path in _folders(directory)
        if path.name.lower() in (*TRAIN_FOLDERS, *TEST_FOLDERS) and _folders(path)
    }
    train = next((folders[name] for name in TRAIN_FOLDERS if name in folders), None)
    test = next((folders[name] for name in TEST_FOLDERS if name in folders), None)
    skipped: list[Skipped] = []
    if train is None:
        files = class_files(directory, skipped)
        return Found(
            _cut(directory, files, test_fraction, split_seed),
            {"train": directory, "test": directory},
            skipped,
        )
    skipped += [_outside(path) for path in entries(directory) if path not in (train, test)]
    if test is None:
        for path in _folders(directory):
            if path.name.lower() in TEST_FOLDERS:
                raise InputError(
                    f"{path} has no class folders; put its images into {path}/CLASS, or rename it"
                    " to take a part of the training images for testing"
                )
        files = class_files(train, skipped)
        splits = _cut(train, files, test_fraction, split_seed)
        return Found(splits, {"train": train, "test": train}, skipped)
    splits = {"train": class_files(train, skipped), "test": class_files(test, skipped)}
    differing = sorted(set(splits["train"]) ^ set(splits["test"]))
    if differing:
        here, there = (train, test) if differing[0] in splits["train"] else (test, train)
        raise InputError(
            f"class folder {shown(here / differing[0])} has no partner in {shown(there)}; every"
            " class needs both"
        )
    return Found(splits, {"train": train, "test": test}, skipped)


def class_files(directory: pathlib.Path, skipped: list[Skipped]) -> Files:
    """Returns class -> its image files, for a directory with one folder per class.

    Args:
        directory: the directory.
        skipped: gets what is not used.

    Raises:
        InputError: if there are fewer than two classes, a class has no images, or its name is not
            UTF-8; the error names the folder.
    """
    folders = _folders(directory)
    skipped += [_outside(path) for path in entries(directory) if path not in folders]
    files: Files = {}
    for folder in folders:
        try:
            folder.name.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"the name of class folder {shown(folder)} is not UTF-8; rename it"
            ) from error
        inside: list[Skipped] = []
        files[folder.name] = images_below(folder, inside)
        if not files[folder.name]:
            read = ", ".join(sorted(suffixes()))
            without = "; ".join(skipped_lines(inside, folder))
            raise InputError(
                f"class folder {shown(folder)} has no images ({without or read}); fill or remove it"
            )
        skipped += inside
    if len(files) < 2:
        raise InputError(
            f"{shown(directory)} has {len(files)} class folders, at least two are needed; put"
            f" images into {shown(directory)}/CLASS, or into {shown(directory)}/train/CLASS and"
            f" {shown(directory)}/test/CLASS"
        )
    return files


def _folders(directory: pathlib.Path) -> list[pathlib.Path]:
    """Returns the folders that may be classes; a link to a folder that it lies in may not."""
    return [
        path
        for path in entries(directory)
        if not is_hidden(path.name) and path.is_dir() and not is_loop(path)
    ]


def _outside(path: pathlib.Path) -> Skipped:
    if is_hidden(path.name):
        return Skipped(path, "hidden or system files")
    return Skipped(path, "files or folders", "which are not in a class folder")


def _cut(
    directory: pathlib.Path, files: Files, test_fraction: float, split_seed: int
) -> dict[str, Files]:
    """Takes the same share of every class for testing, at least one image and never all."""
    splits: dict[str, Files] = {"train": {}, "test": {}}
    for label, (name, paths) in enumerate(sorted(files.items())):
        if len(paths) < 2:
            raise InputError(
                f"class folder {shown(directory / name)} has one image, so none is left for"
                " testing; add images, or make train and test folders"
            )
        tests = min(max(round(test_fraction * len(paths)), 1), len(paths) - 1)
        order = np.random.default_rng([split_seed, label]).permutation(len(paths))
        splits["test"][name] = [paths[i] for i in sorted(order[:tests])]
        splits["train"][name] = [paths[i] for i in sorted(order[tests:])]
    return splits
