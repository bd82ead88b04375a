"""ArrayRecord files, in which a reader finds any record at once. Knows nothing of what the payloads mean.

Framing, index and checksums are those of the ``array_record`` package, whose files TFDS's ``data_source`` and
Grain read. It exists for Linux only.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from laion_assets.errors import CorruptArrayRecord, SettingsError
from laion_assets.formats.tfrecord import RecordsSummary

# Each record is found by itself, and none is compressed: neither pictures nor vectors become smaller by it,
# and it takes five times as long.
_OPTIONS: Final = "group_size:1,uncompressed"
_READ_AT_ONCE: Final = 256


def write_records(path: Path, payloads: Iterable[Sequence[bytes]]) -> RecordsSummary:
    """Write one record for each payload; equal payloads give equal bytes.

    Args:
        path: the file.
        payloads: each in parts that follow each other.

    Returns:
        How many records were written, and the bytes of their payloads.

    Raises:
        SettingsError: if the package is not there.
        OSError: if the file cannot be written.
    """
    records = payload_bytes = 0
    writer = _package().ArrayRecordWriter(os.fspath(path), _OPTIONS)
    try:
        for parts in payloads:
            payload = b"".join(parts)
            writer.write(payload)
            records += 1
            payload_bytes += len(payload)
    finally:
        writer.close()
    return RecordsSummary(records=records, payload_bytes=payload_bytes)


def read_records(path: Path) -> Iterator[bytes]:
    """Yield the payloads; the package checks their checksums.

    Raises:
        SettingsError: if the package is not there.
        CorruptArrayRecord: if the file is damaged or none.
    """
