import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laion_assets.formats.checksums import Digest, checksums_of
from laion_assets.formats.large_file import LargeFile

# As many bytes as are joined, one fewer and one more, and what is small or far beyond.
SIZES = [0, 1, 3, 1000, (1 << 18) - 1, 1 << 18, (1 << 18) + 1, 1 << 19, (1 << 20) + 7]


@settings(deadline=None, max_examples=40)
@given(sizes=st.lists(st.sampled_from(SIZES), max_size=12))
def test_a_file_holds_what_it_was_given_in_order(sizes):
    pieces = [bytes([number + 1]) * size for number, size in enumerate(sizes)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        with LargeFile(path) as file:
            for number, piece in enumerate(pieces):
                assert file.tell() == sum(sizes[:number])
                assert file.write(memoryview(piece)) == len(piece)
        assert path.read_bytes() == b"".join(pieces)


@pytest.mark.parametrize("cached", [True, False])
@settings(deadline=None, max_examples=40)
@given(
    sizes=st.lists(
        st.tuples(st.sampled_from([*SIZES, (1 << 21) - 4096, (1 << 21) - 4095, 3 << 20]), st.booleans()),
        max_size=12,
    )
)
def test_its_own_memory_may_be_filled_in(sizes, cached):
    whole = Digest()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        with LargeFile(path, cached=cached) as file:
            for number, (size, is_room) in enumerate(sizes):
                piece = bytes([number + 1]) * size
                if is_room:
                    room = file.room(size)
                    room[:] = piece
                    assert file.write(room) == size
                else:
                    file.write(piece)
                whole.update(piece)
                assert file.tell() == sum(size for size, _ in sizes[: number + 1])
        assert checksums_of(path) == whole.checksums
        read = Digest()
        read.update(path.read_bytes())
        assert read.checksums == whole.checksums


def test_the_room_that_was_reserved_is_given_back(tmp_path):
    path = tmp_path / "file"
    with LargeFile(path) as file:
        file.write(bytes(3 << 20))
    found = path.stat()
    assert found.st_size == 3 << 20
    assert found.st_blocks * 512 < 4 << 20


def test_its_checksums_are_known_when_it_is_closed(tmp_path):
    path, data = tmp_path / "file", os.urandom(700_001)
    with LargeFile(path) as file:
        for start in range(0, len(data), 9999):
            file.write(data[start : start + 9999])
    whole = Digest()
    whole.update(data)
    assert checksums_of(path) == whole.checksums


def test_closing_twice_is_closing_once(tmp_path):
    file = LargeFile(tmp_path / "file")
    file.write(b"once")
    file.close()
    file.close()
    assert (tmp_path / "file").read_bytes() == b"once"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_disk_that_takes_nothing_is_an_error_at_the_latest_when_it_is_closed():
    file = LargeFile(Path("/dev/full"))
    file.write(b"kept")
    with pytest.raises(OSError, match="No space left"):
        file.close()
    assert file.closed
