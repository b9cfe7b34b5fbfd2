"""Sends directories through a channel that returns few and small files.

The files of a stage are put into one tar archive, and the archive is cut into pieces. Checkpoints
go along as far as they fit.
"""

import pathlib
import tarfile
from collections.abc import Sequence

MIB = 2**20
PIECE_BYTES = 15 * MIB
PIECES = 4  # at most, so that all results take at most 64 MiB


def pack(
    directory: pathlib.Path, out: pathlib.Path, checkpoints: Sequence[pathlib.Path]
) -> list[pathlib.Path]:
    """Packs the directory of a stage, such as STORE/c10-20, into files such as c10-20.tar.0.

    All files are packed except those in directories named "checkpoints".

    Args:
        directory: directory of the stage.
        out: where the pieces are written; those of an earlier call are replaced.
        checkpoints: directories of checkpoints to pack nevertheless, the most important first.

    Returns:
        The checkpoints for which there was no room.
    """
    archive = out / f"{directory.name}.tar"
    for old in out.glob(f"{archive.name}*"):
        old.unlink()
    left_out = []
    with tarfile.open(archive, "w") as tar:
        for file in sorted(directory.rglob("*")):
            inside = file.relative_to(directory).parts
            if file.is_file() and "checkpoints" not in inside[:-1]:
                tar.add(file, file.relative_to(directory.parent))
        room = PIECES * PIECE_BYTES - tar.offset
        for checkpoint in checkpoints:
            size = tarred_bytes(checkpoint)
            if size > room:
                left_out.append(checkpoint)
                continue
            tar.add(checkpoint, checkpoint.relative_to(directory.parent))
            room -= size
    content = archive.read_bytes()
    archive.unlink()
    for piece, start in enumerate(range(0, len(content), PIECE_BYTES)):
        part = content[start : start + PIECE_BYTES]
        archive.with_name(f"{archive.name}.{piece}").write_bytes(part)
    return left_out


def tarred_bytes(directory: pathlib.Path) -> int:
    """Returns the bytes that a directory takes in a tar archive, with room for long names."""
    return sum(3 * 512 + file.lstat().st_size + 512 for file in directory.rglob("*"))


def unpack(source: pathlib.Path, name: str, store: pathlib.Path) -> bool:
    """Unpacks the pieces of a stage into STORE/NAME; returns whether there were any."""
    pieces = sorted(source.glob(f"{name}.tar.*"), key=lambda piece: int(piece.suffix[1:]))
    if not pieces:
        return False
    archive = store / f"{name}.tar"
    store.mkdir(parents=True, exist_ok=True)
    with archive.open("wb") as whole:
        for piece in pieces:
            whole.write(piece.read_bytes())
    with tarfile.open(archive) as tar:
        tar.extractall(store, filter="data")
    archive.unlink()
    return True
