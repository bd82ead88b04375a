"""Foreign text made fit to be shown. Knows nothing of markup: who writes HTML or markup escapes that too."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import wraps
from typing import Final, ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Returned = TypeVar("Returned")

MESSAGE_CHARACTERS: Final = 2_000
"""Longest message of an error that is shown or kept."""

_ELLIPSIS: Final = "…"

# As Dagster's UI finds them.
_ADDRESS: Final = re.compile("(https?:)//", re.IGNORECASE)

# More marks on one letter are drawn over the lines around it ("zalgo" text); real scripts use fewer.
_MOST_MARKS: Final = 4


def printable(text: str, limit: int) -> str:
    r"""Text on one line, without what could hide, reorder or forge other text, and no longer than ``limit``.

    Characters that have no shape of their own (control, bidi and zero-width characters, line separators,
    surrogates, unassigned ones) are written as ``\xNN``, ``\uNNNN`` or ``\UNNNNNNNN``; any other white space
    becomes a space, and marks beyond the fourth on one letter are left out.

    Args:
        text: anything, of any length.
        limit: most characters of the result, at least 1; a cut is shown as ``…``.
    """
    if len(text) <= limit and text.isascii() and text.isprintable():
        return text
    pieces: list[str] = []
    length = marks = 0
    for character in text:
        marks = marks + 1 if unicodedata.combining(character) else 0
        if marks > _MOST_MARKS:
            continue
        piece = _piece(character)
        length += len(piece)
        if length > limit:
            return _cut(pieces, limit)
        pieces.append(piece)
    return "".join(pieces)


def unlinked(text: str, limit: int) -> str:
    r"""The text made :func:`printable`, its addresses such that no viewer makes links of them: ``http:\/\/``.

    Dagster's UI does so wherever a run logs one, and a link to its own ``/graphql`` may be a mutation.
    """
    return printable(_ADDRESS.sub(r"\1\/\/", text), limit)


def _piece(character: str) -> str:
    if character.isprintable():
        return character
    if unicodedata.category(character) == "Zs":
        return " "
    return character.encode("unicode_escape").decode("ascii")


def _cut(pieces: list[str], limit: int) -> str:
    """As many whole pieces as leave room for the ellipsis, so that no escape is cut in two."""
    length = sum(map(len, pieces))
    while pieces and length + len(_ELLIPSIS) > limit:
        length -= len(pieces.pop())
    return "".join(pieces) + _ELLIPSIS


# -- errors ---------------------------------------------------------------------------------------


class ForeignError(Exception):
    """Stands in a traceback for an error whose own text is not fit to be shown."""


def with_printable_errors(function: Callable[Arguments, Returned]) -> Callable[Arguments, Returned]:
    """The function, from which no error comes whose traceback could hide, reorder or forge what is beside it.

    Whatever reads data may fail with the data in its message. Where that is not printable, or is long, a
    :class:`ForeignError` with the same traceback takes the error's place; so for each error it came from.
    """

    @wraps(function)
    def guarded(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Returned:
        try:
            return function(*args, **kwargs)
        except BaseException as error:  # noqa: BLE001 (it is raised below)
            shown = _shown(error)
        # Outside the handler, or Python would add the error that was to be replaced as its context.
        raise shown

    return guarded


def _shown(error: BaseException) -> BaseException:
    cause, context, hides_context = error.__cause__, error.__context__, error.__suppress_context__
    shown = error
    if not _is_printable(error):
        text = unlinked(f"{type(error).__name__}: {error}", MESSAGE_CHARACTERS)
        shown = ForeignError(text).with_traceback(error.__traceback__)
    shown.__cause__ = None if cause is None else _shown(cause)
    shown.__context__ = None if context is None or hides_context else _shown(context)
    shown.__suppress_context__ = hides_context
    return shown


def _is_printable(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup) and not all(map(_is_printable, error.exceptions)):
        return False
    texts = [str(error), *getattr(error, "__notes__", ())]
    return all(unlinked(text, MESSAGE_CHARACTERS) == text for text in texts)
