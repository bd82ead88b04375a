"""Figures of one shard or of the whole data set, from the manifests and tables that are published.

There are 41,455 shards of 10,000 rows: tables are read some at a time, and what is counted by value lies in
DuckDB, in as much memory as it is given and on disk beyond that.
"""

# ruff: noqa: S608 (queries are put together from this project's own words)

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from laion_assets.fetch.urls import registered_domain
from laion_assets.formats import parquet
from laion_assets.formats.publish import Manifest, bring, bring_all, require
from laion_assets.layout import Layout, ShardId
from laion_assets.outcomes import OUTCOME_PREFIX, Outcome, Status
from laion_assets.published import Manifests, manifests_of_everything
from laion_assets.quality.thresholds import Thresholds
from laion_assets.schema import (
    MISSING_SIMILARITY,
    NORMALIZED_IMAGES,
    SET_ASIDE_PREFIX,
    SIMILARITY_BINS,
    NsfwTag,
)
from laion_assets.text import printable

MOST_VALUES: Final = 20
"""Most licences and domains that are named; what is left is lumped together."""

OTHERS: Final = "(others)"
NONE: Final = "(none)"

SIZE_LIMITS: Final = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
"""Largest long side, in pixels, of each class of sizes but the last."""

_VALUE_CHARACTERS: Final = 80
# DuckDB keeps the footer of every table of a query.
_TABLES_AT_A_TIME: Final = 256

# A host, as a browser reads it: after the scheme and the user, before port, path, query and fragment.
_HOST: Final = r"lower(regexp_extract(url, '^[^:/?#]+://(?:[^/?#]*@)?(\[[^/?#@\]]*\]|[^/?#:@\[]+)', 1))"


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
        domains: registered domain of the URL -> rows asked for, and those whose picture was stored; the most
            frequent first; fit to be shown; none of a single shard.
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
    domains: Mapping[str, tuple[int, int]]
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
    images = require(layout.images(shard))
    normalized = bring(layout.normalized_images(shard), [layout.normalized_table(shard).name])
    columns = ("nsfw", "similarity", "original_height", "original_width", "license", "tar_bytes")
    rows = parquet.read_table(layout.normalized_table(shard), NORMALIZED_IMAGES, columns=columns)
    # Not by DuckDB, which takes 80 ms of CPU time to begin.
    similarity = rows["similarity"].to_numpy()
    bins = np.floor(similarity * SIMILARITY_BINS).clip(0, SIMILARITY_BINS - 1)
    bins[similarity == MISSING_SIMILARITY] = -1
    sides = np.maximum(rows["original_height"].to_numpy(), rows["original_width"].to_numpy())
    licenses = _ranked(_counted(rows["license"]))
    named = dict(islice(licenses.items(), MOST_VALUES))
    examples = _Examples(
        labels=_counted(rows["nsfw"]),
        similarity=_counted(pa.array(bins.astype(np.int64))),
        sizes=_counted(pa.array(np.searchsorted(SIZE_LIMITS, sides))),
        licenses=_shown(named, total=rows.num_rows),
        picture_bytes=pc.sum(rows["tar_bytes"], min_count=0).as_py(),
    )
    return _statistics({str(shard): images}, [normalized], examples, domains={})


def _counted(values: pa.Array | pa.ChunkedArray) -> dict[Any, int]:
    return {entry["values"]: entry["counts"] for entry in pc.value_counts(values).to_pylist()}


def dataset_statistics(
    layout: Layout,
    manifests: Manifests | None = None,
    *,
    memory_bytes: int = Thresholds().duckdb_memory_bytes,
) -> Statistics:
    """Figures of every image shard that is there; all zero where none is.

    Args:
        layout: where the shards are.
        manifests: of everything, where they were read already.
        memory_bytes: memory that DuckDB may take; beyond it, it writes to the disk.
    """
    manifests = manifests or manifests_of_everything(layout)
    images, normalized = manifests["images"], manifests["normalized_images"]
    bring_all((layout.images(ShardId.parse(key)) for key in images), file=1)
    bring_all((layout.normalized_images(ShardId.parse(key)) for key in normalized), file=0)
    with _counting(memory_bytes) as counts:
        counts.add_rows([str(layout.images_table(ShardId.parse(key))) for key in images])
        counts.add_examples([str(layout.normalized_table(ShardId.parse(key))) for key in normalized])
        return _statistics(images, normalized.values(), counts.examples(), domains=counts.domains())


