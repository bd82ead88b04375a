"""The rows of a shard of each config with what belongs to them: what its examples are made of.

A batch at a time, so that memory does not grow with the shard. Whoever reads has the files verified.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from laion_assets.errors import MisalignedEmbeddings
from laion_assets.formats import parquet
from laion_assets.formats.vector_rows import Pair, open_vector_rows
from laion_assets.layout import EmbeddingShardId, Layout, ShardId
from laion_assets.schema import (
    NORMALIZED_EMBEDDINGS,
    NORMALIZED_IMAGES,
    embedding_join,
    image_embeddings,
)
from laion_assets.shard_pictures import AT_A_TIME, Pictures

# Pictures that are in memory together, besides one.
_PICTURE_BYTES: Final = 64 << 20

_REMEDY: Final = "Materialize {} again."


def read_image_rows(
    shard: ShardId, layout: Layout, *, batch_rows: int = AT_A_TIME
) -> Iterator[tuple[pa.RecordBatch, Pictures]]:
    """Rows of a shard's normalized table, in its order, and the picture of each.

    The tar is open until the next rows are asked for.

    Args:
        shard: the shard.
        layout: where its files are.
        batch_rows: most rows of a batch.

    Raises:
        CorruptTar: if a picture's place is not in the tar.
        CorruptParquet: if the normalized table is damaged.
    """
    table, tar = layout.normalized_table(shard), layout.images_tar(shard)
    with tar.open("rb") as file:
        for batch in parquet.read_batches(table, NORMALIZED_IMAGES, batch_rows=batch_rows):
            for rows in _of_few_bytes(batch):
                yield rows, Pictures(rows, file, tar)


def read_embedding_rows(
    shard: EmbeddingShardId, layout: Layout, width: int, *, batch_rows: int
) -> Iterator[tuple[pa.RecordBatch, Pair]]:
    """Rows of an embedding shard's normalized table, in its order, and the vectors of each.

    Args:
        shard: the embedding shard.
        layout: where its files are.
        width: elements of a vector.
        batch_rows: most rows of a batch.

    Raises:
        MisalignedEmbeddings: if a row's key is not the key of the vectors it points at.
        CorruptParquet: if a table is damaged, or holds vectors of another width.
    """
    table, remedy = layout.normalized_embeddings_table(shard), _REMEDY.format("normalized_embeddings")
    path = layout.embedding_join(shard).only
    with open_vector_rows(path, embedding_join, width, asked_by=table, remedy=remedy) as joined:
        for rows in parquet.read_batches(table, NORMALIZED_EMBEDDINGS, batch_rows=batch_rows):
            yield rows, joined.take(rows["row"].to_numpy(), rows["key"])


def places_of_vectors(shard: ShardId, layout: Layout, width: int) -> pa.Array:
    """Where the vectors of each row of a shard's normalized table are, found by its key.

    Returns:
        Row of the vectors' table, int32 (normalized rows,); null where no row there has the key.

    Raises:
        MisalignedEmbeddings: if vectors have a key that is no row's, or one that another has.
        CorruptParquet: if a table is damaged, or holds vectors of another width.
    """
    path = layout.image_embeddings(shard).only
    keys, with_vectors = (
        parquet.read_table(table, schema, columns=["key"])["key"].combine_chunks()
        for table, schema in (
            (layout.normalized_table(shard), NORMALIZED_IMAGES),
            (path, image_embeddings(width)),
        )
    )
    places = pc.index_in(keys, value_set=with_vectors)
    found = len(places) - places.null_count
    if found != len(with_vectors):
        raise MisalignedEmbeddings(
            path,
            expected=f"each of its {len(with_vectors)} keys to be of one row of normalized_images",
            found=f"{found} of them",
            remedy=_REMEDY.format("image_embeddings"),
        )
    return places


def read_image_embedding_rows(
    shard: ShardId, layout: Layout, width: int, places: pa.Array
) -> Iterator[tuple[pa.RecordBatch, Pictures, Pair]]:
    """Rows of a shard's table that have vectors, in its order, with pictures and vectors.

    The tar is open until the next rows are asked for.

    Args:
        shard: the image shard.
        layout: where its files are.
        width: elements of a vector.
        places: see :func:`places_of_vectors`.

    Raises:
        MisalignedEmbeddings: if the vectors are not in the rows' order.
        CorruptTar: if a picture's place is not in the tar.
        CorruptParquet: if a table is damaged, or holds vectors of another width.
    """
    table, tar = layout.normalized_table(shard), layout.images_tar(shard)
    path, remedy = layout.image_embeddings(shard).only, _REMEDY.format("image_embeddings")
    first = 0
    with (
        tar.open("rb") as file,
        open_vector_rows(path, image_embeddings, width, asked_by=path, remedy=remedy) as joined,
    ):
        for batch in parquet.read_batches(table, NORMALIZED_IMAGES, batch_rows=AT_A_TIME):
            of_batch = places.slice(first, len(batch))
            first += len(batch)
            at = of_batch.drop_null().to_numpy().astype(np.int64)
            taken = 0
            for rows in _of_few_bytes(batch.filter(of_batch.is_valid())):
                vectors = joined.take(at[taken : taken + len(rows)], rows["key"])
                taken += len(rows)
                yield rows, Pictures(rows, file, tar), vectors


def _of_few_bytes(rows: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """The rows in pieces whose pictures are not too much for memory, or for Arrow's offsets of 32 bits."""
    pieces = np.cumsum(rows["tar_bytes"].to_numpy()) // _PICTURE_BYTES
    cuts = [0, *(np.flatnonzero(np.diff(pieces)) + 1).tolist(), len(rows)]
    for begin, end in pairwise(cuts):
        if begin < end:
            yield rows.slice(begin, end - begin)
