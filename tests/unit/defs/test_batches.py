import dagster as dg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laion_assets.defs.partitions import PartitionSets, keys_of_run, range_tags
from laion_assets.partitions import Axis, Partitions, batches

KEYS = [f"{number:05d}" for number in range(30)]
SETS = PartitionSets(Partitions(parts=(), shards=tuple(KEYS), embedding_shards=(), part_of={}))


@given(st.sets(st.sampled_from(KEYS)), st.integers(1, 8))
def test_batches_hold_every_wanted_key_once_and_are_ranges(wanted, size):
    found = list(batches(KEYS, wanted, size))
    assert sorted(key for batch in found for key in batch) == sorted(wanted)
    shards = SETS.definition(Axis.SHARD)
    for batch in found:
        assert 0 < len(batch) <= size
        assert keys_of_run(range_tags(batch), shards) == batch


def test_batches_are_as_few_as_can_be():
    assert [len(batch) for batch in batches(KEYS, set(KEYS), 25)] == [25, 5]


@pytest.mark.parametrize("keys", [["00003"], ["00003", "00004"]])
def test_an_unpartitioned_asset_has_no_keys(keys):
    assert keys_of_run(range_tags(keys), None) is None


def test_a_run_over_no_partition_is_told_what_to_launch():
    with pytest.raises(dg.Failure, match="check_shards"):
        keys_of_run({"dagster/run": "other tags"}, SETS.definition(Axis.SHARD))
