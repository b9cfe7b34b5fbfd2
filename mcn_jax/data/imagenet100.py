"""Some classes of ILSVRC-2012 as a TFDS builder, from official archives or class folders."""

import collections
import hashlib
import io
import pathlib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from mcn_jax.data import archives
from mcn_jax.data.images import check_readable, image_files
from mcn_jax.errors import InputError
from mcn_jax.paths import user_path

FILES = {
    "train": archives.OfficialFile(
        name="ILSVRC2012_img_train.tar",
        size=147897477120,
        digest="b08200a27a8e34218a0e58fde36b0fe8f73bc377f4acea2d91602057c3ca45bb",
    ),
    "test": archives.OfficialFile(
        name="ILSVRC2012_img_val.tar",
        size=6744924160,
        digest="c7e06a6c0baccf06d8dbeb6577d71efff84673a5dbdd50633ab44f8ea0456ae0",
    ),
    "devkit": archives.OfficialFile(
        name="ILSVRC2012_devkit_t12.tar.gz",
        size=None,
        algorithm="md5",
        digest="fa75699e90414af021442c21a62c3abf",
    ),
}
FOLDERS = {"train": "train", "test": "val"}  # names of the folders that torchvision extracts to
NEEDED = (
    f"{FILES['train'].name}, {FILES['test'].name} and {FILES['devkit'].name}, or class folders"
    " train/WNID and val/WNID"
)
SYNSETS = "ILSVRC2012_devkit_t12/data/meta.mat"
GROUND_TRUTH = "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"
VALIDATION_IMAGES = 50000
VALIDATION_IMAGES_OF_A_CLASS = 50

WNIDS_FILE = pathlib.Path(__file__).with_name("imagenet100_wnids.txt")
WNID = re.compile(r"n\d{8}", re.ASCII)  # WordNet's identifier of a noun
DIGEST_DIGITS = 12

WNIDS_FIELD = "--config.data.wnids_file"

Images = Iterator[tuple[str, pathlib.Path, bytes]]  # (wnid, path as shown, encoded image)


class ImageNet100(archives.ArchiveBuilder):
    """100 classes of ILSVRC-2012 (Russakovsky et al. 2015), or the classes listed in a file.

    The split "test" is the official validation set. Images are stored unchanged; each is decoded
    once to check that it can be read. Every list of classes is prepared as a data set of its own.
    """

    name = "imagenet100"  # TFDS would choose image_net100

    def __init__(self, *, wnids_file: str = "", **kwargs: Any):
        """Reads the list of classes.

        Args:
            wnids_file: file of the classes, see `read_wnids`; "" takes the package's list.
            **kwargs: arguments of the base class.

        Raises:
            InputError: if the file is not a list of classes, or if class names are needed from the
                development kit and it is damaged; the error names the file.
        """
        self._wnids_file = user_path(wnids_file) if wnids_file else WNIDS_FILE
        self._classes = read_wnids(self._wnids_file)
        text = "".join(f"{wnid} {name}\n" for wnid, name in self._classes.items())
        digest = hashlib.sha256(text.encode()).hexdigest()[:DIGEST_DIGITS]
        config = tfds.core.BuilderConfig(name=digest, version=self.VERSION)
        super().__init__(config=config, **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{len(self._classes)} classes of ILSVRC-2012",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "label": self._label_feature(),
                }
            ),
        )

    def _label_feature(self) -> tfds.features.ClassLabel:
        if self.data_path.exists():
            # TFDS restores the prepared names, and raises an error if others are set.
            return tfds.features.ClassLabel(num_classes=len(self._classes))
        known: dict[str, str] = {}
        if self.archive_dir and not all(self._classes.values()):
            path = archives.existing_directory(self.archive_dir) / FILES["devkit"].name
            if path.is_file():
                known = read_devkit(path).names
        return tfds.features.ClassLabel(names=class_names(self._classes, known))

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager
        if not self.archive_dir:
            raise InputError(
                "imagenet100 has no public download; get the archives from image-net.org and pass"
                f" the directory that holds {NEEDED} as --config.data.archive_dir"
            )
        directory = archives.existing_directory(self.archive_dir)
        sources = find_sources(directory)
        official = {path: FILES[key] for key, path in sources.items() if path.is_file()}
        wnids = list(self._classes)
        # Hashing takes minutes, so the quick checks come first.
        archives.check_sizes(official)
        train, test = sources["train"], sources["test"]
        read_train = train_archive if train in official else class_folders
        images = {"train": read_train(train, wnids)}
        if test in official:
            images["test"] = validation_archive(test, sources["devkit"], wnids)
        else:
            images["test"] = class_folders(test, wnids, VALIDATION_IMAGES_OF_A_CLASS)
        archives.check_official(official)
        return {split: self._generate_examples(found) for split, found in images.items()}

    def _generate_examples(self, images: Images) -> Iterator[tuple[str, Any]]:
        labels = {wnid: label for label, wnid in enumerate(self._classes)}
        for wnid, path, content in images:
            check_readable(content, str(path))
            yield f"{wnid}/{path.name}", {"image": io.BytesIO(content), "label": labels[wnid]}


