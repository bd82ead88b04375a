"""Rows of a Parquet table with vectors, taken in ascending order while a batch of it is in memory.

Knows nothing of stages, and so not why a row is wanted.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from laion_assets.errors import MisalignedEmbeddings
from laion_assets.formats import parquet
from laion_assets.formats.arrow import vectors_of
from laion_assets.schema import VECTOR_COLUMNS
from laion_assets.vectors import rows_at_a_time

_ROWS_AT_A_TIME: Final = 2048


class Pair(NamedTuple):
    """Vectors of some rows, float16 (rows, width) each."""

    images: npt.NDArray[np.float16]
    texts: npt.NDArray[np.float16]


class VectorRows:
    """The vectors of a table's rows, each asked for by its number and its key.

    Args:
        path: the table.
        schema_of_width: the table's schema for vectors of a width.
        width: elements of a vector.
        asked_by: the file that names the rows, and
        remedy: what to do if it names wrong ones, for the messages.
    """

    def __init__(
        self,
        path: Path,
        schema_of_width: Callable[[int], pa.Schema],
        width: int,
        *,
        asked_by: Path,
        remedy: str,
    ) -> None:
        self._path = path
        self._asked_by, self._remedy = asked_by, remedy
        schema, columns = schema_of_width(width), ["key", *VECTOR_COLUMNS]
        self._batches = parquet.read_batches(
            path, schema, batch_rows=min(_ROWS_AT_A_TIME, rows_at_a_time(width)), columns=columns
        )
        self._batch = pa.RecordBatch.from_pylist([], pa.schema([schema.field(name) for name in columns]))
        self._first = 0  # row of the batch's first row
        self._last_taken = -1

    def take(self, rows: npt.NDArray[np.int64], keys: pa.Array) -> Pair:
        """The vectors of the rows of these numbers, which ascend from call to call, and have these keys.

        Raises:
            MisalignedEmbeddings: if they do not ascend, go beyond the table's end, or have other keys.
            CorruptParquet: if the table is damaged, or holds vectors of another width.
        """
        descents = np.flatnonzero(np.diff(rows, prepend=self._last_taken) < 1)
        if len(descents):
            raise self._misaligned("column row to ascend from 0", f"{rows[descents[0]]} where it does not")
        taken: list[pa.RecordBatch] = []
        at = 0
        while at < len(rows):
            end = self._first + len(self._batch)
            upto = int(np.searchsorted(rows, end))
            taken.append(_take(self._batch, rows[at:upto] - self._first))
            at = upto
            if at < len(rows):
                self._advance(end, int(rows[at]))
        if len(rows):
            self._last_taken = int(rows[-1])
        found = pa.Table.from_batches(taken, self._batch.schema)
        self._check_keys(rows, keys, found["key"])
        return Pair(*(vectors_of(found[name].combine_chunks()) for name in VECTOR_COLUMNS))

    def _advance(self, end: int, wanted: int) -> None:
        batch = next(self._batches, None)
        if batch is None:
            raise self._misaligned(f"rows of {self._path}, which has {end}", f"row {wanted}")
        self._batch, self._first = batch, end

    def _check_keys(self, rows: npt.NDArray[np.int64], keys: pa.Array, found: pa.ChunkedArray) -> None:
        differ = pc.not_equal(keys, found.combine_chunks())
        if pc.any(differ).as_py():
            at = pc.index(differ, True).as_py()
            raise self._misaligned(
                f"key {found[at]} at row {rows[at]}, as the vectors there have", f"key {keys[at]}"
            )

    def _misaligned(self, expected: str, found: str) -> MisalignedEmbeddings:
        return MisalignedEmbeddings(self._asked_by, expected=expected, found=found, remedy=self._remedy)


def _take(batch: pa.RecordBatch, rows: npt.NDArray[np.int64]) -> pa.RecordBatch:
    """Rows of ascending numbers; where none is left out, without a copy."""
    is_whole = len(rows) and rows[-1] - rows[0] + 1 == len(rows)
    return batch.slice(rows[0], len(rows)) if is_whole else batch.take(pa.array(rows))
