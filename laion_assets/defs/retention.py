"""Deletes old runs that have not the last word on anything; Dagster 1.13.27 itself keeps all of them.

Deleting a run deletes its events, and with them what it materialized, as far as Dagster knows. So a run
stays, however old, that for any asset, partition or check recorded the latest of the events from which
Dagster tells what is materialized, failed, stale or checked; and the first of runs that retry each other.
"""

from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

import dagster as dg
import sqlalchemy as db
from dagster._core.events import ASSET_EVENTS
from dagster._core.execution.backfill import (
    BULK_ACTION_TERMINAL_STATUSES,
    BulkActionsFilter,
    BulkActionStatus,
)
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus
from dagster._core.storage.dagster_run import FINISHED_STATUSES, RunsFilter
from dagster._core.storage.event_log.schema import (
    AssetCheckExecutionsTable,
    AssetKeyTable,
    SqlEventLogStorageTable,
)
from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage
from dagster._core.storage.runs.schema import RunTagsTable
from dagster._core.storage.runs.sql_run_storage import SqlRunStorage
from dagster._core.storage.tags import BACKFILL_ID_TAG, ROOT_RUN_ID_TAG

_PAGE: Final = 100


class Pruned(NamedTuple):
    """Runs older than was asked: how many were deleted, and how many stay for what they have recorded."""

    deleted: int
    kept: int


def prune(
    instance: dg.DagsterInstance, older_than: timedelta, *, dry_run: bool = False, page: int = _PAGE
) -> Pruned:
    """Delete runs that ended before, with their events, and the output that was captured of them.

    It takes memory for the names of the runs that stay, and for a page of others.

    Args:
        instance: whose records; in SQLite or PostgreSQL.
        older_than: how long ago a run must have ended.
        dry_run: delete nothing, and count what would be.
        page: runs that are looked at together.
    """
    keep = _last_words(instance)
    ended = RunsFilter(statuses=FINISHED_STATUSES, updated_before=datetime.now(UTC) - older_than)
    deleted = kept = 0
    # The last run of a page that is still there: what follows it is the next page.
    cursor: str | None = None
    while records := instance.get_run_records(ended, limit=page, ascending=True, cursor=cursor):
        for record in records:
            run_id = record.dagster_run.run_id
            if run_id in keep:
                kept += 1
            else:
                deleted += 1
                if not dry_run:
                    _delete(instance, run_id)
            if dry_run or run_id in keep:
                cursor = run_id
    return Pruned(deleted, kept)


def _last_words(instance: dg.DagsterInstance) -> set[str]:
    """Runs that must stay."""
    events, runs = _storages(instance)
    event, check = SqlEventLogStorageTable.c, AssetCheckExecutionsTable.c
    kinds = [kind.value for kind in ASSET_EVENTS]
    latest_events = (
        db.select(db.func.max(event.id))
        .where(event.dagster_event_type.in_(kinds), event.asset_key.is_not(None))
        .group_by(event.dagster_event_type, event.asset_key, event.partition)
    )
    # A check that was planned, and then not evaluated, hides the evaluation before it only while it runs.
    planned = check.execution_status == AssetCheckExecutionRecordStatus.PLANNED.value
    latest_checks = db.select(db.func.max(check.id)).group_by(
        check.asset_key, check.check_name, check.partition, planned
    )
    keep: set[str] = set()
    with events.index_connection() as connection:
        for query in (
            db.select(event.run_id).where(event.id.in_(latest_events)).distinct(),
            db.select(check.run_id).where(check.id.in_(latest_checks)).distinct(),
            db.select(AssetKeyTable.c.last_run_id),
        ):
            keep.update(run_id for (run_id,) in connection.execute(query) if run_id)
    tag = RunTagsTable.c
    working = [status for status in BulkActionStatus if status not in BULK_ACTION_TERMINAL_STATUSES]
    backfills = instance.get_backfills(filters=BulkActionsFilter(statuses=working))
    with runs.connect() as connection:
        # Whoever looks at a run that was retried is shown the first one, too, or an error.
        roots = connection.execute(db.select(tag.run_id, tag.value).where(tag.key == ROOT_RUN_ID_TAG))
        keep.update([root for run_id, root in roots if run_id in keep])
        of_backfills = db.select(tag.run_id).where(
            tag.key == BACKFILL_ID_TAG, tag.value.in_([backfill.backfill_id for backfill in backfills])
        )
        keep.update(run_id for (run_id,) in connection.execute(of_backfills))
    return keep


def _delete(instance: dg.DagsterInstance, run_id: str) -> None:
    # As DagsterInstance.delete_run, and what that leaves behind; the run itself late, so that what is cut off
    # in the middle is done again.
    events, runs = _storages(instance)
    instance.compute_log_manager.delete_logs(prefix=[run_id])
    with events.index_connection() as connection:
        connection.execute(
            AssetCheckExecutionsTable.delete().where(AssetCheckExecutionsTable.c.run_id == run_id)
        )
    events.delete_events(run_id)
    runs.delete_run(run_id)
    with runs.connect() as connection:
        # Which go with the run in PostgreSQL only.
        connection.execute(RunTagsTable.delete().where(RunTagsTable.c.run_id == run_id))


def _storages(instance: dg.DagsterInstance) -> tuple[SqlEventLogStorage, SqlRunStorage]:
    events, runs = instance.event_log_storage, instance.run_storage
    assert isinstance(events, SqlEventLogStorage)
    assert isinstance(runs, SqlRunStorage)
    return events, runs
