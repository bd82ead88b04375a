"""Figures, plots and pictures of the whole data set, as one JSON file and pages that stand alone.

What the runs took, and when, has a page of its own, since it differs where the data do not.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Final

from laion_assets.formats.publish import Draft, Manifest, Recipe, Tally, bring, publish
from laion_assets.layout import Layout, ShardId
from laion_assets.published import Manifests, manifests_of_everything, sample_output, version_of
from laion_assets.quality.runs import Runs, runs_of
from laion_assets.quality.statistics import Statistics, dataset_statistics
from laion_assets.quality.thresholds import Thresholds

CODE_VERSION: Final = "3"

PAGE, FIGURES, PLOTS, RUNS_PAGE, RUNS_PLOTS = sample_output(Layout(Path()), "dataset_report").names

_SHEET_COLUMNS: Final = 6
_SHEET_PICTURES: Final = 24

_STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; color: #191919; max-width: 60rem; margin: 2rem auto;
       padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; } th, td { padding: .2rem .9rem .2rem 0; text-align: left; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
tr + tr { border-top: 1px solid #e3e3e3; }
img { max-width: 100%; height: auto; }
p.note { color: #5a5a5a; }
"""


def write_dataset_report(layout: Layout, *, memory_bytes: int = Thresholds().duckdb_memory_bytes) -> Manifest:
    """Publish ``report.json`` (figures), ``report.html`` (and plots, and a contact sheet) and ``report.png``.

    ``runs.html`` and ``runs.png`` tell what the stages took. The pages ask for nothing from elsewhere and run
    nothing, and all text of the data set in them is escaped.

    Args:
        layout: where the data set is.
        memory_bytes: memory that DuckDB may take; beyond it, it writes to the disk.

    Raises:
        CorruptManifest: if a manifest cannot be read.
        CorruptTar: if a picture of the contact sheet is not the one that its row describes.
    """
    manifests = manifests_of_everything(layout)
    published = version_of(manifests)
    recipe = Recipe(code_version=CODE_VERSION, inputs={"published": published})

    def write(draft: Draft) -> Tally:
        # They draw with matplotlib, which takes a second to import and which no other stage needs.
        from laion_assets.quality.contact_sheet import draw_contact_sheet
        from laion_assets.quality.plots import draw_plots, draw_runs, join_plots

        statistics = dataset_statistics(layout, manifests, memory_bytes=memory_bytes)
        stages, runs = _stages(manifests), runs_of(layout, manifests)
        document = {"published": published, "stages": stages, "statistics": asdict(statistics)}
        draft.path(FIGURES).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        pictures = draw_plots(statistics)
        draft.path(PLOTS).write_bytes(join_plots(pictures))
        shard = _shard_to_show(manifests)
        if shard is not None:
            sheet = draft.scratch("sheet.png")
            draw_contact_sheet(layout, shard, sheet, columns=_SHEET_COLUMNS, limit=_SHEET_PICTURES)
            pictures[f"Pictures of shard {shard}"] = sheet.read_bytes()
        draft.path(PAGE).write_text(_page(statistics, stages, pictures), encoding="utf-8")
        pictures = draw_runs(runs)
        draft.path(RUNS_PLOTS).write_bytes(join_plots(pictures))
        draft.path(RUNS_PAGE).write_text(_runs_page(runs, pictures), encoding="utf-8")
        return Tally(rows=statistics.rows, counts={"examples": statistics.examples})

    return publish(layout.dataset_report(), recipe, write)


def read_plots(layout: Layout) -> dict[str, bytes]:
    """The plots of the report that is there, as PNGs: of the data set, and of the runs."""
    output = layout.dataset_report()
    bring(output, [PLOTS, RUNS_PLOTS])
    return {"data set": output.path(PLOTS).read_bytes(), "runs": output.path(RUNS_PLOTS).read_bytes()}


def _stages(manifests: Manifests) -> dict[str, dict[str, int]]:
    """Stage -> how many partitions are published, and their rows and bytes, logs aside."""
    return {
        stage: {
            "partitions": len(found),
            "rows": sum(manifest.rows for manifest in found.values()),
            "bytes": sum(manifest.data_bytes for manifest in found.values()),
        }
        for stage, found in manifests.items()
    }


