"""Headers of tar files: which members there are and where their bytes lie. Knows nothing of what they hold.

Two readers of one format (POSIX.1-1988 ustar, POSIX.1-2001 PAX, GNU). :func:`list_plain` takes a tar in which
nothing is out of the ordinary and looks at all its headers at once, in a quarter of the time (30,000 in 0.1 s
of one core); :func:`walk` takes every tar that may be taken, and says what is wrong with any other.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from laion_assets.errors import CorruptTar

BLOCK: Final = 512
"""Headers are of this many bytes, and begin at multiples of it."""
END: Final = bytes(2 * BLOCK)
"""What ends a tar."""

# What a header may say about the one after it; img2dataset's hold a time.
_MAX_EXTENDED_BYTES: Final = 1 << 16
# tarfile fills up to 10 kB, tar(1) to any multiple of 512 that it is told.
_MAX_PADDING_BYTES: Final = 1 << 20

# Of the fields of a header. The last byte of the size, and the last two of the checksum, end the number.
_NAME: Final = slice(0, 100)
_SIZE: Final = slice(124, 135)
_SIZE_END: Final = 135
_CHECKSUM: Final = slice(148, 154)
_CHECKSUM_END: Final = slice(154, 156)
_KIND: Final = 156
_MAGIC_AT: Final = 257
_PREFIX: Final = slice(345, 500)

_BLANK: Final = ord(" ")
_OCTAL: Final = re.compile(rb"[0-7]+")
_REMEDY: Final = "Fetch or place the tar again; delete the shard's manifest to have it made again."


@dataclass(frozen=True, slots=True)
class Member:
    """Where a member's bytes lie in the tar: offset of the first, and how many."""

    offset: int
    size: int


def corrupt(path: Path, expected: str, found: str) -> CorruptTar:
    """The error that names a tar."""
    return CorruptTar(path, expected=expected, found=found, remedy=_REMEDY)


# -- all headers at once --------------------------------------------------------------------------

_WINDOW_BYTES: Final = 4 << 20
# The first four letters of b"ustar".
_USTAR: Final = int.from_bytes(b"usta", "little")
_PLAIN_KINDS: Final = (0, ord("0"))
_PAX_KIND: Final = ord("x")
_PAX_TIME: Final = re.compile(rb"([1-9][0-9]?) mtime=-?[0-9]+(\.[0-9]+)?\n")


class PlainMembers(NamedTuple):
    """Members of a tar, in its order.

    Attributes:
        names: bytes (members,), dtype S100.
        offsets: of each first byte, int64 (members,).
        sizes: in bytes, int64 (members,).
    """

    names: npt.NDArray[np.bytes_]
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]


class _Headers(NamedTuple):
    starts: npt.NDArray[np.int64]
    names: npt.NDArray[np.bytes_]
    sizes: npt.NDArray[np.int64]
    kinds: npt.NDArray[np.uint8]


def list_plain(descriptor: int, *, window_bytes: int = _WINDOW_BYTES) -> PlainMembers | None:
    """The members of a tar of plain files with short names, as ``tarfile``, GNU tar and we write them.

    Before a file there may be a PAX header that holds its time and nothing else, as img2dataset has it.

    Args:
        descriptor: of the tar.
        window_bytes: how much of it is in memory at a time, a multiple of a block.

    Returns:
        What :func:`walk` yields; None where it has to be asked.
    """
    size = os.fstat(descriptor).st_size
    if size == 0 or size % BLOCK:
        return None
    # One buffer for all: memory that is new for each window costs as much as to read into it.
    buffer = memoryview(bytearray(min(window_bytes, size)))
    windows = [
        _headers(buffer[: os.preadv(descriptor, [buffer], at)], at) for at in range(0, size, window_bytes)
    ]
    found = _Headers(*map(np.concatenate, zip(*windows, strict=True)))
    if not len(found.starts):
        return None
    # What looks like a header and stands in a picture is in no chain, and what is none ends it.
    ends = found.starts + BLOCK + found.sizes + -found.sizes % BLOCK
    if not np.array_equal(found.starts, [0, *ends[:-1]]) or not _is_padding(descriptor, size, int(ends[-1])):
        return None
    is_time = found.kinds == _PAX_KIND
    if not all(_holds_a_time(descriptor, found, at) for at in np.flatnonzero(is_time).tolist()):
        return None
    return PlainMembers(found.names[~is_time], (found.starts + BLOCK)[~is_time], found.sizes[~is_time])


