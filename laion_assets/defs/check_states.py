"""The state of every partition of every check, kept, where Dagster makes it anew for each answer to its UI.

Dagster 1.13.27 goes through a check's records one by one, and for each through all partitions, twice: with
8,000 shards the asset graph took a minute, with 41,455 it did not come. Here a check's records are read once
in a process, and after that those of the partitions about which something was recorded since.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Any, Final

import dagster as dg
import sqlalchemy as db
from dagster._core.asset_graph_view.serializable_entity_subset import SerializableEntitySubset
from dagster._core.definitions.partitions.subset import DefaultPartitionsSubset
from dagster._core.storage.asset_check_execution_record import (
    AssetCheckExecutionRecordStatus,
    AssetCheckExecutionResolvedStatus,
    AssetCheckPartitionInfo,
)
from dagster._core.storage.asset_check_state import AssetCheckState, _process_run_statuses
from dagster._core.storage.dagster_run import FINISHED_STATUSES
from dagster._core.storage.event_log import SqlEventLogStorage
from dagster._core.storage.event_log.schema import (
    AssetCheckExecutionsTable,
    AssetKeyTable,
    SqlEventLogStorageTable,
)
from dagster_shared.record import copy

from laion_assets.defs.many_partitions import OrderedKeys, remember_definitions

_Partitions = dg.PartitionsDefinition[str] | None
_Keys = Sequence[tuple[dg.AssetCheckKey, _Partitions]]
_Subset = SerializableEntitySubset[dg.AssetCheckKey]

# More than are recorded while events settle; as many are looked at again after the first reading.
_UNSETTLED_EVENTS: Final = 2_000
# Above these, reading all records of a check costs less than asking for so many partitions.
_MOST_EVENTS: Final = 20_000
_MOST_PARTITIONS: Final = 2_000

_CHECKS: Final = ("ASSET_CHECK_EVALUATION", "ASSET_CHECK_EVALUATION_PLANNED")
_TELLING: Final = (*_CHECKS, "ASSET_MATERIALIZATION")


@dataclass(frozen=True)
class _Kept:
    partitions: _Partitions
    state: AssetCheckState


@dataclass(frozen=True)
class _News:
    """What was recorded lately.

    Attributes:
        runs: those that have planned or evaluated checks.
        partitions: asset, as the database writes it -> partitions that were materialized; None is all.
    """

    runs: Collection[str]
    partitions: Mapping[str, Collection[str | None]]


class KeepsCheckStates(SqlEventLogStorage):
    """What an event log in an SQL database inherits from before Dagster's own class for it.

    Attributes:
        settles_s: seconds for which an event is looked at again after it was first seen. It has its number
            before what it says is written, and in PostgreSQL before lower numbers can be seen.
    """

    settles_s = 30.0

    def __init__(self, *arguments: Any, **named: Any) -> None:  # noqa: ANN401 (whatever the other class takes)
        remember_definitions()
        self._lock = threading.Lock()
        self._forget_check_states()
        super().__init__(*arguments, **named)  # type: ignore[no-untyped-call]

    def _forget_check_states(self) -> None:
        self._kept: dict[dg.AssetCheckKey, _Kept] = {}
        self._settled = self._marked = 0
        self._marked_at = float("-inf")
        self._wiped: datetime | None = None

    def get_asset_check_state(self, keys: _Keys) -> Mapping[dg.AssetCheckKey, AssetCheckState]:
        """Check -> in which partitions it passed, failed, or was not finished.

        As Dagster's own says, but for a run's records that another process removed since they were read.
        """
        with self._lock:
            news = self._news()
            for asset, of_asset in groupby(sorted(keys, key=_asset_of), key=_asset_of):
                self._update(asset, dict(of_asset), news)
            self._end_runs(keys)
            return {key: self._kept[key].state for key, _ in keys}

    def optimize_for_webserver(self, statement_timeout: int, pool_recycle: int, max_overflow: int) -> None:
        """Dagster's word for: this process is a webserver."""
        from laion_assets.defs.webserver import quicken

        super().optimize_for_webserver(statement_timeout, pool_recycle, max_overflow)
        quicken()

    def delete_events(self, run_id: str) -> None:
        """Remove a run's events, and what was known with them."""
        super().delete_events(run_id)
        with self._lock:
            self._forget_check_states()

    def wipe_asset(self, asset_key: dg.AssetKey) -> None:
        """Remove what is recorded of an asset; other processes see it by the asset's time of wiping."""
        super().wipe_asset(asset_key)
        with self._lock:
            self._forget_check_states()

    def wipe(self) -> None:
        """Remove everything."""
        super().wipe()
        with self._lock:
            self._forget_check_states()

    def _news(self) -> _News:
        events = SqlEventLogStorageTable.c
        with self.index_connection() as connection:
            newest = connection.execute(db.select(db.func.max(events.id))).scalar() or 0
            wiped = connection.execute(db.select(db.func.max(AssetKeyTable.c.wipe_timestamp))).scalar()
            if newest < self._marked or wiped != self._wiped:
                self._forget_check_states()
                self._wiped = wiped
            if time.monotonic() - self._marked_at > self.settles_s:
                self._settled, self._marked, self._marked_at = self._marked, newest, time.monotonic()
            if not self._kept:
                self._settled = max(newest - _UNSETTLED_EVENTS, 0)
            if not self._kept or newest == self._settled:
                return _News((), {})
            told = connection.execute(
                db.select(events.dagster_event_type, events.run_id, events.asset_key, events.partition)
                .where(events.id > self._settled, events.dagster_event_type.in_(_TELLING))
                .limit(_MOST_EVENTS + 1)
            ).fetchall()
        if len(told) > _MOST_EVENTS:
            self._kept = {}
        materialized = defaultdict[str, set[str | None]](set)
        for event_type, _, asset, partition in told:
            if event_type not in _CHECKS:
                materialized[asset].add(partition)
        return _News({run for event_type, run, *_ in told if event_type in _CHECKS}, materialized)

    def _update(self, asset: str, keys: Mapping[dg.AssetCheckKey, _Partitions], news: _News) -> None:
        """Bring what is kept of an asset's checks up to date."""
        changed = {*news.partitions.get(asset, ()), *self._evaluated(asset, keys, news.runs)}
        named = [partition for partition in changed if partition is not None]
        usable = [key for key in keys if key in self._kept and self._kept[key].partitions == keys[key]]
        if len(named) < len(changed) or len(named) > _MOST_PARTITIONS:
            usable = []
        infos = defaultdict[dg.AssetCheckKey, list[AssetCheckPartitionInfo]](list)
        if named and usable:
            for info in self.get_asset_check_partition_info(usable, partition_keys=named):
                infos[info.check_key].append(info)
        for key, partitions in keys.items():
            if key not in usable:
                # One check at a time: its records take ten times the room of its state.
                state = _state_of(key, partitions, self.get_asset_check_partition_info([key]))
            elif named:
                fresh = _state_of(key, partitions, infos[key])
                state = _replaced(key, partitions, self._kept[key].state, named, fresh)
            else:
                continue
            subsets = {status: _ordered(subset) for status, subset in state.subsets.items()}
            self._kept[key] = _Kept(partitions, copy(state, subsets=subsets))

    def _evaluated(
        self, asset: str, keys: Iterable[dg.AssetCheckKey], runs: Collection[str]
    ) -> Iterable[str | None]:
        """Partitions in which runs have planned or evaluated checks of an asset."""
        if not runs:
            return ()
        checks = AssetCheckExecutionsTable.c
        with self.index_connection() as connection:
            return (
                connection.execute(
                    db.select(checks.partition)
                    .where(
                        checks.asset_key == asset,
                        checks.check_name.in_([key.name for key in keys]),
                        checks.run_id.in_(runs),
                    )
                    .distinct()
                )
                .scalars()
                .all()
            )

    def _end_runs(self, keys: _Keys) -> None:
        """Say of checks that a run had planned, and not evaluated when it ended, what became of them."""
        runs = {run for key, _ in keys for run in self._kept[key].state.in_progress_runs}
        if not runs:
            return
        ended = {
            run.run_id: run.status
            for run in self._instance.get_runs(
                dg.RunsFilter(run_ids=list(runs), statuses=list(FINISHED_STATUSES))
            )
        }
        for key, partitions in keys:
            state = self._kept[key].state
            subsets, in_progress = _process_run_statuses(
                key, partitions, state.subsets, state.in_progress_runs, ended
            )
            state = copy(state, subsets=subsets, in_progress_runs=in_progress)
            self._kept[key] = _Kept(partitions, state)


