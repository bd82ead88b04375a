"""One TFRecord shard of ``laion400m/images``: the pictures of the shard's tar with their metadata."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

import pyarrow as pa

from laion_assets.errors import CorruptTar
from laion_assets.formats import parquet, tfds, tfrecord
from laion_assets.formats.publish import Draft, Manifest, Recipe, Tally, publish, require
from laion_assets.layout import Layout, ShardId
from laion_assets.schema import NORMALIZED_IMAGES

CODE_VERSION: Final = "1"

# Their pictures are in memory together.
_ROWS_AT_A_TIME: Final = 256

_REMEDY: Final = "Materialize normalized_images again, and images too if that does not help."


def write_tfds_images(shard: ShardId, layout: Layout) -> Manifest:
    """Publish one example for each row of the shard's normalized table, in its order.

    Counts: ``examples``, and ``payload_bytes`` as TFDS counts bytes, without the records' framing.

    Raises:
        MissingInput: if the shard's normalized table or its tar is not there yet.
        CorruptTar: if a picture in the tar is not the one that its row describes.
        CorruptParquet: if the normalized table is damaged.
    """
    recipe = Recipe(
        code_version=CODE_VERSION,
        inputs={
            "normalized_images": require(layout.normalized_images(shard)).data_version,
            "images": require(layout.images(shard)).data_version,
        },
    )

    def write(draft: Draft) -> Tally:
        written = tfrecord.write_records(draft.only, _examples(shard, layout))
        counts = {"examples": written.records, "payload_bytes": written.payload_bytes}
        return Tally(rows=written.records, counts=counts)

    reads = [layout.normalized_images(shard), layout.images(shard)]
    return publish(layout.tfds_images(shard), recipe, write, reads=reads)


def _examples(shard: ShardId, layout: Layout) -> Iterator[tfrecord.Payloads]:
    table, tar = layout.normalized_table(shard), layout.images_tar(shard)
    with tar.open("rb") as file:
        for rows in parquet.read_batches(table, NORMALIZED_IMAGES, batch_rows=_ROWS_AT_A_TIME):
            yield tfds.encode_image_examples(rows, list(_pictures(rows, file, tar)), table)


def _pictures(rows: pa.RecordBatch, file: BinaryIO, tar: Path) -> Iterator[bytes]:
    descriptor = file.fileno()
    tar_bytes = os.fstat(descriptor).st_size
    columns = (rows[name].to_pylist() for name in ("key", "tar_offset", "tar_bytes", "image_sha256"))
    for key, offset, size, sha256 in zip(*columns, strict=True):
        # Compared before anything is read, so that no made-up size asks for memory.
        if offset < 0 or size < 0 or offset + size > tar_bytes:
            raise CorruptTar(
                tar,
                expected=f"the picture of key {key} in bytes {offset} to {offset + size}",
                found=f"{tar_bytes} bytes in all",
                remedy=_REMEDY,
            )
        body = os.pread(descriptor, size, offset)
        found = hashlib.sha256(body).hexdigest()
        if found != sha256:
            raise CorruptTar(
                tar,
                expected=f"the picture of key {key} to have sha256 {sha256}",
                found=found,
                remedy=_REMEDY,
            )
        channels = _channels(body)
        if channels not in (1, 3):
            raise CorruptTar(
                tar,
                expected=f"the picture of key {key} to be a grey or RGB JPEG or PNG",
                found="neither" if channels is None else f"{channels} channels",
                remedy=_REMEDY,
            )
        yield body


# -- what TFDS would make of a picture ------------------------------------------------------------

# TFDS stores any bytes as an image, and its reader without TensorFlow (features/image_feature.py,
# decode_example_np) then hands out as many channels as the picture has: so the header is read before a
# picture is stored. Grey is right, it becomes three channels. Pillow opened the picture when its row was
# normalized, so no more than this is read. Colour types of a PNG (its specification, 11.2.2) -> channels:
_PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_PNG_CHANNELS: Final = {0: 1, 2: 3, 3: 4, 4: 2, 6: 4}  # a palette may hold transparent colours

# JPEG markers (ITU-T T.81, table B.1): frame headers are C0 to CF but for three, and the first scan ends
# the search.
_JPEG_SIGNATURE: Final = b"\xff\xd8"
_JPEG_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_SCAN: Final = 0xDA
# Those reserved for extensions have a length, but Pillow passes over the two bytes of the marker alone.
_JPEG_PASSED_OVER: Final = frozenset({0x00, 0x01, 0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)})


def _channels(picture: bytes) -> int | None:
    """Channels that a JPEG's or PNG's header declares; None where it is neither, or is cut short."""
    if picture.startswith(_PNG_SIGNATURE):
        whole = len(picture) > 25 and picture[12:16] == b"IHDR"
        return _PNG_CHANNELS.get(picture[25]) if whole else None
    return _jpeg_channels(picture) if picture.startswith(_JPEG_SIGNATURE) else None


def _jpeg_channels(picture: bytes) -> int | None:
    at = len(_JPEG_SIGNATURE)
    # Decoders pass over bytes between segments that belong to none, so they are no reason to refuse.
    while (at := picture.find(b"\xff", at)) >= 0 and at + 10 <= len(picture):
        marker = picture[at + 1]
        if marker in _JPEG_FRAMES:
            return picture[at + 9]  # after the length (2 bytes), precision (1), height (2) and width (2)
        if marker == _JPEG_SCAN:
            break
        if marker == 0xFF:  # a marker may be preceded by any number of fill bytes
            at += 1
        elif marker in _JPEG_PASSED_OVER:
            at += 2
        else:
            at += 2 + int.from_bytes(picture[at + 2 : at + 4])
    return None
