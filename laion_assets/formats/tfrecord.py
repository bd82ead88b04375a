"""TFRecord files: framing and checksums. Knows nothing of what the payloads mean.

A record is its payload's length (uint64, little-endian), the masked crc32c of those eight bytes (uint32),
the payload, and the payload's masked crc32c: TensorFlow's ``tsl/lib/io/record_writer.h``. The file has no
header and no end mark, so a file cut between two records is a valid shorter file: only a count kept
elsewhere can tell.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from struct import Struct
from typing import Any, BinaryIO, Final, NoReturn, Protocol, TypeAlias, overload

import google_crc32c
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from laion_assets.errors import CorruptRecords
from laion_assets.formats.large_file import LargeFile

_LENGTH: Final = Struct("<Q")
_CHECKSUM: Final = Struct("<I")
HEADER_BYTES: Final = _LENGTH.size + _CHECKSUM.size
"""What stands before each payload."""
FRAMING_BYTES: Final = HEADER_BYTES + _CHECKSUM.size
"""What a record is longer by than its payload."""

# Checksums are masked because the crc of data that holds crcs is weak (tsl/lib/hash/crc32c.h).
_MASK_DELTA: Final = 0xA282EAD8

_BUFFER_BYTES: Final = 1 << 20


class Stored(Protocol):
    """A part of every payload that lies in a file, and is read straight to its place among the records."""

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Bytes of each, (records,)."""
        ...

    def read_into(self, record: int, room: memoryview) -> None:
        """Read one, of as many bytes as there is room."""
        ...


Joined: TypeAlias = pa.Array | pa.Scalar
"""A part of every payload: a large_binary array, or a scalar where all have the same bytes."""
Part: TypeAlias = Joined | Stored
"""A part of every payload, wherever it is."""
Payloads: TypeAlias = tuple[Part, ...]
"""Payloads of some records, in parts that follow each other and are joined just once, in the file's bytes;
one of them may be stored."""


@dataclass(frozen=True, kw_only=True)
class RecordsSummary:
    """What a file holds.

    Attributes:
        records: number of records.
        payload_bytes: bytes of the payloads, without the 16 bytes of framing of each: TFDS's ``num_bytes``.
    """

    records: int
    payload_bytes: int


def write_records(path: Path, batches: Iterable[Payloads]) -> RecordsSummary:
    """Write one record for each payload; equal payloads give equal bytes.

    Returns:
        How many records were written, and the bytes of their payloads.
    """
    records = payload_bytes = 0
    scratch = Scratch()
    with LargeFile(path, cached=False) as file:
        for payloads in batches:
            ends, framed = _framed(payloads, scratch)
            file.write(framed)
            records += len(ends) - 1
            payload_bytes += len(framed) - FRAMING_BYTES * (len(ends) - 1)
    return RecordsSummary(records=records, payload_bytes=payload_bytes)


def frame(payload: bytes) -> bytes:
    """One record."""
    length = _LENGTH.pack(len(payload))
    return length + _checksum(length) + payload + _checksum(payload)


def lengths_of(part: Part) -> Any:  # noqa: ANN401 (an array, or a number)
    """Bytes of a part: int64 (records,), or a number where all records have the same."""
    if not isinstance(part, pa.Array | pa.Scalar):
        return part.lengths
    lengths = pc.binary_length(part)
    return lengths.as_py() if isinstance(lengths, pa.Scalar) else lengths.to_numpy()


def join(parts: Iterable[Joined]) -> pa.Array:
    """Parts one after another: a large_binary array."""
    return pc.binary_join_element_wise(*parts, pa.scalar(b"", pa.large_binary()))


class Scratch:
    """Memory in which one batch after another is put together: what is new each time, the kernel clears."""

    def __init__(self) -> None:
        self._bytes = np.empty(0, np.uint8)

    def of(self, size: int) -> npt.NDArray[np.uint8]:
        """So many bytes, of any value."""
        if len(self._bytes) < size:
            self._bytes = np.empty(size, np.uint8)
        return self._bytes[:size]


def put_together(payloads: Payloads, scratch: Scratch) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """The payloads' bytes, one after another, of which nothing else is made.

    Args:
        payloads: in parts.
        scratch: where they may be put; nothing that was there before may still be needed.

    Returns:
        Where each ends, (payloads + 1,), the first value being where the first begins; and their bytes.
    """
    at = next((at for at, part in enumerate(payloads) if not isinstance(part, pa.Array | pa.Scalar)), None)
    if at is None:
        ends, joined = _buffers(join(payloads))
        # Nobody else has seen the array, so its bytes may still be changed.
        return ends, np.frombuffer(joined, np.uint8)
    stored: Any = payloads[at]
    (before_ends, before), (after_ends, after) = (
        _buffers(join(parts)) for parts in (payloads[:at], payloads[at + 1 :])
    )
    ends = before_ends + np.concatenate([[0], np.cumsum(stored.lengths)]) + after_ends
    together = scratch.of(int(ends[-1]))
    room = together.data
    places = zip(
        pairwise(ends.tolist()), pairwise(before_ends.tolist()), pairwise(after_ends.tolist()), strict=True
    )
    for record, ((begin, end), (from_, to), (after_from, after_to)) in enumerate(places):
        first, last = begin + to - from_, end - (after_to - after_from)
        room[begin:first] = before[from_:to]
        stored.read_into(record, room[first:last])
        room[last:end] = after[after_from:after_to]
    return ends, together


