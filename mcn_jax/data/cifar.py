"""CIFAR-10 and CIFAR-100 from their official binary archives, as TFDS builders.

The Python versions of the archives are refused, because they hold pickles, which can run code when
they are loaded.
"""

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from mcn_jax.data import archives
from mcn_jax.errors import InputError

PIXELS = 3 * 32 * 32

CIFAR10_NAMES = "airplane automobile bird cat deer dog frog horse ship truck".split()
CIFAR100_COARSE_NAMES = """
    aquatic_mammals fish flowers food_containers fruit_and_vegetables
    household_electrical_devices household_furniture insects large_carnivores
    large_man-made_outdoor_things large_natural_outdoor_scenes
    large_omnivores_and_herbivores medium_mammals non-insect_invertebrates people reptiles
    small_mammals trees vehicles_1 vehicles_2
""".split()
CIFAR100_FINE_NAMES = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
    butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch
    crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo
    keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse
    mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy
    porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper
    snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television
    tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
""".split()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Archive:
    """An official binary archive.

    Attributes:
        url: URL of the compressed tar file.
        folder: the folder inside it.
        pickles: the folder inside the Python version of the archive.
        labels: names of the label bytes at the start of a record.
        files: split -> (name, number of records, SHA-256) of every file, in order.
    """

    url: str
    folder: str
    pickles: str
    labels: tuple[str, ...]
    files: dict[str, tuple[tuple[str, int, str], ...]]


CIFAR10 = Archive(
    url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    folder="cifar-10-batches-bin",
    pickles="cifar-10-batches-py",
    labels=("label",),
    files={
        "train": tuple(
            (f"data_batch_{number}.bin", 10000, sha256)
            for number, sha256 in enumerate(
                (
                    "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
                    "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
                    "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
                    "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
                    "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
                ),
                start=1,
            )
        ),
        "test": (
            (
                "test_batch.bin",
                10000,
                "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
            ),
        ),
    },
)
CIFAR100 = Archive(
    url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    folder="cifar-100-binary",
    pickles="cifar-100-python",
    labels=("coarse_label", "label"),
    files={
        "train": (
            (
                "train.bin",
                50000,
                "f31298fc616915fa142368359df1c4ca2ae984d6915ca468b998a5ec6aeebf29",
            ),
        ),
        "test": (
            (
                "test.bin",
                10000,
                "d8b1e6b7b3bee4020055f0699b111f60b1af1e262aeb93a0b659061746f8224a",
            ),
        ),
    },
)


class _Cifar(archives.ArchiveBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Common parts of the two data sets; subclasses define archive and label names."""

    ARCHIVE: Archive
    LABEL_NAMES: dict[str, list[str]]

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{type(self).__name__}, 50,000 training and 10,000 test images",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Tensor(shape=(32, 32, 3), dtype=np.uint8),
                    **{
                        label: tfds.features.ClassLabel(names=names)
                        for label, names in self.LABEL_NAMES.items()
                    },
                }
            ),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        if self.archive_dir:
            directory = archives.existing_directory(self.archive_dir)
            contents = read_directory(directory, self.ARCHIVE)
        else:
            path = pathlib.Path(dl_manager.download(self.ARCHIVE.url))
            contents = read_archive(path, self.ARCHIVE)
        return {
            split: self._generate_examples([contents[name] for name, _, _ in files])
            for split, files in self.ARCHIVE.files.items()
        }

    def _generate_examples(self, batches: list[bytes]) -> Iterator[tuple[int, Any]]:
        labels = self.ARCHIVE.labels
        content = np.frombuffer(b"".join(batches), np.uint8)
        for row, record in enumerate(content.reshape(-1, len(labels) + PIXELS)):
            # After the labels, a record holds the red plane, then green and blue.
            image = record[len(labels) :].reshape(3, 32, 32).transpose(1, 2, 0)
            example = {"image": np.ascontiguousarray(image)}
            yield row, example | {name: int(record[i]) for i, name in enumerate(labels)}


class Cifar10(_Cifar):
    """60,000 colour images of 32x32 in 10 classes (Krizhevsky 2009)."""

    ARCHIVE = CIFAR10
    LABEL_NAMES = {"label": CIFAR10_NAMES}  # noqa: RUF012 -- never changed, as TFDS builders have it


class Cifar100(_Cifar):
    """60,000 colour images of 32x32 in 100 classes and 20 coarse classes (Krizhevsky 2009)."""

    ARCHIVE = CIFAR100
    LABEL_NAMES = {  # noqa: RUF012 -- as above
        "label": CIFAR100_FINE_NAMES,
        "coarse_label": CIFAR100_COARSE_NAMES,
    }


def read_directory(directory: pathlib.Path, archive: Archive) -> dict[str, bytes]:
    """Reads the files of an archive from a directory that holds it, extracted or not.

    Raises:
        InputError: if something is missing, damaged or a pickle; the error names it.
    """
    name = archive.url.rsplit("/", 1)[1]
    for folder in (directory / archive.folder, directory):
        paths = [folder / file for files in archive.files.values() for file, _, _ in files]
        if any(path.is_file() for path in paths):
            for path in paths:
                if not path.is_file():
                    raise InputError(f"{folder} has no {path.name}; extract {name} there again")
            contents = {path.name: path.read_bytes() for path in paths}
            return _checked(folder, contents, archive)
    if (directory / name).is_file():
        return read_archive(directory / name, archive)
    python_version = name.replace("binary", "python")
    for pickles in (archive.pickles, python_version):
        if (directory / pickles).exists():
            raise InputError(
                f"{directory / pickles} holds Python pickles, which can run code when they are"
                f" loaded; put the binary version, {archive.url}, there instead"
            )
    raise InputError(
        f"archive directory {directory} has no {name} and no {archive.folder}; put {archive.url}"
        " there, or leave --config.data.archive_dir empty to download it"
    )


def read_archive(path: pathlib.Path, archive: Archive) -> dict[str, bytes]:
    """Reads and checks the files of an archive in its compressed tar file."""
    names = [name for files in archive.files.values() for name, _, _ in files]
    members = archives.read_tar(path, [f"{archive.folder}/{name}" for name in names])
    contents = {name: members[f"{archive.folder}/{name}"] for name in names}
    return _checked(path, contents, archive)


def _checked(
    source: pathlib.Path, contents: dict[str, bytes], archive: Archive
) -> dict[str, bytes]:
    for files in archive.files.values():
        for name, records, sha256 in files:
            size = records * (len(archive.labels) + PIXELS)
            archives.check_content(source / name, contents[name], size, sha256)
    return contents
