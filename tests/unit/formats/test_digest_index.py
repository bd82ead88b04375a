import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laion_assets.errors import CorruptIndex
from laion_assets.formats.digest_index import open_index, write_index

RECORD = np.dtype([("digest", "V16"), ("row", "<i8")])


def digests(numbers):
    """Digests that sort as the numbers do, whose heads are those of the numbers' high bits."""
    return np.frombuffer(b"".join(number.to_bytes(16, "big") for number in numbers), "V16")


def records(numbers):
    made = np.zeros(len(numbers), RECORD)
    made["digest"], made["row"] = digests(numbers), np.arange(len(numbers))
    return made


def find(path, wanted):
    with open_index(path, RECORD) as index:
        return np.concatenate([*index.find(digests(wanted)), np.empty(0, RECORD)])


# Few numbers, some of which begin alike, and one that differs in the first bit.
NUMBERS = st.integers(0, 5).map(lambda number: number << 95) | st.integers(0, 2) | st.just(1 << 127)


@settings(deadline=None)
@given(st.lists(NUMBERS, max_size=40), st.lists(NUMBERS, max_size=10))
def test_what_is_looked_up_is_found_once_with_others_that_begin_alike(tmp_path_factory, held, wanted):
    path = tmp_path_factory.mktemp("index") / "x.index"
    write_index(path, records(held), number=-3)
    heads = {number >> 96 for number in wanted}
    expected = sorted((number, row) for row, number in enumerate(held) if number >> 96 in heads)
    found = find(path, wanted)
    assert [(int.from_bytes(digest, "big"), row) for digest, row in found.tolist()] == expected
    with open_index(path, RECORD) as index:
        everything = np.concatenate([*index.everything(), np.empty(0, RECORD)])
        assert (index.records, index.number) == (len(held), -3)
    assert everything["row"].tolist() == [row for _, row in sorted((n, row) for row, n in enumerate(held))]


@pytest.mark.parametrize("count", [1, 169, 170, 171, 340, 4095, 4096, 4097, 10_000])
def test_blocks_and_pieces_of_every_size_hold_their_records(tmp_path, count):
    numbers = [row << 100 for row in np.random.default_rng(count).permutation(count).tolist()]
    write_index(tmp_path / "x.index", records(numbers))
    found = find(tmp_path / "x.index", numbers)
    assert [numbers[row] for row in found["row"].tolist()] == sorted(numbers)
    some = [*numbers[::97], 1 << 90, (count << 100) + 5]
    alike = [number for number in numbers if number >> 96 in {wanted >> 96 for wanted in some}]
    assert sorted(find(tmp_path / "x.index", some)["row"].tolist()) == sorted(map(numbers.index, alike))


def test_one_digest_many_times_keeps_its_order_and_comes_in_pieces(tmp_path):
    write_index(tmp_path / "x.index", records([5, *[7 << 96] * 20_000, 9 << 100]))
    with open_index(tmp_path / "x.index", RECORD) as index:
        pieces = list(index.find(digests([7 << 96])))
    assert max(map(len, pieces)) <= 4096
    assert np.concatenate(pieces)["row"].tolist() == list(range(1, 20_001))


def test_equal_records_give_equal_bytes_in_whatever_order_their_digests_come(tmp_path):
    made = records(range(1000))
    write_index(tmp_path / "a", made)
    write_index(tmp_path / "b", made[::-1])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_flipped_bit_is_refused_where_it_is_read(tmp_path):
    path = tmp_path / "x.index"
    numbers = [row << 98 for row in range(180)]
    write_index(path, records(numbers))
    whole, expected = path.read_bytes(), find(path, numbers)
    for at in (*range(60), *range(60, len(whole), 7)):
        data = bytearray(whole)
        data[at] ^= 1 << at % 8
        path.write_bytes(data)
        with pytest.raises(CorruptIndex, match=r"x\.index"):
            find(path, numbers)
        # A lookup that does not come by it answers as it did.
        try:
            found = find(path, numbers[:1])
        except CorruptIndex:
            continue
        assert found.tobytes() == expected[:1].tobytes()


@pytest.mark.parametrize("change", [-1, 1, -100, 4096])
def test_a_file_of_another_length_is_refused(tmp_path, change):
    path = tmp_path / "x.index"
    write_index(path, records(range(300)))
    data = path.read_bytes()
    path.write_bytes(data[:change] if change < 0 else data + bytes(change))
    with pytest.raises(CorruptIndex, match="bytes for 300 records"), open_index(path, RECORD):
        pass


def test_what_was_cut_short_since_it_was_opened_is_refused(tmp_path):
    path = tmp_path / "x.index"
    write_index(path, records(range(300)))
    with open_index(path, RECORD) as index:
        with path.open("r+b") as file:
            file.truncate(100)
        with pytest.raises(CorruptIndex, match="1200 bytes from byte 40 on, found 60"):
            list(index.find(digests([1])))


@pytest.mark.parametrize("data", [b"", b"LAIONIX\x01", b"PAR1" * 100])
def test_what_is_no_index_is_refused(tmp_path, data):
    (tmp_path / "x.index").write_bytes(data)
    with pytest.raises(CorruptIndex), open_index(tmp_path / "x.index", RECORD):
        pass


def test_an_index_of_other_records_is_refused(tmp_path):
    write_index(tmp_path / "x.index", records(range(3)))
    other = np.dtype([("digest", "V16"), ("row", "<i4")])
    with (
        pytest.raises(CorruptIndex, match="records of 20 bytes, found 24"),
        open_index(tmp_path / "x.index", other),
    ):
        pass
