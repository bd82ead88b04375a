"""The job that deletes old records, and a schedule for it."""

from datetime import timedelta
from typing import Final

import dagster as dg
from pydantic import Field


class PruneConfig(dg.Config):
    """What the job asks for when it is launched."""

    older_than_days: int = Field(default=90, ge=1, description="How long ago a run must have ended.")
    dry_run: bool = Field(default=False, description="Delete nothing, and count what would be.")


@dg.op
def prune_old_runs(context: dg.OpExecutionContext, config: PruneConfig) -> None:
    """Delete old runs, and say how many."""
    # What it knows of the storages takes as long to import as the rest of the code location.
    from laion_assets.defs.retention import prune

    pruned = prune(context.instance, timedelta(days=config.older_than_days), dry_run=config.dry_run)
    context.log.info(
        "of the runs that ended more than %d days ago %d %s deleted; %d stay, for what they recorded last",
        config.older_than_days,
        pruned.deleted,
        "would be" if config.dry_run else "were",
        pruned.kept,
    )


@dg.job(description="Delete old runs, but none that has the last word on a partition or a check")
def prune_records() -> None:
    """For a person, or the schedule, to launch."""
    prune_old_runs()


PRUNE_WEEKLY: Final = dg.ScheduleDefinition(
    name="prune_records_weekly",
    job=prune_records,
    cron_schedule="0 4 * * 0",
    execution_timezone="UTC",
    description="Delete runs that ended 90 days ago and have not the last word on anything",
)
