"""The pictures of an image shard, in its tar at the places that its normalized table names."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from laion_assets.errors import CorruptTar, MissingInput
from laion_assets.formats.publish import require
from laion_assets.layout import Layout, ShardId

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


class Pictures:
    """The picture of each row of a normalized table, as it is stored; read when it is asked for.

    Args:
        rows: rows of the table.
        file: the open tar.
        tar: its path, for the messages.

    Raises:
        CorruptTar: if a picture's place is not in the tar.
    """

    def __init__(self, rows: pa.RecordBatch, file: BinaryIO, tar: Path) -> None:
        self._descriptor, self._tar = file.fileno(), tar
        tar_bytes = os.fstat(self._descriptor).st_size
        offsets, sizes = (rows[name].to_numpy() for name in ("tar_offset", "tar_bytes"))
        # Compared before anything is read, so that no made-up size asks for memory.
        outside = np.flatnonzero((offsets < 0) | (sizes < 0) | (sizes > tar_bytes - offsets))
        if len(outside):
            at = outside[0]
            raise CorruptTar(
                tar,
                expected=f"the picture of key {rows['key'][at]} in {sizes[at]} bytes from {offsets[at]} on",
                found=f"{tar_bytes} bytes in all",
                remedy=_REMEDY,
            )
        self.lengths: npt.NDArray[np.int64] = sizes
        """Bytes of each picture, (rows,)."""
        self._keys = rows["key"]
        self._checksums, self._offsets = rows["image_xxh3"].to_pylist(), offsets.tolist()

    def read_into(self, record: int, room: memoryview) -> None:
        """Read one picture, for which there is just enough room.

        Raises:
            CorruptTar: if what is in its place is not the one that the table is about.
        """
        size = os.preadv(self._descriptor, [room], self._offsets[record]) if room else 0
        checksum = self._checksums[record]
        if (found := xxhash.xxh3_128_hexdigest(room[:size])) != checksum:
            expected = f"the picture of key {self._keys[record]} with XXH3-128 {checksum}"
            raise CorruptTar(self._tar, expected=expected, found=found, remedy=_REMEDY)

    def read(self) -> pa.Array:
        """All pictures, large_binary (rows,).

        Raises:
            CorruptTar: as :meth:`read_into`.
        """
        ends = np.concatenate([[0], np.cumsum(self.lengths)])
        pictures = pa.allocate_buffer(int(ends[-1]))
        room = memoryview(pictures)
        for record, (begin, end) in enumerate(pairwise(ends.tolist())):
            self.read_into(record, room[begin:end])
        return pa.Array.from_buffers(
            pa.large_binary(), len(self.lengths), [None, pa.py_buffer(ends), pictures]
        )
