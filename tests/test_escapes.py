"""Tests how names that users chose are shown."""

import itertools

import pytest

from mcn_jax.command_line import error_line
from mcn_jax.escapes import drawn, shown

NAMES = {
    "cat": "cat",
    "two words": "two words",
    "007": "007",
    "[red]:x:": "[red]:x:",
    "müller": "müller",
    "mu\u0308ller": r"mu\u0308ller",
    "猫": "猫",
    "हिंदी": "हिंदी",  # combining marks that have no composed form
    "Å": "Å",
    "\u212b": r"\u212b",
    "😀": "😀",
    "a\nb": r"a\nb",
    "a\\nb": r"a\\nb",
    "a\tb": r"a\tb",
    "\x1b[2J": r"\x1b[2J",
    " lead": r"\x20lead",
    "trail ": r"trail\x20",
    "two  spaces": r"two \x20spaces",
    "two\xa0words": r"two\xa0words",
    "\u202eright": r"\u202eright",
    "zero\u200bwidth": r"zero\u200bwidth",
    "❤": "❤",
    "❤\ufe0f": r"❤\ufe0f",
    "\udcff": r"\udcff",
    "": "",
}


@pytest.mark.parametrize("name", NAMES)
def test_names_are_escaped_only_where_they_cannot_be_seen(name):
    assert shown(name) == NAMES[name]


def test_different_names_are_shown_differently_and_on_one_line():
    for first, second in itertools.combinations(NAMES, 2):
        assert shown(first) != shown(second)
    assert all(len(shown(name).splitlines()) <= 1 for name in NAMES)


def test_errors_are_one_line_without_control_sequences():
    line = error_line("predict", "a\nb/\x1b[2J.png: 'c\\d'  is  müller\u2028")
    assert line == r"mcn_jax.predict: error: a\nb/\x1b[2J.png: 'c\d'  is  müller\u2028"


def test_what_the_font_lacks_is_escaped_in_pictures():
    assert drawn("é 😀") == r"é \U0001f600" or drawn("é 😀") == "é 😀"
    assert drawn("猫") == r"\u732b"
    assert drawn("a\nb") == r"a\nb"
