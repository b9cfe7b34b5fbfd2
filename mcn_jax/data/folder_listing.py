"""Lists the images below a folder, and what is left out of it and why."""

import collections
import functools
import os
import pathlib
import stat
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError, features

from mcn_jax.data.archives import unreadable
from mcn_jax.data.images import UNREADABLE
from mcn_jax.errors import InputError
from mcn_jax.escapes import shown

# Formats of Pillow whose files hold pixels, by the codec that Pillow may be built without.
FORMATS: dict[str, str | None] = {
    "AVIF": "avif", "JPEG": "jpg", "JPEG2000": "jpg_2000", "MPO": "jpg", "PNG": "zlib",
    "WEBP": "webp",
} | dict.fromkeys(
    ("BMP", "DDS", "DIB", "GIF", "ICNS", "ICO", "PCX", "PPM", "PSD", "QOI", "SGI", "TGA", "TIFF",
     "XBM")
)  # fmt: skip
# These begin with a signature that no other file has.
SIGNED = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "TIFF", "WEBP")
SYSTEM_NAMES = ("thumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin")
KINDS = {
    stat.S_IFIFO: "pipes",
    stat.S_IFSOCK: "sockets",
    stat.S_IFCHR: "devices",
    stat.S_IFBLK: "devices",
}
SHOWN_NAMES = 3  # of each kind of skipped files


class Skipped(NamedTuple):
    """A file or folder that is not used; `what` and `why` complete "skipped WHAT, WHY"."""

    path: pathlib.Path
    what: str
    why: str = ""


@functools.cache
def suffixes() -> frozenset[str]:
    """Returns the suffixes of the formats that Pillow can decode on this machine."""
    return frozenset(
        suffix
        for suffix, name in Image.registered_extensions().items()
        if name in FORMATS and ((codec := FORMATS[name]) is None or features.check(codec))
    )


def is_hidden(name: str) -> bool:
    """Returns whether a name is that of a hidden file, or of a file that a system leaves."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def is_loop(path: pathlib.Path) -> bool:
    """Returns whether a path is a link to a folder that it lies in, whatever links lead to it."""
    if not path.is_symlink():
        return False
    folder = path.absolute().parent
    above = {parent.resolve() for parent in (folder, *folder.parents)}
    return path.resolve() in above.union(folder.resolve().parents)


def entries(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns what a directory contains, sorted by name.

    Raises:
        InputError: if the directory cannot be read.
    """
    try:
        return [folder / name for name in sorted(os.listdir(folder))]
    except OSError as error:
        raise InputError(
            f"{shown(folder)} cannot be read ({error.strerror}); make it readable or remove it"
        ) from error


def images_below(folder: pathlib.Path, skipped: list[Skipped]) -> list[pathlib.Path]:
    """Returns the images in a folder and in the folders below it, in an order that is always equal.

    Links are followed, except a link to a folder that contains it. A file with the suffix of an
    image format is an image. A file without a suffix is one if its first bytes say so.

    Args:
        folder: the directory.
        skipped: gets what else the folder contains, with the reason.

    Raises:
        InputError: if a directory or a file cannot be read.
    """
    found: list[pathlib.Path] = []
    for path in entries(folder):
        if is_hidden(path.name):
            skipped.append(Skipped(path, "hidden or system files"))
            continue
        try:
            mode = path.stat().st_mode
        except OSError as error:
            skipped.append(Skipped(path, "links", f"which lead nowhere ({error.strerror})"))
            continue
        if stat.S_ISDIR(mode):
            if is_loop(path):
                skipped.append(Skipped(path, "links", "which lead to a folder that contains them"))
            else:
                found += images_below(path, skipped)
        elif not stat.S_ISREG(mode):
            skipped.append(Skipped(path, KINDS.get(stat.S_IFMT(mode), "special files")))
        elif path.suffix.lower() in suffixes() or (not path.suffix and format_of(path)):
            found.append(path)
        else:
            skipped.append(_not_an_image(path))
    return found


def format_of(path: pathlib.Path) -> str | None:
    """Returns the image format that the first bytes of a file show; None if they show none."""
    known = [name for name in SIGNED if (codec := FORMATS[name]) is None or features.check(codec)]
    try:
        with Image.open(path, formats=known) as image:
            return image.format
    except UnidentifiedImageError:
        return None
    except OSError as error:
        raise unreadable(shown(path), error) from error
    except UNREADABLE:
        return None


def _not_an_image(path: pathlib.Path) -> Skipped:
    what = f"{shown(path.suffix.lower())} files" if path.suffix else "files without a suffix"
    if found := format_of(path):
        return Skipped(path, what, f"which contain images ({found}) but have another suffix")
    if path.suffix:
        return Skipped(path, what, "a suffix that Pillow does not read as an image on this machine")
    return Skipped(path, what, "which do not begin as an image does")


def skipped_lines(skipped: Iterable[Skipped], base: pathlib.Path) -> list[str]:
    """Returns one line for each kind of skipped files, with the number and examples of names.

    Args:
        skipped: from `images_below`.
        base: a folder that contains them; the names are relative to it.
    """
    groups: dict[tuple[str, str], list[pathlib.Path]] = collections.defaultdict(list)
    for path, what, why in skipped:
        groups[what, why].append(path.relative_to(base))
    return [
        f"skipped {what} ({len(paths):,}){', ' if why else ''}{why}: {names_of(paths)}"
        for (what, why), paths in sorted(groups.items())
    ]


def names_of(paths: Sequence[pathlib.Path]) -> str:
    """Returns the first names of a list, and how many more there are."""
    more = f" and {len(paths) - SHOWN_NAMES:,} more" if len(paths) > SHOWN_NAMES else ""
    return ", ".join(map(shown, paths[:SHOWN_NAMES])) + more
