"""Vectors in .npy files: header and size are checked before a byte is taken for a vector.

``numpy.load(allow_pickle=False)`` accepts trailing bytes, vectors of another width, and a header that claims
4 GB. Here a file must be exactly what its header says, and its header what numpy writes for a
two-dimensional array (NEP 1, "A Simple File Format for NumPy Arrays"). Nothing is ever unpickled.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt

from laion_assets.errors import CorruptNpy, SourceUnavailable
from laion_assets.formats.checksums import Hash

_MAGIC: Final = b"\x93NUMPY"
_MAGIC_BYTES: Final = len(_MAGIC) + 2  # and the version, major and minor

# Version -> bytes of the header's length.
_LENGTH_BYTES: Final = {(1, 0): 2, (2, 0): 4, (3, 0): 4}

# A two-dimensional array needs 118 bytes; anything far longer is no header that numpy wrote.
_MAX_HEADER_BYTES: Final = 1024

# numpy.lib.format sorts the keys and fills up with spaces. Read by pattern rather than as a Python literal.
_HEADER: Final = re.compile(
    rb"\{\s*'descr':\s*'(?P<descr>[^']{1,16})',"
    rb"\s*'fortran_order':\s*(?P<fortran>True|False),"
    rb"\s*'shape':\s*\((?P<shape>[0-9, ]*)\)\s*,?\s*\}\s*"
)

_DTYPES: Final[Mapping[str, np.dtype[Any]]] = {"<f2": np.dtype("<f2"), "<f4": np.dtype("<f4")}

_REMEDY: Final = "Fetch or write the file again."


@dataclass(frozen=True, kw_only=True)
class _Header:
    rows: int
    dtype: np.dtype[Any]
    offset: int


def open_vectors(path: Path, *, width: int) -> np.memmap[Any, np.dtype[Any]]:
    """Map a file of vectors for random access; its pages are read when they are looked at.

    A mapped file must not be truncated meanwhile, which the kernel answers by killing the process. To read
    all of it, :func:`open_reader` is as fast and has no such danger.

    Args:
        path: the file.
        width: elements that each vector must have.

    Returns:
        A read-only array (rows, width) of float16 or float32.

    Raises:
        CorruptNpy: if the file is not exactly such an array.
        SourceUnavailable: if it cannot be opened.
    """
    with _opened(path) as file:
        header = _check(file, path, width)
        return np.memmap(file, header.dtype, mode="r", offset=header.offset, shape=(header.rows, width))


class VectorReader:
    """Reads a file of vectors from its first row to its last.

    Attributes:
        path: the file.
        rows: how many vectors it holds.
        width: elements of a vector.
        dtype: float16 or float32, little-endian.
        size_bytes: size of the file.
    """

    def __init__(self, file: IO[bytes], path: Path, width: int, digest: Hash | None) -> None:
        header = _check(file, path, width)
        self.path = path
        self.rows = header.rows
        self.width = width
        self.dtype = header.dtype
        self.size_bytes = header.offset + header.rows * width * header.dtype.itemsize
        self._file = file
        self._rows_left = header.rows
        file.seek(0)
        self._digest = digest
        self._update(file.read(header.offset))

    def read(self, rows: int) -> npt.NDArray[Any]:
        """The next vectors, at most ``rows``, in memory of their own.

        Returns:
            An array (rows, width) of ``dtype``; of no rows at the end.

        Raises:
            CorruptNpy: if the file became shorter since it was opened.
        """
        vectors = np.empty((min(rows, self._rows_left), self.width), self.dtype)
        self.read_into(vectors)
        return vectors

    def read_into(self, vectors: npt.NDArray[Any]) -> None:
        """The next vectors, in memory of the caller's.

        Args:
            vectors: an array (rows, width) of ``dtype``, contiguous, of no more rows than are left.

        Raises:
            CorruptNpy: if the file became shorter since it was opened.
        """
        view = vectors.reshape(-1).view(np.uint8).data
        filled = 0
        while filled < len(view):
            count = self._file.readinto(view[filled:])  # type: ignore[attr-defined]
            if not count:
                raise _corrupt(self.path, f"{self.rows} rows, as when it was opened", "fewer")
            filled += count
        self._update(view)
        self._rows_left -= len(vectors)

    def _update(self, piece: bytes | memoryview) -> None:
        if self._digest is not None:
            self._digest.update(piece)


@contextmanager
def open_reader(path: Path, *, width: int, digest: Hash | None = None) -> Iterator[VectorReader]:
    """A reader of a file of vectors.

    Args:
        path: the file.
        width: elements that each vector must have.
        digest: given every byte in turn: the whole file, once all rows were read.

    Raises:
        CorruptNpy: if the file is not exactly an array (rows, width) of float16 or float32.
        SourceUnavailable: if it cannot be opened.
    """
    with _opened(path) as file:
        yield VectorReader(file, path, width, digest)


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    try:
        # Unbuffered, because vectors are read in large pieces straight into their array.
        file = path.open("rb", buffering=0)
    except OSError as error:
        raise SourceUnavailable(f"{path} cannot be read: {error.strerror}") from error
    with file:
        yield file


def _check(file: IO[bytes], path: Path, width: int) -> _Header:
    """Check everything about a file but its vectors."""
    text, offset = _read_header(file, path)
    match = _HEADER.fullmatch(text)
    if match is None:
        raise _corrupt(path, "the header of one array, as numpy writes it", repr(text[:100]))
    descr = match["descr"].decode("latin-1")
    if descr not in _DTYPES:
        raise _corrupt(path, f"dtype {' or '.join(_DTYPES)}", repr(descr))
    if match["fortran"] != b"False":
        raise _corrupt(path, "vectors stored one after another (C order)", "Fortran order")
    shape = _shape(match["shape"])
    if shape is None or shape[1] != width:
        raise _corrupt(path, f"shape (rows, {width})", f"({match['shape'].decode('ascii')[:60]})")
    header = _Header(rows=shape[0], dtype=_DTYPES[descr], offset=offset)
    size = os.fstat(file.fileno()).st_size
    expected = header.offset + header.rows * width * header.dtype.itemsize
    if size != expected:
        raise _corrupt(path, f"{expected} bytes for {header.rows} rows of {width} {descr}", f"{size} bytes")
    return header


def _read_header(file: IO[bytes], path: Path) -> tuple[bytes, int]:
    """The header's text, and where the vectors begin."""
    start = file.read(_MAGIC_BYTES)
    if len(start) < _MAGIC_BYTES or not start.startswith(_MAGIC):
        raise _corrupt(path, "a .npy file", f"one that begins with {start!r}")
    version = (start[-2], start[-1])
    if version not in _LENGTH_BYTES:
        raise _corrupt(path, "version 1.0, 2.0 or 3.0", f"version {version[0]}.{version[1]}")
    length_bytes = _LENGTH_BYTES[version]
    length = int.from_bytes(file.read(length_bytes), "little")
    if length > _MAX_HEADER_BYTES:
        raise _corrupt(path, f"a header of at most {_MAX_HEADER_BYTES} bytes", f"{length} bytes claimed")
    text = file.read(length)
    if len(text) < length:
        raise _corrupt(path, f"a header of {length} bytes", f"the file's end after {len(text)}")
    return text, _MAGIC_BYTES + length_bytes + length


def _shape(text: bytes) -> tuple[int, int] | None:
    """Rows and elements; None where there are not two numbers, or more digits than a file can have bytes."""
    match = re.fullmatch(rb" *([0-9]{1,15}) *, *([0-9]{1,15}) *,? *", text)
    return (int(match[1]), int(match[2])) if match else None


def _corrupt(path: Path, expected: str, found: str) -> CorruptNpy:
    return CorruptNpy(path, expected=expected, found=found, remedy=_REMEDY)
