from concurrent.futures import ThreadPoolExecutor

import dagster as dg
import pytest
from dagster._core.storage.event_log import SqliteEventLogStorage

from laion_assets.defs.event_log import SqliteEventLog
from laion_assets.defs.instance import open_instance, prepare_home

PARTITIONS = dg.StaticPartitionsDefinition(["a", "b"])


@dg.asset(partitions_def=PARTITIONS)
def asset() -> None:
    """Made of nothing."""


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))  # which preparing sets, restored at the end
    return prepare_home(tmp_path / "home")


def materialize(instance, partition):
    assert dg.materialize([asset], partition_key=partition, instance=instance).success


def recorded(storage):
    return storage.get_materialized_partitions(asset.key)


def test_the_shipped_settings_use_it(home, monkeypatch):
    monkeypatch.delenv("DAGSTER_HOME")
    with open_instance(home) as instance:
        assert type(instance.event_log_storage) is SqliteEventLog


def test_dagsters_own_storage_reads_what_it_wrote_and_the_other_way_round(home):
    with open_instance(home) as instance:
        materialize(instance, "a")
        run = instance.get_runs()[0].run_id
        events = [event.dagster_event_type for event in instance.all_logs(run)]
    assert dg.DagsterEventType.RUN_SUCCESS in events
    theirs = SqliteEventLogStorage(str(home / "history" / "runs"))
    assert recorded(theirs) == {"a"}
    assert [event.dagster_event_type for event in theirs.get_logs_for_run(run)] == events
    (home / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
    with open_instance(home) as instance:
        assert type(instance.event_log_storage) is SqliteEventLogStorage
        materialize(instance, "b")
    assert recorded(SqliteEventLog(str(home / "history" / "runs"))) == {"a", "b"}


def test_what_another_has_written_since_is_seen(home):
    with open_instance(home) as reader, open_instance(home) as writer:
        assert recorded(reader.event_log_storage) == set()
        materialize(writer, "a")
        assert recorded(reader.event_log_storage) == {"a"}


def test_threads_take_turns(home):
    with open_instance(home) as instance, ThreadPoolExecutor(4) as threads:
        events = [dg.AssetMaterialization(asset.key, partition=f"{number}") for number in range(40)]
        assert list(threads.map(instance.report_runless_asset_event, events)) == [None] * 40
        assert recorded(instance.event_log_storage) == {f"{number}" for number in range(40)}


def test_wiped_records_are_gone_and_new_ones_can_be_written(home):
    with open_instance(home) as instance:
        materialize(instance, "a")
        run = instance.get_runs()[0].run_id
        instance.event_log_storage.wipe()
        assert recorded(instance.event_log_storage) == set()
        assert instance.all_logs(run) == []
        materialize(instance, "b")
        assert recorded(instance.event_log_storage) == {"b"}


def test_nothing_stays_open(home):
    with open_instance(home) as instance:
        materialize(instance, "a")
    # SQLite removes the log that is written ahead when the last connection closes.
    assert list((home / "history" / "runs").glob("*-wal")) == []
