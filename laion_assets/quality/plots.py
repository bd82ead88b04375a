"""Plots of statistics as PNG files. Takes figures, not files; texts in them are foreign."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from PIL import Image, ImageDraw, ImageFont

from laion_assets.outcomes import Outcome
from laion_assets.quality.runs import Runs
from laion_assets.quality.statistics import OTHERS, SIZE_LIMITS, Statistics
from laion_assets.schema import SIMILARITY_BINS
from laion_assets.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

MOST_BARS: Final = 48
"""Bars of a plot by shard; more shards share bars."""

SHARD_STAGES: Final = (
    *("samples", "images", "normalized_images", "tfds_images"),
    *("image_embeddings", "tfds_image_embeddings"),
)
"""The stages that an image shard goes through."""

_WIDTH_INCHES: Final = 8.0
_DOTS_PER_INCH: Final = 110
_LABEL_CHARACTERS: Final = 44
_LEGEND_CHARACTERS: Final = 24

# Failures beyond the most frequent few would be slivers that no eye tells apart.
_MOST_FAILURES: Final = 7

SUCCESS_COLOUR: Final = "#2f7d5b"
NEUTRAL_COLOUR: Final = "#3b6ea5"
MISSING_COLOUR: Final = "#b9bec6"
# Told apart by the colour-blind too (Okabe and Ito, "Color Universal Design").
FAILURE_COLOURS: Final = ("#d55e00", "#e69f00", "#cc79a7", "#0072b2", "#56b4e9", "#f0e442", "#999999")
OTHERS_COLOUR: Final = "#444444"

# Marks below this are no whole numbers.
_SMALL: Final = 4
_TITLE_HEIGHT: Final = 40
_SHEET_COLOURS: Final = 48

# Bar -> name -> value.
_Bars: TypeAlias = Mapping[str, Mapping[str, float]]

# Stands for a character that the font lacks.
_NO_GLYPH: Final = "□"


def draw_plots(statistics: Statistics) -> dict[str, bytes]:
    """Every plot of the data set that there are figures for: title -> PNG; equal figures, equal bytes."""
    bars = _bars(statistics.by_shard)
    plots = {
        "Outcomes by shard": _outcomes(bars, statistics.outcomes),
        "Success by shard": _success(bars),
        "Similarity": _similarity(statistics),
        "Sizes": _sizes(statistics),
    }
    domains = {name: counts for name, counts in statistics.domains.items() if name != OTHERS}
    if domains:
        plots["Success by domain"] = _domains(domains)
    for title, counts, unit in (
        ("NSFW tags", statistics.nsfw, "examples"),
        ("Licences", statistics.licenses, "examples"),
        ("Set aside", statistics.set_aside, "rows with a picture that make no example"),
    ):
        if counts:
            plots[title] = _counts(counts, unit)
    return plots


def draw_runs(runs: Runs) -> dict[str, bytes]:
    """When pictures were downloaded, and what a shard took in each stage: title -> PNG."""
    plots = {}
    if runs.downloaded:
        days = {day: {"rows": rows} for day, rows in runs.downloaded.items()}
        plots["Rows by the day of their download (UTC)"] = _stack(
            _bars(days), [("rows", ["rows"], NEUTRAL_COLOUR)], "rows", along="day"
        )
    costs = {stage: runs.costs[stage] for stage in SHARD_STAGES if runs.costs.get(stage)}
    shards = sorted({key for found in costs.values() for key in found}, key=lambda key: (len(key), key))
    colours = [*FAILURE_COLOURS, OTHERS_COLOUR]
    layers = [(stage, [stage], colour) for stage, colour in zip(costs, colours, strict=False)]
    for title, unit, attribute in (
        ("Seconds a shard, by stage", "seconds", "seconds"),
        ("Megabytes a shard, by stage", "MB", "bytes"),
    ):
        scale = 1e6 if attribute == "bytes" else 1
        by_shard = {
            shard: {
                stage: getattr(found[shard], attribute) / scale
                for stage, found in costs.items()
                if shard in found
            }
            for shard in shards
        }
        if shards:
            plots[title] = _stack(_bars(by_shard, mean=True), layers, unit)
    return plots


def join_plots(plots: Mapping[str, bytes]) -> bytes:
    """Plots one beneath the other, each with its title, in few colours, as one PNG."""
    pictures = {title: Image.open(io.BytesIO(png)) for title, png in plots.items()}
    width = max((picture.width for picture in pictures.values()), default=1)
    height = sum(picture.height + _TITLE_HEIGHT for picture in pictures.values())
    sheet = Image.new("RGB", (width, max(1, height)), "#ffffff")
    font = ImageFont.truetype(str(font_path()), 17, layout_engine=ImageFont.Layout.BASIC)
    pen, top = ImageDraw.Draw(sheet), 0
    for title, picture in pictures.items():
        pen.text((8, top + 12), title, fill="#191919", font=font)
        sheet.paste(picture, (0, top + _TITLE_HEIGHT))
        top += _TITLE_HEIGHT + picture.height
    body = io.BytesIO()
    sheet.quantize(_SHEET_COLOURS, dither=Image.Dither.NONE).save(body, "PNG", optimize=True)
    return body.getvalue()


def _bars(by_shard: Mapping[str, Mapping[str, float]], *, mean: bool = False) -> _Bars:
    """Label -> values: a shard for each bar, or the sum or mean of neighbours where there are too many."""
    shards = list(by_shard)
    step = max(1, -(-len(shards) // MOST_BARS))
    bars: dict[str, Mapping[str, float]] = {}
    for start in range(0, len(shards), step):
        group = shards[start : start + step]
        label = group[0] if len(group) == 1 else f"{group[0]}-{group[-1]}"
        bar: dict[str, float] = {}
        for shard in group:
            for name, value in by_shard[shard].items():
                bar[name] = bar.get(name, 0) + value
        bars[label] = {name: value / len(group) for name, value in bar.items()} if mean else bar
    return bars


def _outcomes(bars: _Bars, outcomes: Mapping[str, int]) -> bytes:
    failures = [outcome for outcome in outcomes if outcome not in (Outcome.SUCCESS, Outcome.SET_ASIDE)]
    shown, rest = failures[:_MOST_FAILURES], failures[_MOST_FAILURES:]
    layers: list[tuple[str, Sequence[str], str]] = [
        ("success", [Outcome.SUCCESS], SUCCESS_COLOUR),
        *((name, [name], colour) for name, colour in zip(shown, FAILURE_COLOURS, strict=False)),
        ("other failures", rest, OTHERS_COLOUR),
        ("set aside", [Outcome.SET_ASIDE], MISSING_COLOUR),
    ]
    return _stack(bars, layers, "rows")


def _stack(
    bars: _Bars, layers: Sequence[tuple[str, Sequence[str], str]], unit: str, *, along: str = "shard"
) -> bytes:
    """Upright bars in layers: of each its label, the values that it adds up, and its colour."""
    figure, axes = _figure(3.6)
    heights = [0.0] * len(bars)
    for label, names, colour in layers:
        values = [sum(counts.get(name, 0) for name in names) for counts in bars.values()]
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
    axes.set_ylabel(unit)
    if max(heights, default=0) < _SMALL:
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    _name_bars(axes, list(bars), along)
    if any(heights) and len(layers) > 1:
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=8)
    return _png(figure)


def _success(bars: _Bars) -> bytes:
    figure, axes = _figure(2.6)
    asked = [sum(counts.values()) - counts.get(Outcome.SET_ASIDE, 0) for counts in bars.values()]
    shares = [
        100 * counts.get(Outcome.SUCCESS, 0) / total if total else 0.0
        for counts, total in zip(bars.values(), asked, strict=True)
    ]
    axes.bar(range(len(bars)), shares, width=0.85, color=SUCCESS_COLOUR)
    axes.set_ylim(0, 100)
    axes.set_ylabel("% of the rows asked for")
    _name_bars(axes, list(bars))
    return _png(figure)


def _similarity(statistics: Statistics) -> bytes:
    figure, axes = _figure(2.8)
    width = 1 / SIMILARITY_BINS
    edges = [index * width for index in range(SIMILARITY_BINS)]
    axes.bar(edges, statistics.similarity, width=width * 0.92, align="edge", color=NEUTRAL_COLOUR)
    axes.set_xlim(0, 1)
    axes.set_xlabel(f"recorded similarity; {statistics.similarity_missing:,} examples have none")
    axes.set_ylabel("examples")
    return _png(figure)


def _sizes(statistics: Statistics) -> bytes:
    labels = [f"up to {limit}" for limit in SIZE_LIMITS] + [f"over {SIZE_LIMITS[-1]}"]
    figure, axes = _figure(2.8)
    axes.bar(range(len(labels)), statistics.long_sides, width=0.85, color=NEUTRAL_COLOUR)
    axes.set_xticks(range(len(labels)), labels, rotation=30, ha="right", fontsize=8)
    axes.set_xlabel("long side of the picture served, in pixels")
    axes.set_ylabel("examples")
    return _png(figure)


def _domains(domains: Mapping[str, tuple[int, int]]) -> bytes:
    """Of each domain the share of successes, the most frequent domain on top."""
    figure, axes = _figure(0.9 + 0.26 * len(domains))
    shares = [100 * successes / max(1, rows) for rows, successes in domains.values()]
    axes.barh(range(len(shares)), shares, height=0.72, color=SUCCESS_COLOUR)
    axes.set_yticks(range(len(shares)), [_label(name) for name in domains], fontsize=8)
    axes.invert_yaxis()
    for place, (share, (rows, _)) in enumerate(zip(shares, domains.values(), strict=True)):
        axes.text(share + 1, place, f"{share:.0f} % of {rows:,}", va="center", fontsize=8)
    axes.set_xlim(0, 122)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("% of the rows asked for, of the domains that most rows name")
    return _png(figure)


def _counts(counts: Mapping[str, int], unit: str) -> bytes:
    """Horizontal bars with the value at each, the first on top."""
    figure, axes = _figure(0.9 + 0.26 * max(1, len(counts)))
    labels, values = [_label(name) for name in counts], list(counts.values())
    axes.barh(range(len(values)), values, height=0.72, color=NEUTRAL_COLOUR)
    axes.set_yticks(range(len(values)), labels, fontsize=8)
    axes.invert_yaxis()
    most = max(values, default=0)
    for place, value in enumerate(values):
        axes.text(value + 0.01 * most, place, f"{value:,}", va="center", fontsize=8)
    axes.set_xlim(0, most * 1.15 or 1)
    _count_along(axes.xaxis)
    axes.set_xlabel(unit)
    return _png(figure)


def _name_bars(axes: Axes, labels: Sequence[str], along: str = "shard") -> None:
    step = max(1, -(-len(labels) // 24))
    places = range(0, len(labels), step)
    axes.set_xticks(places, [_label(labels[place]) for place in places], rotation=60, ha="right", fontsize=8)
    axes.set_xlim(-0.6, max(len(labels), 1) - 0.4)
    axes.set_xlabel(along)


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
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_parse_math(False)  # or a licence with two dollar signs would be read as a formula
        text.get_fontproperties().set_file(str(font_path()))
    buffer = io.BytesIO()
    # Not savefig, which draws twice; without the entry that names matplotlib, which would make other
    # bytes of equal figures with another version of it.
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})  # type: ignore[no-untyped-call]
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
