"""What a rule is and what it finds. The rules themselves are in the modules beside this one."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final

import duckdb
import pyarrow as pa

from laion_assets.errors import CorruptInput
from laion_assets.formats import parquet
from laion_assets.layout import EmbeddingShardId, Layout, ShardId
from laion_assets.quality.text import printable
from laion_assets.quality.thresholds import Thresholds

MAX_EXAMPLES: Final = 5
"""Most offending keys that a verdict names."""

MAX_EXAMPLE_CHARACTERS: Final = 300
"""Longest example, detail included."""

ROW_INDEX: Final = "row_index"
"""Column that every query sees besides the table's own: the row's number in the file, from 0."""

_BATCH_ROWS: Final = 65_536

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
    return printable(text, MAX_EXAMPLE_CHARACTERS)


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
class RowStream:
    """Rows of a table, a batch at a time, so that memory does not grow with the file.

    Attributes:
        schema: columns of every batch.
        batches: the rows.
    """

    schema: pa.Schema
    batches: Iterator[pa.RecordBatch]


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
        stream = self.read(subject, self.columns)
        counter = _Counter(stream.batches)
        names = set(re.findall(r"\$(\w+)", self.sql))
        parameters = {name: getattr(subject.thresholds, name) for name in names}
        with _database().cursor() as cursor:
            cursor.register("rows", counter.reader(stream.schema))
            try:
                cursor.execute(f"CREATE TEMP TABLE offending AS {self.sql}", parameters)
            except duckdb.Error:
                if counter.error is not None:  # DuckDB makes its own error of what the reader raised
                    raise counter.error from None
                raise
            (offending,) = cursor.execute("SELECT count(*) FROM offending").fetchone() or (0,)
            first = cursor.execute(
                f"SELECT key, detail FROM offending ORDER BY key, detail LIMIT {MAX_EXAMPLES}"  # noqa: S608
            ).fetchall()
        allowed = (
            0.0 if self.allowed_share is None else float(getattr(subject.thresholds, self.allowed_share))
        )
        return Verdict(
            passed=offending <= allowed * counter.rows,
            offending=offending,
            rows=counter.rows,
            examples=tuple(_example(f"{key}: {detail}") for key, detail in first),
            figures={"share": offending / counter.rows if counter.rows else 0.0, "allowed_share": allowed},
        )


def stored_rows(
    path: Path, schema: pa.Schema, columns: Sequence[str], *, and_more: bool = False
) -> RowStream:
    """Rows of a table that this project wrote, its page checksums verified.

    Args:
        path: the file.
        schema: what it was declared as when written.
        columns: which columns to read.
        and_more: whether columns of the source may follow those declared.

    Raises:
        CorruptParquet: while it is read, if the file is damaged or was declared otherwise.
    """
    return RowStream(
        schema=pa.schema([schema.field(name) for name in columns]),
        batches=parquet.read_batches(
            path, schema, batch_rows=_BATCH_ROWS, columns=columns, and_more=and_more
        ),
    )


class _Counter:
    """Hands on batches with their rows numbered, and keeps what went wrong while they were read."""

    def __init__(self, batches: Iterator[pa.RecordBatch]) -> None:
        self.rows = 0
        self.error: CorruptInput | None = None
        self._batches = batches

    def reader(self, schema: pa.Schema) -> pa.RecordBatchReader:
        numbered = schema.append(pa.field(ROW_INDEX, pa.int64()))
        return pa.RecordBatchReader.from_batches(numbered, self._numbered(numbered))

    def _numbered(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        try:
            for batch in self._batches:
                numbers = pa.array(range(self.rows, self.rows + batch.num_rows), pa.int64())
                self.rows += batch.num_rows
                columns = [_valid_text(column) for column in batch.columns]
                yield pa.RecordBatch.from_arrays([*columns, numbers], schema=schema)
        except CorruptInput as error:
            self.error = error
            raise


def _valid_text(column: pa.Array) -> pa.Array:
    """The column with what is no UTF-8 replaced: Parquet files may hold it, and DuckDB refuses it."""
    if not pa.types.is_string(column.type):
        return column
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        values = column.cast(pa.binary()).to_pylist()
        texts = [None if value is None else value.decode("utf-8", "replace") for value in values]
        return pa.array(texts, pa.string())
    return column


@cache
def _database() -> duckdb.DuckDBPyConnection:
    """One empty database in memory; each query gets a cursor, which costs 2 ms where a new one costs 17."""
    return duckdb.connect(
        config={"threads": 2, "memory_limit": _MEMORY_LIMIT, "temp_directory": tempfile.gettempdir()}
    )
