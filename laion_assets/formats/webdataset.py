"""Tar files of samples, as WebDataset and img2dataset lay them out; written byte for byte the same each time.

A sample's files follow each other and share a stem: ``000120034.jpg``, ``000120034.txt``,
``000120034.json``. The reader looks at headers only and never extracts; bytes are read in place.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from laion_assets.errors import CorruptTar

_BLOCK: Final = 512
_END: Final = bytes(2 * _BLOCK)
# In our headers' field for the owner's name, where nobody looks but :func:`is_ours`.
_OWNER: Final = b"laion_assets"
_OWNER_FIELD: Final = slice(265, 297)

# Stem and extension; nothing that could lead out of a folder.
_NAME: Final = re.compile(r"(?P<stem>[A-Za-z0-9_-]+)\.(?P<extension>[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*)")
_OCTAL: Final = re.compile(rb"[0-7]+")
_BLANK: Final = ord(" ")
_MAX_NAME_BYTES: Final = 100
_MAX_SIZE: Final = 8**11 - 1  # eleven octal digits
# What a header may say about the one after it; img2dataset's hold a time.
_MAX_EXTENDED_BYTES: Final = 1 << 16

# tarfile fills up to 10 kB, tar(1) to any multiple of 512 that it is told.
_MAX_PADDING_BYTES: Final = 1 << 20

_REMEDY: Final = "Fetch or place the tar again; delete the shard's manifest to have it made again."


@dataclass(frozen=True, slots=True)
class Member:
    """Where a member's bytes lie in the tar: offset of the first, and how many."""

    offset: int
    size: int


