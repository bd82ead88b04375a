"""New files of many megabytes: room is set aside before they are written, and digests taken meanwhile.

ext4 looks for room page by page where it is not told how much is to come: on a busy disk that takes three
quarters of the CPU time of writing. See fallocate(2).
"""

from __future__ import annotations

import ctypes
import io
from pathlib import Path
from typing import Any, Final

from laion_assets.formats.checksums import Digest, note_written

_RESERVED_BYTES: Final = 32 << 20
# A file that does not grow beyond this is not worth the two calls.
_SMALL_BYTES: Final = 1 << 20
_KEEP_SIZE: Final = 1  # FALLOC_FL_KEEP_SIZE (linux/falloc.h)
# What is digested and written at once, while a core's cache holds it; smaller pieces are joined before.
_PIECE_BYTES: Final = 1 << 18

# posix_fallocate(3) is no substitute: where a file system cannot do it, it writes to every page.
_fallocate: Final = getattr(ctypes.CDLL(None), "fallocate64", None)


class LargeFile(io.FileIO):
    """A new file, written from its beginning to its end.

    Unlike other raw files, it takes all bytes that it is given, and keeps small pieces until there are enough
    or it is closed. :func:`laion_assets.formats.checksums.checksums_of` then need not read it.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "wb")
        self._path = path
        self._digest = Digest()
        self._kept = bytearray()
        self._written = self._reserved = 0

    def write(self, piece: Any, /) -> int:  # noqa: ANN401 (any buffer)
        """Append bytes.

        Raises:
            OSError: if the disk does not take them.
        """
        view = memoryview(piece).cast("B")
        if len(self._kept) + len(view) > _PIECE_BYTES:
            self._write_kept()
        if len(view) > _PIECE_BYTES:
            self._write(view)
        else:
            self._kept += view
        return len(view)

    def tell(self) -> int:
        """Bytes so far."""
        return self._written + len(self._kept)

    def close(self) -> None:
        """Write what is kept, give back the room that is not needed, and close.

        Raises:
            OSError: if the disk does not take it.
        """
        if self.closed:
            return
        try:
            self._write_kept()
            if self._reserved > self._written:
                self.truncate(self._written)
        finally:
            super().close()
        note_written(self._path, self._digest.checksums)

    def _write_kept(self) -> None:
        kept, self._kept = self._kept, bytearray()
        self._write(memoryview(kept))

    def _write(self, view: memoryview) -> None:
        self._reserve(len(view))
        for start in range(0, len(view), _PIECE_BYTES):
            piece = view[start : start + _PIECE_BYTES]
            self._digest.update(piece)
            self._written += len(piece)
            while piece:
                piece = piece[super().write(piece) :]

    def _reserve(self, size: int) -> None:
        end = self._written + size
        if end > max(self._reserved, _SMALL_BYTES) and _fallocate is not None:
            start, self._reserved = self._reserved, end + _RESERVED_BYTES
            length = ctypes.c_int64(self._reserved - start)
            # Where there is no room for so much, or the file system cannot do it, writing tells.
            _fallocate(self.fileno(), _KEEP_SIZE, ctypes.c_int64(start), length)