def read_wnids(path: pathlib.Path) -> dict[str, str]:
    """Reads wnid -> class name, "" if none is given, in the order of the labels.

    Args:
        path: path of a text file with one wnid (WordNet identifier) per line, such as n02012849. A
            class name may follow after a space. A # begins a comment.

    Raises:
        InputError: if there are fewer than two classes, a class is named twice, or a line is not a
            wnid; the error names the file and the line.
    """
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}); pass a file with one wnid per line as"
            f" {WNIDS_FIELD}"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text; write one wnid per line") from error
    classes: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        wnid, _, name = line.partition("#")[0].strip().partition(" ")
        if not wnid:
            continue
        if not WNID.fullmatch(wnid):
            raise InputError(
                f"{path}, line {number}: {wnid!r} is not a wnid, which is an n and eight digits;"
                " correct it"
            )
        if wnid in classes:
            raise InputError(f"{path}, line {number}: {wnid} is named twice; remove one")
        classes[wnid] = name.strip()
    if len(classes) < 2:
        raise InputError(f"{path} names {len(classes)} classes, at least two are needed; add some")
    return classes


def class_names(classes: dict[str, str], known: dict[str, str]) -> list[str]:
    """Returns a unique name for each class.

    The name is the given one, otherwise the known one, otherwise the wnid. If several classes would
    share a name, their wnids are appended.

    Args:
        classes: wnid -> given name or "".
        known: wnid -> name, for some classes.
    """
    names = {wnid: name or known.get(wnid, wnid) for wnid, name in classes.items()}
    # Repeated, because a name with its wnid may equal a given name.
    while len(set(names.values())) < len(names):
        counts = collections.Counter(names.values())
        names = {w: f"{name} {w}" if counts[name] > 1 else name for w, name in names.items()}
    return list(names.values())


def find_sources(directory: pathlib.Path) -> dict[str, pathlib.Path]:
    """Finds the archives or folders of the images.

    Args:
        directory: the user's archive directory.

    Returns:
        "train" and "test" -> an archive, or a folder of class folders if the archive is missing;
        "devkit" -> the development kit, if the test archive needs it.

    Raises:
        InputError: if neither an archive nor its folder exists; the error names the first.
    """
    sources = {}
    for split, keys in (("train", ("train",)), ("test", ("test", "devkit"))):
        paths = {key: directory / FILES[key].name for key in keys}
        missing = [path.name for path in paths.values() if not path.is_file()]
        folder = directory / FOLDERS[split]
        if not missing:
            sources.update(paths)
        elif folder.is_dir():
            sources[split] = folder
        else:
            raise InputError(
                f"archive directory {directory} has no {missing[0]} and no folder {folder.name};"
                f" put {NEEDED} there"
            )
    return sources


def class_folders(directory: pathlib.Path, wnids: list[str], expected: int | None = None) -> Images:
    """Returns the images in directory/WNID/*, sorted.

    Args:
        directory: the folder of the class folders; folders of other classes are ignored.
        wnids: the classes.
        expected: number of images per class; None for any number but 0.

    Raises:
        InputError: at once, if a class folder is missing or lacks images; the error names the
            folder. While reading, if an image cannot be read; the error names the image.
    """
    files = {}
    for wnid in wnids:
        folder = directory / wnid
        if not folder.is_dir():
            raise InputError(
                f"class folder {folder} does not exist; extract the images of this class there, or"
                f" remove it from {WNIDS_FIELD}"
            )
        files[wnid] = image_files(folder)
        if not files[wnid]:
            raise InputError(
                f"class folder {folder} has no images; extract the images of this class again"
            )
        if expected not in (None, len(files[wnid])):
            raise InputError(
                f"class folder {folder} has {len(files[wnid])} images where {expected} are"
                " expected; extract the images of this class again"
            )
    return _folder_images(files)


def _folder_images(files: dict[str, list[pathlib.Path]]) -> Images:
    for wnid, paths in files.items():
        for path in paths:
            try:
                content = path.read_bytes()
            except OSError as error:
                raise archives.unreadable(path, error) from error
            yield wnid, path, content


