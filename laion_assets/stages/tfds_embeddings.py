"""One shard of ``laion400m/embeddings``: the joined vectors with their normalized metadata."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from laion_assets.errors import MisalignedEmbeddings
from laion_assets.formats import parquet, records, tfds
from laion_assets.formats.arrow import vectors_of
from laion_assets.formats.publish import Draft, Manifest, Recipe, Tally, publish, require
from laion_assets.formats.tfrecord import Payloads
from laion_assets.layout import EmbeddingShardId, Layout
from laion_assets.schema import EMBEDDING_WIDTH, NORMALIZED_EMBEDDINGS, VECTOR_COLUMNS, embedding_join

CODE_VERSION: Final = "1"

_ROWS_AT_A_TIME: Final = 2048

_REMEDY: Final = "Materialize normalized_embeddings again."


def write_tfds_embeddings(shard: EmbeddingShardId, layout: Layout, width: int = EMBEDDING_WIDTH) -> Manifest:
    """Publish one example for each row of the shard's normalized table, in its order.

    Counts: ``examples``, and ``payload_bytes`` as TFDS counts bytes, without the records' framing.

    Args:
        shard: the embedding shard.
        layout: where its files are.
        width: elements of a vector.

    Raises:
        MissingInput: if the shard's normalized table or its vectors are not there yet.
        MisalignedEmbeddings: if a row's key is not the key of the vectors it points at.
        CorruptParquet: if a table is damaged, or holds vectors of another width.
    """
    recipe = Recipe(
        code_version=CODE_VERSION,
        settings=tfds.settings_of("embeddings", width),
        inputs={
            "normalized_embeddings": require(layout.normalized_embeddings(shard)).data_version,
            "embedding_join": require(layout.embedding_join(shard)).data_version,
        },
    )

    def write(draft: Draft) -> Tally:
        written = records.write_records(draft.only, _examples(shard, layout, width), layout.file_format)
        counts = {"examples": written.records, "payload_bytes": written.payload_bytes}
        return Tally(rows=written.records, counts=counts)

    reads = [layout.normalized_embeddings(shard), layout.embedding_join(shard)]
    return publish(layout.tfds_embeddings(shard), recipe, write, reads=reads)


def _examples(shard: EmbeddingShardId, layout: Layout, width: int) -> Iterator[Payloads]:
    normalized = layout.normalized_embeddings_table(shard)
    joined = _JoinedRows(layout.embedding_join(shard).only, width)
    for rows in parquet.read_batches(normalized, NORMALIZED_EMBEDDINGS, batch_rows=_ROWS_AT_A_TIME):
        found = joined.take(rows["row"].to_numpy(), normalized)
        _check_pairing(rows, found, normalized)
        image, text = (vectors_of(found[name].combine_chunks()) for name in VECTOR_COLUMNS)
        yield tfds.encode_embedding_examples(rows, image, text, normalized)


class _JoinedRows:
    """Rows of a joined table, asked for in ascending order, a batch of it in memory at a time."""

    def __init__(self, path: Path, width: int) -> None:
        self._path = path
        schema, columns = embedding_join(width), ["key", *VECTOR_COLUMNS]
        self._batches = parquet.read_batches(path, schema, batch_rows=_ROWS_AT_A_TIME, columns=columns)
        self._batch = pa.RecordBatch.from_pylist([], pa.schema([schema.field(name) for name in columns]))
        self._first = 0  # row of the batch's first row
        self._last_taken = -1

    def take(self, rows: npt.NDArray[np.int64], asked_by: Path) -> pa.Table:
        """The rows of these numbers, which ascend from call to call.

        Raises:
            MisalignedEmbeddings: if they do not ascend, or go beyond the table's end.
        """
        descents = np.flatnonzero(np.diff(rows, prepend=self._last_taken) < 1)
        if len(descents):
            raise MisalignedEmbeddings(
                asked_by,
                expected="column row to ascend from 0",
                found=f"{rows[descents[0]]} where it does not",
                remedy=_REMEDY,
            )
        taken: list[pa.RecordBatch] = []
        at = 0
        while at < len(rows):
            end = self._first + len(self._batch)
            upto = int(np.searchsorted(rows, end))
            taken.append(_take(self._batch, rows[at:upto] - self._first))
            at = upto
            if at < len(rows):
                self._advance(end, int(rows[at]), asked_by)
        if len(rows):
            self._last_taken = int(rows[-1])
        return pa.Table.from_batches(taken, self._batch.schema)

    def _advance(self, end: int, wanted: int, asked_by: Path) -> None:
        batch = next(self._batches, None)
        if batch is None:
            raise MisalignedEmbeddings(
                asked_by,
                expected=f"rows of {self._path}, which has {end}",
                found=f"row {wanted}",
                remedy=_REMEDY,
            )
        self._batch, self._first = batch, end


def _take(batch: pa.RecordBatch, rows: npt.NDArray[np.int64]) -> pa.RecordBatch:
    """Rows of ascending numbers; where none is left out, without a copy."""
    is_whole = len(rows) and rows[-1] - rows[0] + 1 == len(rows)
    return batch.slice(rows[0], len(rows)) if is_whole else batch.take(pa.array(rows))


def _check_pairing(rows: pa.RecordBatch, found: pa.Table, path: Path) -> None:
    differ = pc.not_equal(rows["key"], found["key"].combine_chunks())
    if pc.any(differ).as_py():
        at = pc.index(differ, True).as_py()
        raise MisalignedEmbeddings(
            path,
            expected=f"key {found['key'][at]} at row {rows['row'][at]}, as the vectors there have",
            found=f"key {rows['key'][at]}",
            remedy=_REMEDY,
        )
