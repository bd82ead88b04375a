"""Jobs that a person launches from the UI, over a range of shards or the datasets; and a schedule."""

from collections.abc import Iterator
from typing import Final

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from laion_assets.defs.partitions import range_tags
from laion_assets.defs.recording import RETRY_TAG
from laion_assets.partitions import Axis, batches, find_partitions
from laion_assets.pipeline import EMBEDDINGS, IMAGES, PARTS, PUBLICATION, is_asked_for
from laion_assets.published import retryable_shards
from laion_assets.settings import Settings

PLAN_JOB: Final = "plan_shards"
JOB_OF: Final = {
    Axis.PART: "read_parts",
    Axis.SHARD: "build_shards",
    Axis.EMBEDDING_SHARD: "build_embedding_shards",
}
"""Axis -> the job that takes its partitions."""

_JOBS = {
    JOB_OF[Axis.PART]: (PARTS, "Read raw parts"),
    PLAN_JOB: (("shard_plan",), "Append new parts, and shards laid down by img2dataset, to the plan"),
    JOB_OF[Axis.SHARD]: (IMAGES, "Take image shards through the whole branch"),
    JOB_OF[Axis.EMBEDDING_SHARD]: (EMBEDDINGS, "Take embedding shards through the whole branch"),
    "publish_datasets": (
        PUBLICATION,
        "Publish what is there as TFDS datasets, with the catalog and the report",
    ),
}


def build_jobs(settings: Settings) -> list[UnresolvedAssetJobDefinition]:
    """A job for each chain of stages that share their partitions, one for what has none, and one to retry."""
    jobs = [
        dg.define_asset_job(
            name,
            selection=[stage for stage in chain if is_asked_for(stage, settings)],
            description=description,
        )
        for name, (chain, description) in _JOBS.items()
    ]
    return [*jobs, _RETRY_FAILED]


_RETRY_FAILED = dg.define_asset_job(
    "retry_failed",
    selection=IMAGES[1:],
    description="Ask again for pictures that timed out, were refused or met a server's error, and no others",
    tags={RETRY_TAG: "true"},
)


def build_schedule(settings: Settings) -> dg.ScheduleDefinition:
    """Retries every Sunday night what failed for the moment, once somebody turns it on."""

    @dg.schedule(
        name="retry_failed_weekly",
        job=_RETRY_FAILED,
        cron_schedule="0 3 * * 0",
        execution_timezone="UTC",
        description="Retry downloads that failed for the moment, of all shards that have some",
    )
    def retry_failed_weekly(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest | dg.SkipReason]:
        retryable = retryable_shards(settings.layout)
        if not retryable:
            yield dg.SkipReason("no shard has a download that failed for the moment")
        tick = context.scheduled_execution_time.isoformat()
        for batch in batches(find_partitions(settings).shards, retryable, settings.batch_shards):
            yield dg.RunRequest(run_key=f"{tick} {batch[0]}", tags=range_tags(batch))

    return retry_failed_weekly
