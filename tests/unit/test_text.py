import traceback
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laion_assets.errors import CorruptInput
from laion_assets.text import ForeignError, printable, unlinked, with_printable_errors


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


def test_addresses_make_no_links():
    shown = unlinked("http://127.0.0.1:3000/graphql?query=mutation\n", 100)
    assert shown == r"http:\/\/127.0.0.1:3000/graphql?query=mutation\n"
    assert unlinked(shown, 100) == shown


# -- errors ---------------------------------------------------------------------------------------

HOSTILE = "\x1b]0;owned\x07 a\u202egnp.\n2026-01-01 all is well"
SHOWN = "\\x1b]0;owned\\x07 a\\u202egnp.\\n2026-01-01 all is well"


def told(function):
    """What Python would print of what a function raises."""
    with pytest.raises(Exception, match=r".") as caught:
        with_printable_errors(function)()
    return caught.value, "".join(traceback.format_exception(caught.value))


def test_an_error_that_can_be_shown_comes_through_as_it_is():
    error = KeyError("a key\n")  # whose text is its argument's repr

    def fail():
        raise error

    assert told(fail)[0] is error


def test_an_error_that_says_what_the_data_says_is_replaced_and_its_traceback_kept():
    def fail_on_data():
        raise ValueError(HOSTILE)

    error, text = told(fail_on_data)
    assert type(error) is ForeignError
    assert f"ForeignError: ValueError: {SHOWN}\n" in text
    assert "in fail_on_data" in text
    assert error.__context__ is None


def test_what_an_error_came_from_is_replaced_too():
    def fail():
        try:
            try:
                raise OSError(HOSTILE)
            finally:
                raise ValueError("in between")
        except ValueError as error:
            raise LookupError("at the end") from error

    error, text = told(fail)
    assert type(error) is LookupError
    assert type(error.__cause__) is ValueError
    assert f"ForeignError: OSError: {SHOWN}\n" in text
    assert text.replace("\n", "").isprintable()


def test_a_context_that_is_hidden_is_dropped():
    def fail():
        try:
            raise ValueError(HOSTILE)
        except ValueError:
            raise LookupError("of our own") from None

    error, _ = told(fail)
    assert error.__context__ is None
    assert error.__suppress_context__


@pytest.mark.parametrize("error", [ExceptionGroup("several", [ValueError(HOSTILE)]), ValueError("x" * 5_000)])
def test_groups_and_long_texts_are_replaced(error):
    def fail():
        raise error

    found, text = told(fail)
    assert type(found) is ForeignError
    assert len(str(found)) <= 2_000
    assert text.replace("\n", "").isprintable()


def test_notes_count():
    def fail():
        error = ValueError("fine")
        error.add_note(HOSTILE)
        raise error

    assert type(told(fail)[0]) is ForeignError


def test_our_own_errors_are_printable_from_the_start():
    error = CorruptInput("a.parquet", expected="a number", found=HOSTILE, remedy="Fetch it again.")
    assert str(error) == f"a.parquet: expected a number, found {SHOWN}. Fetch it again."


def test_an_interruption_comes_through():
    def fail():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        with_printable_errors(fail)()
