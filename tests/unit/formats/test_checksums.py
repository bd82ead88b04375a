import hashlib

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from laion_assets.formats.checksums import Checksums, Digest, checksums_of, sha256_of, xxh3_128_of


@pytest.mark.parametrize("size", [0, 1, (1 << 18) - 1, 1 << 18, (1 << 18) + 1, 1_000_000])
def test_a_file_has_the_checksums_of_its_bytes(tmp_path, size):
    path, data = tmp_path / "file", bytes(range(251)) * (size // 251 + 1)
    path.write_bytes(data[:size])
    expected = Checksums(
        sha256=hashlib.sha256(data[:size]).hexdigest(), xxh3_128=xxhash.xxh3_128_hexdigest(data[:size])
    )
    assert checksums_of(path) == expected
    assert (sha256_of(path), xxh3_128_of(path)) == (expected.sha256, expected.xxh3_128)


def test_xxh3_is_the_published_one():
    # XXH3_128bits of nothing with seed 0, in the reference implementation's tests/sanity_test_vectors.h.
    assert Digest().checksums.xxh3_128 == "99aa06d3014798d86001c324468d497f"


@given(st.lists(st.binary(max_size=300), max_size=6))
def test_pieces_make_no_difference(pieces):
    by_piece, at_once = Digest(), Digest()
    for piece in pieces:
        by_piece.update(memoryview(piece))
    at_once.update(b"".join(pieces))
    assert by_piece.checksums == at_once.checksums
