"""Records that are found by the digest of a text: tables of which a lookup of many reads little.

For a table that is searched tens of thousands of times. Little-endian, in this order:

- the header: magic and version, bytes of a record, how many records there are, a number of the writer's, and
  crc32c of the heads, of the checksums and of the header itself (:data:`_HEADER`);
- the heads: uint32 of each record, ascending: the first four bytes of its digest, read as big-endian;
- the records, in the order of their digests, and those with one digest in the order they were given in;
- the checksums: crc32c (uint32) of each block of records.

Who looks up digests reads the heads, 4 MB of a million, and of the records the blocks in which one has a
head that is looked for. Every byte that is used is covered by a checksum. Nothing is mapped: a mapped file
that is cut short kills its reader.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from struct import Struct
from typing import Final

import google_crc32c
import numpy as np
import numpy.typing as npt

from laion_assets.errors import CorruptIndex

DIGEST_BYTES: Final = 16
"""Length of a digest."""

_MAGIC: Final = b"LAIONIX\x01"
_HEADER: Final = Struct("<8sIQqII")
_CHECKSUM: Final = Struct("<I")
_HEADS_AT: Final = _HEADER.size + _CHECKSUM.size
_HEAD: Final = np.dtype("<u4")

# The page of most disks and file systems, who read no less for one record.
_BLOCK_BYTES: Final = 4096
# Each of them may be in a block of its own: 16 MiB.
_RECORDS_AT_A_TIME: Final = 4096

Digests = npt.NDArray[np.void]
"""Digests, shape (n,), dtype ``V16``."""


def write_index(path: Path, records: npt.NDArray[np.void], *, number: int = 0) -> None:
    """Write records so that they are found by their digests.

    Args:
        path: the file.
        records: shape (n,), of a structured dtype with a field ``digest`` of :data:`DIGEST_BYTES` bytes.
        number: int64 that readers are to have, such as a version of what the records are of.
    """
    words = np.ascontiguousarray(records["digest"]).view(">u8").reshape(-1, 2)
    order = np.lexsort((words[:, 1], words[:, 0]))  # stable
    heads = _heads(records["digest"])[order].tobytes()
    data = records[order].view(np.uint8)
    block_bytes = _records_of_a_block(records.dtype) * records.dtype.itemsize
    checksums = []
    with path.open("wb") as file:
        file.seek(_HEADS_AT)
        file.write(heads)
        for at in range(0, len(data), block_bytes):
            block = data[at : at + block_bytes].tobytes()
            checksums.append(_CHECKSUM.pack(google_crc32c.value(block)))
            file.write(block)
        file.writelines(checksums)
        header = _HEADER.pack(
            _MAGIC,
            records.dtype.itemsize,
            len(records),
            number,
            google_crc32c.value(heads),
            google_crc32c.value(b"".join(checksums)),
        )
        file.seek(0)
        file.write(header + _CHECKSUM.pack(google_crc32c.value(header)))


class DigestIndex:
    """Looks digests up in an open file.

    Attributes:
        path: the file.
        records: how many it holds.
        number: the writer's number.
    """

    def __init__(self, path: Path, descriptor: int, dtype: np.dtype[np.void]) -> None:
        self.path = path
        self._descriptor = descriptor
        self._dtype = dtype
        self._block_records = _records_of_a_block(dtype)
        header = self._read(0, _HEADS_AT)
        magic, record_bytes, self.records, self.number, self._heads_checksum, of_checksums = (
            _HEADER.unpack_from(header)
        )
        if magic != _MAGIC:
            raise self._corrupt(f"a file that begins with {_MAGIC!r}", repr(magic))
        self._check(header[: _HEADER.size], _CHECKSUM.unpack_from(header, _HEADER.size)[0], "the header")
        if record_bytes != dtype.itemsize:
            raise self._corrupt(f"records of {dtype.itemsize} bytes", f"{record_bytes} bytes")
        self._records_at = _HEADS_AT + self.records * _HEAD.itemsize
        self._checksums_at = self._records_at + self.records * record_bytes
        blocks = -(-self.records // self._block_records)
        expected = self._checksums_at + blocks * _CHECKSUM.size
        size = os.fstat(descriptor).st_size
        if size != expected:
            raise self._corrupt(f"{expected} bytes for {self.records} records", f"{size} bytes")
        checksums = self._read(self._checksums_at, blocks * _CHECKSUM.size)
        self._check(checksums, of_checksums, "the checksums")
        self._checksums = np.frombuffer(checksums, "<u4")

    def find(self, digests: Digests) -> Iterator[npt.NDArray[np.void]]:
        """The records that have one of these digests, and few others, whose digests begin alike.

        Yields:
            Some thousand records at a time, in the order of the file, each of them once.

        Raises:
            CorruptIndex: if something that is read is not what its checksum is of.
        """
        data = self._read(_HEADS_AT, self._records_at - _HEADS_AT)
        self._check(data, self._heads_checksum, "the heads")
        heads = np.frombuffer(data, _HEAD)
        wanted = np.unique(_heads(digests))
        first = np.searchsorted(heads, wanted)
        wanted, first = wanted[first < len(heads)], first[first < len(heads)]
        there = heads[first] == wanted
        first, last = first[there], np.searchsorted(heads, wanted[there], side="right")
        yield from self._taken(_positions(first, last))

    def everything(self) -> Iterator[npt.NDArray[np.void]]:
        """All records, as :meth:`find` yields them."""
        return self._taken(np.arange(self.records))

    def _taken(self, positions: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.void]]:
        for start in range(0, len(positions), _RECORDS_AT_A_TIME):
            some = positions[start : start + _RECORDS_AT_A_TIME]
            blocks, at = np.unique(some // self._block_records, return_inverse=True)
            # Only the last block may be shorter than the others, so that what is joined is regular.
            records = np.frombuffer(b"".join(map(self._block, blocks.tolist())), self._dtype)
            yield records[at * self._block_records + some % self._block_records]

    def _block(self, block: int) -> bytes:
        first = block * self._block_records
        count = min(self._block_records, self.records - first)
        size = self._dtype.itemsize
        data = self._read(self._records_at + first * size, count * size)
        self._check(data, int(self._checksums[block]), f"records {first} to {first + count - 1}")
        return data

    def _read(self, at: int, count: int) -> bytes:
        data = os.pread(self._descriptor, count, at)
        if len(data) != count:
            raise self._corrupt(f"{count} bytes from byte {at} on", f"{len(data)}")
        return data

    def _check(self, data: bytes, expected: int, what: str) -> None:
        found = google_crc32c.value(data)
        if found != expected:
            raise self._corrupt(f"crc32c {expected:08x} of {what}", f"{found:08x}")

    def _corrupt(self, expected: str, found: str) -> CorruptIndex:
        return CorruptIndex(
            self.path,
            expected=expected,
            found=found,
            remedy="Delete its manifest to have it made again.",
        )


@contextmanager
def open_index(path: Path, dtype: np.dtype[np.void]) -> Iterator[DigestIndex]:
    """Open an index of records of a dtype.

    Args:
        path: the file.
        dtype: what the records were written as.

    Raises:
        CorruptIndex: if the file is damaged, or is none of such records.
        OSError: if it cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield DigestIndex(path, descriptor, dtype)
    finally:
        os.close(descriptor)


def _records_of_a_block(dtype: np.dtype[np.void]) -> int:
    return max(1, _BLOCK_BYTES // dtype.itemsize)


def _heads(digests: Digests) -> npt.NDArray[np.uint32]:
    words = np.ascontiguousarray(digests).view(">u4").reshape(-1, DIGEST_BYTES // 4)
    return words[:, 0].astype(_HEAD)


def _positions(first: npt.NDArray[np.int64], last: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Every number from each first up to its last, which is left out."""
    counts = last - first
    before = np.cumsum(counts) - counts
    return np.repeat(first - before, counts) + np.arange(counts.sum())
