"""Lets processes that share a device measure one after the other, until a deadline."""

import contextlib
import fcntl
import pathlib
import time
from collections.abc import Iterator
from typing import NamedTuple

from mcn_jax.errors import InputError


class DeadlineError(Exception):
    """The deadline has passed."""


class Turn(NamedTuple):
    """The place of this process among others, from `join`.

    Attributes:
        earlier: the files of the processes whose turns come first.
        until: deadline in seconds since 1970.
    """

    earlier: tuple[pathlib.Path, ...]
    until: float

    def wait(self) -> None:
        """Waits until all earlier processes have ended.

        Raises:
            DeadlineError: if the deadline has passed.
        """
        self.check()
        while not all(map(_has_ended, self.earlier)):
            time.sleep(0.05)
            self.check()

    def check(self, seconds: float = 0) -> None:
        """Raises DeadlineError if the deadline lies less than this many seconds ahead."""
        if time.time() + seconds > self.until:
            raise DeadlineError("the deadline has passed")


@contextlib.contextmanager
def join(directory: pathlib.Path | None, number: int, until: float) -> Iterator[Turn]:
    """Takes a turn among processes, and ends it afterwards.

    The file of a turn is locked while its process runs. The kernel ends the lock with the process,
    however the process ends.

    Args:
        directory: shared by the processes, empty before the first of them; None for a process
            that waits for no other.
        number: turn of this process, from 0.
        until: deadline in seconds since 1970.

    Raises:
        InputError: if a process has already taken this turn.
    """
    if directory is None:
        yield Turn((), until)
        return
    directory.mkdir(parents=True, exist_ok=True)
    own, starting = directory / str(number), directory / f"{number}.starting"
    if own.exists():
        raise InputError(
            f"--turn={number} has already been taken in {directory}; give each process another"
            " --turn, and begin with an empty directory"
        )
    with starting.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        starting.rename(own)  # others see the file only with its lock
        yield Turn(tuple(directory / str(turn) for turn in range(number)), until)


def _has_ended(path: pathlib.Path) -> bool:
    if not path.exists():  # its process is still starting
        return False
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True
