"""The pictures of an image shard, in its tar at the places that its normalized table names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

import pyarrow as pa

from laion_assets.errors import CorruptTar, MissingInput
from laion_assets.formats.publish import require
from laion_assets.layout import Layout, ShardId
from laion_assets.picture_header import read_header

AT_A_TIME: Final = 256
"""Rows whose pictures may be in memory together."""

_REMEDY: Final = "Materialize normalized_images again, and images too if that does not help."


def require_pictures(shard: ShardId, layout: Layout) -> dict[str, str]:
    """The inputs of whoever reads a shard's pictures: its normalized table and its tar, by data version.

    Raises:
        MissingInput: if either is not there yet, or the table was made from another tar.
    """
    normalized, images = require(layout.normalized_images(shard)), require(layout.images(shard))
    # Its places and checks are of one tar, and of no other.
    if normalized.recipe.inputs["images"] != images.data_version:
        raise MissingInput(
            f"{layout.images(shard)} was made again after {layout.normalized_images(shard)}: materialize "
            "normalized_images first"
        )
    return {"normalized_images": normalized.data_version, "images": images.data_version}


def read_pictures(rows: pa.RecordBatch, file: BinaryIO, tar: Path) -> Iterator[bytes]:
    """The picture of each row of a normalized table, as it is stored.

    Args:
        rows: rows of the table.
        file: the open tar.
        tar: its path, for the messages.

    Raises:
        CorruptTar: if what is in a picture's place is none that TFDS decodes to three channels.
    """
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
