"""How names that users chose are shown: on one line, and so that different names look different."""

import functools
import os
import unicodedata

VARIATION_SELECTORS = range(0xFE00, 0xFE10)  # invisible; they choose between forms of a character


def shown(name: str | os.PathLike[str]) -> str:
    r"""Returns a class name or a path as it is printed, with escapes as in Python.

    Escaped are characters that are not printable, backslashes, and spaces that cannot be seen:
    those at an end and those after another space. A name that is not in Unicode's composed form
    (NFC) gets escapes for the characters that make the difference, so the two spellings of "é" are
    shown as `é` and `e\u0301`. Other names are shown as they are.
    """
    text = os.fspath(name)
    composed = unicodedata.is_normalized("NFC", text)
    return "".join(_shown(text, place, composed) for place in range(len(text)))


def printable(text: str) -> str:
    r"""Returns a text with escapes for the characters that are not printable, such as `\n`."""
    return "".join(char if char.isprintable() else _escaped(char) for char in text)


def drawn(name: str) -> str:
    """Returns a name like `shown`, with escapes also for what matplotlib cannot draw."""
    return "".join(
        char if ord(char) in _drawable() else char.encode("unicode_escape").decode()
        for char in shown(name)
    )


@functools.cache
def _drawable() -> frozenset[int]:
    from matplotlib import font_manager  # slow to import, and only needed for pictures

    font = font_manager.get_font(font_manager.findfont("DejaVu Sans"))
    return frozenset(font.get_charmap())


def _shown(text: str, place: int, composed: bool) -> str:
    char = text[place]
    if char == " ":
        hidden = place in (0, len(text) - 1) or text[place - 1] == " "
        return r"\x20" if hidden else char
    is_mark = unicodedata.category(char).startswith("M")
    ambiguous = not composed and (is_mark or unicodedata.normalize("NFC", char) != char)
    if not char.isprintable() or ambiguous or ord(char) in VARIATION_SELECTORS:
        return _escaped(char)
    return char.replace("\\", r"\\")


def _escaped(char: str) -> str:
    return char.encode("unicode_escape", "surrogatepass").decode()
