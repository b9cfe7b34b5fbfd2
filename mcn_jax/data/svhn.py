"""The cropped digits of SVHN from their official MATLAB files, as a TFDS builder."""

import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from mcn_jax.data import archives
from mcn_jax.errors import InputError

URL = "http://ufldl.stanford.edu/housenumbers"

FILES = {
    "train": archives.OfficialFile(
        name="train_32x32.mat",
        size=182040794,
        digest="435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8",
    ),
    "test": archives.OfficialFile(
        name="test_32x32.mat",
        size=64275384,
        digest="cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b",
    ),
    "extra": archives.OfficialFile(
        name="extra_32x32.mat",
        size=1329278602,
        digest="a133a4beb38a00fcdda90c9489e0c04f900b660ce8a316a5e854838379a71eb3",
    ),
}
EXAMPLES = {"train": 73257, "test": 26032, "extra": 531131}
OPTIONAL = "extra"  # the paper does not use it

# MATLAB's numeric classes; it also has characters, logical values, cells and structs.
NUMBERS = """
    uint8 uint16 uint32 uint64 int8 int16 int32 int64 single double
""".split()


class SvhnCropped(archives.ArchiveBuilder):
    """House numbers cropped to one digit, 32x32 colour pixels (Netzer et al. 2011).

    The split "extra" exists if its file was available: downloads include it, a directory may lack
    it.
    """

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="SVHN, 73,257 training, 26,032 test and 531,131 extra images",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Tensor(shape=(32, 32, 3), dtype=np.uint8),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        if self.archive_dir:
            paths = find_files(archives.existing_directory(self.archive_dir))
        else:
            urls = {split: f"{URL}/{file.name}" for split, file in FILES.items()}
            paths = {split: pathlib.Path(path) for split, path in dl_manager.download(urls).items()}
        # All checks come before the first example is written.
        archives.check_official({path: FILES[split] for split, path in paths.items()})
        for split, path in paths.items():
            check_variables(path, EXAMPLES[split])
        return {split: self._generate_examples(path) for split, path in paths.items()}

    def _generate_examples(self, path: pathlib.Path) -> Iterator[tuple[int, Any]]:
        # Read here, so only one split is in memory at a time.
        images, labels = archives.read_mat(path, "X"), archives.read_mat(path, "y")
        for row, label in enumerate(labels[:, 0]):
            image = np.ascontiguousarray(images[..., row])
            yield row, {"image": image, "label": int(label) % 10}  # SVHN labels the digit 0 as 10


def find_files(directory: pathlib.Path) -> dict[str, pathlib.Path]:
    """Returns split -> its file in `directory`; without "extra" if that file is missing.

    Raises:
        InputError: if another file is missing; the error names the first.
    """
    paths = {split: directory / file.name for split, file in FILES.items()}
    for split, path in list(paths.items()):
        if not path.is_file():
            if split != OPTIONAL:
                raise InputError(
                    f"archive directory {directory} has no {path.name}; put {URL}/{path.name}"
                    " there, or leave --config.data.archive_dir empty to download it"
                )
            del paths[split]
    return paths


def check_variables(path: pathlib.Path, examples: int) -> None:
    """Checks the variables of a MATLAB file without reading its images.

    It must hold X [32, 32, 3, N] uint8 and y [N, 1] with values from 1 to 10.

    Args:
        path: path of the file.
        examples: N.

    Raises:
        InputError: if it holds something else; the error names the file and what it holds.
    """
    found = archives.mat_shapes(path)
    expected = {"X": ((32, 32, 3, examples), ["uint8"]), "y": ((examples, 1), NUMBERS)}
    for name, (shape, kinds) in expected.items():
        found_shape, kind = found.get(name, ((), "nothing"))
        if found_shape != shape or kind not in kinds:
            raise InputError(
                f"{path} holds {name} as {kind} of shape {list(found_shape)} where {kinds[0]} of"
                f" shape {list(shape)} is expected; replace it with the official file"
            )
    labels = archives.read_mat(path, "y")
    wrong = labels[~np.isin(labels, np.arange(1, 11))]
    if wrong.size:
        raise InputError(
            f"{path} has the label {wrong[0]} where 1 to 10 are expected; replace it with the"
            " official file"
        )
