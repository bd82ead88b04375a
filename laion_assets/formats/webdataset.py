"""Tar files of samples, as WebDataset and img2dataset lay them out; written byte for byte the same each time.

A sample's files follow each other and share a stem: ``000120034.jpg``, ``000120034.txt``,
``000120034.json``. The reader looks at headers only and never extracts; bytes are read in place.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

import pyarrow as pa
import pyarrow.compute as pc

from laion_assets.formats.large_file import LargeFile
from laion_assets.formats.tar_headers import (
    BLOCK,
    END,
    Member,
    PlainMembers,
    corrupt,
    list_plain,
    walk,
)

# In our headers' field for the owner's name, where nobody looks but :func:`is_ours`.
_OWNER: Final = b"laion_assets"
_OWNER_FIELD: Final = slice(265, 297)

# Stem and extension; nothing that could lead out of a folder.
_NAME: Final = re.compile(r"(?P<stem>[A-Za-z0-9_-]+)\.(?P<extension>[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*)")
_MAX_NAME_BYTES: Final = 100
_MAX_SIZE: Final = 8**11 - 1  # eleven octal digits

MEMBERS: Final = pa.schema(
    [("stem", pa.string()), ("extension", pa.string()), ("offset", pa.int64()), ("size", pa.int64())]
)
"""Columns of :func:`list_members`."""


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
        self._file.write(b"".join((_header(name, len(body)), body, bytes(-len(body) % BLOCK))))
        member = Member(offset=self._offset + BLOCK, size=len(body))
        self._offset = member.offset + len(body) + -len(body) % BLOCK
        return member

    def end(self) -> None:
        """Write the two empty blocks without which the tar counts as cut short."""
        self._file.write(END)


@contextmanager
def open_tar(path: Path) -> Iterator[TarWriter]:
    """A writer; the tar is ended only if the block ends without an exception."""
    with LargeFile(path) as file:
        writer = TarWriter(file)
        yield writer
        writer.end()


def list_members(path: Path) -> pa.Table:
    """Each member of a tar of samples, in its order, as ``MEMBERS``: what it is of, and where its bytes lie.

    Reads headers only. Takes what ``tarfile`` writes (ustar, GNU and PAX headers), such as img2dataset's
    tars. The extension is all that follows the first dot, as in WebDataset, in lower case.

    Raises:
        CorruptTar: if the tar is cut short or damaged, or holds a member that is no plain file, is there
            twice, or is not named ``stem.extension``.
    """
    with path.open("rb") as file:
        plain = list_plain(file.fileno())
        members = None if plain is None else _named(plain)
        return _walked(path, file.fileno()) if members is None else members


def index_tar(path: Path) -> dict[str, dict[str, Member]]:
    """As :func:`list_members`: stem -> extension -> member, in the tar's order."""
    samples: dict[str, dict[str, Member]] = {}
    members = (column.to_pylist() for column in list_members(path).columns)
    for stem, extension, offset, size in zip(*members, strict=True):
        samples.setdefault(stem, {})[extension] = Member(offset, size)
    return samples


def _named(plain: PlainMembers) -> pa.Table | None:
    """The members with their names taken apart; None if one is not named so, or there twice."""
    # Matched as bytes, since a name may be no UTF-8; what matches is ASCII.
    names = pc.extract_regex(pa.array(plain.names, pa.binary()), rf"\A{_NAME.pattern}\z")
    stems, extensions = (names.field(name).cast(pa.string()) for name in ("stem", "extension"))
    extensions = pc.ascii_lower(extensions)
    whole = pc.binary_join_element_wise(stems, extensions, ".")
    if names.null_count or pc.count_distinct(whole).as_py() < len(names):
        return None
    return pa.table([stems, extensions, plain.offsets, plain.sizes], schema=MEMBERS)


def _walked(path: Path, descriptor: int) -> pa.Table:
    members: dict[tuple[str, str], Member] = {}
    for name, member in walk(path, descriptor):
        parts = _NAME.fullmatch(name)
        if parts is None:
            raise corrupt(path, "members named stem.extension", f"{name[:60]!r} at byte {member.offset}")
        if members.setdefault((parts["stem"], parts["extension"].lower()), member) is not member:
            raise corrupt(path, "each member once", f"{name} twice, at byte {member.offset}")
    columns = (
        [stem for stem, _ in members],
        [extension for _, extension in members],
        [member.offset for member in members.values()],
        [member.size for member in members.values()],
    )
    return pa.table(list(columns), schema=MEMBERS)


def is_ours(path: Path) -> bool:
    """Whether :class:`TarWriter` wrote a tar's beginning; a tar without members is anyone's."""
    with path.open("rb") as file:
        block = file.read(BLOCK)
    return not any(block) or block[_OWNER_FIELD].rstrip(b"\0") == _OWNER


def _header(name: str, size: int) -> bytes:
    """One ustar header (POSIX.1-1988)."""
    encoded, octal = name.encode("ascii"), b"%011o" % size
    checksum = _SUM_OF_THE_SAME + sum(encoded) + sum(octal)
    return b"".join(
        (
            encoded.ljust(100, b"\0"),
            _BEFORE_SIZE,
            octal,
            _BEFORE_CHECKSUM,
            b"%06o" % checksum,
            _AFTER_CHECKSUM,
        )
    )


# What all headers have between name, size and checksum.
_BEFORE_SIZE: Final = b"0000644\0" + b"0000000\0" * 2  # mode, user, group
_BEFORE_CHECKSUM: Final = b"\0" + b"00000000000\0"  # time
_AFTER_CHECKSUM: Final = b"".join(
    (
        b"\0 ",
        b"0".ljust(101, b"\0"),  # plain file, no link
        b"ustar\x0000",
        _OWNER.ljust(32, b"\0"),
        bytes(BLOCK - 297),
    )
)
# The checksum itself counts as eight spaces.
_SUM_OF_THE_SAME: Final = sum(_BEFORE_SIZE + _BEFORE_CHECKSUM + b" " * 8 + _AFTER_CHECKSUM[2:])
