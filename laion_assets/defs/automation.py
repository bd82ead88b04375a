"""When Dagster makes by itself what follows from changed inputs, and from when on it calls a data set old."""

from datetime import timedelta
from typing import Final

import dagster as dg

from laion_assets.partitions import Axis
from laion_assets.pipeline import PUBLICATION, STAGE_BY_NAME, STAGES, Stage, is_asked_for
from laion_assets.settings import Settings

# A policy must name a window after which it fails; this one only warns. GraphQL's integers, in which the UI
# asks for its seconds, end after 68 years, and a larger one would leave it without any asset.
_NEVER: Final = timedelta(days=20_000)


def build_automation_sensor(settings: Settings) -> dg.AutomationConditionSensorDefinition:
    """Requests what the conditions ask for; off, unless a setting or somebody in the UI turns it on."""
    wanted = settings.automation.keep_current
    return dg.AutomationConditionSensorDefinition(
        name="keep_current",
        target=dg.AssetSelection.assets(*(stage.name for stage in STAGES)),
        minimum_interval_seconds=settings.automation.interval_s,
        default_status=dg.DefaultSensorStatus.RUNNING if wanted else dg.DefaultSensorStatus.STOPPED,
        description=(
            "Makes again, per partition, what follows from inputs that were materialized since this was "
            "turned on, once these are not in progress and no check that blocks fails on them."
        ),
    )


def condition_of(stage: Stage, settings: Settings) -> dg.AutomationCondition | None:
    """When a stage's partition is made again by itself; None for never.

    Unlike Dagster's eager(), it asks for nothing just because it is missing: what is new is the other
    sensor's, and what is missing a build's.
    """
    if not stage.inputs or not is_asked_for(stage.name, settings) or not _has_sources(stage, settings):
        return None
    if stage.name == "shard_plan" and settings.automation.request_runs:
        return None  # which requests it for shards laid down, too
    condition = dg.AutomationCondition
    # A plan is only appended to, and its every appendix would else touch every shard.
    updated = condition.any_deps_updated().ignore(dg.AssetSelection.assets("shard_plan"))
    handled = condition.newly_requested() | condition.newly_updated()
    due = updated.since(handled) & ~condition.any_deps_in_progress() & ~condition.in_progress()
    if stage.axis is Axis.NONE:
        # A data set is of what is there, some of it missing or failing.
        return due.with_label("an input was updated")
    beside = dg.AssetSelection.assets(
        *(name for name in stage.inputs if STAGE_BY_NAME[name].axis is stage.axis)
    )
    failing = condition.any_checks_match(condition.check_failed(), blocking_only=True)
    missing = condition.missing() & ~condition.will_be_requested()
    blocked = condition.any_deps_match(missing | failing).allow(beside)
    return (due & ~blocked).with_label("an input was updated, and all are there and good")


def _has_sources(stage: Stage, settings: Settings) -> bool:
    """Whether what it reads can be there at all: without vectors, images have none to be joined with."""
    axes = {STAGE_BY_NAME[name].axis for name in stage.inputs}
    return Axis.EMBEDDING_SHARD not in axes or settings.embeddings.source is not None


def freshness_of(stage: Stage, settings: Settings) -> dg.FreshnessPolicy | None:
    """From when on the UI warns that a data set, the catalog or the report is old."""
    days = settings.automation.warn_after_days
    if stage.name not in PUBLICATION or not days:
        return None
    return dg.FreshnessPolicy.time_window(fail_window=_NEVER, warn_window=timedelta(days=days))
