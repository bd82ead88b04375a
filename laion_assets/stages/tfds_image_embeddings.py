"""One shard of ``laion400m/image_embeddings``: pictures with their metadata and both vectors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from laion_assets import shard_pictures
from laion_assets.errors import MisalignedEmbeddings, MissingInput
from laion_assets.formats import parquet, records, tfds, tfds_examples
from laion_assets.formats.publish import Draft, Manifest, Recipe, Tally, publish, require
from laion_assets.formats.tfrecord import Payloads
from laion_assets.formats.vector_rows import open_vector_rows
from laion_assets.layout import Layout, ShardId
from laion_assets.schema import EMBEDDING_WIDTH, NORMALIZED_IMAGES, image_embeddings

CODE_VERSION: Final = "1"

_REMEDY: Final = "Materialize image_embeddings again."


def write_tfds_image_embeddings(shard: ShardId, layout: Layout, width: int = EMBEDDING_WIDTH) -> Manifest:
    """Publish one example for each row of the shard's normalized table that has vectors, in its order.

    Counts: ``rows``, those of the normalized table, which is ``examples + without_vectors``; the
    examples of each NSFW tag; and ``payload_bytes`` as TFDS counts bytes, without the records' framing.

    Args:
        shard: the image shard.
        layout: where its files are.
        width: elements of a vector.

    Raises:
        MissingInput: if the shard's tar, or a normalized table made from it, or vectors for that table are
            not there yet.
        MisalignedEmbeddings: if vectors have a key that is no row's, or one that another has.
        CorruptTar: if what is in a picture's place is not the picture that the normalized table is about.
        CorruptParquet: if a table is damaged, or holds vectors of another width.
    """
    inputs = shard_pictures.require_pictures(shard, layout)
    vectors = require(layout.image_embeddings(shard))
    if vectors.recipe.inputs["normalized_images"] != inputs["normalized_images"]:
        raise MissingInput(
            f"{layout.normalized_images(shard)} was made again after {layout.image_embeddings(shard)}: "
            "materialize image_embeddings first"
        )
    recipe = Recipe(
        code_version=CODE_VERSION,
        settings=tfds.settings_of("image_embeddings", width),
        inputs={**inputs, "image_embeddings": vectors.data_version},
    )

    def write(draft: Draft) -> Tally:
        places = _places(shard, layout, width)
        tags: Counter[str] = Counter()
        examples = _examples(shard, layout, width, places, tags)
        written = records.write_records(draft.only, examples, layout.file_format)
        counts = {
            "rows": len(places),
            "examples": written.records,
            "without_vectors": places.null_count,
            "payload_bytes": written.payload_bytes,
        }
        return Tally(rows=written.records, counts=counts | tfds_examples.tag_counts(tags))

    reads = [layout.normalized_images(shard), layout.images(shard), layout.image_embeddings(shard)]
    return publish(layout.tfds_image_embeddings(shard), recipe, write, reads=reads)


def _places(shard: ShardId, layout: Layout, width: int) -> pa.Array:
    """For each normalized row, the row of the vectors that has its key, int32; null where none has."""
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
            remedy=_REMEDY,
        )
    return places


def _examples(
    shard: ShardId, layout: Layout, width: int, places: pa.Array, tags: Counter[str]
) -> Iterator[Payloads]:
    table, tar = layout.normalized_table(shard), layout.images_tar(shard)
    path = layout.image_embeddings(shard).only
    first = 0
    with (
        tar.open("rb") as file,
        open_vector_rows(path, image_embeddings, width, asked_by=path, remedy=_REMEDY) as joined,
    ):
        for batch in parquet.read_batches(table, NORMALIZED_IMAGES, batch_rows=shard_pictures.AT_A_TIME):
            places_of_batch = places.slice(first, len(batch))
            first += len(batch)
            rows = batch.filter(places_of_batch.is_valid())
            if not len(rows):
                continue
            vectors = joined.take(places_of_batch.drop_null().to_numpy().astype(np.int64), rows["key"])
            tags.update(rows["nsfw"].to_pylist())
            pictures = shard_pictures.read_pictures(rows, file, tar)
            yield tfds_examples.encode_image_embedding_examples(
                rows, pictures, vectors.images, vectors.texts, table
            )
