"""Plots of statistics as PNG files. Takes figures, not files; texts in them are foreign."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from laion_assets.outcomes import Outcome
from laion_assets.quality.statistics import OTHERS, SIMILARITY_BINS, SIZE_LIMITS, Statistics
from laion_assets.quality.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

MOST_BARS: Final = 48
"""Bars of a plot by shard; more shards share bars."""

_WIDTH_INCHES: Final = 8.0
_DOTS_PER_INCH: Final = 110
_LABEL_CHARACTERS: Final = 44
_LEGEND_CHARACTERS: Final = 24

# Failures beyond the most frequent few would be slivers that no eye tells apart.
_MOST_FAILURES: Final = 7

_SUCCESS_COLOUR: Final = "#2f7d5b"
_NEUTRAL_COLOUR: Final = "#3b6ea5"
_MISSING_COLOUR: Final = "#b9bec6"
# Told apart by the colour-blind too (Okabe and Ito, "Color Universal Design").
_FAILURE_COLOURS: Final = ("#d55e00", "#e69f00", "#cc79a7", "#0072b2", "#56b4e9", "#f0e442", "#999999")
_OTHERS_COLOUR: Final = "#444444"

# Stands for a character that the font lacks.
_NO_GLYPH: Final = "□"


def draw_plots(statistics: Statistics) -> dict[str, bytes]:
    """Every plot that there are figures for: title -> PNG; equal figures, equal bytes."""
    bars = _bars(statistics.by_shard)
    plots = {
        "Outcomes by shard": _outcomes(bars, statistics.outcomes),
        "Success by shard": _success(bars),
        "Similarity": _similarity(statistics),
        "Sizes": _sizes(statistics),
    }
    hosts = {name: count for name, count in statistics.hosts.items() if name != OTHERS}
    for title, counts, unit in (
        ("NSFW tags", statistics.nsfw, "examples"),
        ("Licences", statistics.licenses, "examples"),
        ("Hosts", hosts, "examples"),
        ("Set aside", statistics.set_aside, "rows with a picture that make no example"),
    ):
        if counts:
            plots[title] = _counts(counts, unit)
    return plots


def _bars(by_shard: Mapping[str, Mapping[str, int]]) -> dict[str, Counter[str]]:
    """Label -> outcomes: a shard for each bar, or neighbours together where there are too many."""
    shards = list(by_shard)
    step = max(1, -(-len(shards) // MOST_BARS))
    bars: dict[str, Counter[str]] = {}
    for start in range(0, len(shards), step):
        group = shards[start : start + step]
        label = group[0] if len(group) == 1 else f"{group[0]}-{group[-1]}"
        bars[label] = sum((Counter(by_shard[shard]) for shard in group), Counter())
    return bars


def _outcomes(bars: Mapping[str, Counter[str]], outcomes: Mapping[str, int]) -> bytes:
    figure, axes = _figure(3.6)
    failures = [outcome for outcome in outcomes if outcome not in (Outcome.SUCCESS, Outcome.SET_ASIDE)]
    shown, rest = failures[:_MOST_FAILURES], failures[_MOST_FAILURES:]
    layers: list[tuple[str, Sequence[str], str]] = [
        ("success", [Outcome.SUCCESS], _SUCCESS_COLOUR),
        *((name, [name], colour) for name, colour in zip(shown, _FAILURE_COLOURS, strict=False)),
        ("other failures", rest, _OTHERS_COLOUR),
        ("set aside", [Outcome.SET_ASIDE], _MISSING_COLOUR),
    ]
    heights = [0] * len(bars)
    for label, names, colour in layers:
        values = [sum(counts[name] for name in names) for counts in bars.values()]
        if any(values):
            axes.bar(
                range(len(bars)),
                values,
                bottom=heights,
                width=0.85,
                color=colour,
                label=_label(label, _LEGEND_CHARACTERS),
            )
        heights = [height + value for height, value in zip(heights, values, strict=True)]
    axes.set_ylabel("rows")
    _name_bars(axes, list(bars))
    if any(heights):
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=8)
    return _png(figure)


def _success(bars: Mapping[str, Counter[str]]) -> bytes:
    figure, axes = _figure(2.6)
    asked = [counts.total() - counts[Outcome.SET_ASIDE] for counts in bars.values()]
    shares = [
        100 * counts[Outcome.SUCCESS] / total if total else 0.0
        for counts, total in zip(bars.values(), asked, strict=True)
    ]
    axes.bar(range(len(bars)), shares, width=0.85, color=_SUCCESS_COLOUR)
    axes.set_ylim(0, 100)
    axes.set_ylabel("% of the rows asked for")
    _name_bars(axes, list(bars))
    return _png(figure)


def _similarity(statistics: Statistics) -> bytes:
    figure, axes = _figure(2.8)
    width = 1 / SIMILARITY_BINS
    edges = [index * width for index in range(SIMILARITY_BINS)]
    axes.bar(edges, statistics.similarity, width=width * 0.92, align="edge", color=_NEUTRAL_COLOUR)
    axes.set_xlim(0, 1)
    axes.set_xlabel(f"recorded similarity; {statistics.similarity_missing:,} examples have none")
    axes.set_ylabel("examples")
    return _png(figure)


def _sizes(statistics: Statistics) -> bytes:
    labels = [f"up to {limit}" for limit in SIZE_LIMITS] + [f"over {SIZE_LIMITS[-1]}"]
    figure, axes = _figure(2.8)
    axes.bar(range(len(labels)), statistics.long_sides, width=0.85, color=_NEUTRAL_COLOUR)
    axes.set_xticks(range(len(labels)), labels, rotation=30, ha="right", fontsize=8)
    axes.set_xlabel("long side of the picture served, in pixels")
    axes.set_ylabel("examples")
    return _png(figure)


def _counts(counts: Mapping[str, int], unit: str) -> bytes:
    """Horizontal bars with the value at each, the first on top."""
    figure, axes = _figure(0.9 + 0.26 * max(1, len(counts)))
    labels, values = [_label(name) for name in counts], list(counts.values())
    axes.barh(range(len(values)), values, height=0.72, color=_NEUTRAL_COLOUR)
    axes.set_yticks(range(len(values)), labels, fontsize=8)
    axes.invert_yaxis()
    most = max(values, default=0)
    for place, value in enumerate(values):
        axes.text(value + 0.01 * most, place, f"{value:,}", va="center", fontsize=8)
    axes.set_xlim(0, most * 1.15 or 1)
    _count_along(axes.xaxis)
    axes.set_xlabel(unit)
    return _png(figure)


def _name_bars(axes: Axes, labels: Sequence[str]) -> None:
    step = max(1, -(-len(labels) // 24))
    places = range(0, len(labels), step)
    axes.set_xticks(places, [_label(labels[place]) for place in places], rotation=60, ha="right", fontsize=8)
    axes.set_xlim(-0.6, max(len(labels), 1) - 0.4)
    axes.set_xlabel("shard")


def _figure(height_inches: float) -> tuple[Figure, Axes]:
    # Not pyplot: it keeps every figure in the process, and picks a window system.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH_INCHES, height_inches), dpi=_DOTS_PER_INCH, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    _count_along(axes.yaxis)
    axes.set_axisbelow(True)
    return figure, axes


def _count_along(axis: Axis) -> None:
    """Mark whole numbers only, with commas."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def _png(figure: Figure) -> bytes:
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_parse_math(False)  # or a licence with two dollar signs would be read as a formula
        text.get_fontproperties().set_file(str(font_path()))
    buffer = io.BytesIO()
    # Without the entry that names matplotlib's version, which would make other bytes of equal figures.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _label(text: str, limit: int = _LABEL_CHARACTERS) -> str:
    """Foreign text for a plot: short, harmless, and only of characters that the font has."""
    from matplotlib.ft2font import FT2Font

    known = FT2Font(str(font_path())).get_charmap()
    shown = printable(text, limit)
    return "".join(character if ord(character) in known else _NO_GLYPH for character in shown)


def font_path() -> Path:
    """The font that comes with matplotlib: DejaVu Sans, of Latin, Greek, Cyrillic and many symbols."""
    import matplotlib as mpl

    return Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
