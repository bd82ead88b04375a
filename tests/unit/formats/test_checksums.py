import hashlib
import os

import blake3
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from laion_assets.formats.checksums import (
    Digest,
    checksums_of,
    note_written,
    sha256_of,
    source_checksums_of,
    xxh3_128_of,
)

SIZES = [0, 1, (1 << 18) - 1, 1 << 18, (1 << 18) + 1, 1_000_000]


@pytest.mark.parametrize("size", SIZES)
def test_a_file_has_the_checksums_of_its_bytes(tmp_path, size):
    path, data = tmp_path / "file", (bytes(range(251)) * (size // 251 + 1))[:size]
    path.write_bytes(data)
    ours = {"blake3": blake3.blake3(data).hexdigest(), "xxh3_128": xxhash.xxh3_128_hexdigest(data)}
    others = {"sha256": hashlib.sha256(data).hexdigest(), "xxh3_128": ours["xxh3_128"]}
    assert checksums_of(path) == ours
    assert source_checksums_of(path) == others
    assert (sha256_of(path), xxh3_128_of(path)) == (others["sha256"], others["xxh3_128"])


def test_the_digests_are_the_published_ones():
    # Of nothing: XXH3_128bits with seed 0 in the reference implementation's tests/sanity_test_vectors.h, and
    # the first case of BLAKE3's test_vectors.json.
    assert Digest().checksums == {
        "blake3": "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262",
        "xxh3_128": "99aa06d3014798d86001c324468d497f",
    }


@pytest.mark.parametrize("kind", ["blake3", "sha256"])
@given(pieces=st.lists(st.binary(max_size=300), max_size=6))
def test_pieces_make_no_difference(kind, pieces):
    by_piece, at_once = Digest(kind), Digest(kind)
    for piece in pieces:
        by_piece.update(memoryview(piece))
    at_once.update(b"".join(pieces))
    assert by_piece.checksums == at_once.checksums


def test_a_file_noted_when_it_was_written_is_not_read_but_once_it_has_changed(tmp_path):
    path, noted = tmp_path / "file", {"blake3": "0", "xxh3_128": "1"}
    path.write_bytes(b"as it was written")
    note_written(path, noted)
    assert checksums_of(path) == noted
    assert checksums_of(path)["blake3"] == blake3.blake3(b"as it was written").hexdigest()  # once is enough
    note_written(path, noted)
    path.write_bytes(b"as it was changed")
    os.utime(path, ns=(0, 0))
    assert checksums_of(path)["blake3"] == blake3.blake3(b"as it was changed").hexdigest()


def test_files_that_nobody_asks_for_are_forgotten(tmp_path):
    paths = [tmp_path / str(number) for number in range(200)]
    for path in paths:
        path.write_bytes(b"")
        note_written(path, {"blake3": "0", "xxh3_128": "1"})
    noted = sum(checksums_of(path)["blake3"] == "0" for path in paths)
    assert 0 < noted < len(paths)
