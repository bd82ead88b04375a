"""Tar files of samples, as WebDataset and img2dataset lay them out; written byte for byte the same each time.

A sample's files follow each other and share a stem: ``000120034.jpg``, ``000120034.txt``,
``000120034.json``. The reader never extracts: it says where the members lie, and what is in memory of
them meanwhile.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from laion_assets.formats.large_file import LargeFile
from laion_assets.formats.tar_headers import (
    BLOCK,
    END,
    Member,
    NotPlain,
    corrupt,
    read_plain,
    walk,
)

# In our headers' field for the owner's name, where nobody looks but :func:`is_ours`.
_OWNER: Final = b"laion_assets"
_OWNER_FIELD: Final = slice(265, 297)

# Stem and extension; nothing that could lead out of a folder.
_NAME: Final = re.compile(r"(?P<stem>[A-Za-z0-9_-]+)\.(?P<extension>[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*)")
_MAX_NAME_BYTES: Final = 100
_MAX_SIZE: Final = 8**11 - 1  # eleven octal digits
_SPAN_BYTES: Final = 2 << 20

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


class Stretch(NamedTuple):
    """Members that follow each other in a tar, among others that were not asked for.

    Attributes:
        members: their numbers in the tar's order, int64 (members,).
        begins: where in ``body`` each begins, int64 (members,).
        sizes: in bytes, int64 (members,).
        body: bytes of the tar; others, once the next stretch is asked for.
    """

    members: npt.NDArray[np.int64]
    begins: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    body: memoryview


class TarReader:
    """Reads a tar of samples from its beginning to its end, and most tars just once.

    Takes what ``tarfile`` writes (ustar, GNU and PAX headers), such as img2dataset's tars. The extension is
    all that follows the first dot, as in WebDataset, in lower case.

    Attributes:
        path: of the tar.
        members: each member, in the tar's order, as ``MEMBERS``, once all stretches were asked for.
        xxh3_128: hexadecimal checksum of the bytes that they were found in; None of a tar that is out of
            the ordinary, which is read here and there.
    """

    def __init__(self, path: Path, *, extensions: Sequence[str] = ()) -> None:
        """Say what to read.

        Args:
            path: the tar.
            extensions: of the members whose bytes are asked for.
        """
        self.path = path
        self._endings = tuple(f".{extension}".encode() for extension in extensions)
        self.members = MEMBERS.empty_table()
        self.xxh3_128: str | None = None

    def stretches(self) -> Iterator[Stretch]:
        """The members asked for, and at times others.

        Raises:
            CorruptTar: if the tar is cut short or damaged, or holds a member that is no plain file, is there
                twice, or is not named ``stem.extension``. Of what comes before that is found, nothing may be
                kept.
        """
        columns: list[tuple[npt.NDArray[Any], ...]] = []
        digest = xxhash.xxh3_128()
        with self.path.open("rb", buffering=0) as file:
            known = 0
            try:
                for names, offsets, sizes, at, body in read_plain(file.fileno(), digest.update):
                    columns.append((names, offsets, sizes))
                    asked = self._asked(names.tolist())
                    yield Stretch(known + asked, offsets[asked] - at, sizes[asked], body)
                    known += len(names)
                if columns:
                    self.members = _named(*map(np.concatenate, zip(*columns, strict=True)))
                self.xxh3_128 = digest.hexdigest()
            except NotPlain:
                # Which finds the same members, as far as that went.
                yield from self._walk(file.fileno(), known)

    def _walk(self, descriptor: int, known: int) -> Iterator[Stretch]:
        """What is asked for of the members from the one numbered ``known`` on, which are found one by one."""
        self.members = _walked(self.path, descriptor)
        extensions = self.members["extension"][known:].to_pylist()
        asked = known + self._asked([f".{extension}".encode() for extension in extensions])
        begins, sizes = (self.members[name].to_numpy()[asked] for name in ("offset", "size"))
        ends = begins + sizes
        # In memory together: few bytes, or one member.
        cuts = np.flatnonzero(np.diff(begins // _SPAN_BYTES)) + 1
        for first, last in pairwise([0, *cuts.tolist(), len(asked)]) if len(asked) else ():
            at, length = int(begins[first]), int(ends[last - 1] - begins[first])
            body = os.pread(descriptor, length, at)
            if len(body) < length:
                raise corrupt(self.path, f"{length} bytes from {at} on", f"{len(body)}")
            own = slice(first, last)
            yield Stretch(asked[own], begins[own] - at, sizes[own], memoryview(body))

    def _asked(self, names: Sequence[bytes]) -> npt.NDArray[np.int64]:
        """Which names have an extension that was asked for, or end in one."""
        endings = self._endings
        return np.flatnonzero(np.array([name.lower().endswith(endings) for name in names], bool))


def list_members(path: Path) -> pa.Table:
    """Each member of a tar of samples, in its order, as ``MEMBERS``: what it is of, and where its bytes lie.

    Raises:
        CorruptTar: as :meth:`TarReader.stretches`.
    """
    reader = TarReader(path)
    for _ in reader.stretches():
        pass
    return reader.members


def index_tar(path: Path) -> dict[str, dict[str, Member]]:
    """As :func:`list_members`: stem -> extension -> member, in the tar's order."""
    samples: dict[str, dict[str, Member]] = {}
    members = (column.to_pylist() for column in list_members(path).columns)
    for stem, extension, offset, size in zip(*members, strict=True):
        samples.setdefault(stem, {})[extension] = Member(offset, size)
    return samples


def _named(
    names: npt.NDArray[np.bytes_], offsets: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]
) -> pa.Table:
    """The members with their names taken apart.

    Raises:
        NotPlain: if one is not named so, or there twice.
    """
    # Matched as bytes, since a name may be no UTF-8; what matches is ASCII.
    parts = pc.extract_regex(pa.array(names, pa.binary()), rf"\A{_NAME.pattern}\z")
    stems, extensions = (parts.field(name).cast(pa.string()) for name in ("stem", "extension"))
    extensions = pc.ascii_lower(extensions)
    whole = pc.binary_join_element_wise(stems, extensions, ".")
    if parts.null_count or pc.count_distinct(whole).as_py() < len(names):
        raise NotPlain
    return pa.table([stems, extensions, offsets, sizes], schema=MEMBERS)


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
