"""Jobs that evaluate the rules on what is there and materialize nothing.

In Dagster 1.13.27 a job of asset checks has no partitions, since these are inferred from the assets in it,
and the UI executes no partitioned check by itself. So each job here is an op that records what it finds as
Dagster does. Its partitions are batches ("00000..00024"), because a backfill of such a job is a run for each.
"""

from collections.abc import Iterator, Sequence

import dagster as dg

from laion_assets.defs.checks import evaluation_of, latest_materializations
from laion_assets.errors import MissingInput
from laion_assets.partitions import Axis, Partitions, batches
from laion_assets.pipeline import STAGES, Stage
from laion_assets.published import partitions_of
from laion_assets.quality.checks import evaluate, rules_of
from laion_assets.settings import Settings

_JOBS = {
    "check_parts": (Axis.PART, "raw parts"),
    "check_shards": (Axis.SHARD, "image shards"),
    "check_embedding_shards": (Axis.EMBEDDING_SHARD, "embedding shards"),
    "check_datasets": (Axis.NONE, "the plan, the datasets, the catalog and the report"),
}


def build_check_jobs(settings: Settings, found: Partitions) -> list[dg.JobDefinition]:
    """A job for each set of partitions, and one for what has none."""
    return [_job(name, axis, what, settings, found) for name, (axis, what) in _JOBS.items()]


def _job(name: str, axis: Axis, what: str, settings: Settings, found: Partitions) -> dg.JobDefinition:
    keys = found.keys(axis)
    of_batch = {_name(batch): batch for batch in batches(keys, set(keys), settings.batch_shards)}
    description = f"Check {what} that are there, by every rule, and materialize nothing"

    @dg.op(name=f"{name}_by_every_rule", description=description, out={})
    def check_batch(context: dg.OpExecutionContext) -> Iterator[dg.AssetCheckEvaluation]:
        batch = None if axis is Axis.NONE else of_batch[context.partition_key]
        for stage in STAGES:
            if stage.axis is axis:
                yield from _check(context, stage, settings, batch or [stage.name])

    @dg.job(
        name=name,
        description=description,
        partitions_def=None if axis is Axis.NONE else dg.StaticPartitionsDefinition(list(of_batch)),
    )
    def job() -> None:
        check_batch()

    return job


def _name(batch: Sequence[str]) -> str:
    first, last = batch[0], batch[-1]
    return first if first == last else f"{first}..{last}"


def _check(
    context: dg.OpExecutionContext, stage: Stage, settings: Settings, keys: Sequence[str]
) -> Iterator[dg.AssetCheckEvaluation]:
    """What each rule of a stage finds in each of its partitions that is there.

    Once all are recorded, Dagster fails the step if one failed that blocks.
    """
    published = set(partitions_of(settings.layout, stage.name))
    there = [key for key in keys if key in published]
    context.log.info("%s: %d of %d are there", stage.name, len(there), len(keys))
    targets = latest_materializations(context.instance, stage.name, there)
    for rule in rules_of(stage.name):
        for key in there:
            try:
                verdict = evaluate(rule, settings.layout, settings.quality, key)
            except MissingInput as error:
                context.log.warning("%s %s: %s: %s", stage.name, key, rule.name, error)
                continue
            yield evaluation_of(rule, key, verdict, targets.get(key))
