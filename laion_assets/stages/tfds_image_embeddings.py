"""One shard of ``laion400m/image_embeddings``: pictures with their metadata and both vectors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

import pyarrow as pa

from laion_assets import shard_pictures
from laion_assets.errors import MissingInput
from laion_assets.formats import records, tfds, tfds_examples
from laion_assets.formats.publish import Draft, Manifest, Recipe, Tally, publish, require
from laion_assets.formats.tfrecord import Payloads
from laion_assets.layout import Layout, ShardId
from laion_assets.schema import EMBEDDING_WIDTH
from laion_assets.shard_rows import places_of_vectors, read_image_embedding_rows

CODE_VERSION: Final = "1"


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
        places = places_of_vectors(shard, layout, width)
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


def _examples(
    shard: ShardId, layout: Layout, width: int, places: pa.Array, tags: Counter[str]
) -> Iterator[Payloads]:
    table = layout.normalized_table(shard)
    for rows, pictures, vectors in read_image_embedding_rows(shard, layout, width, places):
        tags.update(rows["nsfw"].to_pylist())
        yield tfds_examples.encode_image_embedding_examples(
            rows, pictures, vectors.images, vectors.texts, table
        )
