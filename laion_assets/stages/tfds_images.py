"""One shard of ``laion400m/images``: the pictures of the shard's tar with their metadata."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

import pyarrow as pa

from laion_assets.errors import CorruptTar, MissingInput
from laion_assets.formats import parquet, records, tfds
from laion_assets.formats.publish import Draft, Manifest, Recipe, Tally, publish, require
from laion_assets.formats.tfrecord import Payloads
from laion_assets.layout import Layout, ShardId
from laion_assets.picture_header import read_header
from laion_assets.schema import NORMALIZED_IMAGES

CODE_VERSION: Final = "1"

# Their pictures are in memory together.
_ROWS_AT_A_TIME: Final = 256

_REMEDY: Final = "Materialize normalized_images again, and images too if that does not help."


def write_tfds_images(shard: ShardId, layout: Layout) -> Manifest:
    """Publish one example for each row of the shard's normalized table, in its order.

    Counts: ``examples``, and ``payload_bytes`` as TFDS counts bytes, without the records' framing.

    Raises:
        MissingInput: if the shard's tar, or a normalized table made from it, is not there yet.
        CorruptTar: if what is in a picture's place is none that TFDS decodes to three channels.
        CorruptParquet: if the normalized table is damaged.
    """
    normalized, images = require(layout.normalized_images(shard)), require(layout.images(shard))
    # Its places and checks are of one tar, and of no other.
    if normalized.recipe.inputs["images"] != images.data_version:
        raise MissingInput(
            f"{layout.images(shard)} was made again after {layout.normalized_images(shard)}: materialize "
            "normalized_images first"
        )
    recipe = Recipe(
        code_version=CODE_VERSION,
        inputs={"normalized_images": normalized.data_version, "images": images.data_version},
    )

    def write(draft: Draft) -> Tally:
        written = records.write_records(draft.only, _examples(shard, layout), layout.file_format)
        counts = {"examples": written.records, "payload_bytes": written.payload_bytes}
        return Tally(rows=written.records, counts=counts)

    reads = [layout.normalized_images(shard), layout.images(shard)]
    return publish(layout.tfds_images(shard), recipe, write, reads=reads)


def _examples(shard: ShardId, layout: Layout) -> Iterator[Payloads]:
    table, tar = layout.normalized_table(shard), layout.images_tar(shard)
    with tar.open("rb") as file:
        for rows in parquet.read_batches(table, NORMALIZED_IMAGES, batch_rows=_ROWS_AT_A_TIME):
            yield tfds.encode_image_examples(rows, list(_pictures(rows, file, tar)), table)


def _pictures(rows: pa.RecordBatch, file: BinaryIO, tar: Path) -> Iterator[bytes]:
    descriptor = file.fileno()
    tar_bytes = os.fstat(descriptor).st_size
    columns = (rows[name].to_pylist() for name in ("key", "tar_offset", "tar_bytes"))
    for key, offset, size in zip(*columns, strict=True):
        # Compared before anything is read, so that no made-up size asks for memory.
        if offset < 0 or size < 0 or offset + size > tar_bytes:
            raise CorruptTar(
                tar,
                expected=f"the picture of key {key} in bytes {offset} to {offset + size}",
                found=f"{tar_bytes} bytes in all",
                remedy=_REMEDY,
            )
        body = os.pread(descriptor, size, offset)
        header = read_header(body)
        if header is None or not header.becomes_three_channels:
            raise CorruptTar(
                tar,
                expected=f"the picture of key {key} to be a grey or RGB JPEG or PNG",
                found="neither" if header is None else f"{header.channels} channels",
                remedy=_REMEDY,
            )
        yield body
