"""What a rule is and what it finds. The rules themselves are in the modules beside this one."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final

import duckdb

from laion_assets.errors import CorruptInput
from laion_assets.layout import EmbeddingShardId, Layout, ShardId
from laion_assets.quality.row_stream import NumberedRows, RowStream
from laion_assets.quality.thresholds import Thresholds
from laion_assets.text import unlinked

MAX_EXAMPLES: Final = 5
"""Most offending keys that a verdict names."""

MAX_EXAMPLE_CHARACTERS: Final = 300
"""Longest example, detail included."""

# A part of 13 million rows is looked through for repeated pairs in 0.6 GB; beyond this DuckDB uses the disk.
_MEMORY_LIMIT: Final = "2GB"


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What a rule is asked about: one published partition.

    Attributes:
        layout: where the files are.
        thresholds: what to compare with.
        partition: partition key; the stage's own name where it has no partitions.
    """

    layout: Layout
    thresholds: Thresholds
    partition: str

    @property
    def shard(self) -> ShardId:
        """The partition as an image shard."""
        return ShardId.parse(self.partition)

    @property
    def embedding_shard(self) -> EmbeddingShardId:
        """The partition as an embedding shard."""
        return EmbeddingShardId.parse(self.partition)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a rule found in one partition.

    Attributes:
        passed: whether the rule holds.
        offending: how many rows, keys or files break it; a few may, where a share is allowed.
        rows: how many were looked at.
        examples: up to five of the offending ones with details, fit to be shown as plain text.
        figures: other numbers found.
    """

    passed: bool
    offending: int
    rows: int
    examples: tuple[str, ...] = ()
    figures: Mapping[str, float | int] = field(default_factory=dict)

    @classmethod
    def of_corrupt_file(cls, error: CorruptInput) -> Verdict:
        """The verdict on a file that cannot be read: it fails, with the error as the example."""
        return cls(passed=False, offending=1, rows=0, examples=(_example(str(error)),))


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One thing that must, or should, hold of every partition of a stage.

    Attributes:
        name: name among the rules of its stage, and of its check in Dagster.
        stage: the stage whose files it looks at.
        blocking: whether what breaks it must not go on; else it is a warning.
        description: what holds, in one sentence.
        check: looks at one partition. A :class:`Query`, or a function where a table does not say it all.
        needs: other stages whose files of the same partition it compares with.
    """

    name: str
    stage: str
    blocking: bool
    description: str
    check: Callable[[Subject], Verdict]
    needs: tuple[str, ...] = ()


class Offences:
    """Counts what breaks a rule and keeps the first few as examples."""

    def __init__(self) -> None:
        self.count = 0
        self._examples: list[str] = []

    def add(self, key: object, detail: str = "", *, count: int = 1) -> None:
        """Record an offending key and what is wrong with it."""
        self.count += count
        if len(self._examples) < MAX_EXAMPLES:
            self._examples.append(_example(f"{key}: {detail}" if detail else str(key)))

    @property
    def examples(self) -> tuple[str, ...]:
        """The first few, with details."""
        return tuple(self._examples)

    def verdict(
        self, *, rows: int, allowed_share: float = 0.0, figures: Mapping[str, float | int] | None = None
    ) -> Verdict:
        """The verdict over ``rows``, of which a share may offend."""
        return Verdict(
            passed=self.count <= allowed_share * rows,
            offending=self.count,
            rows=rows,
            examples=self.examples,
            figures=figures or {},
        )


def _example(text: str) -> str:
    return unlinked(text, MAX_EXAMPLE_CHARACTERS)


def spread(total: int, most: int) -> list[int]:
    """At most ``most`` of ``total`` numbers from 0, the same each time, from the first to the last."""
    if total <= most:
        return list(range(total))
    if most == 1:
        return [0]
    return [index * (total - 1) // (most - 1) for index in range(most)]


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        CorruptInput: if it is not there, or holds something else.
    """
    found: object
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError, RecursionError) as error:
        found = error
    if not isinstance(found, dict):
        raise CorruptInput(
            path,
            expected="a JSON object",
            found=repr(found)[:200],
            remedy="Delete its manifest to have it made again, or place it again if it came from elsewhere.",
        )
    return found


# -- rules in SQL ---------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Query:
    """A rule over one table, in DuckDB's SQL.

    Attributes:
        read: opens the table, with the columns asked for.
        columns: the columns that the query needs.
        sql: selects ``key`` and ``detail`` of each offending row from ``rows``, once; ``$name`` is the
            threshold of that name.
        allowed_share: name of the threshold that says which share of the rows may offend; none may if None.
    """

    read: Callable[[Subject, Sequence[str]], RowStream]
    columns: tuple[str, ...]
    sql: str
    allowed_share: str | None = None

    def __call__(self, subject: Subject) -> Verdict:
        """Run the query on one partition."""
        numbered = NumberedRows(self.read(subject, self.columns))
        names = set(re.findall(r"\$(\w+)", self.sql))
        parameters = {name: getattr(subject.thresholds, name) for name in names}
        with _database().cursor() as cursor:
            with numbered.registered(cursor):
                cursor.execute(f"CREATE TEMP TABLE offending AS {self.sql}", parameters)
            (offending,) = cursor.execute("SELECT count(*) FROM offending").fetchone() or (0,)
            first = cursor.execute(
                f"SELECT key, detail FROM offending ORDER BY key, detail LIMIT {MAX_EXAMPLES}"  # noqa: S608
            ).fetchall()
        allowed = (
            0.0 if self.allowed_share is None else float(getattr(subject.thresholds, self.allowed_share))
        )
        return Verdict(
            passed=offending <= allowed * numbered.rows,
            offending=offending,
            rows=numbered.rows,
            examples=tuple(_example(f"{key}: {detail}") for key, detail in first),
            figures={"share": offending / numbered.rows if numbered.rows else 0.0, "allowed_share": allowed},
        )


@cache
def _database() -> duckdb.DuckDBPyConnection:
    """One empty database in memory; each query gets a cursor, which costs 2 ms where a new one costs 17."""
    return duckdb.connect(
        config={"threads": 2, "memory_limit": _MEMORY_LIMIT, "temp_directory": tempfile.gettempdir()}
    )
