"""Writes numbers, arrays and strings as C99 text."""

import re
import string

import numpy as np

from mcn_jax.errors import InputError

C_TYPES = {
    "float32": "float", "float16": "uint16_t", "int8": "int8_t", "uint8": "uint8_t"
}  # fmt: skip
LINE = 96  # most characters of a line of an array
# Everything else in a string becomes octal escapes of UTF-8: quotes, backslashes, line breaks, and
# "?", so no trigraph begins. An octal escape ends after three digits, whatever follows.
PLAIN = frozenset((string.ascii_letters + string.digits + " _-+.,:;()").encode())


def number(value: float) -> str:
    """Returns a float32 literal that C reads as exactly this number.

    Raises:
        InputError: if the number is not finite in float32.
    """
    with np.errstate(over="ignore"):
        rounded = np.float32(value)
    if not np.isfinite(rounded):
        raise InputError(
            f"a weight of the network becomes {value:g}, which is beyond float32; C source cannot"
            " hold it"
        )
    text = f"{rounded:.9g}"
    return f"{text}f" if any(char in text for char in ".e") else f"{text}.0f"


def string_literal(text: str) -> str:
    r"""Returns text as a C string literal in UTF-8; it has no `?`, `\n`, `"` or `*/` in it."""
    escaped = (chr(b) if b in PLAIN else f"\\{b:03o}" for b in text.encode())
    return '"' + "".join(escaped) + '"'


def identifier(name: str) -> str:
    """Returns a name as a part of a C identifier: letters, digits and underscores."""
    return re.sub(r"[^A-Za-z0-9_]", "_", name)


def array(name: str, values: np.ndarray) -> str:
    """Returns the definition of a constant one-dimensional array with the values in row order.

    Float16 numbers are written as their bits.
    """
    flat = values.ravel()
    if flat.dtype == np.float16:
        items = [f"0x{bits:04x}" for bits in flat.view(np.uint16).tolist()]
    elif flat.dtype == np.uint8:
        items = [f"0x{byte:02x}" for byte in flat.tolist()]
    elif flat.dtype == np.int8:
        items = [str(value) for value in flat.tolist()]
    else:
        items = [number(value) for value in flat.tolist()]
    lines, line = [], "   "
    for item in items:
        if len(line) + len(item) + 2 > LINE:
            lines.append(line)
            line = "   "
        line += f" {item},"
    lines.append(line)
    body = "\n".join(lines)
    return f"static const {C_TYPES[flat.dtype.name]} {name}[{flat.size}] = {{\n{body}\n}};\n"


def indented(code: str, levels: int = 1) -> str:
    """Returns lines of code, indented by a number of levels."""
    space = "    " * levels
    return "".join(f"{space}{line}\n" if line else "\n" for line in code.splitlines())
