"""TFRecord files: framing and checksums. Knows nothing of what the payloads mean.

A record is its payload's length (uint64, little-endian), the masked crc32c of those eight bytes (uint32),
the payload, and the payload's masked crc32c: TensorFlow's ``tsl/lib/io/record_writer.h``. The file has no
header and no end mark, so a file cut between two records is a valid shorter file: only a count kept
elsewhere can tell.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, repeat
from pathlib import Path
from struct import Struct
from typing import Any, BinaryIO, Final, NoReturn, overload

import google_crc32c
import numpy as np
import numpy.typing as npt

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

Payloads = tuple[Sequence[bytes], ...]
"""Payloads, in parts that follow each other, so that a picture is copied just once, to be written: part j of
payload i is ``payloads[j][i]``."""


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
    with LargeFile(path) as file:
        for batch in batches:
            lengths = np.sum([np.fromiter(map(len, parts), np.int64) for parts in batch], axis=0)
            crcs: Iterable[int] = repeat(0)
            for parts in batch:
                crcs = map(google_crc32c.extend, crcs, parts)
            checksums = map(_CHECKSUM.pack, _masked(np.fromiter(crcs, np.int64)).tolist())
            headers = map(_header, lengths.tolist())
            file.write(b"".join(list(chain.from_iterable(zip(headers, *batch, checksums, strict=True)))))
            records += len(lengths)
            payload_bytes += int(lengths.sum())
    return RecordsSummary(records=records, payload_bytes=payload_bytes)


def frame(payload: bytes) -> bytes:
    """One record."""
    return _header(len(payload)) + payload + _checksum(payload)


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


# Few lengths make up most of a file, so their headers are worth keeping.
@lru_cache(maxsize=65_536)
def _header(length: int) -> bytes:
    encoded = _LENGTH.pack(length)
    return encoded + _checksum(encoded)


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
