"""New files of many megabytes, for which the disk's room is set aside before it is written to.

ext4 looks for room page by page where it is not told how much is to come: on a busy disk that takes three
quarters of the CPU time of writing. See fallocate(2).
"""

from __future__ import annotations

import ctypes
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

_RESERVED_BYTES: Final = 32 << 20
# A file that does not grow beyond this is not worth the two calls.
_SMALL_BYTES: Final = 1 << 20
_KEEP_SIZE: Final = 1  # FALLOC_FL_KEEP_SIZE (linux/falloc.h)
# What is joined before it is written. A writev(2) of the pieces takes twice as long where they are small.
_JOINED_BYTES: Final = 1 << 19

# posix_fallocate(3) is no substitute: where a file system cannot do it, it writes to every page.
_fallocate: Final = getattr(ctypes.CDLL(None), "fallocate64", None)


class LargeFile(io.FileIO):
    """A new file, written from its beginning to its end.

    Unlike other raw files, it takes all bytes that it is given.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "wb")
        self._bytes = self._reserved = 0

    def write(self, piece: Any, /) -> int:  # noqa: ANN401 (any buffer)
        """Append bytes.

        Raises:
            OSError: if the disk does not take them.
        """
        left = memoryview(piece).cast("B")
        size = len(left)
        self._reserve(size)
        while left:
            left = left[super().write(left) :]
        self._bytes += size
        return size

    def write_all(self, pieces: Sequence[bytes]) -> None:
        """Append bytes one after another.

        Raises:
            OSError: if the disk does not take them.
        """
        step = max(1, len(pieces) * _JOINED_BYTES // max(1, sum(map(len, pieces))))
        for first in range(0, len(pieces), step):
            self.write(b"".join(pieces[first : first + step]))

    def close(self) -> None:
        """Give back what is reserved and not needed, and close."""
        try:
            if not self.closed and self._reserved > self._bytes:
                self.truncate(self._bytes)
        finally:
            super().close()

    def _reserve(self, size: int) -> None:
        end = self._bytes + size
        if end > max(self._reserved, _SMALL_BYTES) and _fallocate is not None:
            start, self._reserved = self._reserved, end + _RESERVED_BYTES
            length = ctypes.c_int64(self._reserved - start)
            # Where there is no room for so much, or the file system cannot do it, writing tells.
            _fallocate(self.fileno(), _KEEP_SIZE, ctypes.c_int64(start), length)
