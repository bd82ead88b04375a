"""ArrayRecord files, in which a reader finds any record at once. Knows nothing of what the payloads mean.

Framing, index and checksums are those of the ``array_record`` package, whose files TFDS's ``data_source`` and
Grain read. There is one for Linux only.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from laion_assets.errors import CorruptRecords, SettingsError
from laion_assets.formats.tfrecord import Payloads, RecordsSummary, put_together

# Each record is found by itself, and none is compressed: neither pictures nor vectors become smaller by it,
# and it takes five times as long.
_OPTIONS: Final = "group_size:1,uncompressed"
_READ_AT_ONCE: Final = 256

# The package says what went wrong in words only.
_STORAGE: Final = {
    os.strerror(code): code
    for code in (
        *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
        *(errno.EMFILE, errno.ENFILE, errno.EIO, errno.ENOENT),
    )
}


def write_records(path: Path, batches: Iterable[Payloads]) -> RecordsSummary:
    """Write one record for each payload; equal payloads give equal bytes.

    Returns:
        How many records were written, and the bytes of their payloads.

    Raises:
        SettingsError: if the package is not there.
        OSError: if the file cannot be written.
    """
    records = payload_bytes = 0
    scratch = _Scratch()
    package = _package()
    try:
        writer = package.ArrayRecordWriter(os.fspath(path), _OPTIONS)
        try:
            for payloads in batches:
                for run in put_together(payloads, scratch.of):
                    for begin, end in pairwise(run.ends.tolist()):
                        writer.write(bytes(run.joined[begin:end]))
                        records += 1
                        payload_bytes += end - begin
        finally:
            writer.close()
    except RuntimeError as error:
        raise _storage_error(error, path) or error from error
    return RecordsSummary(records=records, payload_bytes=payload_bytes)


class _Scratch:
    """Memory for one run of payloads after another: what is new each time, the kernel clears."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def of(self, size: int) -> memoryview:
        """So many bytes, of any value."""
        if len(self._bytes) < size:
            self._bytes = bytearray(size)
        return memoryview(self._bytes)[:size]


def read_records(path: Path) -> Iterator[bytes]:
    """Yield the payloads, each once its checksum has been found right.

    Raises:
        SettingsError: if the package is not there.
        CorruptRecords: if the file is damaged, or is no ArrayRecord file.
        OSError: if it cannot be read.
    """
    package = _package()
    try:
        reader = package.ArrayRecordReader(os.fspath(path))
        try:
            count = reader.num_records()
            for first in range(0, count, _READ_AT_ONCE):
                yield from reader.read(range(first, min(first + _READ_AT_ONCE, count)))
        finally:
            reader.close()
    except (RuntimeError, ValueError, IndexError) as error:
        raise (
            _storage_error(error, path)
            or CorruptRecords(
                path,
                expected="a whole ArrayRecord file",
                found=str(error)[:300],
                remedy="Delete the manifest of the stage that wrote it, and materialize that stage again.",
            )
        ) from error


def _package() -> Any:  # noqa: ANN401 (it has no types)
    try:
        from array_record.python import array_record_module
    except ImportError:
        raise SettingsError(
            "[tfds] format: array_record needs the package array_record, which exists for Linux only"
        ) from None
    return array_record_module


def _storage_error(error: Exception, path: Path) -> OSError | None:
    """The system's word on the disk, where the package passes it on."""
    said = str(error)
    code = next((code for text, code in _STORAGE.items() if text in said), None)
    return None if code is None else OSError(code, os.strerror(code), os.fspath(path))
