"""What is made once of partitions, held against what Dagster makes anew."""

import dagster as dg
import pytest
from dagster._core.definitions.partitions.snap import StaticPartitionsSnap
from dagster._core.errors import DagsterInvalidDeserializationVersionError
from dagster_shared.serdes import deserialize_value, serialize_value

from laion_assets.defs.many_partitions import StaticPartitionsDefinition, partitions_definition


@pytest.mark.parametrize("keys", [["b", "a"], ["a", "b", "a"], []])
def test_definitions_are_those_of_dagster(keys):
    theirs = StaticPartitionsSnap(keys).get_partitions_definition()
    snapshot = StaticPartitionsSnap(keys)
    ours = partitions_definition(snapshot)
    assert ours == theirs
    assert hash(ours) == hash(theirs)
    assert str(ours) == str(theirs)
    assert list(ours.get_partition_keys()) == list(theirs.get_partition_keys())
    assert isinstance(ours, dg.StaticPartitionsDefinition)


def test_a_snapshot_has_one_definition_and_equal_ones_share_it():
    snapshot = StaticPartitionsSnap(["a", "b"])
    assert partitions_definition(snapshot) is partitions_definition(snapshot)
    assert partitions_definition(snapshot) is partitions_definition(StaticPartitionsSnap(["a", "b"]))
    assert partitions_definition(snapshot) != partitions_definition(StaticPartitionsSnap(["a"]))


def test_the_code_locations_own_are_written_down_as_dagsters():
    theirs, ours = dg.StaticPartitionsDefinition(["b", "a"]), StaticPartitionsDefinition(["b", "a"])
    assert (ours, hash(ours), repr(ours), str(ours)) == (theirs, hash(theirs), repr(theirs), str(theirs))
    assert ours.get_serializable_unique_identifier() == theirs.get_serializable_unique_identifier()
    assert StaticPartitionsSnap.from_def(ours) == StaticPartitionsSnap.from_def(theirs)
    for subset in (ours.subset_with_partition_keys(["a"]), theirs.subset_with_partition_keys(["a"])):
        assert subset.can_deserialize(
            ours,
            subset.serialize(),
            theirs.get_serializable_unique_identifier(),
            type(theirs).__name__,
        )


@pytest.mark.parametrize("keys", [["c", "a"], [], ["a"]])
def test_partitions_that_were_written_down_are_read_as_dagster_reads_them(keys):
    ours = StaticPartitionsDefinition(["c", "b", "a"])
    written = ours.subset_with_partition_keys(keys).serialize()
    found = ours.deserialize_subset(written)
    assert found == dg.StaticPartitionsDefinition(["c", "b", "a"]).deserialize_subset(written)
    assert found.serialize() == written
    assert list(found.get_partition_keys()) == sorted(keys)
    assert ours.deserialize_subset(written) is found
    assert deserialize_value(serialize_value(found)) == found
    more = found.with_partition_keys(["b"])
    assert (len(more), len(found)) == (len(keys) + 1, len(keys))


def test_what_another_dagster_wrote_down_is_read_or_refused_as_dagster_does():
    ours = StaticPartitionsDefinition(["a", "b"])
    assert list(ours.deserialize_subset('["b", "a"]').get_partition_keys()) == ["a", "b"]
    with pytest.raises(DagsterInvalidDeserializationVersionError):
        ours.deserialize_subset('{"version": 99, "subset": []}')