def _buffers(joined: pa.Array) -> tuple[npt.NDArray[np.int64], memoryview]:
    """Where each value of a large_binary array ends, and the values' bytes."""
    _, ends_buffer, bytes_buffer = joined.buffers()
    ends = np.frombuffer(ends_buffer, np.int64, len(joined) + 1)
    return ends, memoryview(bytes_buffer or b"").cast("B")[: int(ends[-1])]


def as_column(values: npt.NDArray[Any]) -> pa.Array:
    """The bytes of each row of an array of shape (records, anything), as a part."""
    rows, row_bytes = len(values), values.itemsize * values.shape[1]
    ends = pa.py_buffer(np.arange(rows + 1, dtype=np.int64) * row_bytes)
    return pa.Array.from_buffers(
        pa.large_binary(), rows, [None, ends, pa.py_buffer(np.ascontiguousarray(values))]
    )


def read_records(path: Path, *, expected: RecordsSummary | None = None) -> Iterator[bytes]:
    """Yield the payloads, each once its checksum has been found right.

    Args:
        path: the file.
        expected: what the file must hold; without it, a file cut between two records cannot be told from
            a whole one.

    Raises:
        CorruptRecords: if a record is cut short or has another checksum than its bytes, or if the file
            does not hold what was expected.
    """
    records = payload_bytes = 0
    with path.open("rb", buffering=_BUFFER_BYTES) as file:
        left = os.fstat(file.fileno()).st_size
        while header := file.read(HEADER_BYTES):
            payload = _read_payload(file, header, left - len(header), path, records)
            yield payload
            records += 1
            payload_bytes += len(payload)
            left -= HEADER_BYTES + len(payload) + _CHECKSUM.size
    found = RecordsSummary(records=records, payload_bytes=payload_bytes)
    if expected is not None and found != expected:
        _refuse(path, _spell(expected), _spell(found))


def check_records(path: Path, *, expected: RecordsSummary | None = None) -> RecordsSummary:
    """Read a file through and verify every checksum.

    Returns:
        What the file holds.

    Raises:
        CorruptRecords: as :func:`read_records`.
    """
    records = payload_bytes = 0
    for payload in read_records(path, expected=expected):
        records += 1
        payload_bytes += len(payload)
    return RecordsSummary(records=records, payload_bytes=payload_bytes)


def _read_payload(file: BinaryIO, header: bytes, left: int, path: Path, record: int) -> bytes:
    if len(header) < HEADER_BYTES:
        _refuse(path, f"{HEADER_BYTES} bytes of header of record {record}", f"{len(header)} bytes")
    if header[_LENGTH.size :] != _checksum(header[: _LENGTH.size]):
        _refuse(path, f"the checksum of record {record}'s length", "another")
    (length,) = _LENGTH.unpack_from(header)
    # Compared before anything is read: a length may be made up together with its checksum.
    if length + _CHECKSUM.size > left:
        _refuse(path, f"record {record} of {length} bytes and its checksum", f"{left} bytes left in the file")
    payload = file.read(length)
    if file.read(_CHECKSUM.size) != _checksum(payload):
        _refuse(path, f"the checksum of record {record}'s payload", "another")
    return payload


def _framed(payloads: Payloads, scratch: Scratch) -> tuple[npt.NDArray[np.int64], memoryview]:
    """Where each record ends (the first value: where the first begins), and the records' bytes."""
    room = pa.scalar(bytes(_CHECKSUM.size), pa.large_binary())
    ends, framed = put_together((_headers(sum(map(lengths_of, payloads))), *payloads, room), scratch)
    places = pairwise(ends.tolist())
    payload = (framed[begin + HEADER_BYTES : end - _CHECKSUM.size] for begin, end in places)
    checksums = _masked(np.fromiter(map(google_crc32c.value, payload), np.int64, len(ends) - 1))
    framed[ends[1:, None] - np.arange(_CHECKSUM.size, 0, -1)] = _little_endian(checksums)
    return ends, framed.data


def _headers(lengths: npt.NDArray[np.int64]) -> pa.Array:
    encoded = lengths.astype("<u8")[:, None].view(np.uint8)
    # A crc is linear: what each byte changes of it can be added up (without carrying).
    crcs = _crc_of_zero() ^ np.bitwise_xor.reduce(_crc_changes()[np.arange(_LENGTH.size), encoded], axis=1)
    return as_column(np.concatenate([encoded, _little_endian(_masked(crcs))], axis=1))


@cache
def _crc_of_zero() -> int:
    return int(google_crc32c.value(_LENGTH.pack(0)))


@cache
def _crc_changes() -> npt.NDArray[np.int64]:
    """What each value of each byte of a length changes of the crc: (bytes, values)."""
    lengths = (_LENGTH.pack(value << 8 * place) for place in range(_LENGTH.size) for value in range(256))
    changes = (google_crc32c.value(length) ^ _crc_of_zero() for length in lengths)
    return np.fromiter(changes, np.int64).reshape(_LENGTH.size, 256)


def _little_endian(checksums: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    return checksums.astype("<u4")[:, None].view(np.uint8)


def _checksum(data: bytes) -> bytes:
    return _CHECKSUM.pack(_masked(google_crc32c.value(data)))


@overload
def _masked(crc: int) -> int: ...
@overload
def _masked(crc: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]: ...
def _masked(crc: Any) -> Any:
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF


def _spell(summary: RecordsSummary) -> str:
    return f"{summary.records} records of {summary.payload_bytes} bytes"


def _refuse(path: Path, expected: str, found: str) -> NoReturn:
    raise CorruptRecords(
        path,
        expected=expected,
        found=found,
        remedy="Delete the manifest of the stage that wrote it, and materialize that stage again.",
    )
