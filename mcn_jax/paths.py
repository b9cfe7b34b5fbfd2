"""Paths that users give: home directories, addresses, and characters that libraries interpret."""

import contextlib
import os
import pathlib
import re
from collections.abc import Iterator

from mcn_jax.errors import InputError

_ADDRESS = re.compile(r"[A-Za-z][\w+.-]*://")
# Orbax's libraries take /gs/x for gs://x, and so on, also if there is such a directory.
_STORE = re.compile(r"/(gs|s3|az|hf)(/|$)")
_PLAIN = re.compile(r"[\w/.,=+@ -]*", re.ASCII)
_OPEN_FILES = pathlib.Path("/proc/self/fd")


def user_path(given: str | os.PathLike[str]) -> pathlib.Path:
    """Returns the path that a user means: a leading ~ or ~USER stands for a home directory.

    Shells do not expand it in --workdir=~/x.

    Raises:
        InputError: if there is no such home directory, or the path is an address or not UTF-8.
    """
    text = os.fspath(given)
    if _ADDRESS.match(text):
        raise InputError(
            f"{text} is an address; name a path on this machine, such as one where it is mounted"
        )
    user = text.partition("/")[0]
    home = os.path.expanduser(user) if text.startswith("~") else "/"
    if user == "~" and os.environ.get("HOME") == "":  # Python takes it for the root directory
        home = ""
    if not os.path.isabs(home):
        raise InputError(
            f"{text}: there is no home directory of this name; write the whole path, set HOME, or"
            f" write ./{text} for a path that begins with ~"
        )
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"the path {text!a} is not UTF-8; rename it") from None
    path = pathlib.Path(os.path.expanduser(text))
    # pathlib drops the ./ of ./~x, and a second call would expand the rest.
    return path.absolute() if path.parts[:1] and path.parts[0].startswith("~") else path


def is_store(path: pathlib.Path) -> bool:
    """Returns whether Orbax and TFDS take an absolute path for the address of a store."""
    return _STORE.match(str(path)) is not None


@contextlib.contextmanager
def plain_path(directory: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a path of a directory that libraries do not interpret.

    Libraries take a part such as [1] for a pattern, gs: for an address, and a backslash for a
    separator. If the path has a character that may mean something, the directory is opened, and
    the path of its descriptor is yielded.

    Args:
        directory: an absolute path. The directory must exist if its path is not plain.

    Raises:
        InputError: if the path is not plain, and the system has no paths of descriptors.
    """
    if _PLAIN.fullmatch(str(directory)) and not is_store(directory):
        yield directory
        return
    if not _OPEN_FILES.is_dir():
        raise InputError(
            f"{directory} has characters with a meaning for Orbax; use a path of letters, digits"
            " and the characters / . , = + @ - _ on this system"
        )
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield _OPEN_FILES / str(descriptor)
    finally:
        os.close(descriptor)
