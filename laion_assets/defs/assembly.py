"""Settings, plan and stages assembled for Dagster."""

import warnings

import dagster as dg

from laion_assets.defs.assets import build_assets
from laion_assets.defs.automation import build_automation_sensor
from laion_assets.defs.check_jobs import build_check_jobs
from laion_assets.defs.checks import build_checks
from laion_assets.defs.jobs import build_jobs, build_schedule
from laion_assets.defs.partitions import PartitionSets
from laion_assets.defs.prune_job import PRUNE_WEEKLY, prune_records
from laion_assets.defs.recording import Watcher
from laion_assets.defs.sensors import build_sensor
from laion_assets.defs.workers import attended_executor
from laion_assets.partitions import find_partitions
from laion_assets.settings import Settings


def build_definitions(settings: Settings, *, watcher: Watcher | None = None) -> dg.Definitions:
    """Everything Dagster shows and runs, for one data root.

    Args:
        settings: what the user set.
        watcher: is told of every partition and check as it ends.
    """
    partitions = PartitionSets(find_partitions(settings))
    watcher = watcher or Watcher()
    with warnings.catch_warnings():
        # In Dagster 1.13.27 backfill policies are beta and partitions of checks a preview. Without the one
        # a backfill is a run for each shard, without the other a check's result has no partition.
        warnings.simplefilter("ignore", dg.BetaWarning)
        warnings.simplefilter("ignore", dg.PreviewWarning)
        return _assemble(settings, partitions, watcher)


def _assemble(settings: Settings, partitions: PartitionSets, watcher: Watcher) -> dg.Definitions:
    jobs = build_jobs(settings)
    return dg.Definitions(
        assets=build_assets(settings, partitions, watcher),
        asset_checks=build_checks(settings, partitions, watcher),
        jobs=[*jobs, *build_check_jobs(settings, partitions.found), prune_records],
        schedules=[build_schedule(settings), PRUNE_WEEKLY],
        sensors=[build_sensor(settings, partitions, jobs), build_automation_sensor(settings)],
        executor=attended_executor,
    )
