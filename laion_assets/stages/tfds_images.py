"""One shard of ``laion400m/images``: the pictures of the shard's tar with their metadata."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

from laion_assets import shard_pictures
from laion_assets.formats import records, tfds_examples
from laion_assets.formats.publish import Draft, Manifest, Recipe, Tally, publish
from laion_assets.formats.tfrecord import Payloads
from laion_assets.layout import Layout, ShardId
from laion_assets.shard_rows import read_image_rows

CODE_VERSION: Final = "1"

# Their pictures are read one by one.
_ROWS_AT_A_TIME: Final = 2048


def write_tfds_images(shard: ShardId, layout: Layout) -> Manifest:
    """Publish one example for each row of the shard's normalized table, in its order.

    Counts: ``examples``, those of each NSFW tag, and ``payload_bytes`` as TFDS counts bytes, without the
    records' framing.

    Raises:
        MissingInput: if the shard's tar, or a normalized table made from it, is not there yet.
        CorruptTar: if what is in a picture's place is not the picture that the normalized table is about.
        CorruptParquet: if the normalized table is damaged.
    """
    recipe = Recipe(code_version=CODE_VERSION, inputs=shard_pictures.require_pictures(shard, layout))

    def write(draft: Draft) -> Tally:
        tags: Counter[str] = Counter()
        written = records.write_records(draft.only, _examples(shard, layout, tags), layout.file_format)
        counts = {"examples": written.records, "payload_bytes": written.payload_bytes}
        return Tally(rows=written.records, counts=counts | tfds_examples.tag_counts(tags))

    reads = [layout.normalized_images(shard), layout.images(shard)]
    return publish(layout.tfds_images(shard), recipe, write, reads=reads)


def _examples(shard: ShardId, layout: Layout, tags: Counter[str]) -> Iterator[Payloads]:
    for rows, pictures in read_image_rows(shard, layout, batch_rows=_ROWS_AT_A_TIME):
        tags.update(rows["nsfw"].to_pylist())
        yield tfds_examples.encode_image_examples(rows, pictures, layout.normalized_table(shard))