def _asset_of(key: tuple[dg.AssetCheckKey, _Partitions]) -> str:
    return key[0].asset_key.to_string()


def _state_of(
    key: dg.AssetCheckKey,
    partitions: _Partitions,
    infos: Iterable[AssetCheckPartitionInfo],
) -> AssetCheckState:
    """What records say of the partitions that they are of, by the rules of Dagster's own function."""
    valid = {None} if partitions is None else set(partitions.get_partition_keys())
    found = defaultdict[AssetCheckExecutionResolvedStatus, list[str | None]](list)
    planned = defaultdict[str, list[str | None]](list)
    latest = 0
    for info in infos:
        latest = max(latest, info.latest_check_event_storage_id, info.latest_materialization_storage_id or 0)
        if info.partition_key not in valid:
            continue
        status = info.latest_execution_status
        if status == AssetCheckExecutionRecordStatus.PLANNED:
            found[AssetCheckExecutionResolvedStatus.IN_PROGRESS].append(info.partition_key)
            planned[info.latest_planned_run_id].append(info.partition_key)
        elif info.is_current:
            # What was found of an earlier materialization says nothing of this one.
            found[AssetCheckExecutionResolvedStatus(status.value)].append(info.partition_key)
    return AssetCheckState(
        latest_storage_id=latest,
        subsets={
            status: _subset(key, partitions, found[status]) for status in AssetCheckExecutionResolvedStatus
        },
        in_progress_runs={run: _subset(key, partitions, of_run) for run, of_run in planned.items()},
    )


