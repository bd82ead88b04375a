"""Files of records in either of the two formats that TFDS data sets of ours come in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from laion_assets.formats import array_record, tfrecord
from laion_assets.formats.tfrecord import Payloads, RecordsSummary
from laion_assets.layout import FileFormat

_WRITERS: Final[Mapping[FileFormat, Callable[[Path, Iterable[Payloads]], RecordsSummary]]] = MappingProxyType(
    {"tfrecord": tfrecord.write_records, "array_record": array_record.write_records}
)
_READERS: Final[Mapping[FileFormat, Callable[[Path], Iterator[bytes]]]] = MappingProxyType(
    {"tfrecord": tfrecord.read_records, "array_record": array_record.read_records}
)


def write_records(path: Path, batches: Iterable[Payloads], file_format: FileFormat) -> RecordsSummary:
    """Write one record for each payload; equal payloads give equal bytes.

    Raises:
        SettingsError: if the format cannot be written on this machine.
        OSError: if the file cannot be written.
    """
    return _WRITERS[file_format](path, batches)


def read_records(path: Path, file_format: FileFormat) -> Iterator[bytes]:
    """Yield the payloads, each once its checksum has been found right.

    Raises:
        SettingsError: if the format cannot be read on this machine.
        CorruptRecords: if the file is damaged.
        OSError: if it cannot be read.
    """
    return _READERS[file_format](path)