def _shard_to_show(manifests: Manifests) -> ShardId | None:
    """The first shard with examples."""
    normalized = manifests["normalized_images"].items()
    return next((ShardId.parse(key) for key, manifest in normalized if manifest.rows), None)


# -- the page -------------------------------------------------------------------------------------


def _page(
    statistics: Statistics, stages: Mapping[str, Mapping[str, int]], pictures: Mapping[str, bytes]
) -> str:
    figures = [
        ("rows", f"{statistics.rows:,}"),
        ("shards", f"{len(statistics.by_shard):,}"),
        ("examples", f"{statistics.examples:,}"),
        ("pictures stored", f"{100 * statistics.success_share:.1f} % of the rows"),
        ("bytes of pictures", f"{statistics.picture_bytes:,}"),
    ]
    body = [
        "<h1>LAION-400M: the data set as it is now</h1>",
        _table((), figures),
        _heading("Outcomes"),
        _table(("outcome", "rows"), _with_commas(statistics.outcomes)),
        _heading("Stages"),
        _table(
            ("stage", "partitions", "rows", "bytes"),
            [(stage, *(f"{figure:,}" for figure in found.values())) for stage, found in stages.items()],
        ),
        *(_heading(title) + _picture(title, image) for title, image in pictures.items()),
        (
            '<p class="note">The NSFW tags are LAION\'s own guesses: its audit of them found a precision of '
            "about 5 % and a recall of about 33 %.</p>"
        ),
    ]
    return _document(body)


def _runs_page(runs: Runs, pictures: Mapping[str, bytes]) -> str:
    rows = []
    for stage, costs in runs.costs.items():
        seconds = [cost.seconds for cost in costs.values()]
        total = sum(cost.rows for cost in costs.values())
        if costs:
            rows.append(
                (
                    stage,
                    f"{len(costs):,}",
                    f"{sum(seconds) / 3600:,.2f}",
                    f"{median(seconds):,.2f}",
                    f"{max(seconds):,.2f}",
                    f"{total / sum(seconds):,.0f}" if sum(seconds) else "",
                    f"{sum(cost.bytes for cost in costs.values()) / len(costs):,.0f}",
                )
            )
    header = (
        "stage",
        "partitions",
        "hours",
        "seconds each (median)",
        "(most)",
        "rows a second",
        "bytes each",
    )
    body = [
        "<h1>LAION-400M: what making it took</h1>",
        (
            '<p class="note">Wall-clock times, and bytes with the logs, of the runs that made what was there '
            "when this page was written.</p>"
        ),
        _table(header, rows),
        *(_heading(title) + _picture(title, image) for title, image in pictures.items()),
    ]
    return _document(body)


def _document(body: Iterable[str]) -> str:
    return (
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>LAION-400M</title>\n'
        f"<style>{_STYLE}</style></head>\n<body>\n{chr(10).join(body)}\n</body>\n</html>\n"
    )


def _with_commas(counts: Mapping[str, int]) -> list[tuple[str, str]]:
    return [(name, f"{count:,}") for name, count in counts.items()]


def _heading(text: str) -> str:
    return f"<h2>{html.escape(text)}</h2>\n"


def _picture(title: str, image: bytes) -> str:
    data = base64.b64encode(image).decode("ascii")
    return f'<img alt="{html.escape(title)}" src="data:image/png;base64,{data}">'


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column is text, and the others numbers."""
    lines = [_row("th", header)] if header else []
    lines += [_row("td", row) for row in rows]
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def _row(tag: str, cells: Sequence[str]) -> str:
    # <bdi> keeps text that is read from right to left from reordering what stands beside it.
    first, *others = (f"<bdi>{html.escape(cell)}</bdi>" for cell in cells)
    numbers = "".join(f'<{tag} class="number">{cell}</{tag}>' for cell in others)
    return f"<tr><{tag}>{first}</{tag}>{numbers}</tr>"