def train_archive(path: pathlib.Path, wnids: list[str]) -> Images:
    """Returns the images in the WNID.tar files inside a tar archive, in its order.

    Args:
        path: path of the archive.
        wnids: the classes; others are skipped.

    Raises:
        InputError: at once, if it is not an archive or lacks a class. While reading, if it is
            damaged or a class has no images. The error names the archive.
    """
    with archives.open_tar(path) as archive:
        found = {member.name for member in archives.regular_files(archive, path)}
    for wnid in wnids:
        if f"{wnid}.tar" not in found:
            raise InputError(f"{path} has no {wnid}.tar; remove {wnid} from {WNIDS_FIELD}")
    return _train_images(path, {f"{wnid}.tar": wnid for wnid in wnids})


def _train_images(path: pathlib.Path, wnids: dict[str, str]) -> Images:
    with archives.open_tar(path) as archive:
        for class_member in archives.regular_files(archive, path):
            if class_member.name not in wnids:
                continue
            class_path = path / class_member.name
            images = 0
            with (
                archives.open_member(archive, class_member) as file,
                archives.open_tar(class_path, file=file) as class_archive,
            ):
                for member in archives.regular_files(class_archive, class_path):
                    content = archives.open_member(class_archive, member).read()
                    yield wnids[class_member.name], class_path / member.name, content
                    images += 1
            if not images:
                raise InputError(
                    f"{class_path} has no images; replace {path} with the official archive"
                )


def validation_archive(path: pathlib.Path, devkit_path: pathlib.Path, wnids: list[str]) -> Images:
    """Returns the images of some classes in the archive of validation images, in its order.

    Args:
        path: path of the archive.
        devkit_path: path of the development kit, which lists the images' classes.
        wnids: the classes; images of others are skipped.

    Raises:
        InputError: at once, if the development kit is damaged or has no images of a class. While
            reading, if the archive is damaged or lacks an image. The error names the archive.
    """
    devkit = read_devkit(devkit_path)
    found = set(devkit.validation_wnids)
    for wnid in wnids:
        if wnid not in found:
            raise InputError(
                f"{devkit_path} has no validation images of {wnid}; remove {wnid} from"
                f" {WNIDS_FIELD}"
            )
    chosen = {
        f"ILSVRC2012_val_{number:08d}.JPEG": wnid
        for number, wnid in enumerate(devkit.validation_wnids, start=1)
        if wnid in wnids
    }
    return _validation_images(path, chosen)


def _validation_images(path: pathlib.Path, wnids: dict[str, str]) -> Images:
    missing = set(wnids)
    with archives.open_tar(path) as archive:
        for member in archives.regular_files(archive, path):
            if member.name in wnids:
                content = archives.open_member(archive, member).read()
                yield wnids[member.name], path / member.name, content
                missing.discard(member.name)
    if missing:
        raise InputError(f"{path} has no {min(missing)}; replace it with the official archive")


class Devkit(NamedTuple):
    """Contents of the development kit.

    Attributes:
        names: wnid -> the first of its words.
        validation_wnids: wnid of each validation image, in order.
    """

    names: dict[str, str]
    validation_wnids: list[str]


def read_devkit(path: pathlib.Path) -> Devkit:
    """Reads the development kit.

    Args:
        path: path of the compressed tar archive.

    Raises:
        InputError: if it is damaged or not the development kit; the error names the file.
    """
    archives.check_official({path: FILES["devkit"]})
    contents = archives.read_tar(path, [SYNSETS, GROUND_TRUTH])
    synsets = archives.read_mat(
        path / SYNSETS, "synsets", file=io.BytesIO(contents[SYNSETS]), squeeze=True
    )
    names, wnids = {}, {}
    try:
        for synset in np.atleast_1d(synsets):
            if int(synset["num_children"]) == 0:  # the others are groups of classes
                wnid = str(synset["WNID"])
                names[wnid] = str(synset["words"]).partition(",")[0].strip()
                wnids[int(synset["ILSVRC2012_ID"])] = wnid
    except (IndexError, TypeError, ValueError) as error:
        raise InputError(
            f"{path / SYNSETS} is not a list of synsets ({error}); replace {path} with the official"
            " archive"
        ) from error
    ids = contents[GROUND_TRUTH].decode("ascii", "replace").split()
    if len(ids) != VALIDATION_IMAGES:
        raise InputError(
            f"{path / GROUND_TRUTH} has {len(ids)} lines where {VALIDATION_IMAGES} are expected;"
            f" replace {path} with the official archive"
        )
    for number, text in enumerate(ids, start=1):
        if not text.isdecimal() or int(text) not in wnids:
            raise InputError(
                f"{path / GROUND_TRUTH}, line {number}: {text!r} is not the ILSVRC2012_ID of a"
                f" class; replace {path} with the official archive"
            )
    return Devkit(names, [wnids[int(text)] for text in ids])
