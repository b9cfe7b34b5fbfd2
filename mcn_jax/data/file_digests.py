"""SHA-256 digests of files, which are read again only if they may have changed."""

import concurrent.futures
import contextlib
import hashlib
import json
import os
import pathlib
import time
from collections.abc import Sequence

from mcn_jax import parallel
from mcn_jax.data.archives import unreadable
from mcn_jax.errors import InputError
from mcn_jax.escapes import shown

# A file may change without a new time if it changes again within the resolution of its times.
SETTLED_SECONDS = 10
SHOWN_ERRORS = 20


class FileDigests:
    """Computes digests, and keeps them in a JSON file with what shows that a file has changed.

    That is its size, its inode and its times. One of the times is the time of the last change of
    the inode, which no program can set. Files that changed in the last seconds are not kept.
    """

    def __init__(self, path: pathlib.Path):
        """Reads the kept digests; a file that is absent or damaged counts as empty."""
        self._path = path
        self._kept: dict[str, list[int | str]] = {}
        self._is_intact = False
        with contextlib.suppress(OSError, ValueError):
            kept = json.loads(path.read_text())
            if isinstance(kept, dict):
                self._kept, self._is_intact = kept, True
        self._used: dict[str, list[int | str]] = {}

    def of(self, paths: Sequence[pathlib.Path]) -> list[str]:
        """Returns the hexadecimal digests of files.

        Raises:
            InputError: if files cannot be read; the error names them.
        """
        now = time.time_ns()

        def digest(path: pathlib.Path) -> str | InputError:
            try:
                status = path.stat()
                stamp = [status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]
                name = os.path.abspath(path)
                kept = self._kept.get(name)
                if isinstance(kept, list) and kept[:-1] == stamp and isinstance(kept[-1], str):
                    found = kept[-1]
                else:
                    with path.open("rb") as file:
                        found = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                return unreadable(shown(path), error)
            if now - max(status.st_mtime_ns, status.st_ctime_ns) > SETTLED_SECONDS * 10**9:
                self._used[name] = [*stamp, found]
            return found

        with concurrent.futures.ThreadPoolExecutor(parallel.host_cores() or 1) as pool:
            found = list(pool.map(digest, paths))
        raise_together([error for error in found if isinstance(error, InputError)], len(paths))
        return [digest for digest in found if isinstance(digest, str)]

    def save(self) -> None:
        """Keeps the digests that were asked for, unless the directory is read-only."""
        if self._is_intact and self._used == self._kept:
            return
        temporary = self._path.with_name(f"{self._path.name}.{os.getpid()}.tmp")
        with contextlib.suppress(OSError):
            try:
                temporary.write_text(json.dumps(self._used))
                temporary.replace(self._path)
            finally:
                temporary.unlink(missing_ok=True)


def raise_together(errors: Sequence[InputError], files: int) -> None:
    """Raises one error for all bad files; with one error, raises it as it is.

    Args:
        errors: the error of each bad file, "CAUSE; REMEDY".
        files: number of files that were checked.
    """
    if len(errors) == 1:
        raise errors[0]
    if errors:
        causes = [str(error).rpartition("; ")[0] for error in errors[:SHOWN_ERRORS]]
        more = f"; and {len(errors) - SHOWN_ERRORS:,} more" if len(errors) > SHOWN_ERRORS else ""
        raise InputError(
            f"{len(errors):,} of {files:,} images cannot be used: {'; '.join(causes)}{more}; repair"
            " or remove them"
        )
