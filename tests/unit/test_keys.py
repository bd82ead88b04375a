from pathlib import Path

import pyarrow as pa
import pytest

from laion_assets.errors import MisalignedShard
from laion_assets.keys import check_unique, global_keys, sample_keys, spelled_keys
from laion_assets.layout import ShardId

PATH = Path("00012.parquet")


def test_global_and_local_keys_become_global():
    found = global_keys(pa.array(["000120034", "000000035"]), ShardId(12), PATH)
    assert found.to_pylist() == ["000120034", "000120035"]
    assert global_keys(pa.array([], pa.string()), ShardId(12), PATH).to_pylist() == []


@pytest.mark.parametrize(
    "keys",
    [
        ["000130034"],  # of another shard
        ["00012"],  # no row
        ["00012-034"],
        [None],
        ["../../etc"],
        ["000120034\n"],
    ],
)
def test_keys_that_do_not_belong_are_refused(keys):
    with pytest.raises(MisalignedShard, match=r"00012\.parquet: expected"):
        global_keys(pa.array(keys, pa.string()), ShardId(12), PATH)


@pytest.mark.parametrize(
    ("shard", "rows", "row_digits", "last"),
    [
        (12, 35, 4, "000120034"),
        (12, 35, 2, "0001234"),
        (123456, 10_000, 4, "1234569999"),
        (0, 1, 1, "000000"),
        (3, 11, 1, "0000310"),  # more rows than the digits say
        (3, 0, 4, None),
    ],
)
def test_keys_of_a_shards_rows(shard, rows, row_digits, last):
    found = sample_keys(ShardId(shard), rows, row_digits=row_digits)
    found.validate(full=True)
    assert [*found.to_pylist(), None][rows - 1 if rows else 0] == last
    digits = max(row_digits, len(str(rows - 1)))
    assert found.to_pylist() == [f"{shard:05d}{row:0{digits}d}" for row in range(rows)]


def test_a_row_that_is_there_twice_is_refused():
    keys = global_keys(pa.array(["000120034", "000000034"]), ShardId(12), PATH)
    with pytest.raises(MisalignedShard, match="each key once"):
        check_unique(keys, PATH)


def test_keys_that_became_numbers_get_the_tars_zeros_back():
    keys = pa.chunked_array([[120034, 120035]])
    assert spelled_keys(keys, ["000120034"]).to_pylist() == ["000120034", "000120035"]
    assert spelled_keys(keys, []).to_pylist() == ["000120034", "000120035"]
