"""New files of many megabytes: room is set aside before they are written, and digests taken meanwhile.

ext4 looks for room page by page where it is not told how much is to come: on a busy disk that takes three
quarters of the CPU time of writing. See fallocate(2). What nobody is about to read need not be copied to the
page cache either (O_DIRECT in open(2)): that takes a tenth of the CPU time, from memory in huge pages.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import io
import mmap
import os
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from laion_assets.formats.checksums import Digest, note_written

_RESERVED_BYTES: Final = 32 << 20
# A file that does not grow beyond this is not worth the two calls.
_SMALL_BYTES: Final = 1 << 20
_KEEP_SIZE: Final = 1  # FALLOC_FL_KEEP_SIZE (linux/falloc.h)
# What is digested at once, as soon as it is there, while a core's cache holds it.
_PIECE_BYTES: Final = 1 << 18
# What is written at once: a huge page, or nearly, and a multiple of any disk's blocks.
_BUFFER_BYTES: Final = 1 << 21
_BLOCK_BYTES: Final = 1 << 12
# Where there is none (macOS), every file goes through the page cache.
_DIRECT: Final = getattr(os, "O_DIRECT", 0)

# posix_fallocate(3) is no substitute: where a file system cannot do it, it writes to every page.
_fallocate: Final = getattr(ctypes.CDLL(None), "fallocate64", None)


class LargeFile(io.FileIO):
    """A new file, written from its beginning to its end.

    Unlike other raw files, it takes all bytes that it is given, and keeps them until there are enough or it
    is closed; a thread of its own writes meanwhile. After that, ``checksums_of`` need not read it.
    """

    def __init__(self, path: Path, *, cached: bool = True) -> None:
        """Make it.

        Args:
            path: the file.
            cached: whether somebody is about to read it, so that its bytes are worth a place in memory.

        Raises:
            OSError: if it cannot be made.
        """
        super().__init__(path, "wb")
        if not cached:
            self._set_direct(_DIRECT)
        self._path = path
        self._digest = Digest()
        self._buffer = _new_buffer()
        self._filled = self._digested = 0
        self._spare: mmap.mmap | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._writing: Future[None] | None = None
        self._handed_over = self._reserved = 0

    def write(self, piece: Any, /) -> int:  # noqa: ANN401 (any buffer)
        """Append bytes.

        Raises:
            OSError: if the disk does not take them, or did not take those before.
        """
        view = memoryview(piece).cast("B")
        size = len(view)
        if view.obj is self._buffer:  # the room that there was
            self._filled += size
            if self._filled - self._digested >= _PIECE_BYTES:
                self._digest_filled()
            return size
        while view:
            if self._filled == _BUFFER_BYTES:
                self._hand_over()
            part = view[: _PIECE_BYTES - self._filled % _PIECE_BYTES]
            end = self._filled + len(part)
            self._buffer[self._filled : end] = part
            self._filled = end
            view = view[len(part) :]
            if end % _PIECE_BYTES == 0:
                self._digest_filled()
        return size

    def room(self, size: int) -> memoryview:
        """Memory for the next bytes, which takes no copying when it is written next.

        Raises:
            OSError: as :meth:`write`.
        """
        if size > _BUFFER_BYTES - _BLOCK_BYTES:
            return memoryview(bytearray(size))  # it takes some, after all
        if size > _BUFFER_BYTES - self._filled:
            self._hand_over()
        return memoryview(self._buffer)[self._filled : self._filled + size]

    def tell(self) -> int:
        """Bytes so far."""
        return self._handed_over + self._filled

    def close(self) -> None:
        """Write what is kept, give back the room that is not needed, and close.

        Raises:
            OSError: if the disk does not take it.
        """
        if self.closed:
            return
        try:
            self._await_writing()
            # Its end is no whole block.
            self._set_direct(0)
            self._digest_filled()
            self._write(memoryview(self._buffer)[: self._filled])
            if self._reserved > self.tell():
                self.truncate(self.tell())
        finally:
            if self._thread is not None:
                self._thread.shutdown()
            super().close()
            _spare_buffers.extend(buffer for buffer in (self._buffer, self._spare) if buffer is not None)
            del _spare_buffers[_MOST_SPARE:]
        note_written(self._path, self._digest.checksums)

    def _hand_over(self) -> None:
        """Have the buffer's whole blocks written while the other is filled."""
        self._digest_filled()
        kept = self._filled % _BLOCK_BYTES
        full = memoryview(self._buffer)[: self._filled - kept]
        self._await_writing()
        self._thread = self._thread or ThreadPoolExecutor(1)
        self._writing = self._thread.submit(self._write, full)
        self._handed_over += len(full)
        self._buffer, self._spare = self._spare or _new_buffer(), self._buffer
        self._buffer[:kept] = self._spare[len(full) : self._filled]
        self._filled = self._digested = kept

    def _digest_filled(self) -> None:
        self._digest.update(memoryview(self._buffer)[self._digested : self._filled])
        self._digested = self._filled

    def _await_writing(self) -> None:
        if self._writing is not None:
            self._writing.result()  # raises whenever it is asked, so that no file with a gap looks whole
            self._writing = None

    def _write(self, left: memoryview) -> None:
        self._reserve(len(left))
        while left:
            try:
                left = left[super().write(left) :]
            except OSError as error:
                # The file system, or a limit, wants it otherwise than in whole blocks.
                if error.errno != errno.EINVAL or not self._set_direct(0):
                    raise

    def _reserve(self, size: int) -> None:
        end = os.lseek(self.fileno(), 0, os.SEEK_CUR) + size
        if end > max(self._reserved, _SMALL_BYTES) and _fallocate is not None:
            start, self._reserved = self._reserved, end + _RESERVED_BYTES
            length = ctypes.c_int64(self._reserved - start)
            # Where the file system cannot, or has no room, writing will say.
            _fallocate(self.fileno(), _KEEP_SIZE, ctypes.c_int64(start), length)

    def _set_direct(self, direct: int) -> bool:
        """Set O_DIRECT or take it away; whether that changed anything."""
        flags = fcntl.fcntl(self.fileno(), fcntl.F_GETFL)
        if flags & _DIRECT == direct:
            return False
        with suppress(OSError):  # a file system that does not know it refuses it
            fcntl.fcntl(self.fileno(), fcntl.F_SETFL, flags & ~_DIRECT | direct)
            return True
        return False


# Of files that are closed: the kernel clears what is new.
_spare_buffers: list[mmap.mmap] = []
_MOST_SPARE: Final = 2


def _new_buffer() -> mmap.mmap:
    with suppress(IndexError):
        return _spare_buffers.pop()
    buffer = mmap.mmap(-1, _BUFFER_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            buffer.madvise(mmap.MADV_HUGEPAGE)
    return buffer
