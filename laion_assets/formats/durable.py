"""Files and folders that survive a power cut, and what it means when the machine will not have them."""

from __future__ import annotations

import errno
import os
import resource
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Final

from laion_assets.errors import (
    DeviceFailed,
    DiskFull,
    FileTooLong,
    LaionAssetsError,
    NotWritable,
    StorageError,
    TooManyOpenFiles,
)


def write_durably(path: Path, data: bytes, *, draft: Path | None = None) -> None:
    """Write a small file so that it is there whole, or not at all, whatever happens.

    Args:
        path: the file.
        data: its bytes.
        draft: where to write them first, on the same disk; beside the file by default, where a kill may
            leave it.
    """
    # Several processes may write one path at once; the last to rename wins.
    draft = draft or path.with_name(f".{path.name}.{os.getpid()}.draft")
    try:
        with draft.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def identity(status: os.stat_result) -> tuple[int, int, int]:
    """Inode, size and time of change (ns): a file that was written or replaced since has another."""
    return status.st_ino, status.st_size, status.st_mtime_ns


def sync_file(path: Path) -> None:
    """Make a file's bytes survive a power cut."""
    _sync(path)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, if they are missing, so that their names survive a power cut."""
    if folder.is_dir():
        return
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in missing:
        sync_folder(made.parent)


# -- when the machine says no -----------------------------------------------------------------------------


@contextmanager
def naming_storage_errors(subject: object, folder: Path) -> Iterator[None]:
    """Turn what the disk, its rights or the limits refuse into an error that says what is needed.

    Args:
        subject: what was being written, for the message.
        folder: where it goes.

    Raises:
        StorageError: the one of its kinds that the error number stands for; other errors pass unchanged.
    """
    try:
        yield
    except LaionAssetsError:
        raise
    except Exception as error:
        refused = error if isinstance(error, OSError) else _told_in_words(error)
        explain = _MEANINGS.get(refused.errno or 0)
        if explain is None:
            raise
        raise explain(f"{subject}", folder, refused) from error


def free_bytes(folder: Path) -> int:
    """Room on the disk where a folder is, or will be."""
    return shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free


def _told_in_words(error: Exception) -> OSError:
    """The system's error that DuckDB or SQLite tell in words only; one without a number if there is none."""
    words = {os.strerror(number): number for number in _MEANINGS} | dict(_DATABASES_WORDS)
    number = next((number for said, number in words.items() if said in str(error)), None)
    return OSError() if number is None else OSError(number, os.strerror(number))


def _disk_full(subject: str, folder: Path, _: OSError) -> StorageError:
    return DiskFull(
        f"{subject}: the disk of {folder} is full, {free_bytes(folder):,} bytes are free: make room and run "
        "this again; what is finished is kept"
    )


def _quota(subject: str, folder: Path, _: OSError) -> StorageError:
    return DiskFull(
        f"{subject}: the disk quota of {folder} is used up: have it raised or make room, and run this again; "
        "what is finished is kept"
    )


def _not_writable(subject: str, folder: Path, error: OSError) -> StorageError:
    reason = "is on a disk that is mounted read-only" if error.errno == errno.EROFS else "may not be written"
    return NotWritable(
        f"{subject}: {_named(error, folder)} {reason} ({error.strerror}): make {folder} writable by this "
        "user and run this again"
    )


def _too_many_files(subject: str, _: Path, error: OSError) -> StorageError:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    whose = "the machine's" if error.errno == errno.ENFILE else f"the limit is {soft}, at most {hard}"
    return TooManyOpenFiles(
        f"{subject}: too many open files ({whose}): raise it (ulimit -n) or lower fetch.concurrency, and run "
        "this again"
    )


def _too_long(subject: str, folder: Path, error: OSError) -> StorageError:
    soft, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = "" if soft == resource.RLIM_INFINITY else f" ({soft:,} bytes: ulimit -f)"
    return FileTooLong(
        f"{subject}: {_named(error, folder)} outgrew what a file may hold here{limit}: raise the limit, or "
        "use another file system, and run this again"
    )


def _device_failed(subject: str, folder: Path, error: OSError) -> StorageError:
    # SQLite says "disk I/O error" where there is no room for its write-ahead log's index, 32 KiB at a time.
    if error.filename is None and free_bytes(folder) < 64 << 10:
        return _disk_full(subject, folder, error)
    return DeviceFailed(
        f"{subject}: {_named(error, folder)}: the disk did not read or write ({error.strerror}): see the "
        "system's log, and run this again once the disk is sound"
    )


_MEANINGS: Final[Mapping[int, Callable[[str, Path, OSError], StorageError]]] = MappingProxyType(
    {
        errno.ENOSPC: _disk_full,
        errno.EDQUOT: _quota,
        errno.EROFS: _not_writable,
        errno.EACCES: _not_writable,
        errno.EPERM: _not_writable,
        errno.EMFILE: _too_many_files,
        errno.ENFILE: _too_many_files,
        errno.EFBIG: _too_long,
        errno.EIO: _device_failed,
    }
)


# What SQLite says of SQLITE_FULL, SQLITE_READONLY and SQLITE_IOERR (sqlite3ErrStr in its main.c), and DuckDB
# of a sync that failed (LocalFileSystem::FileSync in its local_file_system.cpp).
_DATABASES_WORDS: Final[Mapping[str, int]] = MappingProxyType(
    {
        "database or disk is full": errno.ENOSPC,
        "attempt to write a readonly database": errno.EROFS,
        "disk I/O error": errno.EIO,
        "fsync failed!": errno.EIO,
    }
)


def _named(error: OSError, folder: Path) -> str:
    return str(error.filename or folder)
