"""How far each stage is: what the files say is done, and what Dagster says has failed."""

from dataclasses import dataclass

import dagster as dg

from laion_assets.partitions import Axis, find_partitions
from laion_assets.pipeline import STAGES, Stage, is_asked_for, keys_of
from laion_assets.published import done_partitions
from laion_assets.settings import Settings


@dataclass(frozen=True, kw_only=True)
class StageStatus:
    """Counts of one stage's partitions; ``failed`` and ``missing`` do not overlap."""

    stage: str
    axis: str
    done: int
    failed: int
    missing: int
    rows: int
    bytes: int


def stage_statuses(settings: Settings, instance: dg.DagsterInstance) -> list[StageStatus]:
    """The state of every stage, in flow order."""
    found = find_partitions(settings)
    statuses = []
    for stage in STAGES:
        keys = keys_of(stage, found)
        manifests = done_partitions(settings.layout, stage.name, keys)
        published = list(manifests.values())
        undone = set(keys) - manifests.keys()
        if not is_asked_for(stage.name, settings):
            undone = set()
        failed = undone & _failed(stage, instance)
        statuses.append(
            StageStatus(
                stage=stage.name,
                axis=stage.axis,
                done=len(published),
                failed=len(failed),
                missing=len(undone) - len(failed),
                rows=sum(manifest.rows for manifest in published),
                bytes=sum(manifest.bytes for manifest in published),
            )
        )
    return statuses


def _failed(stage: Stage, instance: dg.DagsterInstance) -> set[str]:
    """Partitions whose last run ended without materializing them."""
    key = dg.AssetKey(stage.name)
    if stage.axis is Axis.NONE:
        record = next(iter(instance.get_asset_records([key])), None)
        run = (
            record
            and record.asset_entry.last_run_id
            and instance.get_run_by_id(record.asset_entry.last_run_id)
        )
        return {stage.name} if run and run.is_failure else set()
    storage = instance.event_log_storage
    attempts = storage.get_latest_asset_partition_materialization_attempts_without_materializations(key)
    runs = {run_id for run_id, _ in attempts.values()}
    failed = {run_id for run_id in runs if (run := instance.get_run_by_id(run_id)) and run.is_failure}
    return {partition for partition, (run_id, _) in attempts.items() if run_id in failed}