@dataclass(frozen=True, kw_only=True)
class _Examples:
    """Examples by value: of bin -1 where there is no similarity, of as many limits of size as are below."""

    labels: Mapping[str, int]
    similarity: Mapping[int, int]
    sizes: Mapping[int, int]
    licenses: Mapping[str, int]
    picture_bytes: int


def _statistics(
    images: Mapping[str, Manifest],
    normalized: Collection[Manifest],
    examples: _Examples,
    *,
    domains: Mapping[str, tuple[int, int]],
) -> Statistics:
    by_shard = {shard: _outcomes_of(manifest) for shard, manifest in images.items()}
    outcomes: Counter[str] = Counter()
    for found in by_shard.values():
        outcomes.update(found)
    aside: Counter[str] = Counter()
    for manifest in normalized:
        for name, count in manifest.counts.items():
            if name.startswith(SET_ASIDE_PREFIX):
                aside[name.removeprefix(SET_ASIDE_PREFIX)] += count
    return Statistics(
        rows=outcomes.total(),
        outcomes=_ranked(outcomes),
        by_shard=by_shard,
        examples=sum(examples.labels.values()),
        set_aside=_ranked(aside),
        similarity=tuple(examples.similarity.get(bin_, 0) for bin_ in range(SIMILARITY_BINS)),
        similarity_missing=examples.similarity.get(-1, 0),
        nsfw={str(tag): examples.labels.get(str(tag), 0) for tag in NsfwTag},
        long_sides=tuple(examples.sizes.get(class_, 0) for class_ in range(len(SIZE_LIMITS) + 1)),
        licenses=examples.licenses,
        domains=domains,
        picture_bytes=examples.picture_bytes,
    )


def _outcomes_of(manifest: Manifest) -> dict[str, int]:
    """Class of outcome -> rows; of a shard made elsewhere only success and other are known."""
    found = {
        printable(name.removeprefix(OUTCOME_PREFIX), _VALUE_CHARACTERS): count
        for name, count in manifest.counts.items()
        if name.startswith(OUTCOME_PREFIX) and count
    }
    if not found:
        successes = manifest.counts.get(Status.SUCCESS, 0)
        found = {Outcome.SUCCESS: successes, Outcome.OTHER: manifest.rows - successes}
    return _ranked(found)


@contextmanager
def _counting(memory_bytes: int) -> Iterator[_Counts]:
    config: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": f"{memory_bytes}B",
        "temp_directory": tempfile.gettempdir(),
        "preserve_insertion_order": False,
    }
    with duckdb.connect(config=config) as database:
        yield _Counts(database)


