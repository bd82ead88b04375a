"""Who may write or read a partition's files, among the processes of one machine (or of one shared disk)."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from laion_assets.errors import ShardBusy
from laion_assets.layout import Output


@contextmanager
def lease(output: Output, *, shared: bool = False) -> Iterator[None]:
    """Hold a partition: to write it, or, shared with others, to read it.

    Raises:
        ShardBusy: if another process holds it.
    """
    with _opened(output.lease) as file:
        try:
            # The kernel releases the lock when its holder dies, so no lease is ever stale.
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ShardBusy(
                f"{output} is being {'written' if shared else 'written or read'} by another process: wait "
                "for it to end, then run this again"
            ) from None
        yield


@contextmanager
def copying(output: Output) -> Iterator[None]:
    """Hold what this machine has of a partition in object storage, once nobody else changes it."""
    with _opened(output.copy_lock) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    # NFS shares a lock only of what is open for reading, and gives it alone only of what is open for writing.
    flags = os.O_RDWR | os.O_CREAT
    try:
        file = os.open(path, flags, 0o666)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, flags, 0o666)
    try:
        yield file
    finally:
        os.close(file)
