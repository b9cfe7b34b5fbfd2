"""Official archives, in a directory of the user's or downloaded: finding, reading, checking.

Content is checked against its SHA-256 wherever it comes from, and nothing is extracted to the
disk.
"""

import contextlib
import dataclasses
import gzip
import hashlib
import pathlib
import sys
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

import numpy as np
import rich.console
import rich.progress
import scipy.io
import tensorflow_datasets as tfds

from mcn_jax.data import spill  # noqa: F401 -- makes TFDS prepare large splits
from mcn_jax.errors import InputError

DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error, tarfile.TarError)
HASHED_AT_ONCE = 2**20  # bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfficialFile:
    """A file as its makers publish it.

    size: bytes; None where nobody says. algorithm, digest: hashlib's name, and what it gives in
    hexadecimal digits.
    """

    name: str
    size: int | None
    algorithm: str = "sha256"
    digest: str


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


def check_sizes(files: Mapping[pathlib.Path, OfficialFile]) -> dict[pathlib.Path, int]:
    """Compares the sizes of files with the official ones, which takes no time.

    Args:
        files: path -> what should be there.

    Returns:
        path -> size, bytes.

    Raises:
        InputError: naming the first file that differs or cannot be read.
    """
    sizes = {}
    for path, official in files.items():
        try:
            sizes[path] = path.stat().st_size
        except OSError as error:
            raise unreadable(path, error) from error
        if official.size not in (None, sizes[path]):
            raise InputError(
                f"{path} is truncated or not the official file: it holds {sizes[path]} bytes where"
                f" {official.size} are expected; replace it"
            )
    return sizes


def check_official(files: Mapping[pathlib.Path, OfficialFile]) -> None:
    """Compares whole files with the official ones: first the sizes of all, then the content.

    Files are read in pieces. On a terminal a bar shows how far that is.

    Args:
        files: path -> what should be there.

    Raises:
        InputError: naming the first file that differs or cannot be read.
    """
    sizes = check_sizes(files)
    with rich.progress.Progress(
        *rich.progress.Progress.get_default_columns(),
        rich.progress.DownloadColumn(),
        console=rich.console.Console(stderr=True),
        disable=not sys.stderr.isatty(),
        transient=True,
    ) as progress:
        for path, official in files.items():
            task = progress.add_task(f"checking {path.name}", total=sizes[path])
            # As a checksum MD5 is good enough, also where it is barred from cryptography.
            digest = hashlib.new(official.algorithm, usedforsecurity=False)
            try:
                with path.open("rb") as file:
                    while piece := file.read(HASHED_AT_ONCE):
                        digest.update(piece)
                        progress.advance(task, len(piece))
            except OSError as error:
                raise unreadable(path, error) from error
            if digest.hexdigest() != official.digest:
                algorithm = {"sha256": "SHA-256", "md5": "MD5"}[official.algorithm]
                raise InputError(
                    f"{path} is not the official file: its {algorithm} differs from"
                    f" {official.digest}; replace it"
                )


def unreadable(path: pathlib.Path | str, error: OSError) -> InputError:
    """The error for a file that the system does not let us read."""
    return InputError(f"{path} cannot be read ({error.strerror or error}); make it readable")


@contextlib.contextmanager
def open_tar(
    path: pathlib.Path, *, compressed: bool = False, file: IO[bytes] | None = None
) -> Iterator[tarfile.TarFile]:
    """Opens a tar archive, for as long as the block lasts.

    Args:
        path: of the archive.
        compressed: whether gzip is expected around it.
        file: the archive, if it does not lie at `path` but in another archive.

    Raises:
        InputError: naming the archive, if it proves damaged in the block.
    """
    try:
        with tarfile.open(path, "r:gz" if compressed else "r:", fileobj=file) as archive:
            yield archive
    except DAMAGED as error:
        raise damaged(path, error) from error


def regular_files(archive: tarfile.TarFile, path: pathlib.Path) -> Iterator[tarfile.TarInfo]:
    """The regular files in a tar archive, in order.

    Args:
        archive: open.
        path: of the archive, for the message.

    Raises:
        InputError: naming the archive, if it holds anything whose path is absolute or leaves its
            folder.
        tarfile.ReadError: if it is damaged.
    """
    for member in archive:
        if member.name.startswith("/") or ".." in pathlib.PurePosixPath(member.name).parts:
            raise InputError(
                f"{path} holds the path {member.name!r}, which no official archive does;"
                " replace it by the official archive"
            )
        if member.isfile():
            yield member
    # Python takes a cut or overwritten header for the end, where there are zeros or nothing.
    file = archive.fileobj
    if file is not None and not isinstance(file, gzip.GzipFile):  # which has a checksum
        file.seek(archive.offset)
        if any(file.read(tarfile.BLOCKSIZE)):
            raise tarfile.ReadError("unexpected end of data")


def open_member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    """A regular file in a tar archive, opened where it lies."""
    file = archive.extractfile(member)
    assert file is not None  # a regular file always opens
    return file


def read_tar(path: pathlib.Path, names: Sequence[str]) -> dict[str, bytes]:
    """The content of some members of a compressed tar archive.

    Args:
        path: of the archive.
        names: of the members, with their folder.

    Raises:
        InputError: naming the archive, if it is damaged, lacks a member, or holds one whose path is
            absolute or leaves its folder.
    """
    contents = {}
    with open_tar(path, compressed=True) as archive:
        for member in regular_files(archive, path):
            if member.name in names:
                contents[member.name] = open_member(archive, member).read()
    for name in names:
        if name not in contents:
            raise InputError(f"{path} has no {name}; replace it by the official archive")
    return contents


def mat_shapes(path: pathlib.Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and MATLAB class of each variable of a MATLAB file, without reading their values.

    Raises:
        InputError: naming the file, if it is no MATLAB file.
    """
    # For a damaged file scipy raises nearly anything, an UnboundLocalError of its own, too.
    try:
        with path.open("rb") as file:
            return {name: (shape, kind) for name, shape, kind in scipy.io.whosmat(file)}
    except Exception as error:
        raise _no_mat(path, error) from error


def read_mat(
    path: pathlib.Path, name: str, *, file: IO[bytes] | None = None, squeeze: bool = False
) -> np.ndarray:
    """One variable of a MATLAB file.

    Args:
        path: of the file.
        name: of the variable.
        file: where to read it, if it does not lie at `path` but in an archive.
        squeeze: whether axes of length one are dropped everywhere.

    Raises:
        InputError: naming the file, if it is no MATLAB file or has no such variable.
    """
    try:
        with file or path.open("rb") as opened:
            found = scipy.io.loadmat(opened, variable_names=[name], squeeze_me=squeeze)
    except Exception as error:  # as above
        raise _no_mat(path, error) from error
    if name not in found:
        raise InputError(f"{path} has no variable {name}; replace it by the official file")
    return found[name]


def _no_mat(path: pathlib.Path, error: Exception) -> InputError:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return InputError(
        f"{path} cannot be read as a MATLAB file ({reason}); replace it by the official file"
    )
