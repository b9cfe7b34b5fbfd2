"""Sends directories through a channel that returns few and small files.

The files of a stage are put into one tar archive, and the archive is cut into pieces. Checkpoints
are included as far as they fit.
"""

import pathlib
import re
import shutil
import tarfile
from collections.abc import Sequence

from mcn_jax.errors import InputError

MIB = 2**20
PIECE_BYTES = 15 * MIB
PIECES = 4  # at most, so the results of one stage take less than 64 MiB
FILES = 8  # at most, in the directory of the results
PIECE = re.compile(r"(?P<stage>.+)\.tar\.(?P<number>\d)-of-(?P<count>\d)")
KEPT_OUT = ("checkpoints", "log.txt")  # unless chosen


def room(out: pathlib.Path, stage: str) -> int:
    """Returns the bytes that the archive of a stage may take beside what lies in a directory."""
    others = [file for file in out.iterdir() if not file.name.startswith(f"{stage}.")]
    pieces = min(PIECES, FILES - 2 - len(others))
    size = sum(file.stat().st_size for file in others)
    return max(0, min(pieces * PIECE_BYTES, PIECES * PIECE_BYTES - size))


def pack(
    directory: pathlib.Path, out: pathlib.Path, checkpoints: Sequence[pathlib.Path]
) -> list[pathlib.Path]:
    """Packs the directory of a stage, such as STORE/c10-20, into files such as c10-20.tar.1-of-2.

    All files are packed except `KEPT_OUT`.

    Args:
        directory: directory of the stage.
        out: where the pieces are written; they replace those of an earlier call.
        checkpoints: directories of checkpoints to pack nevertheless, the most important first.

    Returns:
        The checkpoints for which there was no room.
    """
    archive = directory.parent / f"{directory.name}.tar"
    left_out = []
    with tarfile.open(archive, "w") as tar:
        for file in sorted(directory.rglob("*")):
            inside = file.relative_to(directory).parts
            if file.is_file() and not set(inside) & set(KEPT_OUT):
                tar.add(file, file.relative_to(directory.parent))
        left = room(out, directory.name) - tar.offset
        for checkpoint in checkpoints:
            size = tarred_bytes(checkpoint)
            if size > left:
                left_out.append(checkpoint)
                continue
            tar.add(checkpoint, checkpoint.relative_to(directory.parent))
            left -= size
    content = archive.read_bytes()
    archive.unlink()
    count = -(-len(content) // PIECE_BYTES)
    parts = []
    for number in range(count):
        part = out / f"{directory.name}.tar.{number + 1}-of-{count}.partial"
        part.write_bytes(content[number * PIECE_BYTES : (number + 1) * PIECE_BYTES])
        parts.append(part)
    # A call that is killed here leaves pieces of one archive, never of two.
    for file in out.glob(f"{directory.name}.tar.*"):
        if file not in parts:  # of an earlier call
            file.unlink()
    for part in parts:
        part.rename(part.with_suffix(""))
    return left_out


def tarred_bytes(directory: pathlib.Path) -> int:
    """Returns the bytes that a directory takes in a tar archive, with room for long names."""
    return sum(4 * 512 + file.lstat().st_size for file in directory.rglob("*"))


def unpack(source: pathlib.Path, stage: str, store: pathlib.Path) -> None:
    """Unpacks the pieces of a stage into STORE/STAGE, completely or not at all.

    Raises:
        InputError: if a piece is missing or damaged.
    """
    found = {}
    for file in source.iterdir():
        match = PIECE.fullmatch(file.name)
        if match and match["stage"] == stage:
            found[int(match["number"])] = (int(match["count"]), file)
    count = max((count for count, _ in found.values()), default=1)
    for number in range(1, count + 1):
        if found.get(number, (0, None))[0] != count:
            raise InputError(
                f"--resume={source} has no {stage}.tar.{number}-of-{count}; pass the directory with"
                " all results of one earlier call"
            )
    partial = store / f"{stage}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    archive = partial / "archive.tar"
    with archive.open("wb") as whole:
        for number in range(1, count + 1):
            whole.write(found[number][1].read_bytes())
    try:
        with tarfile.open(archive) as tar:
            tar.extraction_filter = getattr(tarfile, "data_filter", None)  # since Python 3.11.4
            tar.extractall(partial)
        (partial / stage).rename(store / stage)
    except (tarfile.TarError, OSError) as error:
        raise InputError(
            f"{source}/{stage}.tar.* is damaged ({error}); copy the results again"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
