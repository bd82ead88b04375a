"""Repeated addresses and captions within and across whole parts, and values that cannot be meant, counted.

A part is 13 million rows, and there are 32: DuckDB groups them in as much memory as it is given, and on
the data root's disk beyond that.
"""

# ruff: noqa: S608 (statements are put together from this project's own words)

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import duckdb
import pyarrow as pa

from laion_assets.errors import MissingInput, SettingsError
from laion_assets.formats import parquet
from laion_assets.formats.publish import Draft, Manifest, Recipe, Tally, publish, require
from laion_assets.formats.sealed import fingerprint
from laion_assets.layout import Layout
from laion_assets.normalization import SIMILARITY_TOLERANCE
from laion_assets.published import partitions_of
from laion_assets.quality.row_stream import NumberedRows, stored_rows
from laion_assets.quality.rules.metadata import SIMILARITY_IMPOSSIBLE, SIMILARITY_MISSING
from laion_assets.quality.thresholds import Thresholds
from laion_assets.schema import DUPLICATES, RAW

CODE_VERSION: Final = "1"

# MD5 (128 bits) stands for texts: 16 bytes instead of 100, and no two of 413 million share one by chance. A
# pair says where its URL ends, and one without a text is another than that of ''.
_URL: Final = "md5_number(URL)"
_PAIR: Final = "md5_number(strlen(URL) || ':' || URL || coalesce(':' || TEXT, ''))"

# Column of DUPLICATES -> of which rows it is the number.
_FLAGS: Final = {
    "url_null": "URL IS NULL",
    "text_null": "TEXT IS NULL",
    "similarity_missing": SIMILARITY_MISSING,
    "similarity_outside": f"NOT {SIMILARITY_MISSING} AND (similarity < $similarity_low "
    f"OR similarity > 1 + {SIMILARITY_TOLERANCE})",
    "similarity_impossible": SIMILARITY_IMPOSSIBLE,
}
# Column of DUPLICATES -> the value that its rows have in common with one before them.
_REPEATED: Final = {"url_repeated": "url", "pair_repeated": "pair"}


def search_duplicates(layout: Layout, thresholds: Thresholds) -> Manifest:
    """Publish counts of every published part, and of all of them together, as one table.

    A row of the table for each part, by name, and last one whose ``part`` is null: of all parts, as if they
    were one. A row of a part is repeated if one before it has its URL, or its URL and text; a row without a
    URL is not. Counts: ``parts``, the columns of that last row, and of it how many ``..._across_parts`` are
    repeated only if all parts are looked at.

    Args:
        layout: where the parts are.
        thresholds: ``similarity_low``, and how much memory DuckDB may take (``duckdb_memory_bytes``); beyond
            it, it writes some 220 bytes a row to the disk, which are gone once the search ends.

    Raises:
        MissingInput: if no part is published.
        SettingsError: if the memory, or the disk that DuckDB may use, does not do.
        CorruptInput: if a part is not the one its manifest vouches for.
    """
    parts = partitions_of(layout, "raw_metadata")
    if not parts:
        raise MissingInput("no part is there yet: materialize raw_metadata first")
    sources = {part: layout.raw_metadata(part) for part in parts}
    recipe = Recipe(
        code_version=CODE_VERSION,
        settings=fingerprint(thresholds.similarity_low),
        inputs={str(source): require(source).data_version for source in sources.values()},
    )

    def write(draft: Draft) -> Tally:
        spill = draft.scratch("spill")
        spill.mkdir()
        found = _search([layout.raw_table(part) for part in parts], thresholds, spill)
        rows = [{"part": part, **counts} for part, counts in zip((*parts, None), found, strict=True)]
        parquet.write_table(draft.only, pa.Table.from_pylist(rows, DUPLICATES), DUPLICATES)
        *by_part, total = found
        across = {
            f"{name}_across_parts": total[name] - sum(counts[name] for counts in by_part)
            for name in _REPEATED
        }
        return Tally(rows=total["rows"], counts={"parts": len(parts), **total, **across})

    return publish(layout.duplicates(), recipe, write, reads=list(sources.values()))


def _search(tables: Sequence[Path], thresholds: Thresholds, spill: Path) -> list[Counter[str]]:
    """Counts of each table, and last those of all."""
    memory = thresholds.duckdb_memory_bytes
    config: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": f"{memory}B",
        "temp_directory": str(spill),
        # Batches need not wait in memory for those before them.
        "preserve_insertion_order": False,
    }
    try:
        with duckdb.connect(config=config) as database:
            _keep(database, tables, thresholds.similarity_low)
            found = _tally(database, len(tables))
            for name, value in _REPEATED.items():
                for table, repeated in _repeated(database, value).items():
                    found[table][name] = repeated
            return found
    except duckdb.OutOfMemoryException as error:
        raise SettingsError(
            f"setting 'quality.duckdb_memory_bytes': {memory:,} bytes and the room on the disk of {spill} "
            f"are too little for {len(tables)} parts ({str(error).splitlines()[0][:200]})"
        ) from error


def _keep(database: duckdb.DuckDBPyConnection, tables: Sequence[Path], similarity_low: float) -> None:
    """Make a table of the rows of all parts, in as few bytes as what is asked of them needs."""
    flags = "".join(f", {name} BOOLEAN" for name in _FLAGS)
    database.execute(f"CREATE TEMP TABLE kept (part INTEGER, url UHUGEINT, pair UHUGEINT{flags})")
    insert = f"INSERT INTO kept SELECT $part, {_URL}, {_PAIR}, {', '.join(_FLAGS.values())} FROM rows"
    for number, path in enumerate(tables):
        rows = NumberedRows(stored_rows(path, RAW, ("URL", "TEXT", "similarity"), and_more=True))
        with rows.registered(database):
            database.execute(insert, {"part": number, "similarity_low": similarity_low})


def _tally(database: duckdb.DuckDBPyConnection, tables: int) -> list[Counter[str]]:
    counted = ", ".join(f"count_if({name}) AS {name}" for name in _FLAGS)
    asked = database.execute(f"SELECT part, count(*) AS rows, {counted} FROM kept GROUP BY part")
    found = [Counter({name: 0 for name in DUPLICATES.names if name != "part"}) for _ in range(tables + 1)]
    for part, *counts in asked.fetchall():
        for name, count in zip(("rows", *_FLAGS), counts, strict=True):
            found[part][name] += count
            found[tables][name] += count
    return found


def _repeated(database: duckdb.DuckDBPyConnection, value: str) -> dict[int, int]:
    """Table, or -1 for all of them -> rows whose value is one that was there before."""
    found: dict[int, int] = {}
    for part, groups in (("part", f"part, {value}"), ("-1", value)):
        asked = f"""
            SELECT {part}, coalesce(sum(times - 1), 0) FROM (
                SELECT {groups}, count(*) AS times FROM kept WHERE {value} IS NOT NULL GROUP BY {groups})
            GROUP BY ALL
        """
        found |= {number: int(repeated) for number, repeated in database.execute(asked).fetchall()}
    return found
