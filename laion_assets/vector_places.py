"""What an index of vectors holds of a row of a joined embedding shard, and the digests it is found by.

Texts are held as digests of 128 bits, as equal or different as the texts: what they were made of would have
to be read from the joined table, where one URL costs the decoding of the ten thousand around it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final

import google_crc32c
import numpy as np

from laion_assets.formats.digest_index import DIGEST_BYTES, Digests

VECTOR_PLACE: Final = np.dtype(
    [
        ("digest", f"V{DIGEST_BYTES}"),  # of the URL, or where there is none of the shard named
        ("caption", f"V{DIGEST_BYTES}"),  # digest; null is ''
        ("shard_id", "<i8"),  # -1 where the metadata names none
        ("number", "<i8"),  # the key, where it is one of at most 18 digits; else -1
        ("row", "<i8"),  # of the joined table
        ("image_at", "<i8"),  # byte of the joined table's file at which the vector of the picture begins
        ("text_at", "<i8"),  # and that of the caption
        ("checksum", "<u4"),  # crc32c of the two vectors' bytes, one after the other
    ]
)
"""A record of ``embedding_index``, whose number is the vectors' width."""


SEARCHED: Final = ("shard_id", "key", "url", "caption", "cosine")
"""Columns of the joined table that say what a record is found by, and whether there is one."""


def digest_of_text(text: bytes) -> bytes:
    """By which an address or a caption is found and told from others."""
    return hashlib.blake2b(text, digest_size=DIGEST_BYTES).digest()


def digest_of_shard(number: int) -> bytes:
    """By which rows are found that name an image shard and no address; that of no text."""
    return hashlib.blake2b(b"%d" % number, digest_size=DIGEST_BYTES, person=b"shard").digest()


def as_digests(digests: Iterable[bytes]) -> Digests:
    """Digests as an array, shape (n,)."""
    return np.frombuffer(b"".join(digests), VECTOR_PLACE["digest"])


def checksum_of(image: bytes, text: bytes) -> int:
    """Of a row's two vectors, as they are stored."""
    return int(google_crc32c.extend(google_crc32c.value(image), text))
