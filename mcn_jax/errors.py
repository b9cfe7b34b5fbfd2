"""What users are told of: the error that commands report as one line, and no warnings of others."""

import contextlib
from collections.abc import Iterator

from absl import logging


class InputError(ValueError):
    """The user's config, archive, checkpoint or other input is wrong.

    The message is one line that names the value and the remedy.
    """


def first_line(error: BaseException) -> str:
    """What an error of a library says, in one line."""
    return str(error).splitlines()[0][:300] if str(error).strip() else type(error).__name__


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """Keeps warnings of libraries about what we do on purpose from the terminal."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)
