"""Errors that commands report in one line, checks that raise them, and silenced warnings."""

import contextlib
import difflib
import logging as standard_logging
from collections.abc import Iterable, Iterator
from typing import Any

from absl import logging


def _matters(record: standard_logging.LogRecord) -> bool:
    """Returns whether a message of matplotlib is about more than its caches.

    Without a home directory that can be written, matplotlib works from a temporary cache.
    """
    text = record.getMessage()
    about_caches = ("cache", "mkdir -p failed", "is not a writable directory")
    return not any(part in text for part in about_caches)


for _name in ("matplotlib", "matplotlib.font_manager"):
    standard_logging.getLogger(_name).addFilter(_matters)


class InputError(ValueError):
    """The user's config, archive, checkpoint or other input is wrong.

    The message is one line that names the value and the remedy.
    """


def first_line(error: BaseException) -> str:
    """Returns the first line of a library's error message, or the error's type if it has none."""
    return str(error).splitlines()[0][:300] if str(error).strip() else type(error).__name__


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """Silences library warnings about what we do on purpose."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns "; did you mean X?" for the nearest known name, or "" if none is near."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def require(holds: bool, field: str, value: Any, message: str) -> None:
    """Raises InputError "config.FIELD=VALUE MESSAGE" unless a condition holds."""
    if not holds:
        raise InputError(f"config.{field}={value!r} {message}")


def require_one_of(field: str, value: str, allowed: Iterable[str]) -> None:
    """Raises InputError with the allowed names and the nearest one unless a value is allowed."""
    allowed = list(allowed)
    nearest = did_you_mean(value, allowed)
    require(value in allowed, field, value, f"must be one of {', '.join(allowed)}{nearest}")
