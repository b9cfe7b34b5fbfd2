"""Official archives, in a directory of the user's or downloaded: finding, reading, checking.

Content is checked against its SHA-256 wherever it comes from, and nothing is extracted to the
disk.
"""

import gzip
import hashlib
import pathlib
import tarfile
import zlib
from typing import Any

import tensorflow_datasets as tfds

from mcn_jax.errors import InputError

DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error, tarfile.TarError)


# A base of builders, no data set of its own.
class ArchiveBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """A TFDS builder that reads official archives from a directory, or downloads them."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, archive_dir: str = "", **kwargs: Any):
        """Args:
        archive_dir: directory with the official archives; "" downloads them.
        **kwargs: of the base class.
        """
        self.archive_dir = archive_dir
        super().__init__(**kwargs)


def existing_directory(path: str) -> pathlib.Path:
    """The directory that `--config.data.archive_dir` names.

    Raises:
        InputError: if it does not exist.
    """
    directory = pathlib.Path(path).expanduser()
    if not directory.is_dir():
        raise InputError(
            f"archive directory {directory} does not exist; pass an existing one as"
            " --config.data.archive_dir, or leave it empty to download"
        )
    return directory


def damaged(path: pathlib.Path | str, error: Exception) -> InputError:
    """The error for an archive that cannot be unpacked, one of `DAMAGED`."""
    return InputError(
        f"{path} is truncated or damaged ({error}); replace it by the official archive"
    )


def check_content(path: pathlib.Path | str, content: bytes, size: int, sha256: str) -> None:
    """Compares extracted content with what the official file holds.

    Args:
        path: where it comes from, for the message.
        content: extracted.
        size: expected, bytes.
        sha256: expected, of the content.

    Raises:
        InputError: naming the file.
    """
    if len(content) != size:
        raise InputError(
            f"{path} holds {len(content)} bytes where {size} are expected; replace it by the"
            " official file"
        )
    if hashlib.sha256(content).hexdigest() != sha256:
        raise InputError(
            f"{path} is not the official file: its SHA-256 differs from {sha256}; replace it"
        )


def read_tar(path: pathlib.Path, names: list[str]) -> dict[str, bytes]:
    """The content of some members of a compressed tar archive.

    Args:
        path: of the archive.
        names: of the members, with their folder.

    Raises:
        InputError: naming the archive, if it is damaged, lacks a member, or holds one whose path is
            absolute or leaves its folder.
    """
    contents = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                if member.name.startswith("/") or ".." in pathlib.PurePosixPath(member.name).parts:
                    raise InputError(
                        f"{path} holds the path {member.name!r}, which no official archive does;"
                        " replace it by the official archive"
                    )
                if member.isfile() and member.name in names:
                    file = archive.extractfile(member)
                    assert file is not None  # a regular file always opens
                    contents[member.name] = file.read()
    except DAMAGED as error:
        raise damaged(path, error) from error
    for name in names:
        if name not in contents:
            raise InputError(f"{path} has no {name}; replace it by the official archive")
    return contents
