"""A shard at a glance, in a picture of few bytes: drawn for each of tens of thousands, and kept for good.

Takes figures, not files. Drawn with Pillow in a few milliseconds, where matplotlib takes a few hundred, in
few colours and a font without grey edges, which PNG stores in a tenth of the bytes.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Final

from PIL import Image, ImageDraw, ImageFont

from laion_assets.outcomes import Outcome
from laion_assets.quality.plots import (
    FAILURE_COLOURS,
    MISSING_COLOUR,
    NEUTRAL_COLOUR,
    OTHERS_COLOUR,
    SUCCESS_COLOUR,
)
from laion_assets.quality.statistics import SIZE_LIMITS, Statistics
from laion_assets.schema import SIMILARITY_BINS
from laion_assets.text import printable

MOST_BYTES: Final = 4_000
"""Most bytes of an overview."""

_WIDTH: Final = 640
_HEIGHT: Final = 196
_MARGIN: Final = 10
_INSIDE: Final = _WIDTH - 2 * _MARGIN
_LINE: Final = 14
_BAR_HEIGHT: Final = 22
_PLOT_TOP: Final = 100
_PLOT_BOTTOM: Final = 164
_SECOND_PLOT: Final = 360
_BIN_WIDTH: Final = 6
_SIZE_WIDTH: Final = 30
_MOST_FAILURES: Final = 4
_LABEL_CHARACTERS: Final = 20

_PAPER: Final = "#ffffff"
_INK: Final = "#202020"
# The picture's palette: its colours by their places.
_PALETTE: Final = (
    _PAPER,
    _INK,
    SUCCESS_COLOUR,
    NEUTRAL_COLOUR,
    MISSING_COLOUR,
    OTHERS_COLOUR,
    *FAILURE_COLOURS,
)


def draw_overview(statistics: Statistics) -> bytes:
    """A PNG of at most :data:`MOST_BYTES`: outcomes, similarities and sizes; equal figures, equal bytes."""
    sheet = Image.new("P", (_WIDTH, _HEIGHT), 0)
    sheet.putpalette([int(colour[at : at + 2], 16) for colour in _PALETTE for at in (1, 3, 5)])
    pen = _Pen(sheet)
    pen.write(
        _MARGIN,
        _MARGIN - 4,
        f"{statistics.rows:,} rows, {statistics.outcomes.get(Outcome.SUCCESS, 0):,} pictures "
        f"({100 * statistics.success_share:.1f} %), {statistics.examples:,} examples",
    )
    _draw_outcomes(pen, statistics.outcomes, statistics.rows)
    _draw_bars(pen, _MARGIN, _BIN_WIDTH, statistics.similarity)
    for place in (0, SIMILARITY_BINS // 2, SIMILARITY_BINS):
        pen.write(_MARGIN + place * _BIN_WIDTH - 3, _PLOT_BOTTOM + 2, f"{place / SIMILARITY_BINS:g}")
    missing = statistics.similarity_missing
    pen.write(_MARGIN, _PLOT_BOTTOM + 16, f"similarity of the examples; {missing:,} have none")
    _draw_bars(pen, _SECOND_PLOT, _SIZE_WIDTH, statistics.long_sides)
    for place, label in enumerate((*map(str, SIZE_LIMITS), "more")):
        pen.write(_SECOND_PLOT + place * _SIZE_WIDTH, _PLOT_BOTTOM + 2, label)
    pen.write(_SECOND_PLOT, _PLOT_BOTTOM + 16, "long side served, up to so many pixels")
    body = io.BytesIO()
    sheet.save(body, "PNG", optimize=True, bits=4)
    return body.getvalue()


class _Pen:
    """What writes and paints on a sheet, in the colours of its palette."""

    def __init__(self, sheet: Image.Image) -> None:
        self._draw = ImageDraw.Draw(sheet)
        self._draw.fontmode = "1"
        # Pillow's own: ASCII, of a fixed size, the same on every machine.
        self._font = ImageFont.load_default_imagefont()

    def write(self, x: float, y: float, text: str) -> float:
        """Write black on white; how wide that is, in pixels."""
        self._draw.text((x, y), text, fill=_PALETTE.index(_INK), font=self._font)
        return self._font.getbbox(text)[2]

    def paint(self, left: float, top: float, right: float, bottom: float, colour: str) -> None:
        """Fill a rectangle, its right and lower edge left out."""
        if right > left and bottom > top:
            self._draw.rectangle((left, top, right - 1, bottom - 1), fill=_PALETTE.index(colour))


def _draw_outcomes(pen: _Pen, outcomes: Mapping[str, int], rows: int) -> None:
    """One bar of all rows, and beneath it what its colours mean."""
    failures = [name for name in outcomes if name not in (Outcome.SUCCESS, Outcome.SET_ASIDE)]
    layers = [
        ("success", outcomes.get(Outcome.SUCCESS, 0), SUCCESS_COLOUR),
        *(
            (name, outcomes[name], colour)
            for name, colour in zip(failures[:_MOST_FAILURES], FAILURE_COLOURS, strict=False)
        ),
        ("other failures", sum(outcomes[name] for name in failures[_MOST_FAILURES:]), OTHERS_COLOUR),
        ("set aside", outcomes.get(Outcome.SET_ASIDE, 0), MISSING_COLOUR),
    ]
    top, before, along, line = 26, 0, float(_MARGIN), 26 + _BAR_HEIGHT + 5
    for name, count, colour in layers:
        if not count:
            continue
        left, right = (_MARGIN + round(_INSIDE * edge / rows) for edge in (before, before + count))
        pen.paint(left, top, right, top + _BAR_HEIGHT, colour)
        before += count
        label = f"{printable(name, _LABEL_CHARACTERS)} {count:,}".encode("ascii", "replace").decode()
        width = 16 + 6 * len(label)
        if along + width > _WIDTH - _MARGIN:
            along, line = float(_MARGIN), line + _LINE
        pen.paint(along, line + 2, along + 9, line + 11, colour)
        along += 13 + pen.write(along + 13, line, label) + 12


def _draw_bars(pen: _Pen, left: int, width: int, counts: Sequence[int]) -> None:
    """Upright bars on a line, the highest as high as there is room."""
    most = max(counts, default=0)
    height = _PLOT_BOTTOM - _PLOT_TOP
    for place, count in enumerate(counts):
        # One that is there is seen, however low.
        tall = max(1, round(height * count / most)) if count else 0
        begin = left + place * width
        pen.paint(begin, _PLOT_BOTTOM - tall, begin + width - 1, _PLOT_BOTTOM, NEUTRAL_COLOUR)
    pen.paint(left, _PLOT_BOTTOM, left + width * len(counts), _PLOT_BOTTOM + 1, _INK)