def _replaced(
    key: dg.AssetCheckKey,
    partitions: _Partitions,
    old: AssetCheckState,
    changed: Sequence[str],
    fresh: AssetCheckState,
) -> AssetCheckState:
    """A state in which some partitions are as a fresh one has them."""
    gone, none = _subset(key, partitions, changed), _subset(key, partitions, ())
    runs = {
        run: old.in_progress_runs.get(run, none)
        .compute_difference(gone)
        .compute_union(fresh.in_progress_runs.get(run, none))
        for run in {**old.in_progress_runs, **fresh.in_progress_runs}
    }
    return AssetCheckState(
        latest_storage_id=max(old.latest_storage_id, fresh.latest_storage_id),
        subsets={
            status: subset.compute_difference(gone).compute_union(fresh.subsets[status])
            for status, subset in old.subsets.items()
        },
        in_progress_runs={run: subset for run, subset in runs.items() if not subset.is_empty},
    )


def _subset(
    key: dg.AssetCheckKey,
    partitions: _Partitions,
    keys: Sequence[str | None],
) -> _Subset:
    if partitions is None:
        return SerializableEntitySubset(key=key, value=bool(keys))
    value = partitions.subset_with_partition_keys([key for key in keys if key is not None])
    return SerializableEntitySubset(key=key, value=value)


def _ordered(subset: _Subset) -> _Subset:
    if not isinstance(subset.value, DefaultPartitionsSubset):
        return subset
    ordered = DefaultPartitionsSubset(OrderedKeys(subset.value.subset))
    return SerializableEntitySubset(key=subset.key, value=ordered)
