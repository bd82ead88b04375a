"""Rows of a Parquet table with vectors, read from their places in the file.

Knows nothing of stages, and so not why a row is wanted.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from laion_assets.errors import CorruptParquet, MisalignedEmbeddings
from laion_assets.formats import parquet
from laion_assets.formats.parquet_values import value_offsets
from laion_assets.schema import VECTOR_COLUMNS

# What was expected and what was found -> the error to raise.
_Refuse = Callable[[str, str], MisalignedEmbeddings]


class Pair(NamedTuple):
    """Vectors of some rows, float16 (rows, width) each."""

    images: npt.NDArray[np.float16]
    texts: npt.NDArray[np.float16]


class VectorRows:
    """The vectors of a table's rows, each asked for by its number and its key: :func:`open_vector_rows`."""

    def __init__(self, path: Path, width: int, keys: pa.Array, descriptor: int, refuse: _Refuse) -> None:
        self._path = path
        self._width = width
        self._keys = keys
        self._descriptor = descriptor
        self._refuse = refuse
        self._last_taken = -1
        self._offsets = [value_offsets(path, column) for column in VECTOR_COLUMNS]

    def take(self, rows: npt.NDArray[np.int64], keys: pa.Array) -> Pair:
        """The vectors of the rows of these numbers, which have these keys.

        Args:
            rows: ascending, from call to call too; shape (rows,).
            keys: strings.

        Raises:
            MisalignedEmbeddings: if they do not ascend, go beyond the table's end, or have other keys.
            CorruptParquet: if the table became shorter since it was opened.
        """
        descents = np.flatnonzero(np.diff(rows, prepend=self._last_taken) < 1)
        if len(descents):
            raise self._refuse("column row to ascend from 0", f"{rows[descents[0]]} where it does not")
        if len(rows) and rows[-1] >= len(self._keys):
            beyond = rows[np.searchsorted(rows, len(self._keys))]
            raise self._refuse(f"rows of {self._path}, which has {len(self._keys)}", f"row {beyond}")
        found = self._keys.take(pa.array(rows))
        differ = pc.not_equal(keys, found)
        if pc.any(differ).as_py():
            at = pc.index(differ, True).as_py()
            raise self._refuse(
                f"key {found[at]} at row {rows[at]}, as the vectors there have", f"key {keys[at]}"
            )
        if len(rows):
            self._last_taken = int(rows[-1])
        return Pair(*(self._read(offsets[rows]) for offsets in self._offsets))

    def _read(self, offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.float16]:
        vectors = np.empty((len(offsets), self._width), "<f2")
        size = vectors.itemsize * self._width
        # Values that lie side by side are read at once: all those of a page, if no row is left out.
        begin = 0
        for end in [*(np.flatnonzero(np.diff(offsets) != size) + 1).tolist(), len(offsets)]:
            piece, at = vectors[begin:end], offsets[begin:end]
            if len(piece) and os.preadv(self._descriptor, [piece.data], int(at[0])) != piece.nbytes:
                raise CorruptParquet(
                    self._path,
                    expected=f"{piece.nbytes} bytes at byte {at[0]}",
                    found="fewer",
                    remedy="Delete its manifest to have it made again.",
                )
            begin = end
        return vectors


@contextmanager
def open_vector_rows(
    path: Path, schema_of_width: Callable[[int], pa.Schema], width: int, *, asked_by: Path, remedy: str
) -> Iterator[VectorRows]:
    """Open a table of ours for taking vectors; a checksum has to vouch for it.

    Args:
        path: the table.
        schema_of_width: the table's schema for vectors of a width.
        width: elements of a vector.
        asked_by: the file that names the rows, and
        remedy: what to do if it names wrong ones, for the messages.

    Raises:
        CorruptParquet: if the table is damaged, or holds vectors of another width.
    """

    def refuse(expected: str, found: str) -> MisalignedEmbeddings:
        return MisalignedEmbeddings(asked_by, expected=expected, found=found, remedy=remedy)

    keys = parquet.read_table(path, schema_of_width(width), columns=["key"])["key"].combine_chunks()
    with path.open("rb", buffering=0) as file:
        yield VectorRows(path, width, keys, file.fileno(), refuse)
