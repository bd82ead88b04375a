"""Rules of the counts of what is repeated within and across parts."""

from __future__ import annotations

from typing import Any, Final

from laion_assets.formats import parquet
from laion_assets.formats.publish import require
from laion_assets.published import manifests_of
from laion_assets.quality.rules.rule import Offences, Rule, Subject, Verdict
from laion_assets.schema import DUPLICATES

_REPEATED: Final = ("url_repeated", "pair_repeated")
_COUNTS: Final = tuple(name for name in DUPLICATES.names if name != "part")


def _read(subject: Subject) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The row of each part, and that of all."""
    rows = parquet.read_table(subject.layout.duplicates().only, DUPLICATES).to_pylist()
    total = rows.pop() if rows else dict.fromkeys(DUPLICATES.names, 0)
    return rows, total


def _rows_add_up(subject: Subject) -> Verdict:
    parts, total = _read(subject)
    offences = Offences()
    if total["part"] is not None:
        offences.add("all parts", "the last row is of one part")
    for row in (*parts, total):
        name = row["part"] or "all parts"
        for column in _COUNTS:
            if not 0 <= row[column] <= row["rows"]:
                offences.add(name, f"{column} is {row[column]} of {row['rows']} rows")
        if row["pair_repeated"] > row["url_repeated"]:
            offences.add(name, "more pairs are repeated than URLs")
    for column in _COUNTS:
        summed = sum(row[column] for row in parts)
        # What is repeated across parts is so in none of them.
        if total[column] < summed or (total[column] > summed and column not in _REPEATED):
            offences.add(column, f"{total[column]} in all parts, {summed} in each together")
    return offences.verdict(rows=total["rows"], figures={"parts": len(parts)})


def _parts_are_current(subject: Subject) -> Verdict:
    counted = require(subject.layout.duplicates()).recipe.inputs
    manifests = manifests_of(subject.layout, "raw_metadata")
    found = {f"{manifest.stage} {key}": manifest.data_version for key, manifest in manifests.items()}
    offences = Offences()
    for name in sorted(found.keys() | counted.keys()):
        if found.get(name) != counted.get(name):
            offences.add(name, "published, withdrawn or made again since: materialize duplicates again")
    return offences.verdict(rows=len(found))


def _few_pairs_are_repeated(subject: Subject) -> Verdict:
    parts, total = _read(subject)
    offences = Offences()
    for row in parts:
        if row["pair_repeated"]:
            offences.add(row["part"], f"{row['pair_repeated']} of {row['rows']}", count=row["pair_repeated"])
    if across := total["pair_repeated"] - offences.count:
        offences.add("across parts", f"{across} of {total['rows']}", count=across)
    return offences.verdict(
        rows=total["rows"],
        allowed_share=subject.thresholds.duplicate_share,
        figures={name: total[name] for name in _REPEATED},
    )


DUPLICATE_RULES: Final = (
    Rule(
        name="counts_add_up",
        stage="duplicates",
        blocking=True,
        description="Counts are of rows there are, and those of all parts are the parts' and what is across.",
        check=_rows_add_up,
    ),
    Rule(
        name="parts_are_current",
        stage="duplicates",
        blocking=False,
        description="Every published part was counted, as it is now.",
        check=_parts_are_current,
    ),
    Rule(
        name="few_pairs_are_repeated",
        stage="duplicates",
        blocking=False,
        description="Few pairs of URL and text are there more than once in all parts together.",
        check=_few_pairs_are_repeated,
    ),
)
