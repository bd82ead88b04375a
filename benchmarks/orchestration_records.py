"""A data set of tens of thousands of shards, of which a few are there, and Dagster's records as if all were.

The few are made and recorded by a real build. Their runs' records are then repeated for every other
partition, keys and ids exchanged: the rows are those that real runs leave, written in minutes, not days.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import dagster as dg
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import sqlalchemy as db
from dagster._core.storage.event_log.schema import (
    AssetCheckExecutionsTable,
    AssetEventTagsTable,
    SqlEventLogStorageTable,
)
from dagster._core.storage.runs.schema import RunsTable, RunTagsTable
from PIL import Image

from benchmarks.measuring import Failed
from benchmarks.tfds_inputs import make_embeddings
from laion_assets.defs.build import Request, build
from laion_assets.defs.recording import Watcher
from laion_assets.fetch.transport import FakeTransport, respond
from laion_assets.layout import ShardId
from laion_assets.partitions import Axis, find_partitions
from laion_assets.pipeline import IMAGES, STAGE_BY_NAME
from laion_assets.plan import ShardPlan
from laion_assets.schema import RAW
from laion_assets.settings import SETTINGS_FILE, Settings
from laion_assets.stages.images import images

_ROWS_PER_SHARD: Final = 4
_EMBEDDING_ROWS: Final = 8
_EVENT_IDS: Final = {
    "event_logs": ("id",),
    "asset_event_tags": ("event_id",),
    "asset_check_executions": ("evaluation_event_storage_id", "materialization_event_storage_id"),
}
_KEYS: Final = re.compile(r"(?<![0-9A-Za-z])[0-9]{5}(?![0-9A-Za-z])")


def make_data(folder: Path, *, cache: Path, real: int, batch: int) -> Settings:
    """A data root whose one part makes ``real`` shards of a few rows, their pictures being there.

    Args:
        folder: where it goes, settings included.
        cache: where embedding files are kept.
        real: how many shards.
        batch: shards that one run takes.
    """
    folder.mkdir(parents=True)
    embeddings = folder / "embeddings"
    _link_embeddings(make_embeddings(cache, _EMBEDDING_ROWS, 1), embeddings, [0])
    _write_part(folder / "raw" / "part-00000.parquet", real * _ROWS_PER_SHARD)
    (folder / SETTINGS_FILE).write_text(
        f"rows_per_shard = {_ROWS_PER_SHARD}\nbatch_shards = {batch}\n"
        "[raw]\nsource = 'raw'\n[embeddings]\nsource = 'embeddings'\n"
        "[fetch]\nper_domain_interval_s = 0\n[image]\nworkers = 1\n"
    )
    settings = Settings.load(folder / SETTINGS_FILE)
    body = io.BytesIO()
    Image.new("RGB", (64, 64), (200, 90, 30)).save(body, "JPEG")
    web = FakeTransport(lambda _: respond(200, body.getvalue()), settings.fetch)
    for part in settings.raw_files():
        STAGE_BY_NAME["raw_metadata"].run(settings, part)
    STAGE_BY_NAME["shard_plan"].run(settings, "shard_plan")
    for key in find_partitions(settings).shards:
        STAGE_BY_NAME["samples"].run(settings, key)
        images(ShardId.parse(key), settings.layout, settings.fetch, settings.image, transport=web)
    return settings


def record_real_build(settings: Settings, instance: dg.DagsterInstance) -> None:
    """Build what :func:`make_data` made, stage by stage, as ``laion-assets build`` does.

    Raises:
        Failed: if something of it fails.
    """
    done = build(settings, instance, Request(), Watcher())
    if not done.went_well:
        raise Failed(f"the build failed: {done.failures} {done.blocked} {done.crashes}")


def grow_data(settings: Settings, *, parts: int, shards: int, embedding_shards: int) -> None:
    """Let the plan have so many parts and shards, and the source so many embedding shards.

    Only the plan and the files' names say so; nothing of them is made.
    """
    plan = ShardPlan.load(settings.layout)
    there = len(plan.entries)
    more, over = divmod(shards - len(plan.shards), parts - there)
    for number in range(there, parts):
        rows = (more + (number - there < over)) * _ROWS_PER_SHARD
        plan = plan.with_part(f"part-{number:05d}", sha256=f"{number:064x}", rows=rows)
    settings.layout.shard_plan().only.write_bytes(plan.to_json())
    source = Path(str(settings.embeddings.source))
    _link_embeddings(source, source, range(1, embedding_shards))


def repeat_records(settings: Settings, instance: dg.DagsterInstance) -> dict[str, int]:
    """Record every partition that is not there as the build recorded those that are.

    Returns:
        Axis -> runs added.
    """
    found = find_partitions(settings)
    added = {}
    with instance.event_log_storage.index_connection() as events, instance.run_storage.connect() as runs:  # type: ignore[attr-defined]
        templates: dict[Axis, list[_Template]] = {}
        real: dict[Axis, set[str]] = {}
        for record in instance.get_run_records():
            template = _Template(record.dagster_run, found.keys, events, runs)
            if template.keys:
                same = [
                    one for one in templates.setdefault(template.axis, []) if one.stages == template.stages
                ]
                real.setdefault(template.axis, set()).update(template.keys)
                if not same:
                    templates[template.axis].append(template)
        for axis, some in templates.items():
            rest = [key for key in found.keys(axis) if key not in real[axis]]
            for template in some:
                template.repeat(rest)
            added[axis.value] = sum(-(-len(rest) // len(template.keys)) for template in some)
    return added


def bytes_recorded(instance: dg.DagsterInstance) -> int:
    """Of the runs of the image chain: events in every table, and run shards' files where there are any."""
    total = 0
    storage: Any = instance.event_log_storage
    for run in instance.get_runs():
        with storage.index_connection() as connection:
            events = connection.execute(
                db.text("SELECT sum(length(event)) FROM event_logs WHERE run_id = :run"), {"run": run.run_id}
            ).scalar_one()
            checks = connection.execute(
                db.text(
                    "SELECT sum(length(evaluation_event)) FROM asset_check_executions WHERE run_id = :run"
                ),
                {"run": run.run_id},
            ).scalar_one()
            is_chain = connection.execute(
                db.text("SELECT count(*) FROM event_logs WHERE run_id = :run AND asset_key = :key"),
                {"run": run.run_id, "key": dg.AssetKey(IMAGES[0]).to_string()},
            ).scalar_one()
        if is_chain:
            total += (events or 0) + (checks or 0)
            if hasattr(storage, "path_for_shard"):
                total += Path(storage.path_for_shard(run.run_id)).stat().st_size
    return total


