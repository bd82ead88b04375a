"""TFRecord files: framing and checksums. Knows nothing of what the payloads mean.

A record is its payload's length (uint64, little-endian), the masked crc32c of those eight bytes (uint32),
the payload, and the payload's masked crc32c: TensorFlow's ``tsl/lib/io/record_writer.h``. The file has no
header and no end mark, so a file cut between two records is a valid shorter file: only a count kept
elsewhere can tell.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from struct import Struct
from typing import Any, BinaryIO, Final, NamedTuple, NoReturn, Protocol, TypeAlias, overload

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
# Of records that are put together at once; a core's cache holds them.
_RUN_BYTES: Final = 1 << 19


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
    room = pa.scalar(bytes(_CHECKSUM.size), pa.large_binary())
    with LargeFile(path, cached=False) as file:
        for payloads in batches:
            lengths = sum(map(lengths_of, payloads))
            parts = (_headers(lengths), *payloads, room)
            for run in put_together(parts, file.room):
                _fill_in_checksums(run)
                file.write(run.joined)
            records += len(lengths)
            payload_bytes += int(lengths.sum())
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


class Run(NamedTuple):
    """Payloads, or records, one after another.

    Attributes:
        ends: where each ends, int64 (payloads + 1,), the first value being where the first begins.
        joined: their bytes.
    """

    ends: npt.NDArray[np.int64]
    joined: memoryview


def put_together(payloads: Payloads, room_of: Callable[[int], memoryview]) -> Iterator[Run]:
    """The payloads' bytes, of which nothing else is made.

    Args:
        payloads: in parts.
        room_of: memory for so many bytes, where one part is stored; nobody needs it any more once the next
            run is asked for.

    Yields:
        Some payloads, of a MiB or one; all of them where no part is stored.
    """
    at = next((at for at, part in enumerate(payloads) if not isinstance(part, pa.Array | pa.Scalar)), None)
    if at is None:
        yield Run(*_buffers(join(payloads)))
        return
    stored: Any = payloads[at]
    before, after = (_texts(join(parts)) for parts in (payloads[:at], payloads[at + 1 :]))
    sizes = stored.lengths + [
        len(opening) + len(closing) for opening, closing in zip(before, after, strict=True)
    ]
    ends = np.concatenate([[0], np.cumsum(sizes)])
    cuts = np.flatnonzero(np.diff(ends[1:] // _RUN_BYTES)) + 1
    for first, last in pairwise([0, *cuts.tolist(), len(sizes)]):
        of_run = ends[first : last + 1] - ends[first]
        room = room_of(int(of_run[-1]))
        for record, (begin, end) in enumerate(pairwise(of_run.tolist()), first):
            opened, closed = begin + len(before[record]), end - len(after[record])
            room[begin:opened] = before[record]
            stored.read_into(record, room[opened:closed])
            room[closed:end] = after[record]
        yield Run(of_run, room)


def _texts(joined: pa.Array) -> list[bytes]:
    """The values of a large_binary array; a third of the time that Arrow's own list of them takes."""
    ends, buffer = _buffers(joined)
    whole = bytes(buffer)
    return [whole[begin:end] for begin, end in pairwise(ends.tolist())]


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


def _fill_in_checksums(run: Run) -> None:
    """Put each record's checksum in the room that there is for it at its end."""
    # Nobody else has seen what Arrow joined, so its bytes may still be changed.
    framed = np.frombuffer(run.joined, np.uint8)
    places = pairwise(run.ends.tolist())
    payload = (framed[begin + HEADER_BYTES : end - _CHECKSUM.size] for begin, end in places)
    checksums = _masked(np.fromiter(map(google_crc32c.value, payload), np.int64, len(run.ends) - 1))
    framed[run.ends[1:, None] - np.arange(_CHECKSUM.size, 0, -1)] = _little_endian(checksums)


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


def _checksum(data: bytes | npt.NDArray[np.uint8]) -> bytes:
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
