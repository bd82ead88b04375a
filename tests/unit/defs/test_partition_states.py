"""What is said of an asset's partitions, held against what Dagster says of the same records."""

import random
import uuid

import dagster as dg
import pytest
from dagster._core.events import AssetMaterializationPlannedData, DagsterEvent, DagsterEventType
from dagster._core.loader import LoadingContextForTest
from dagster._core.storage.event_log import SqlEventLogStorage
from dagster._core.storage.partition_status_cache import _build_status_cache

from laion_assets.defs.many_partitions import StaticPartitionsDefinition

SHARDS = [f"{number:05d}" for number in range(6)]
PICTURES = dg.AssetKey("pictures")


class Recorder:
    """Records at random what runs would."""

    def __init__(self, instance, seed):
        self.instance = instance
        self.random = random.Random(seed)
        self.runs = []

    def step(self):
        act = self.random.choice(
            [self.start, self.materialize, self.materialize, self.end, self.wipe, self.rest]
        )
        act()

    def start(self):
        run = dg.DagsterRun("job", run_id=str(uuid.UUID(int=self.random.getrandbits(128))))
        self.instance.add_run(run)
        self.runs.append(run)
        for shard in self.random.sample(SHARDS, 2):
            planned = AssetMaterializationPlannedData(PICTURES, partition=shard)
            self.report(DagsterEventType.ASSET_MATERIALIZATION_PLANNED, planned, run.run_id)

    def materialize(self):
        shard = self.random.choice([*SHARDS, "99999"])
        self.instance.report_runless_asset_event(dg.AssetMaterialization(PICTURES, partition=shard))

    def end(self):
        if self.runs:
            run = self.runs.pop(0)
            ended = self.random.choice([DagsterEventType.RUN_SUCCESS, DagsterEventType.RUN_FAILURE])
            self.report(ended, None, run.run_id)

    def wipe(self):
        if self.random.random() < 0.2:
            self.instance.wipe_assets([PICTURES])

    def rest(self):
        """Nothing is recorded: what was said has to be said again."""

    def report(self, event_type, data, run_id):
        event = DagsterEvent(event_type.value, job_name="job", event_specific_data=data)
        self.instance.report_dagster_event(event, run_id)


def said(instance, partitions):
    context = LoadingContextForTest(instance)
    (value,) = instance.event_log_storage.get_asset_status_cache_values([(PICTURES, partitions)], context)
    return value


def dagsters_own(instance, partitions):
    """What Dagster works out of what it kept, and of what was recorded since."""
    (record,) = instance.get_asset_records([PICTURES]) or [None]
    kept = record.asset_entry.cached_status if record else None
    if kept and kept.partitions_def_id != partitions.get_serializable_unique_identifier():
        kept = None
    return _build_status_cache(instance, PICTURES, partitions, kept, record)


@pytest.mark.parametrize("seed", [4, 9])
def test_partitions_are_those_that_dagster_says(instance, seed):
    theirs, ours = dg.StaticPartitionsDefinition(SHARDS), StaticPartitionsDefinition(SHARDS)
    storage = instance.event_log_storage
    recorder = Recorder(instance, seed)
    seen = set()
    for _ in range(80):
        recorder.step()
        expected = dagsters_own(instance, theirs)
        value = said(instance, ours)
        assert value == expected
        for state in ("materialized", "failed", "in_progress") if value else ():
            read = f"deserialize_{state}_partition_subsets"
            found = list(getattr(value, read)(ours).get_partition_keys())
            assert found == sorted(getattr(expected, read)(theirs).get_partition_keys())
            seen |= {state} if found else set()
        for only in (None, {SHARDS[0], "99999"}):
            asked = (PICTURES, DagsterEventType.ASSET_MATERIALIZATION, only)
            latest = storage.get_latest_storage_id_by_partition(*asked)
            assert latest == SqlEventLogStorage.get_latest_storage_id_by_partition(storage, *asked)
            seen |= {"latest"} if latest else set()
    assert seen == {"materialized", "failed", "in_progress", "latest"}


def test_what_is_known_is_not_worked_out_again(instance, monkeypatch):
    partitions = StaticPartitionsDefinition(SHARDS)
    instance.report_runless_asset_event(dg.AssetMaterialization(PICTURES, partition=SHARDS[0]))
    first = said(instance, partitions)
    asked = []
    inner = SqlEventLogStorage.get_asset_status_cache_values
    monkeypatch.setattr(
        SqlEventLogStorage,
        "get_asset_status_cache_values",
        lambda self, keys, context: asked.append(keys) or inner(self, keys, context),
    )
    assert said(instance, partitions) == first
    assert not asked
    # Other shards than it was worked out for.
    grown = StaticPartitionsDefinition([*SHARDS, "00006"])
    assert said(instance, grown).partitions_def_id != first.partitions_def_id
    assert len(asked) == 1
