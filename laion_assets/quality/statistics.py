"""Figures of one shard or of the whole data set, from the tables that are published."""

# ruff: noqa: S608 (queries are put together from this project's own words)

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import duckdb

from laion_assets.formats.publish import require
from laion_assets.layout import Layout, ShardId
from laion_assets.outcomes import Outcome, Status
from laion_assets.published import manifests_of
from laion_assets.quality.text import printable
from laion_assets.schema import MISSING_SIMILARITY, NsfwTag

MOST_VALUES: Final = 20
"""Most licences and hosts that are named; what is left is lumped together."""

OTHERS: Final = "(others)"
NONE: Final = "(none)"

SIMILARITY_BINS: Final = 50
"""Bins of equal width between 0 and 1."""

SIZE_LIMITS: Final = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
"""Largest long side, in pixels, of each class of sizes but the last."""

_VALUE_CHARACTERS: Final = 80

# A host, as a browser reads it: after the scheme and the user, before port, path, query and fragment.
_HOST: Final = r"lower(regexp_extract(url, '^[^:/?#]+://(?:[^/?#]*@)?([^/?#:@]+)', 1))"


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Figures of some shards. Counts of rows, unless said otherwise.

    Attributes:
        rows: rows of the images, whatever became of them.
        outcomes: class of outcome -> rows, the most frequent first.
        by_shard: shard -> class of outcome -> rows.
        examples: rows that became examples.
        set_aside: reason -> rows with a picture that did not.
        similarity: examples in each of ``SIMILARITY_BINS`` bins.
        similarity_missing: examples without a similarity.
        nsfw: tag -> examples, in the order of the labels.
        long_sides: examples whose picture, as served, has a long side of at most each of ``SIZE_LIMITS``
            and more than the one before; at the end those beyond.
        licenses: licence -> examples, the most frequent first; fit to be shown.
        hosts: host of the URL -> examples, the most frequent first; fit to be shown.
        picture_bytes: bytes of the stored pictures.
    """

    rows: int
    outcomes: Mapping[str, int]
    by_shard: Mapping[str, Mapping[str, int]]
    examples: int
    set_aside: Mapping[str, int]
    similarity: tuple[int, ...]
    similarity_missing: int
    nsfw: Mapping[str, int]
    long_sides: tuple[int, ...]
    licenses: Mapping[str, int]
    hosts: Mapping[str, int]
    picture_bytes: int

    @property
    def success_share(self) -> float:
        """Share of the rows whose picture was stored."""
        return self.outcomes.get(Outcome.SUCCESS, 0) / self.rows if self.rows else 0.0


def shard_statistics(layout: Layout, shard: ShardId) -> Statistics:
    """Figures of one image shard.

    Raises:
        MissingInput: if it is not normalized yet.
    """
    require(layout.images(shard))
    require(layout.normalized_images(shard))
    return _statistics(layout, [shard], [shard])


def dataset_statistics(layout: Layout) -> Statistics:
    """Figures of every image shard that is there; all zero where none is."""
    fetched = [ShardId.parse(key) for key in manifests_of(layout, "images")]
    normalized = [ShardId.parse(key) for key in manifests_of(layout, "normalized_images")]
    return _statistics(layout, fetched, normalized)


def _statistics(layout: Layout, fetched: Sequence[ShardId], normalized: Sequence[ShardId]) -> Statistics:
    images = [str(layout.images_table(shard)) for shard in fetched]
    outputs = [layout.normalized_images(shard) for shard in normalized]
    tables = [str(output.path(output.names[0])) for output in outputs]
    aside = [str(output.path(output.names[1])) for output in outputs]
    with duckdb.connect(config={"temp_directory": tempfile.gettempdir()}) as database:
        queries = _Queries(database)
        by_shard = queries.outcomes(images)
        labels = queries.counts("nsfw", tables)
        similarity = queries.counts(
            f"CASE WHEN similarity = {MISSING_SIMILARITY} THEN -1 "
            f"ELSE greatest(0, least(floor(similarity * {SIMILARITY_BINS})::INT, {SIMILARITY_BINS - 1})) END",
            tables,
        )
        sizes = queries.counts(
            f"len(list_filter({list(SIZE_LIMITS)}, "
            "lambda side: side < greatest(original_width, original_height)))",
            tables,
        )
        outcomes: dict[str, int] = {}
        for counts in by_shard.values():
            for outcome, count in counts.items():
                outcomes[outcome] = outcomes.get(outcome, 0) + count
        return Statistics(
            rows=sum(outcomes.values()),
            outcomes=_ranked(outcomes),
            by_shard=by_shard,
            examples=sum(labels.values()),
            set_aside=_ranked(queries.counts("reason", aside)),
            similarity=tuple(similarity.get(bin_, 0) for bin_ in range(SIMILARITY_BINS)),
            similarity_missing=similarity.get(-1, 0),
            nsfw={str(tag): labels.get(str(tag), 0) for tag in NsfwTag},
            long_sides=tuple(sizes.get(class_, 0) for class_ in range(len(SIZE_LIMITS) + 1)),
            licenses=queries.most_frequent("license", tables),
            hosts=queries.most_frequent(_HOST, tables),
            picture_bytes=queries.total("tar_bytes", tables),
        )


class _Queries:
    """Questions to lists of Parquet files; no file, no rows."""

    def __init__(self, database: duckdb.DuckDBPyConnection) -> None:
        self._database = database

    def outcomes(self, files: list[str]) -> dict[str, dict[str, int]]:
        """Shard -> class of outcome -> rows; of a shard made elsewhere only success and other are known."""
        found: dict[str, dict[str, int]] = {Path(file).stem: {} for file in files}
        # The row without a file gives the column that tables made elsewhere lack.
        rows = self._rows(
            f"""
            SELECT parse_filename(filename, true), coalesce(outcome, CASE WHEN status = '{Status.SUCCESS}'
                   THEN '{Outcome.SUCCESS}' ELSE '{Outcome.OTHER}' END) AS class, count(*) AS rows
            FROM (SELECT NULL::VARCHAR AS outcome WHERE false UNION ALL BY NAME
                  FROM read_parquet($files, filename = true, union_by_name = true))
            GROUP BY ALL ORDER BY rows DESC, class
            """,
            files,
        )
        for shard, outcome, count in rows:
            found[shard][printable(outcome, _VALUE_CHARACTERS)] = count
        return found

    def counts(self, value: str, files: list[str]) -> dict[Any, int]:
        """Value of an SQL expression -> rows."""
        return dict(self._rows(f"SELECT {value}, count(*) FROM read_parquet($files) GROUP BY ALL", files))

    def most_frequent(self, value: str, files: list[str]) -> dict[str, int]:
        """The most frequent values of an SQL expression for text -> rows, fit to be shown."""
        rows = self._rows(
            f"""
            SELECT {value} AS value, count(*) AS rows, sum(rows) OVER () AS total FROM read_parquet($files)
            GROUP BY ALL ORDER BY rows DESC, value LIMIT {MOST_VALUES}
            """,
            files,
        )
        found: dict[str, int] = {}
        for text, count, _ in rows:
            shown = printable(text, _VALUE_CHARACTERS) or NONE
            found[shown] = found.get(shown, 0) + count
        rest = int(rows[0][2]) - sum(found.values()) if rows else 0
        return found | ({OTHERS: rest} if rest else {})

    def total(self, column: str, files: list[str]) -> int:
        """Sum of a column."""
        rows = self._rows(f"SELECT sum({column}) FROM read_parquet($files)", files)
        return int(rows[0][0] or 0) if rows else 0

    def _rows(self, query: str, files: list[str]) -> list[tuple[Any, ...]]:
        return self._database.execute(query, {"files": files}).fetchall() if files else []


def _ranked(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda entry: (-entry[1], entry[0])))