def _headers(window: memoryview, at: int) -> _Headers:
    """Those of a window's blocks, the first of which is at ``at``, that are headers by looks and checksum."""
    blocks = np.frombuffer(window, np.uint8, len(window) // BLOCK * BLOCK).reshape(-1, BLOCK)
    magic = np.ndarray(len(blocks), "<u4", window, offset=_MAGIC_AT, strides=(BLOCK,))
    places = np.flatnonzero(magic == _USTAR)
    heads = blocks[places]
    sizes, recorded = _octal(heads[:, _SIZE]), _octal(heads[:, _CHECKSUM])
    # The sum of all bytes, those of the checksum's own field taken as blanks.
    totals = heads.sum(axis=1, dtype=np.int64)
    for field in (_CHECKSUM, _CHECKSUM_END):
        totals -= heads[:, field].sum(axis=1, dtype=np.int64)
    kinds = heads[:, _KIND]
    good = (
        (sizes >= 0)
        & (recorded == totals + 8 * _BLANK)
        & (heads[:, _SIZE_END] == 0)
        & (heads[:, _CHECKSUM_END] == (0, _BLANK)).all(axis=1)
        & ~heads[:, _PREFIX].any(axis=1)
        & np.isin(kinds, (*_PLAIN_KINDS, _PAX_KIND))
    )
    names = np.ascontiguousarray(heads[good, _NAME]).view("S100").ravel()
    return _Headers(at + places[good] * BLOCK, names, sizes[good], kinds[good])


def _octal(digits: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Numbers from their digits (numbers, digits); -1 where a byte is none."""
    values = digits - np.uint8(ord("0"))  # below '0' it wraps around
    weights = 8 ** np.arange(digits.shape[1] - 1, -1, -1)
    return np.where((values < 8).all(axis=1), values @ weights, -1)


def _is_padding(descriptor: int, size: int, end: int) -> bool:
    """Whether two empty blocks follow the last member, and nothing but what programs fill up with."""
    if not len(END) <= size - end <= len(END) + _MAX_PADDING_BYTES:
        return False
    return not any(os.pread(descriptor, size - end, end))


def _holds_a_time(descriptor: int, found: _Headers, at: int) -> bool:
    """Whether a PAX header is of the member after it, and names neither it nor its size."""
    if at + 1 == len(found.kinds) or found.kinds[at + 1] == _PAX_KIND or found.sizes[at] > BLOCK:
        return False
    data = os.pread(descriptor, int(found.sizes[at]), int(found.starts[at]) + BLOCK)
    match = _PAX_TIME.fullmatch(data)
    return match is not None and int(match[1]) == len(data)


# -- one by one -----------------------------------------------------------------------------------


def walk(path: Path, descriptor: int) -> Iterator[tuple[str, Member]]:
    """Name and place of each plain file, in the tar's order.

    Raises:
        CorruptTar: if the tar is cut short or damaged, or holds a member that is no plain file.
    """
    return _Reader(path, descriptor).members()


class _Reader:
    """Walks the headers of one tar."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor
        self._size = os.fstat(descriptor).st_size
        self._offset = 0

    def members(self) -> Iterator[tuple[str, Member]]:
        """Name and place of each plain file."""
        name: str | None = None
        size: int | None = None
        while (block := self._block()) != bytes(BLOCK):
            kind, found = block[156:157], self._member_size(block)
            if kind == b"L":  # GNU: the next member's name
                name = self._extended(found).rstrip(b"\0").decode("utf-8", "replace")
            elif kind == b"x":  # PAX: the next member's fields
                fields = self._pax(self._extended(found))
                name, size = fields.get("path", name), self._pax_size(fields, size)
            elif kind == b"g":  # PAX: every member's fields
                if {"path", "size"} & self._pax(self._extended(found)).keys():
                    raise self._corrupt("global headers without names and sizes", "one with them")
            elif kind in (b"0", b"\0"):
                yield (
                    self._name(block) if name is None else name,
                    self._body(found if size is None else size),
                )
                name = size = None
            else:
                raise self._corrupt("plain files only", f"a member of type {kind!r}")
        if name is not None or size is not None:
            raise self._corrupt("a member after its extended header", "the end")
        self._check_end()

    def _corrupt(self, expected: str, found: str) -> CorruptTar:
        return corrupt(self._path, expected, f"{found} before byte {self._offset}")

    def _block(self) -> bytes:
        block = os.pread(self._descriptor, BLOCK, self._offset)
        if len(block) < BLOCK:
            raise self._corrupt("two empty blocks at the end", "the end of the file")
        self._offset += BLOCK
        return block

    def _check_end(self) -> None:
        """The first empty block is read: another must follow, and nothing after."""
        if self._block() != bytes(BLOCK):
            raise self._corrupt("two empty blocks at the end", "one")
        rest = os.pread(self._descriptor, _MAX_PADDING_BYTES + 1, self._offset)
        if any(rest) or len(rest) > _MAX_PADDING_BYTES:
            raise self._corrupt("nothing after the end", "more bytes")

    def _body(self, size: int) -> Member:
        member = Member(offset=self._offset, size=size)
        self._offset += size + -size % BLOCK
        if self._offset > self._size:
            raise self._corrupt(f"a member of {size} bytes", f"a file of {self._size} bytes, which ends")
        return member

    def _extended(self, size: int) -> bytes:
        if size > _MAX_EXTENDED_BYTES:
            raise self._corrupt(f"extended headers of at most {_MAX_EXTENDED_BYTES} bytes", f"{size}")
        member = self._body(size)
        return os.pread(self._descriptor, member.size, member.offset)

    def _member_size(self, block: bytes) -> int:
        """Size in a header, once its checksum holds."""
        recorded = self._octal(block[148:156])
        # The sum of all bytes, its own field taken as blanks. Adler-32 begun at 0 has it in its lower half,
        # unless it is as large as 65,521, which no sum of ASCII letters and zeros is.
        total = (zlib.adler32(block, 0) & 0xFFFF) - sum(block[148:156]) + 8 * _BLANK
        if recorded != total:
            blank = block[:148] + b" " * 8 + block[156:]
            # Some old writers summed signed bytes, and tarfile takes both.
            if recorded not in (sum(blank), sum(byte - 256 * (byte > 127) for byte in blank)):
                raise self._corrupt("a header whose checksum holds", "another")
        field = block[124:136]
        if field[0] == 0x80:  # GNU: binary
            return int.from_bytes(field[1:])
        return self._octal(field)

    def _octal(self, field: bytes) -> int:
        digits = field.strip(b" \0") or b"0"
        if not _OCTAL.fullmatch(digits):
            raise self._corrupt("octal digits in a header", f"{digits!r}")
        return int(digits, 8)

    def _name(self, block: bytes) -> str:
        name = block[:100].split(b"\0", 1)[0]
        prefix = block[345:500].split(b"\0", 1)[0] if block[257:263] == b"ustar\0" else b""
        return (prefix + b"/" + name if prefix else name).decode("utf-8", "replace")

    def _pax(self, data: bytes) -> Mapping[str, str]:
        """Fields of a PAX header: each length, blank, keyword=value, newline; the length counts itself."""
        fields: dict[str, str] = {}
        while data:
            match = re.match(rb"([1-9][0-9]{0,5}) ([^=]+)=", data)
            length = int(match[1]) if match else 0
            if match is None or length > len(data) or length <= match.end() or data[length - 1] != 0x0A:
                raise self._corrupt("PAX fields", f"{data[:20]!r}")
            keyword = match[2].decode("utf-8", "replace")
            if keyword.startswith("GNU.sparse"):
                raise self._corrupt("plain files only", "a sparse one")
            fields[keyword] = data[match.end() : length - 1].decode("utf-8", "replace")
            data = data[length:]
        return fields

    def _pax_size(self, fields: Mapping[str, str], size: int | None) -> int | None:
        text = fields.get("size")
        if text is None:
            return size
        if not re.fullmatch(r"[0-9]{1,15}", text):
            raise self._corrupt("a size in a PAX header", f"{text[:20]!r}")
        return int(text)
