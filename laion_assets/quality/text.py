"""Foreign text made fit to be shown. Knows nothing of markup: who writes HTML or markup escapes that too."""

from __future__ import annotations

import unicodedata
from typing import Final

_ELLIPSIS: Final = "…"

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
