"""Headers of tar files: which members there are and where their bytes lie. Knows nothing of what they hold.

Two readers of one format (POSIX.1-1988 ustar, POSIX.1-2001 PAX, GNU). :func:`read_plain` takes a tar in which
nothing is out of the ordinary and looks at many headers at once, in a tenth of the time; whoever wants the
members' bytes, too, finds them in memory. :func:`walk` takes every tar that may be taken, and says what is
wrong with any other.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
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

# Of the fields of a header.
_NAME: Final = slice(0, 100)
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


# -- all headers of a window at once --------------------------------------------------------------

_WINDOW_BYTES: Final = 4 << 20
# Where a member is longer than this, walking costs nothing beside the rest.
_MOST_WINDOW_BYTES: Final = 64 << 20
# The first four letters of b"ustar".
_USTAR: Final = int.from_bytes(b"usta", "little")
_PLAIN_KINDS: Final = (0, ord("0"))
_PAX_KIND: Final = ord("x")
_PAX_TIME: Final = re.compile(rb"([1-9][0-9]?) mtime=-?[0-9]+(\.[0-9]+)?\n")


class NotPlain(Exception):
    """A tar is not one that :func:`read_plain` takes, and :func:`walk` has to be asked."""


class Window(NamedTuple):
    """Members of a tar that follow each other, and their bytes.

    Attributes:
        names: bytes (members,), dtype S100.
        offsets: of each first byte in the tar, int64 (members,).
        sizes: in bytes, int64 (members,).
        at: where in the tar ``body`` begins.
        body: in which all of these members lie; it holds other bytes once the next window is asked for.
    """

    names: npt.NDArray[np.bytes_]
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    at: int
    body: memoryview


class _Headers(NamedTuple):
    starts: npt.NDArray[np.int64]
    names: npt.NDArray[np.bytes_]
    sizes: npt.NDArray[np.int64]
    kinds: npt.NDArray[np.uint8]


def read_plain(
    descriptor: int, take: Callable[[memoryview], object], *, window_bytes: int = _WINDOW_BYTES
) -> Iterator[Window]:
    """Read a tar of plain files with short names, as ``tarfile``, GNU tar and we write them, just once.

    Before a file there may be a PAX header that holds its time and nothing else, as img2dataset has it.

    Args:
        descriptor: of the tar.
        take: is given all of its bytes, in their order.
        window_bytes: how much of it is in memory at a time, a multiple of a block; more where a member is
            longer.

    Yields:
        The members that :func:`walk` yields, each in one window.

    Raises:
        NotPlain: if ``walk`` has to be asked, which finds the members that were yielded until then, too.
    """
    size = os.fstat(descriptor).st_size
    if size == 0 or size % BLOCK:
        raise NotPlain
    # One buffer for all: memory that is new for each window costs as much as to read into it.
    buffer = memoryview(bytearray(min(window_bytes, size)))
    at = kept = 0
    while at + kept < size:
        count = os.preadv(descriptor, [buffer[kept : size - at]], at + kept)
        if count == 0 or count % BLOCK:
            raise NotPlain  # cut short since
        take(buffer[kept : kept + count])
        body = buffer[: kept + count]
        window, used, is_end = _look(body, at)
        if len(window.names):
            yield window
        if is_end:
            _take_padding(descriptor, body[used:], at + used, size, take)
            return
        # What is left begins with the header of a member that is not all there.
        at, left = at + used, body[used:]
        if len(left) == len(buffer):
            if len(buffer) >= _MOST_WINDOW_BYTES:
                raise NotPlain
            buffer = memoryview(bytearray(2 * len(buffer)))
        buffer[: len(left)] = left
        kept = len(left)
    raise NotPlain  # without an end


def _look(body: memoryview, at: int) -> tuple[Window, int, bool]:
    """The members that lie in a window whole, how many of its bytes they take, and whether no other follows.

    Raises:
        NotPlain: if what looks like a header is none, or is none of those that are plain.
    """
    found = _headers(body)
    ends = found.starts + BLOCK + found.sizes + -found.sizes % BLOCK
    # What looks like a header and stands in a picture is in no chain, and what is none ends it.
    if found.starts[:1].any() or (found.starts[1:] != ends[:-1]).any():
        raise NotPlain
    whole = int(np.searchsorted(ends, len(body), "right"))
    is_end = whole == len(ends) and (int(ends[-1]) if whole else 0) < len(body)
    is_time = found.kinds == _PAX_KIND
    if whole and is_time[whole - 1]:  # the member that it is of is not there yet
        whole -= 1
    if is_end and whole < len(ends):
        raise NotPlain
    if not all(_holds_a_time(body, found, place) for place in np.flatnonzero(is_time[:whole]).tolist()):
        raise NotPlain
    is_file = ~is_time[:whole]
    names, starts, sizes = (column[:whole][is_file] for column in (found.names, found.starts, found.sizes))
    used = int(ends[whole - 1]) if whole else 0
    return Window(names, at + starts + BLOCK, sizes, at, body), used, is_end


# Of the bytes from the size to the kind. Octal digits differ in their lowest three bits only.
_FIELDS: Final = slice(124, 157)
_LENGTHS: Final = (11, 1, 12, 6, 1, 1, 1)
_MASKS: Final = np.repeat(np.array([0xF8, 0xFF, 0, 0xF8, 0xFF, 0xFF, 0], np.uint8), _LENGTHS)[:, None]
_MASKED: Final = np.repeat(np.array([0x30, 0, 0, 0x30, 0, _BLANK, 0], np.uint8), _LENGTHS)[:, None]
# What a byte adds to the size, to the checksum, and to what the checksum's own field has in place of blanks;
# exact in float64.
_NUMBERS: Final = np.array(
    [
        [*(8.0**at for at in range(10, -1, -1)), *[0.0] * 22],
        [*[0.0] * 24, *(8.0**at for at in range(5, -1, -1)), *[0.0] * 3],
        [*[0.0] * 24, *[1.0] * 8, 0.0],
    ]
)
_OFFSETS: Final = np.array([[ord("0") * (8**11 - 1) / 7], [ord("0") * (8**6 - 1) / 7], [8.0 * _BLANK]])


def _headers(body: memoryview) -> _Headers:
    """Those of a window's blocks that are headers by looks and checksum."""
    blocks = np.frombuffer(body, np.uint8).reshape(-1, BLOCK)
    magic = np.ndarray(len(blocks), "<u4", body, offset=_MAGIC_AT, strides=(BLOCK,))
    places = np.flatnonzero(magic == _USTAR)
    heads = blocks.take(places, axis=0)
    # The bytes of half a header add up to what 16 bits hold.
    halves = heads.reshape(-1, 2, BLOCK // 2).sum(axis=2, dtype=np.uint16).astype(np.int64)
    # A row for each byte, since numpy is quick along rows.
    fields = np.ascontiguousarray(heads[:, _FIELDS].T)
    sizes, recorded, beyond_blanks = (_NUMBERS @ fields.astype(np.float64) - _OFFSETS).astype(np.int64)
    kinds = fields[-1]
    good = (
        ((fields & _MASKS) == _MASKED).all(axis=0)
        & (recorded == halves[:, 0] + halves[:, 1] - beyond_blanks)
        & ((kinds == _PLAIN_KINDS[0]) | (kinds == _PLAIN_KINDS[1]) | (kinds == _PAX_KIND))
        & ~heads[:, _PREFIX].any(axis=1)
    )
    names = heads[good, _NAME].view("S100").ravel()
    return _Headers(places[good] * BLOCK, names, sizes[good], kinds[good])


def _take_padding(
    descriptor: int, rest: memoryview, end: int, size: int, take: Callable[[memoryview], object]
) -> None:
    """Take what follows the last member: two empty blocks, and nothing but what programs fill up with.

    Raises:
        NotPlain: if it is anything else.
    """
    if not len(END) <= size - end <= len(END) + _MAX_PADDING_BYTES:
        raise NotPlain
    beyond = os.pread(descriptor, size - end - len(rest), end + len(rest))
    take(memoryview(beyond))
    if bytes(rest) + beyond != bytes(size - end):
        raise NotPlain


def _holds_a_time(body: memoryview, found: _Headers, at: int) -> bool:
    """Whether a PAX header is of the member after it, and names neither it nor its size."""
    if found.kinds[at + 1] == _PAX_KIND or found.sizes[at] > BLOCK:
        return False
    start = int(found.starts[at]) + BLOCK
    data = body[start : start + int(found.sizes[at])]
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