class _Counts:
    """Rows and examples counted by what they have in common, in DuckDB's tables."""

    def __init__(self, database: duckdb.DuckDBPyConnection) -> None:
        self._database = database
        database.execute("""
            CREATE TEMP TABLE examples (nsfw VARCHAR, bin INT, size INT, rows BIGINT, bytes HUGEINT);
            CREATE TEMP TABLE licenses (license VARCHAR, rows BIGINT);
            CREATE TEMP TABLE hosts (host VARCHAR, rows BIGINT, successes BIGINT);
        """)

    def add_examples(self, tables: Sequence[str]) -> None:
        """Count the rows of normalized tables."""
        self._insert(
            tables,
            f"""
            INSERT INTO examples SELECT nsfw,
                CASE WHEN similarity = {MISSING_SIMILARITY} THEN -1 ELSE greatest(0,
                    least(floor(similarity * {SIMILARITY_BINS})::INT, {SIMILARITY_BINS - 1})) END AS bin,
                len(list_filter({list(SIZE_LIMITS)},
                    lambda side: side < greatest(original_width, original_height))) AS size,
                count(*), sum(tar_bytes)
            FROM read_parquet($files) GROUP BY ALL
            """,
            "INSERT INTO licenses SELECT license, count(*) FROM read_parquet($files) GROUP BY ALL",
        )

    def add_rows(self, tables: Sequence[str]) -> None:
        """Count the rows of images' tables that were asked for, by host."""
        # The row without a file gives the column that tables made elsewhere lack.
        self._insert(
            tables,
            f"""
            INSERT INTO hosts SELECT {_HOST} AS host, count(*), count_if(status = '{Status.SUCCESS}')
            FROM (SELECT NULL::VARCHAR AS outcome WHERE false UNION ALL BY NAME
                  SELECT * FROM read_parquet($files, union_by_name = true))
            WHERE coalesce(outcome, '') <> '{Outcome.SET_ASIDE}' GROUP BY ALL
            """,
        )

    def _insert(self, tables: Sequence[str], *statements: str) -> None:
        for first in range(0, len(tables), _TABLES_AT_A_TIME):
            for statement in statements:
                self._database.execute(statement, {"files": tables[first : first + _TABLES_AT_A_TIME]})

    def examples(self) -> _Examples:
        """What was counted of examples."""
        ((total, picture_bytes),) = self._rows("SELECT coalesce(sum(rows), 0), sum(bytes) FROM examples")
        frequent = self._rows(f"""
            SELECT license, sum(rows)::BIGINT AS rows FROM licenses
            GROUP BY ALL ORDER BY rows DESC, license LIMIT {MOST_VALUES}
        """)
        labels, similarity, sizes = (
            dict(self._rows(f"SELECT {name}, sum(rows)::BIGINT FROM examples GROUP BY ALL"))
            for name in ("nsfw", "bin", "size")
        )
        return _Examples(
            labels=labels,
            similarity=similarity,
            sizes=sizes,
            licenses=_shown(dict(frequent), total=int(total)),
            picture_bytes=int(picture_bytes or 0),
        )

    def domains(self) -> dict[str, tuple[int, int]]:
        """The domains asked most -> rows asked for and successes, fit to be shown; then what is left."""
        # There are millions of hosts, too many for Python to hold.
        self._database.create_function("domain_of", registered_domain, ["VARCHAR"], "VARCHAR")
        rows = self._rows(f"""
            WITH by_host AS (SELECT host, sum(rows) AS rows, sum(successes) AS successes FROM hosts
                    GROUP BY ALL),
                by_domain AS (SELECT domain_of(host) AS domain, sum(rows)::BIGINT AS rows,
                    sum(successes)::BIGINT AS successes FROM by_host GROUP BY ALL)
            SELECT *, (sum(rows) OVER ())::BIGINT, (sum(successes) OVER ())::BIGINT FROM by_domain
            ORDER BY rows DESC, domain LIMIT {MOST_VALUES}
        """)
        found: dict[str, tuple[int, int]] = {}
        asked = succeeded = 0
        for text, count, successes, asked_in_all, succeeded_in_all in rows:
            shown = printable(text or "", _VALUE_CHARACTERS) or NONE
            before = found.get(shown, (0, 0))
            found[shown] = (before[0] + count, before[1] + successes)
            asked, succeeded = asked_in_all, succeeded_in_all
        rest = (asked - sum(n for n, _ in found.values()), succeeded - sum(n for _, n in found.values()))
        return found | ({OTHERS: rest} if rest[0] else {})

    def _rows(self, query: str) -> list[tuple[Any, ...]]:
        return self._database.execute(query).fetchall()


def _shown(counts: Mapping[str, int], *, total: int) -> dict[str, int]:
    """Foreign values, the most frequent first, fit to be shown; at the end how many are left of a total."""
    found: dict[str, int] = {}
    for text, count in counts.items():
        name = printable(text, _VALUE_CHARACTERS) or NONE
        found[name] = found.get(name, 0) + count
    rest = total - sum(found.values())
    return found | ({OTHERS: rest} if rest else {})


def _ranked(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda entry: (-entry[1], entry[0])))
