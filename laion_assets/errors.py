"""Everything that can go wrong with a shard, by name.

A bad *sample* is not here: it is a value, recorded in its row. These are the errors that stop a shard.

    LaionAssetsError
    ├── SettingsError          what the user set or typed is wrong; exit code 2
    ├── PlanError              the shard plan and the request, or the raw files, contradict each other
    ├── MissingInput           a file of the stage before is not there yet
    ├── SourceUnavailable      a raw file or a vector file cannot be fetched or opened
    ├── ShardBusy              another process holds the lease on this output
    ├── WorkerLost             the processes that worked on it died, one after the other
    ├── StorageError           the disk, its rights or the limits refuse what has to be written
    │   ├── DiskFull               no room, or no quota, left
    │   ├── NotWritable            a read-only disk, or a folder of another user's
    │   ├── TooManyOpenFiles       the limit on open files is too low
    │   ├── FileTooLong            a file outgrew the limit on its size
    │   ├── DeviceFailed           the disk did not read or write
    │   └── StoreUnavailable       the object store does not answer, or refuses
    └── CorruptInput           a file is not what it claims to be
        ├── CorruptParquet
        ├── CorruptTar
        ├── CorruptNpy
        ├── CorruptRecords
        ├── CorruptIndex
        ├── CorruptManifest
        ├── MisalignedShard        tar, Parquet and plan of an image shard do not belong together
        └── MisalignedEmbeddings   vectors and metadata do not belong together
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from laion_assets.text import MESSAGE_CHARACTERS, unlinked


class LaionAssetsError(Exception):
    """Base of every error this package raises on purpose.

    Args:
        message: it may quote what a file or a server says, and is made printable and free of links.
    """

    def __init__(self, message: str) -> None:
        super().__init__(unlinked(message, MESSAGE_CHARACTERS))


class SettingsError(LaionAssetsError):
    """A setting or a command-line argument is wrong; the message names it and says what is allowed."""


class PlanError(LaionAssetsError):
    """The shard plan contradicts the request or the raw files."""


class MissingInput(LaionAssetsError):
    """A file that a stage reads is not there yet; the message says which stage makes it."""


class SourceUnavailable(LaionAssetsError):
    """A source outside the data root cannot be read."""


class ShardBusy(LaionAssetsError):
    """Another process is writing this output."""


class WorkerLost(LaionAssetsError):
    """Process after process that worked on a partition died."""


class StorageError(LaionAssetsError):
    """What has to be written cannot be; the message says what is needed. A run after that goes on."""


class DiskFull(StorageError):
    """There is no room, or no quota, for what has to be written."""


class NotWritable(StorageError):
    """A file or folder may not be read or written."""


class TooManyOpenFiles(StorageError):
    """The limit on open files is too low for what is to be done."""


class FileTooLong(StorageError):
    """A file outgrew the limit on its size."""


class DeviceFailed(StorageError):
    """The disk did not read or write."""


class StoreUnavailable(StorageError):
    """The object store does not answer, or refuses."""


class CorruptInput(LaionAssetsError):
    """A file is not what it claims to be.

    Args:
        path: the file.
        expected: what should have been found.
        found: what was found.
        remedy: what to do about it.
    """

    def __init__(self, path: Path | str, *, expected: str, found: str, remedy: str) -> None:
        super().__init__(f"{path}: expected {expected}, found {found}. {remedy}")
        self.path = Path(path)
        self.expected = expected
        self.found = found
        self.remedy = remedy

    def __reduce__(self) -> tuple[Callable[..., CorruptInput], tuple[()]]:
        """Pickled by its facts: Python would call it with its message alone."""
        facts = {"expected": self.expected, "found": self.found, "remedy": self.remedy}
        return partial(type(self), self.path, **facts), ()


class CorruptParquet(CorruptInput):
    """A Parquet file is damaged or has other columns than declared."""


class CorruptTar(CorruptInput):
    """A tar file is truncated, damaged, or holds members it must not."""


class CorruptNpy(CorruptInput):
    """A .npy file's header and bytes disagree, or its values are not vectors."""


class CorruptRecords(CorruptInput):
    """A TFRecord or ArrayRecord file is cut short, or a checksum in it does not hold."""


class CorruptIndex(CorruptInput):
    """An index is not what its checksums are of, or not of the records expected."""


class CorruptManifest(CorruptInput):
    """A manifest cannot be read."""


class MisalignedShard(CorruptInput):
    """The tar, the Parquet file and the plan of an image shard do not belong together."""


class MisalignedEmbeddings(CorruptInput):
    """Vectors and metadata of an embedding shard do not belong together."""
