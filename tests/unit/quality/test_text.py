import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laion_assets.quality.text import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a plain caption", "a plain caption"),
        ("Café 日本語 🙂", "Café 日本語 🙂"),
        ("two\nlines\tand a bell\x07", "two\\nlines\\tand a bell\\x07"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("evil\u202egnp.exe", "evil\\u202egnp.exe"),
        ("\u2066isolate\u2069", "\\u2066isolate\\u2069"),
        ("zero\u200bwidth\ufeff", "zero\\u200bwidth\\ufeff"),
        ("line\u2028separator\x85", "line\\u2028separator\\x85"),
        ("no\u00a0break", "no break"),
        ("\ud800 alone", "\\ud800 alone"),
        ("\U000e0041 tag", "\\U000e0041 tag"),
        ("e" + "\u0301" * 50, "e" + "\u0301" * 4),
    ],
)
def test_what_has_no_shape_is_written_out(text, shown):
    assert printable(text, 100) == shown


def test_long_text_is_cut_and_says_so():
    assert printable("x" * 10, 10) == "x" * 10
    assert printable("x" * 11, 10) == "x" * 9 + "…"
    assert printable("y" * 61_192, 1) == "…"


def test_an_escape_is_never_cut_in_two():
    assert printable("abc\x00def", 6) == "abc…"


@given(st.text(st.characters(exclude_categories=())), st.integers(1, 40))
@settings(deadline=None, max_examples=100)
def test_any_text_becomes_short_and_harmless(text, limit):
    shown = printable(text, limit)
    assert len(shown) <= limit
    assert shown.isprintable()
    assert not {"\n", "\u2028", "\u202e"} & set(shown)
    assert all(unicodedata.category(character) not in ("Cc", "Cf", "Cs") for character in shown)
    shown.encode()