class _Template:
    """The records of one run, to be repeated for other partitions."""

    def __init__(
        self,
        run: dg.DagsterRun,
        keys_of: Callable[[Axis], Sequence[str]],
        events: db.Connection,
        runs: db.Connection,
    ) -> None:
        self._run, self._events, self._runs = run, events, runs
        self._logged = _rows(events, SqlEventLogStorageTable, run.run_id)
        self.stages = {row["asset_key"] for row in self._logged if row["asset_key"]}
        # A run's stages share their axis.
        self.axis = next(iter({STAGE_BY_NAME[name.strip('[]"')].axis for name in self.stages}), Axis.NONE)
        self.keys = _keys_between(run.tags, keys_of(self.axis))
        if not self.keys:
            return
        self._checks = _rows(events, AssetCheckExecutionsTable, run.run_id)
        self._partitions = {row["id"]: row["partition"] for row in self._logged}
        self._tags = [
            dict(row)
            for row in events.execute(
                db.select(AssetEventTagsTable).where(AssetEventTagsTable.c.event_id.in_(self._partitions))
            ).mappings()
        ]
        self._run_rows = _rows(runs, RunsTable, run.run_id)
        self._run_tags = _rows(runs, RunTagsTable, run.run_id)

    def repeat(self, keys: Sequence[str]) -> None:
        """Add a run over each batch of these keys."""
        last = self._events.execute(db.select(db.func.max(SqlEventLogStorageTable.c.id))).scalar_one()
        first = min(row["id"] for row in self._logged)
        for start in range(0, len(keys), len(self.keys)):
            batch = keys[start : start + len(self.keys)]
            exchange = _Exchange(self.keys, batch, self._run.run_id, last + 1 - first)
            exchange.insert(self._events, SqlEventLogStorageTable, self._logged)
            last = exchange.offset + max(row["id"] for row in self._logged)
            tags = [row for row in self._tags if self._partitions[row["event_id"]] in self.keys[: len(batch)]]
            exchange.insert(self._events, AssetEventTagsTable, tags)
            exchange.insert(self._events, AssetCheckExecutionsTable, self._checks)
            exchange.insert(self._runs, RunsTable, self._run_rows)
            exchange.insert(self._runs, RunTagsTable, self._run_tags)
        if self._events.dialect.name == "postgresql":
            self._events.execute(db.text("SELECT setval('event_logs_id_seq', :last)"), {"last": last})


