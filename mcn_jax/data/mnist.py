"""MNIST from its four official archives, as a TFDS builder without TensorFlow."""

import gzip
import math
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from mcn_jax.data import archives
from mcn_jax.errors import InputError

URL = "https://storage.googleapis.com/cvdf-datasets/mnist"

# (split, kind) -> name, shape and SHA-256 of the uncompressed file.
FILES = {
    ("train", "images"): (
        "train-images-idx3-ubyte",
        (60000, 28, 28),
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    ),
    ("train", "labels"): (
        "train-labels-idx1-ubyte",
        (60000,),
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    ),
    ("test", "images"): (
        "t10k-images-idx3-ubyte",
        (10000, 28, 28),
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    ),
    ("test", "labels"): (
        "t10k-labels-idx1-ubyte",
        (10000,),
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
}


class Mnist(archives.ArchiveBuilder):
    """60,000 training and 10,000 test digits, 28x28 gray pixels (LeCun et al. 1998)."""

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="MNIST, 60,000 training and 10,000 test images",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Tensor(shape=(28, 28, 1), dtype=np.uint8),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        if self.archive_dir:
            paths = find_archives(archives.existing_directory(self.archive_dir))
        else:
            urls = {key: f"{URL}/{name}.gz" for key, (name, _, _) in FILES.items()}
            paths = {key: pathlib.Path(path) for key, path in dl_manager.download(urls).items()}
        # Everything is read and checked before the first example is written.
        arrays = {key: read_idx(path, *FILES[key][1:]) for key, path in paths.items()}
        return {
            split: self._generate_examples(arrays[split, "images"], arrays[split, "labels"])
            for split in ("train", "test")
        }

    def _generate_examples(
        self, images: np.ndarray, labels: np.ndarray
    ) -> Iterator[tuple[int, Any]]:
        for row, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield row, {"image": image[..., None], "label": int(label)}


def find_archives(directory: pathlib.Path) -> dict[tuple[str, str], pathlib.Path]:
    """Finds the four files of MNIST, compressed or not.

    The search covers `directory` and its subfolder MNIST/raw, where torchvision puts them.

    Raises:
        InputError: if a file is missing; the error names the first.
    """
    folders = (directory, directory / "MNIST" / "raw")
    found = {}
    for key, (name, _, _) in FILES.items():
        candidates = [folder / file for folder in folders for file in (f"{name}.gz", name)]
        existing = [path for path in candidates if path.is_file()]
        if not existing:
            raise InputError(
                f"archive directory {directory} has no {name}.gz; put the four official MNIST"
                " files there, or leave --config.data.archive_dir empty to download them"
            )
        found[key] = existing[0]
    return found


def read_idx(path: pathlib.Path, shape: tuple[int, ...], sha256: str) -> np.ndarray:
    """Reads an IDX file of unsigned bytes, compressed or not.

    Args:
        path: path of the file; a file that begins like gzip is decompressed.
        shape: expected shape.
        sha256: checksum of the decompressed content.

    Returns:
        A uint8 array of that shape.

    Raises:
        InputError: if the file is truncated or not the official one; the error names the file.
    """
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except archives.DAMAGED as error:
            raise archives.damaged(path, error) from error
    header_size = 4 + 4 * len(shape)
    archives.check_content(path, content, header_size + math.prod(shape), sha256)
    return np.frombuffer(content, np.uint8, offset=header_size).reshape(shape)
