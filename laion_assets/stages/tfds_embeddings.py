"""One shard of ``laion400m/embeddings``: the joined vectors with their normalized metadata."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

from laion_assets.formats import records, tfds, tfds_examples
from laion_assets.formats.publish import Draft, Manifest, Recipe, Tally, publish, require
from laion_assets.formats.tfrecord import Payloads
from laion_assets.layout import EmbeddingShardId, Layout
from laion_assets.schema import EMBEDDING_WIDTH
from laion_assets.shard_rows import read_embedding_rows

CODE_VERSION: Final = "1"

_ROWS_AT_A_TIME: Final = 4096


def write_tfds_embeddings(shard: EmbeddingShardId, layout: Layout, width: int = EMBEDDING_WIDTH) -> Manifest:
    """Publish one example for each row of the shard's normalized table, in its order.

    Counts: ``examples``, those of each NSFW tag, and ``payload_bytes`` as TFDS counts bytes, without the
    records' framing.

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
        tags: Counter[str] = Counter()
        examples = _examples(shard, layout, width, tags)
        written = records.write_records(draft.only, examples, layout.file_format)
        counts = {"examples": written.records, "payload_bytes": written.payload_bytes}
        return Tally(rows=written.records, counts=counts | tfds_examples.tag_counts(tags))

    reads = [layout.normalized_embeddings(shard), layout.embedding_join(shard)]
    return publish(layout.tfds_embeddings(shard), recipe, write, reads=reads)


def _examples(shard: EmbeddingShardId, layout: Layout, width: int, tags: Counter[str]) -> Iterator[Payloads]:
    table = layout.normalized_embeddings_table(shard)
    for rows, vectors in read_embedding_rows(shard, layout, width, batch_rows=_ROWS_AT_A_TIME):
        tags.update(rows["nsfw"].to_pylist())
        yield tfds_examples.encode_embedding_examples(rows, vectors.images, vectors.texts, table)
