"""What a partition's work has finished so far, kept so that a run that is killed is not begun again.

One file that is only appended to. Its records are framed as TFRecords are, so a record that a kill or a
power cut left torn, or that was damaged since, is told from a whole one; the file is taken up to there. The
first record says what the work is: a journal of other work is begun anew.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from laion_assets.errors import CorruptRecords
from laion_assets.formats import tfrecord
from laion_assets.formats.durable import make_folder, sync_folder

# JSON holds no bare newline, so the first one ends the fields.
_END_OF_FIELDS: Final = b"\n"


@dataclass(frozen=True, slots=True)
class Entry:
    """Something finished: fields that say what, and where its bytes lie in the journal's file."""

    fields: Mapping[str, Any]
    offset: int
    size: int


class Journal:
    """An open journal; its entries are whole, those of earlier runs included.

    Attributes:
        path: the file, in which the entries' bytes lie.
        entries: what earlier runs finished, in order.
    """

    def __init__(self, path: Path, descriptor: int, work: str) -> None:
        self.path = path
        self.entries: list[Entry] = []
        self._descriptor = descriptor
        self._end = 0
        self._unsynced = 0
        self._take_up(work)

    @property
    def unsynced(self) -> int:
        """Entries that a power cut, though not a kill, would lose now."""
        return self._unsynced

    def append(self, fields: Mapping[str, Any], body: bytes = b"") -> Entry:
        """Add an entry; once this returns, no kill of the process undoes it.

        Raises:
            OSError: if it cannot be written; the next entry is then put in its place.
        """
        head = json.dumps(fields).encode() + _END_OF_FIELDS
        record = tfrecord.frame(head + body)
        written = 0
        while written < len(record):
            written += os.pwrite(self._descriptor, memoryview(record)[written:], self._end + written)
        entry = Entry(fields, self._end + tfrecord.HEADER_BYTES + len(head), len(body))
        self._end += len(record)
        self._unsynced += 1
        return entry

    def sync(self) -> None:
        """Make the entries so far survive a power cut."""
        self._unsynced = 0
        os.fsync(self._descriptor)

    def _take_up(self, work: str) -> None:
        """Read the entries of earlier runs at the same work, and cut off what is not whole."""
        is_same = False
        try:
            for number, payload in enumerate(tfrecord.read_records(self.path)):
                head, _, body = payload.partition(_END_OF_FIELDS)
                fields = json.loads(head)
                if number == 0:
                    is_same = fields == {"work": work}
                    if not is_same:
                        break
                else:
                    offset = self._end + tfrecord.HEADER_BYTES + len(head) + len(_END_OF_FIELDS)
                    self.entries.append(Entry(fields, offset, len(body)))
                self._end += len(payload) + tfrecord.FRAMING_BYTES
        except CorruptRecords:
            pass  # torn by a kill: what is behind it counts as never done
        os.ftruncate(self._descriptor, self._end)
        if not is_same:
            self.append({"work": work})
            self.sync()
            sync_folder(self.path.parent)


@contextmanager
def open_journal(path: Path, *, work: str) -> Iterator[Journal]:
    """A journal of some work, with what earlier runs finished of it.

    Args:
        path: its file, which is made if it is missing.
        work: says what the work is; entries of other work are discarded.

    Raises:
        OSError: if the file cannot be read or written.
    """
    make_folder(path.parent)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        yield Journal(path, descriptor, work)
    finally:
        os.close(descriptor)
