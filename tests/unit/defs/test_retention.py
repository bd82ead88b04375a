import warnings
from datetime import timedelta
from pathlib import Path

import dagster as dg
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill
from dagster._core.loader import LoadingContextForTest
from dagster._core.storage.partition_status_cache import AssetPartitionStatus
from dagster._core.storage.tags import BACKFILL_ID_TAG, PARENT_RUN_ID_TAG, ROOT_RUN_ID_TAG

from laion_assets.defs.prune_job import prune_records
from laion_assets.defs.retention import Pruned, prune

KEYS = ["a", "b", "c"]
PARTITIONS = dg.StaticPartitionsDefinition(KEYS)
# All runs ended before the next minute.
ALL = timedelta(minutes=-1)
DONE, FAILED = AssetPartitionStatus.MATERIALIZED, AssetPartitionStatus.FAILED
FRESH, STALE, MISSING = StaleStatus.FRESH, StaleStatus.STALE, StaleStatus.MISSING


@dg.asset(partitions_def=PARTITIONS, code_version="1")
def pictures(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    if "fails" in context.run.tags:
        raise dg.Failure("as asked", allow_retries=False)
    return dg.MaterializeResult(data_version=dg.DataVersion(context.run.tags["content"]))


@dg.asset(partitions_def=PARTITIONS, deps=[pictures], code_version="1")
def tables(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    return dg.MaterializeResult(data_version=dg.DataVersion(f"of {context.partition_key}"))


@dg.asset(deps=[tables], code_version="1")
def report() -> None:
    """Has no partitions."""


def check():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.PreviewWarning)

        @dg.asset_check(asset=tables, partitions_def=PARTITIONS)
        def tables_are_right(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
            return dg.AssetCheckResult(passed="wrong" not in context.run.tags)

    return tables_are_right


ASSETS = [pictures, tables, report]
RIGHT = check()
CHECK = dg.AssetCheckKey(tables.key, "tables_are_right")
GRAPH = dg.Definitions(assets=ASSETS, asset_checks=[RIGHT]).resolve_asset_graph()


def run(instance, asset, key=None, **tags):
    result = dg.materialize(
        [*ASSETS, RIGHT],
        selection=dg.AssetSelection.assets(asset),
        instance=instance,
        partition_key=key,
        tags={"content": "1"} | tags,
        raise_on_error=False,
        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
    )
    assert result.success == ("fails" not in tags)
    return result.run_id


def known(instance):
    """All that Dagster tells of every partition."""
    resolver = CachingStaleStatusResolver(instance, GRAPH, LoadingContextForTest(instance))
    told = {}
    for asset in ASSETS:
        record = instance.get_latest_materialization_event(asset.key)
        told[asset.key] = record and record.run_id
        if asset.partitions_def:
            told[asset.key, "states"] = instance.get_status_by_partition(asset.key, KEYS, PARTITIONS)
        for key in KEYS if asset.partitions_def else [None]:
            told[asset.key, key] = (
                resolver.get_status(asset.key, key),
                [cause.reason for cause in resolver.get_stale_causes(asset.key, key)],
                resolver.get_current_data_version(asset.key, key),
            )
    checks = instance.event_log_storage.get_asset_check_partition_info([CHECK])
    return told | {(CHECK, info.partition_key): info for info in checks}


def runs_of(instance):
    return {record.dagster_run.run_id for record in instance.get_run_records()}


def test_what_dagster_knows_stays_and_what_has_been_superseded_goes(instance):
    old = [
        run(instance, pictures, "a"),
        run(instance, pictures, "b"),
        run(instance, pictures, "c", fails="yes"),
    ]
    old += [run(instance, tables, "a", wrong="yes")]
    new = [run(instance, pictures, "b"), run(instance, tables, "a"), run(instance, tables, "b")]
    # Another result of a picture, which is news for its table, and one that failed after it had been done.
    new += [run(instance, pictures, "a", content="2")]
    new += [run(instance, pictures, "b", fails="yes"), run(instance, pictures, "c", fails="yes")]
    before = known(instance)
    assert before[pictures.key, "states"] == {"a": DONE, "b": FAILED, "c": FAILED}
    assert [before[tables.key, key][0] for key in KEYS] == [STALE, FRESH, MISSING]
    assert {key for key in KEYS if (CHECK, key) in before} == {"a", "b"}

    assert prune(instance, timedelta(days=1)) == Pruned(0, 0)
    assert prune(instance, ALL, dry_run=True, page=3) == Pruned(len(old), len(new))
    assert runs_of(instance) == {*old, *new}
    assert prune(instance, ALL, page=3) == Pruned(len(old), len(new))
    assert runs_of(instance) == set(new)
    assert known(instance) == before
    for run_id in old:
        assert not list(Path(instance.root_directory).rglob(f"{run_id}*"))
        assert instance.all_logs(run_id) == []
    # What is done afterwards is recorded as ever, and supersedes some of what was kept.
    again = [run(instance, pictures, "b"), run(instance, pictures, "c")]
    assert known(instance)[pictures.key, "states"] == dict.fromkeys(KEYS, DONE)
    assert prune(instance, ALL).deleted == 3  # two that failed, and what one of them had been before
    assert runs_of(instance) > set(again)


def test_runs_of_a_backfill_at_work_and_the_first_of_a_retried_run_stay(instance):
    first = run(instance, report)
    retried = run(instance, report, **{ROOT_RUN_ID_TAG: first, PARENT_RUN_ID_TAG: first})
    of_backfill = run(instance, pictures, "a", **{BACKFILL_ID_TAG: "working"})
    superseded = run(instance, pictures, "a", **{BACKFILL_ID_TAG: "finished"})
    current = run(instance, pictures, "a")
    for name, status in (
        ("working", BulkActionStatus.REQUESTED),
        ("finished", BulkActionStatus.COMPLETED_SUCCESS),
    ):
        instance.add_backfill(
            PartitionBackfill(name, status, from_failure=False, tags={}, backfill_timestamp=0.0)
        )
    assert prune(instance, ALL) == Pruned(1, 4)
    assert runs_of(instance) == {first, retried, of_backfill, current}
    assert superseded not in runs_of(instance)


def test_runs_that_have_not_ended_stay(instance):
    begun = instance.create_run_for_job(report_job(), status=dg.DagsterRunStatus.STARTED)
    assert prune(instance, ALL) == Pruned(0, 0)
    assert runs_of(instance) == {begun.run_id}


def report_job():
    definitions = dg.Definitions(assets=ASSETS, jobs=[dg.define_asset_job("make_report", [report])])
    return definitions.resolve_job_def("make_report")


def test_the_job_says_how_many(instance):
    config = {"ops": {"prune_old_runs": {"config": {"older_than_days": 1}}}}
    assert prune_records.execute_in_process(instance=instance, run_config=config).success
    messages = [event.user_message for event in instance.all_logs(instance.get_runs()[0].run_id)]
    assert any("0 were deleted" in message for message in messages)
