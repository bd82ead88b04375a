"""Dagster's event log in SQLite for half its price: its tables and queries, over connections that stay open.

Dagster 1.13.27 makes an engine for every transaction, which connects, compiles its SQL and syncs the disk
anew, several times an event; and a shard has dozens of events.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import dagster as dg
import sqlalchemy as db
from dagster._config import UserConfigSchema
from dagster._core.storage.event_log import SqlEventLogStorage, SqliteEventLogStorage
from dagster._core.storage.event_log.sqlite.sqlite_event_log import INDEX_SHARD_NAME
from dagster._core.storage.sqlite import SQLITE_BUSY_TIMEOUT_SECONDS
from dagster._serdes import ConfigurableClassData
from sqlalchemy.pool import StaticPool

from laion_assets.defs.check_states import KeepsCheckStates
from laion_assets.defs.partition_states import KeepsPartitionStates


class KeepsFailures(SqlEventLogStorage):
    """An event log in an SQL database that keeps why partitions failed; Dagster's own do not."""

    @property
    def can_store_asset_failure_events(self) -> bool:
        """Yes: the UI shows it on a partition's page."""
        return True

    def fetch_failed_materializations(
        self,
        records_filter: dg.AssetKey | dg.AssetRecordsFilter,
        limit: int,
        cursor: str | None = None,
        ascending: bool = False,
    ) -> dg.EventRecordsResult:
        """Why partitions of an asset failed, as Dagster fetches its materializations."""
        if isinstance(records_filter, dg.AssetKey):
            records_filter = dg.AssetRecordsFilter(records_filter)
        wanted = records_filter.to_event_records_filter(
            dg.DagsterEventType.ASSET_FAILED_TO_MATERIALIZE, cursor, ascending
        )
        found: dg.EventRecordsResult = self._get_event_records_result(wanted, limit, cursor, ascending)
        return found


class SqliteEventLog(KeepsCheckStates, KeepsPartitionStates, KeepsFailures, SqliteEventLogStorage):
    """The files of Dagster's own storage, in the same place, so that either reads what the other wrote.

    Two connections are kept: to the index, and to the events of the run that was last looked at. A kill loses
    nothing; a power cut may lose the last moments' records, not the files that they tell of, and a build
    records anew what it finds unrecorded.
    """

    def __init__(self, base_dir: str, inst_data: ConfigurableClassData | None = None) -> None:
        self._engines: dict[str, db.Engine] = {}
        self._tables: set[str] = set()
        super().__init__(base_dir, inst_data)

    @classmethod
    def config_type(cls) -> UserConfigSchema:
        """Dagster's folder, below which its own storage has its files."""
        return {"home": dg.StringSource}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> Self:
        """As Dagster makes it from dagster.yaml."""
        return cls(str(Path(config_value["home"]) / "history" / "runs"), inst_data)

    @contextmanager
    def _connect(self, shard: str) -> Iterator[db.Connection]:
        if shard not in self._initialized_dbs:
            # Its tables are made, or were wiped.
            self._forget(shard)
            with super()._connect(shard):
                pass
        with self._db_lock, self._engine(shard).connect() as connection, connection.begin():
            yield connection

    def _engine(self, shard: str) -> db.Engine:
        if shard not in self._engines:
            for other in self._engines.keys() - {INDEX_SHARD_NAME}:
                self._forget(other)
            # One connection for all threads, which take turns by Dagster's lock.
            engine = db.create_engine(
                self.conn_string_for_shard(shard),
                poolclass=StaticPool,
                connect_args={"timeout": SQLITE_BUSY_TIMEOUT_SECONDS, "check_same_thread": False},
            )
            with engine.connect() as connection:
                # Sound in WAL mode, which Dagster sets; FULL would sync at every statement.
                connection.execute(db.text("PRAGMA synchronous=NORMAL"))
            self._engines[shard] = engine
        return self._engines[shard]

    def _forget(self, shard: str) -> None:
        if engine := self._engines.pop(shard, None):
            engine.dispose()

    def delete_events(self, run_id: str) -> None:
        """A run's events, and the file that they were in, which Dagster's own storage leaves behind."""
        super().delete_events(run_id)
        with self._db_lock:
            self._forget(run_id)
            self._initialized_dbs.discard(run_id)
            for suffix in ("", "-wal", "-shm"):
                Path(self.path_for_shard(run_id) + suffix).unlink(missing_ok=True)

    def has_table(self, table_name: str) -> bool:
        """Whether the index has a table; asked for every event."""
        if table_name not in self._tables and super().has_table(table_name):
            self._tables.add(table_name)
        return table_name in self._tables

    def dispose(self) -> None:
        """Close what is open."""
        for shard in list(self._engines):
            self._forget(shard)
        super().dispose()
