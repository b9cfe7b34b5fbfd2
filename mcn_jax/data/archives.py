"""Official archives, downloaded or in a directory of the user: finding, reading and checking them.

The content of every archive is compared with its official checksum, and nothing is extracted to the
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
from mcn_jax.paths import user_path

DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error, tarfile.TarError)
HASHED_AT_ONCE = 2**20  # bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfficialFile:
    """A file as its makers publish it.

    Attributes:
        name: name of the file.
        size: size in bytes; None if it is not published.
        algorithm: hashlib's name of the checksum algorithm.
        digest: the checksum in hexadecimal digits.
    """

    name: str
    size: int | None
    algorithm: str = "sha256"
    digest: str


# Not registered, because it is not a data set itself.
class ArchiveBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """TFDS builder that reads official archives from a directory, or downloads them."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, archive_dir: str = "", **kwargs: Any):
        """Sets up the builder.

        Args:
            archive_dir: directory with the official archives; "" downloads them.
            **kwargs: arguments of the base class.
        """
        self.archive_dir = archive_dir
        super().__init__(**kwargs)


def existing_directory(path: str) -> pathlib.Path:
    """Returns the directory that `--config.data.archive_dir` names.

    Raises:
        InputError: if it does not exist.
    """
    directory = user_path(path)
    if not directory.is_dir():
        raise InputError(
            f"archive directory {directory} does not exist; pass an existing one as"
            " --config.data.archive_dir, or leave it empty to download"
        )
    return directory


def damaged(path: pathlib.Path | str, error: Exception) -> InputError:
    """Makes the error for an archive that cannot be unpacked, caused by one of `DAMAGED`."""
    return InputError(
        f"{path} is truncated or damaged ({error}); replace it with the official archive"
    )


def check_content(path: pathlib.Path | str, content: bytes, size: int, sha256: str) -> None:
    """Compares extracted content with the official file's size and checksum.

    Args:
        path: where the content comes from, for the error.
        content: extracted bytes.
        size: expected number of bytes.
        sha256: expected checksum of the content.

    Raises:
        InputError: if they differ; the error names the file.
    """
    if len(content) != size:
        raise InputError(
            f"{path} holds {len(content)} bytes where {size} are expected; replace it with the"
            " official file"
        )
    if hashlib.sha256(content).hexdigest() != sha256:
        raise InputError(
            f"{path} is not the official file: its SHA-256 differs from {sha256}; replace it"
        )


def check_sizes(files: Mapping[pathlib.Path, OfficialFile]) -> dict[pathlib.Path, int]:
    """Compares the sizes of files with the official ones, which takes no time.

    Args:
        files: path -> the official file expected there.

    Returns:
        path -> size in bytes.

    Raises:
        InputError: if a file differs or cannot be read; the error names the first.
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
    """Compares whole files with the official ones: first all sizes, then the checksums.

    Files are read in pieces. On a terminal, a bar shows the progress.

    Args:
        files: path -> the official file expected there.

    Raises:
        InputError: if a file differs or cannot be read; the error names the first.
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
            # Systems that forbid MD5 for cryptography still allow it as a checksum.
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
    """Makes the error for a file that the operating system refuses to read."""
    return InputError(f"{path} cannot be read ({error.strerror or error}); make it readable")


@contextlib.contextmanager
def open_tar(
    path: pathlib.Path, *, compressed: bool = False, file: IO[bytes] | None = None
) -> Iterator[tarfile.TarFile]:
    """Opens a tar archive for the duration of a `with` block.

    Args:
        path: path of the archive.
        compressed: whether it is compressed with gzip.
        file: the open archive, if it is not a file at `path` but inside another archive.

    Raises:
        InputError: if the archive turns out to be damaged inside the block; the error names it.
    """
    try:
        with tarfile.open(path, "r:gz" if compressed else "r:", fileobj=file) as archive:
            yield archive
    except DAMAGED as error:
        raise damaged(path, error) from error


def regular_files(archive: tarfile.TarFile, path: pathlib.Path) -> Iterator[tarfile.TarInfo]:
    """Yields the regular files in a tar archive, in order.

    Args:
        archive: open archive.
        path: path of the archive, for the error.

    Raises:
        InputError: if a path in the archive is absolute or leaves its folder; the error names the
            archive.
        tarfile.ReadError: if the archive is damaged.
    """
    for member in archive:
        if member.name.startswith("/") or ".." in pathlib.PurePosixPath(member.name).parts:
            raise InputError(
                f"{path} holds the path {member.name!r}, which is absolute or leaves its folder;"
                " replace it with the official archive"
            )
        if member.isfile():
            yield member
    # Python takes a truncated or overwritten header for the end of the archive. The true end is a
    # block of zeros or the end of the file.
    file = archive.fileobj
    if file is not None and not isinstance(file, gzip.GzipFile):  # gzip has its own checksum
        file.seek(archive.offset)
        if any(file.read(tarfile.BLOCKSIZE)):
            raise tarfile.ReadError("unexpected end of data")


def open_member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    """Opens a regular file inside a tar archive, without extracting it."""
    file = archive.extractfile(member)
    assert file is not None  # a regular file always opens
    return file


def read_tar(path: pathlib.Path, names: Sequence[str]) -> dict[str, bytes]:
    """Reads some members of a compressed tar archive.

    Args:
        path: path of the archive.
        names: names of the members, including their folder.

    Returns:
        name -> content.

    Raises:
        InputError: if the archive is damaged or lacks a member, or if a path in it is absolute or
            leaves its folder; the error names the archive.
    """
    contents = {}
    with open_tar(path, compressed=True) as archive:
        for member in regular_files(archive, path):
            if member.name in names:
                contents[member.name] = open_member(archive, member).read()
    for name in names:
        if name not in contents:
            raise InputError(f"{path} has no {name}; replace it with the official archive")
    return contents


def mat_shapes(path: pathlib.Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Reads shape and MATLAB class of each variable of a MATLAB file, without the values.

    Raises:
        InputError: if it is not a MATLAB file; the error names the file.
    """
    # SciPy raises many kinds of errors for damaged files, even an UnboundLocalError.
    try:
        with path.open("rb") as file:
            return {name: (shape, kind) for name, shape, kind in scipy.io.whosmat(file)}
    except Exception as error:
        raise _no_mat(path, error) from error


def read_mat(
    path: pathlib.Path, name: str, *, file: IO[bytes] | None = None, squeeze: bool = False
) -> np.ndarray:
    """Reads one variable of a MATLAB file.

    Args:
        path: path of the file.
        name: name of the variable.
        file: the open file, if it is not at `path` but inside an archive.
        squeeze: whether axes of length one are dropped everywhere.

    Raises:
        InputError: if it is not a MATLAB file or lacks the variable; the error names the file.
    """
    try:
        with file or path.open("rb") as opened:
            found = scipy.io.loadmat(opened, variable_names=[name], squeeze_me=squeeze)
    except Exception as error:  # as in `mat_shapes`
        raise _no_mat(path, error) from error
    if name not in found:
        raise InputError(f"{path} has no variable {name}; replace it with the official file")
    return found[name]


def _no_mat(path: pathlib.Path, error: Exception) -> InputError:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return InputError(
        f"{path} cannot be read as a MATLAB file ({reason}); replace it with the official file"
    )
