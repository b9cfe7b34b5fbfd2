"""The frame of a command: what it prints, whoever reads it, and what other libraries report.

`run_command` is called once, by a command's module. Functions of this package print as usual, to
`sys.stdout` and `sys.stderr`.
"""

import contextlib
import errno
import io
import logging
import os
import pathlib
import select
import sys
import threading
from collections.abc import Callable
from typing import Any

from mcn_jax.memory import keep_freed_memory

PACKAGE = pathlib.Path(__file__).parent
BROKEN_PIPE_CODE = 141  # 128 + SIGPIPE, as shells report a command whose reader has left


class _Descriptor(io.FileIO):
    """A file descriptor that discards what is written to it after its first error."""

    error: OSError | None = None

    def write(self, content: Any) -> int:
        if self.error is None:
            try:
                while (written := super().write(content)) is None:  # its reader is slow
                    select.select([], [self], [])
                return written
            except OSError as error:
                self.error = error
        return len(content)


_stdout: _Descriptor | None = None


def lost_output() -> OSError | None:
    """Returns the error by which standard output was lost on the way; None if it was not.

    An output that was closed from the start counts as not wanted, and not as lost.
    """
    error = None if _stdout is None else _stdout.error
    return None if error is not None and error.errno == errno.EBADF else error


def _replace_streams() -> None:
    """Makes stdout and stderr accept any text, and outlive their readers.

    Characters that the encoding lacks are printed as escapes.
    """
    global _stdout
    for number in range(3):  # else the next files to be opened would get these numbers
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for number, name in ((1, "stdout"), (2, "stderr")):
        before = getattr(sys, name)
        descriptor = _Descriptor(number, "w", closefd=False)
        if before is None:  # Python found the descriptor closed
            descriptor.error = OSError(errno.EBADF, "it is closed")
        stream = io.TextIOWrapper(
            io.BufferedWriter(descriptor),
            encoding=before.encoding if before else "utf-8",
            errors="backslashreplace",
            line_buffering=number == 2 or descriptor.isatty(),
        )
        setattr(sys, name, stream)
        if number == 1:
            _stdout = descriptor


class LibraryLog(logging.Handler):
    """Keeps the terminal for our own lines; what other libraries report goes into a file.

    It takes log records, warnings, and exceptions that end a thread or that Python ignores. Until
    the file has a directory, the texts are kept in memory. File descriptor 2 is left alone, because
    a native library writes its last words there when it aborts the process.
    """

    def __init__(self, command: str):
        """Starts to listen.

        Args:
            command: the name of the command in our own lines.
        """
        super().__init__(logging.WARNING)
        self.command = command
        self.path: pathlib.Path | None = None
        self._kept = ""
        self.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s: %(message)s"))
        self.take_over()
        logging.captureWarnings(True)
        sys.unraisablehook = lambda ignored: self._exception(
            "ignored", ignored.exc_type, ignored.exc_value, ignored.exc_traceback
        )
        threading.excepthook = lambda ended: self._exception(
            "of a thread", ended.exc_type, ended.exc_value, ended.exc_traceback
        )
        sys.excepthook = self._uncaught

    def take_over(self) -> None:
        """Replaces the handlers that libraries have installed for all log records."""
        logging.root.handlers[:] = [self]

    def emit(self, record: logging.LogRecord) -> None:
        """Prints a record of this package as one line, and logs any other record."""
        if record.name == "absl" and pathlib.Path(record.pathname).is_relative_to(PACKAGE):
            print(f"mcn_jax.{self.command}: warning: {record.getMessage()}", file=sys.stderr)
            return
        self._kept += self.format(record) + "\n"
        self._write()

    def show(self) -> None:
        """Prints what no file could take."""
        self._write()
        sys.stderr.write(self._kept)
        self._kept = ""

    def _write(self) -> None:
        if self._kept and self.path is not None and self.path.parent.is_dir():
            with contextlib.suppress(OSError), self.path.open("a", errors="replace") as file:
                file.write(self._kept)
            self._kept = ""

    def _exception(self, what: str, *error: Any) -> None:
        logging.getLogger("python").error("exception %s", what, exc_info=error)

    def _uncaught(self, *error: Any) -> None:
        if threading.current_thread() is not threading.main_thread():  # a native library's callback
            self._exception("of a callback", *error)
        elif not issubclass(error[0], KeyboardInterrupt):  # Python ends with code 130
            self.show()
            sys.__excepthook__(*error)


_library_log: LibraryLog | None = None


def log_libraries(path: pathlib.Path) -> None:
    """Appends what other libraries report to a file, as soon as its directory exists."""
    if _library_log is not None:
        _library_log.path = path
        _library_log.take_over()


def run_command(name: str, command: Callable[[], object], *, reader_matters: bool = True) -> None:
    """Runs the command `python -m mcn_jax.NAME` to its end, even if nobody reads its output.

    Args:
        name: the name of its module.
        command: does the work; it may exit.
        reader_matters: whether the command fails if its output could not be written. The exit code
            is then 141 for a reader that has left, and 1, with one line, for any other cause.
    """
    global _library_log
    keep_freed_memory()
    _replace_streams()
    _library_log = LibraryLog(name)
    # Commands draw only into files. A notebook's backend may be missing here, and matplotlib would
    # refuse to be imported.
    os.environ["MPLBACKEND"] = "agg"
    try:
        command()
    except SystemExit as end:
        if end.code:
            raise
    _library_log.show()
    sys.stdout.flush()
    error = None if _stdout is None else _stdout.error
    if error is None or not reader_matters:
        return
    if isinstance(error, BrokenPipeError):
        sys.exit(BROKEN_PIPE_CODE)
    sys.exit(
        f"mcn_jax.{name}: error: standard output cannot be written: {error.strerror}; files that"
        " the command was asked for are written"
    )
