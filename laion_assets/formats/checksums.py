"""Two checksums of a file: one that names its contents, and one that finds damage at the speed of memory.

sha256 is what data versions are made of and what others can compute. To see that a file is still the one that
was published, XXH3 (128 bits, https://xxhash.com) is as good, since what changes bytes on a disk does not
know of it, and it takes a thirtieth of the time.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import xxhash

# Both digests are of bytes that are still in a core's cache.
_PIECE_BYTES: Final = 1 << 18


class Hash(Protocol):
    """What bytes are given to, piece by piece."""

    def update(self, piece: bytes | memoryview, /) -> object:
        """Take the next bytes."""
        ...


@dataclass(frozen=True, kw_only=True)
class Checksums:
    """Hexadecimal digests of the same bytes."""

    sha256: str
    xxh3_128: str


class Digest:
    """Checksums of bytes that come in pieces."""

    def __init__(self) -> None:
        self._sha256, self._xxh3 = hashlib.sha256(), xxhash.xxh3_128()

    def update(self, piece: bytes | memoryview) -> None:
        """Take the next bytes."""
        self._sha256.update(piece)
        self._xxh3.update(piece)

    @property
    def checksums(self) -> Checksums:
        """Of every byte so far."""
        return Checksums(sha256=self._sha256.hexdigest(), xxh3_128=self._xxh3.hexdigest())


def checksums_of(path: Path) -> Checksums:
    """Both checksums of a file's bytes, which are read once."""
    digest, piece = Digest(), bytearray(_PIECE_BYTES)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(piece):
            digest.update(memoryview(piece)[:count])
    return digest.checksums


def sha256_of(path: Path) -> str:
    """Hexadecimal sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def xxh3_128_of(path: Path) -> str:
    """Hexadecimal XXH3-128 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()
