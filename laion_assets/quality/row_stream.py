"""Rows of our tables for DuckDB: checked while they are read, a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import duckdb
import pyarrow as pa

from laion_assets.errors import CorruptInput
from laion_assets.formats import parquet

ROW_INDEX: Final = "row_index"
"""Column that every query sees besides the table's own: the row's number in the file, from 0."""

_BATCH_ROWS: Final = 65_536


@dataclass(frozen=True, kw_only=True)
class RowStream:
    """Rows of a table, a batch at a time, so that memory does not grow with the file.

    Attributes:
        schema: columns of every batch.
        batches: the rows.
    """

    schema: pa.Schema
    batches: Iterator[pa.RecordBatch]


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


class NumberedRows:
    """Hands on a stream with its rows numbered, and keeps what went wrong while it was read.

    Attributes:
        rows: how many were handed on.
    """

    def __init__(self, stream: RowStream) -> None:
        self.rows = 0
        self._stream = stream
        self._error: CorruptInput | None = None

    @contextmanager
    def registered(self, database: duckdb.DuckDBPyConnection) -> Iterator[None]:
        """Have the rows be the table ``rows`` of a database, to be read once.

        Raises:
            CorruptInput: what the stream raised, of which DuckDB makes an error of its own.
        """
        schema = self._stream.schema.append(pa.field(ROW_INDEX, pa.int64()))
        database.register("rows", pa.RecordBatchReader.from_batches(schema, self._numbered(schema)))
        try:
            yield
        except duckdb.Error:
            if self._error is not None:
                raise self._error from None
            raise
        finally:
            database.unregister("rows")

    def _numbered(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        try:
            for batch in self._stream.batches:
                numbers = pa.array(range(self.rows, self.rows + batch.num_rows), pa.int64())
                self.rows += batch.num_rows
                columns = [_valid_text(column) for column in batch.columns]
                yield pa.RecordBatch.from_arrays([*columns, numbers], schema=schema)
        except CorruptInput as error:
            self._error = error
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
