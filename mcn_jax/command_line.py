"""Shared parts of the commands: parsers, common flags, and errors reported in one line."""

import argparse
import contextlib
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

from mcn_jax import parallel
from mcn_jax.errors import InputError
from mcn_jax.escapes import printable
from mcn_jax.memory import memory_fault
from mcn_jax.paths import user_path

PLACES = ("data_dir", "archive_dir", "root")  # fields of `DataConfig` with paths of data


def make_parser(name: str, description: str | None, **options: Any) -> argparse.ArgumentParser:
    """Makes the parser of the command `python -m mcn_jax.NAME`.

    Its arguments of type "path" expand ~, and report a wrong path in one line.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m mcn_jax.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        **options,
    )

    def path(text: str) -> pathlib.Path:
        with one_line_errors(name):
            return user_path(text)

    parser.register("type", "path", path)
    return parser


def error_line(name: str, error: object) -> str:
    """Returns the line in which the command `python -m mcn_jax.NAME` reports an error.

    What is not printable is escaped, such as a line break in a path, and the control sequences
    that a damaged file can put into a library's message.
    """
    return f"mcn_jax.{name}: error: {printable(str(error))}"


def os_error_text(error: OSError) -> str:
    """Returns the text of an operating system's error, with the file and a remedy."""
    if error.filename is None or error.strerror is None:
        return str(error)
    path = str(error.filename).removesuffix(".tmp")  # files are written beside and renamed
    return (
        f"{path}: {error.strerror}; check that its directory exists and may be used, or name"
        " another place"
    )


@contextlib.contextmanager
def one_line_errors(name: str) -> Iterator[None]:
    """Reports wrong input to `python -m mcn_jax.NAME` in one line and exits with code 1."""
    try:
        yield
    except InputError as error:
        sys.exit(error_line(name, error))
    except OSError as error:
        sys.exit(error_line(name, os_error_text(error)))
    except Exception as error:
        if fault := parallel.device_fault(error):
            sys.exit(error_line(name, fault))
        if fault := memory_fault(error):
            sys.exit(error_line(name, f"{fault}; take smaller batches or a machine with more"))
        raise


def add_places(parser: argparse.ArgumentParser) -> None:
    """Adds flags that override where the data are stored."""
    for name in PLACES:
        parser.add_argument(f"--{name}", help=f"path of the data, instead of config.data.{name}")


def places(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the flags of `add_places` that were given."""
    return {n: value for n in PLACES if (value := getattr(options, n)) is not None}


def add_batch_size(parser: argparse.ArgumentParser, default: int) -> None:
    """Adds the flag --batch_size."""
    parser.add_argument(
        "--batch_size",
        type=int,
        default=default,
        help=f"images per batch (default: {default}); lower it for large images",
    )


def check_batch_size(options: argparse.Namespace) -> None:
    """Raises InputError unless --batch_size is at least 1."""
    if options.batch_size < 1:
        raise InputError(f"--batch_size={options.batch_size} must be at least 1")