class TarWriter:
    """Appends members with fixed owner, mode and time, so that equal members are equal bytes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._offset = 0

    def add(self, name: str, body: bytes) -> Member:
        """Append one member.

        Raises:
            ValueError: if the name is not ``stem.extension`` in at most 100 characters, or the body is
                longer than a ustar header can say.
        """
        if not _NAME.fullmatch(name) or len(name) > _MAX_NAME_BYTES:
            raise ValueError(f"{name!r} cannot name a member")
        if len(body) > _MAX_SIZE:
            raise ValueError(f"{name}: {len(body)} bytes do not fit a ustar header")
        self._file.write(_header(name, len(body)))
        self._file.write(body)
        self._file.write(bytes(-len(body) % _BLOCK))
        member = Member(offset=self._offset + _BLOCK, size=len(body))
        self._offset = member.offset + len(body) + -len(body) % _BLOCK
        return member

    def end(self) -> None:
        """Write the two empty blocks without which the tar counts as cut short."""
        self._file.write(_END)


@contextmanager
def open_tar(path: Path) -> Iterator[TarWriter]:
    """A writer; the tar is ended only if the block ends without an exception."""
    with path.open("wb") as file:
        writer = TarWriter(file)
        yield writer
        writer.end()


def index_tar(path: Path) -> dict[str, dict[str, Member]]:
    """Where each sample's files lie: stem -> extension (lower case) -> member, in the tar's order.

    Reads headers only. Takes what ``tarfile`` writes (ustar, GNU and PAX headers), such as img2dataset's
    tars. The extension is all that follows the first dot, as in WebDataset.

    Raises:
        CorruptTar: if the tar is cut short or damaged, or holds a member that is no plain file, is there
            twice, or is not named ``stem.extension``.
    """
    samples: dict[str, dict[str, Member]] = {}
    with path.open("rb") as file:
        reader = _Reader(path, file.fileno())
        for name, member in reader.members():
            parts = _NAME.fullmatch(name)
            if parts is None:
                raise reader.corrupt("members named stem.extension", f"{name[:60]!r}")
            files = samples.setdefault(parts["stem"], {})
            if files.setdefault(parts["extension"].lower(), member) is not member:
                raise reader.corrupt("each member once", f"{name} twice")
    return samples


def is_ours(path: Path) -> bool:
    """Whether :class:`TarWriter` wrote a tar's beginning; a tar without members is anyone's."""
    with path.open("rb") as file:
        block = file.read(_BLOCK)
    return not any(block) or block[_OWNER_FIELD].rstrip(b"\0") == _OWNER


def _header(name: str, size: int) -> bytes:
    """One ustar header (POSIX.1-1988)."""
    fields = (
        name.encode("ascii").ljust(100, b"\0"),
        b"0000644\0",  # mode
        b"0000000\0",  # user
        b"0000000\0",  # group
        b"%011o\0" % size,
        b"00000000000\0",  # time
        b" " * 8,  # checksum, as if blank
        b"0".ljust(101, b"\0"),  # plain file, no link
        b"ustar\x0000",
        _OWNER.ljust(32, b"\0"),
        bytes(_BLOCK - 297),
    )
    block = b"".join(fields)
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


class _Reader:
    """Walks the headers of one tar."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor
        self._size = os.fstat(descriptor).st_size
        self._offset = 0

    def members(self) -> Iterator[tuple[str, Member]]:
        """Name and place of each plain file.

        Raises:
            CorruptTar: see :func:`index_tar`.
        """
        name: str | None = None
        size: int | None = None
        while (block := self._block()) != bytes(_BLOCK):
            kind, found = block[156:157], self._member_size(block)
            if kind == b"L":  # GNU: the next member's name
                name = self._extended(found).rstrip(b"\0").decode("utf-8", "replace")
            elif kind == b"x":  # PAX: the next member's fields
                fields = self._pax(self._extended(found))
                name, size = fields.get("path", name), self._pax_size(fields, size)
            elif kind == b"g":  # PAX: every member's fields
                if {"path", "size"} & self._pax(self._extended(found)).keys():
                    raise self.corrupt("global headers without names and sizes", "one with them")
            elif kind in (b"0", b"\0"):
                yield (
                    self._name(block) if name is None else name,
                    self._body(found if size is None else size),
                )
                name = size = None
            else:
                raise self.corrupt("plain files only", f"a member of type {kind!r}")
        if name is not None or size is not None:
            raise self.corrupt("a member after its extended header", "the end")
        self._check_end()

    def corrupt(self, expected: str, found: str) -> CorruptTar:
        """The error, with the place."""
        return CorruptTar(
            self._path, expected=expected, found=f"{found} before byte {self._offset}", remedy=_REMEDY
        )

    def _block(self) -> bytes:
        block = os.pread(self._descriptor, _BLOCK, self._offset)
        if len(block) < _BLOCK:
            raise self.corrupt("two empty blocks at the end", "the end of the file")
        self._offset += _BLOCK
        return block

    def _check_end(self) -> None:
        """The first empty block is read: another must follow, and nothing after."""
        if self._block() != bytes(_BLOCK):
            raise self.corrupt("two empty blocks at the end", "one")
        rest = os.pread(self._descriptor, _MAX_PADDING_BYTES + 1, self._offset)
        if any(rest) or len(rest) > _MAX_PADDING_BYTES:
            raise self.corrupt("nothing after the end", "more bytes")

    def _body(self, size: int) -> Member:
        member = Member(offset=self._offset, size=size)
        self._offset += size + -size % _BLOCK
        if self._offset > self._size:
            raise self.corrupt(f"a member of {size} bytes", f"a file of {self._size} bytes, which ends")
        return member

    def _extended(self, size: int) -> bytes:
        if size > _MAX_EXTENDED_BYTES:
            raise self.corrupt(f"extended headers of at most {_MAX_EXTENDED_BYTES} bytes", f"{size}")
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
                raise self.corrupt("a header whose checksum holds", "another")
        field = block[124:136]
        if field[0] == 0x80:  # GNU: binary
            return int.from_bytes(field[1:])
        return self._octal(field)

    def _octal(self, field: bytes) -> int:
        digits = field.strip(b" \0") or b"0"
        if not _OCTAL.fullmatch(digits):
            raise self.corrupt("octal digits in a header", f"{digits!r}")
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
                raise self.corrupt("PAX fields", f"{data[:20]!r}")
            keyword = match[2].decode("utf-8", "replace")
            if keyword.startswith("GNU.sparse"):
                raise self.corrupt("plain files only", "a sparse one")
            fields[keyword] = data[match.end() : length - 1].decode("utf-8", "replace")
            data = data[length:]
        return fields

    def _pax_size(self, fields: Mapping[str, str], size: int | None) -> int | None:
        text = fields.get("size")
        if text is None:
            return size
        if not re.fullmatch(r"[0-9]{1,15}", text):
            raise self.corrupt("a size in a PAX header", f"{text[:20]!r}")
        return int(text)
