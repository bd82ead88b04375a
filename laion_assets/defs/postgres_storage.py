"""Dagster's storage in PostgreSQL, with an event log that is ours."""

from typing import Self

from dagster._core.storage.config import PostgresStorageConfig
from dagster._serdes import ConfigurableClassData
from dagster_postgres import DagsterPostgresStorage, PostgresEventLogStorage
from dagster_postgres.utils import get_token_provider_from_config, pg_url_from_config

from laion_assets.defs.check_states import KeepsCheckStates
from laion_assets.defs.event_log import KeepsFailures
from laion_assets.defs.partition_states import KeepsPartitionStates


class PostgresEventLog(KeepsCheckStates, KeepsPartitionStates, KeepsFailures, PostgresEventLogStorage):
    """The tables of Dagster's own, so that either reads what the other wrote."""


class PostgresStorage(DagsterPostgresStorage):
    """As Dagster's own, with the same settings in dagster.yaml, but for the event log."""

    @classmethod
    def from_config_value(  # type: ignore[override]
        cls, inst_data: ConfigurableClassData | None, config_value: PostgresStorageConfig
    ) -> Self:
        """As Dagster makes it from dagster.yaml."""
        address = pg_url_from_config(config_value)
        makes_tables = bool(config_value.get("should_autocreate_tables", True))
        tokens = get_token_provider_from_config(config_value)
        storage = cls(address, makes_tables, inst_data, tokens)
        storage._event_log_storage = PostgresEventLog(address, makes_tables, token_provider=tokens)
        return storage