class _Exchange:
    """Exchanges partitions, run and event ids in rows."""

    def __init__(self, old: Sequence[str], new: Sequence[str], run_id: str, offset: int) -> None:
        self._keys = dict(zip(old, new, strict=False))
        # A run's range ends with its last key, also where the last run has fewer.
        self._in_texts = self._keys | {old[-1]: new[-1]}
        self._run_id, self._new_run_id, self.offset = run_id, str(uuid4()), offset

    def insert(self, connection: db.Connection, table: db.Table, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add the rows of a table, those of partitions aside that are not exchanged for others."""
        event_ids = _EVENT_IDS.get(table.name, ())
        new = [
            {
                name: (value + self.offset if name in event_ids else self._text(value, row.get("partition")))
                if isinstance(value, int | str)
                else value
                for name, value in row.items()
                if name != "id" or name in event_ids  # others the database numbers
            }
            for row in rows
            if row.get("partition") is None or row["partition"] in self._keys
        ]
        if new:
            connection.execute(table.insert(), new)

    def _text(self, value: int | str, partition: str | None) -> int | str:
        if isinstance(value, int):
            return value
        value = value.replace(self._run_id, self._new_run_id)
        if partition is not None:
            return value.replace(partition, self._keys[partition])
        return _KEYS.sub(lambda found: self._in_texts.get(found[0], found[0]), value)


def _rows(connection: db.Connection, table: db.Table, run_id: str) -> list[dict[str, Any]]:
    found = connection.execute(db.select(table).where(table.c.run_id == run_id).order_by(table.c.id))
    return [dict(row) for row in found.mappings()]


def _keys_between(tags: Mapping[str, str], every: Sequence[str]) -> list[str]:
    if (key := tags.get("dagster/partition")) is not None:
        return [key]
    if (first := tags.get("dagster/asset_partition_range_start")) is None:
        return []
    return list(every[every.index(first) : every.index(tags["dagster/asset_partition_range_end"]) + 1])


def _write_part(path: Path, rows: int) -> None:
    numbers = np.arange(rows)
    columns = {
        "SAMPLE_ID": numbers,
        "URL": [f"http://host-{number}.example/{number}.jpg" for number in numbers],
        "TEXT": [f"photo {number} of a house by the river" for number in numbers],
        "HEIGHT": np.full(rows, 64, np.int32),
        "WIDTH": np.full(rows, 64, np.int32),
        "similarity": np.full(rows, 0.31),
        "LICENSE": ["?"] * rows,
        "NSFW": ["UNLIKELY"] * rows,
    }
    path.parent.mkdir()
    pq.write_table(pa.table({name: columns[name] for name in RAW.names}, schema=RAW), path)


def _link_embeddings(source: Path, target: Path, numbers: Sequence[int]) -> None:
    for name, suffix in (("img_emb", "npy"), ("text_emb", "npy"), ("metadata", "parquet")):
        (target / name).mkdir(parents=True, exist_ok=True)
        for number in numbers:
            (target / name / f"{name}_{number}.{suffix}").hardlink_to(source / name / f"{name}_0.{suffix}")
