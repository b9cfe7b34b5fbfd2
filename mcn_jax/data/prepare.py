"""Preparation of data sets as ArrayRecord files, and opening of prepared ones."""

import contextlib
import errno
import io
import os
import pathlib
import sys

import requests
import tensorflow_datasets as tfds
from tensorflow_datasets.core.utils.version import list_all_versions

from mcn_jax.config import DataConfig
from mcn_jax.data.cifar import Cifar10, Cifar100
from mcn_jax.data.digits import Digits
from mcn_jax.data.examples import readable
from mcn_jax.data.facts import DATASETS
from mcn_jax.data.image_folder import ImageFolder
from mcn_jax.data.imagenet100 import ImageNet100
from mcn_jax.data.mnist import Mnist
from mcn_jax.data.svhn import SvhnCropped
from mcn_jax.errors import InputError, did_you_mean, first_line, without_warnings
from mcn_jax.paths import is_store, user_path

DOWNLOAD_ERRORS: tuple[type[Exception], ...] = (
    requests.RequestException,
    tfds.download.download_manager.NonMatchingChecksumError,
    tfds.download.util.DownloadError,
)
# One builder for each of `DATASETS`.
BUILDERS: dict[str, type[tfds.core.GeneratorBasedBuilder]] = {
    "digits": Digits,
    "mnist": Mnist,
    "cifar10": Cifar10,
    "cifar100": Cifar100,
    "svhn_cropped": SvhnCropped,
    "imagenet100": ImageNet100,
    "image_folder": ImageFolder,
}
DENIED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOENT)
DISK_FULL = (
    *map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)),
    "Not enough disk space",  # as TFDS calls a disk without any free space
)


def prepared_builder(
    config: DataConfig,
) -> tuple[tfds.core.DatasetBuilder, ImageFolder | None]:
    """Returns the builder of a prepared data set, and prepares the data set if necessary.

    A data set is written to a temporary directory that is renamed at the end. So it exists either
    complete or not at all, even if the process is killed.

    Args:
        config: config of the data; `name`, `data_dir` and the fields that the builder takes are
            used.

    Returns:
        A builder that reads the prepared data set, and the folder of images that it was made of, if
        it was.

    Raises:
        InputError: if the data set cannot be prepared, or the prepared one is damaged.
    """
    if config.name not in DATASETS:
        with readable(config.name, found_directory(config)):
            return _found_builder(config), None
    facts = DATASETS[config.name]
    arguments = {field: getattr(config, field) for field in facts.fields}
    data_dir = _data_dir(config)
    with readable(config.name, data_dir / config.name), without_warnings():
        # TFDS warns of every config that its class does not list.
        builder = BUILDERS[config.name](
            data_dir=str(data_dir), file_format="array_record", **arguments
        )
    path = pathlib.Path(builder.data_path)
    with readable(config.name, path):
        if not path.exists():
            print(f"preparing {config.name} in {path}")
            try:
                _prepare(builder, config)
            except OSError as error:
                # Another process may have completed the same data set just before TFDS renames
                # its directory. Then the renaming fails, and that data set is used.
                if not (isinstance(error, FileExistsError) or error.errno == errno.ENOTEMPTY):
                    raise
            except InputError:
                with contextlib.suppress(OSError):
                    path.parent.rmdir()  # TFDS makes it before it reads anything
                raise
        folder = builder if isinstance(builder, ImageFolder) else None
        if folder:
            folder.keep_digests()
        # This builder does not need the archives, which may be missing in a later run.
        builder = tfds.builder_from_directory(str(path))
        for split, examples in facts.examples.items():
            if split in builder.info.splits:
                found = builder.info.splits[split].num_examples
                if found != examples:
                    raise InputError(
                        f"prepared data set {config.name} in {path} has {found} {split} examples"
                        f" instead of {examples}; delete {path} and start again"
                    )
        return builder, folder


def _data_dir(config: DataConfig) -> pathlib.Path:
    path = user_path(config.data_dir)
    if is_store(path.absolute()):
        raise InputError(
            f"config.data.data_dir={config.data_dir!r} means the address of a store to TFDS; pass a"
            " link to this directory that lies elsewhere"
        )
    return path


def found_directory(config: DataConfig) -> pathlib.Path:
    """Finds the directory of a data set that another program prepared with TFDS.

    The config names it as NAME or NAME/CONFIG, optionally followed by :VERSION.

    TFDS's own search is not used, because it imports all of TFDS's builders.
    """
    data_dir = _data_dir(config)
    folder, _, version = config.name.partition(":")
    versions = list_all_versions(data_dir / folder) if folder else []
    names = [version] if version else [str(found) for found in sorted(versions)]
    for name in reversed(names):
        if (data_dir / folder / name / "dataset_info.json").is_file():
            return data_dir / folder / name
    raise InputError(
        f"config.data.name={config.name!r} must be one of {', '.join(DATASETS)}, or NAME,"
        f" NAME/CONFIG or NAME:VERSION of a data set that TFDS has prepared in {data_dir}"
        f"{did_you_mean(config.name, DATASETS)}"
    )


def _found_builder(config: DataConfig) -> tfds.core.DatasetBuilder:
    builder = tfds.builder_from_directory(str(found_directory(config)))
    formats = builder.info.available_file_formats()
    if tfds.core.FileFormat.ARRAY_RECORD not in formats:
        names = ", ".join(sorted(file_format.value for file_format in formats))
        raise InputError(
            f"data set {builder.data_path} is prepared as {names}; prepare it again with"
            " file_format='array_record'"
        )
    return builder


def _prepare(builder: tfds.core.DatasetBuilder, config: DataConfig) -> None:
    if sys.stderr.isatty():
        tfds.enable_progress_bar()
    else:
        tfds.disable_progress_bar()
    download_config = tfds.download.DownloadConfig(
        force_checksums_validation=True, try_download_gcs=False
    )
    try:
        # Hides TFDS's message about the download size, which TFDS does not know.
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(download_config=download_config)
    except DOWNLOAD_ERRORS as error:
        raise InputError(
            f"data set {config.name} could not be prepared in {config.data_dir}:"
            f" {first_line(error)}; get its official archives and pass their directory as"
            " --config.data.archive_dir"
        ) from error
    except (OSError, RuntimeError) as error:
        if isinstance(error, OSError) and _is_denied(error, user_path(config.data_dir)):
            raise InputError(
                f"data set {config.name} cannot be prepared, because {config.data_dir} cannot be"
                f" written ({error.strerror}); make it writable, or pass another directory as"
                " --config.data.data_dir"
            ) from error
        # ArrayRecord's errors have no errno, only the operating system's text.
        reasons = [reason for reason in DISK_FULL if reason in str(error)]
        if not reasons:
            raise
        raise InputError(
            f"data set {config.name} does not fit on the disk of {config.data_dir} ({reasons[0]});"
            " nothing of it was kept; free space there, or pass another directory as"
            " --config.data.data_dir"
        ) from error


def _is_denied(error: OSError, directory: pathlib.Path) -> bool:
    """Returns whether a directory, or one above or below it, cannot be written or created."""
    file = pathlib.Path(error.filename or "/dev/null")
    is_there = file == directory or file in directory.parents or directory in file.parents
    return is_there and error.errno in DENIED
