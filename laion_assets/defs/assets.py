"""One asset for each stage: it asks the stage and hands its report to Dagster."""

from collections.abc import Iterator

import dagster as dg

from laion_assets.defs.automation import condition_of, freshness_of
from laion_assets.defs.metadata import columns_of
from laion_assets.defs.partitions import PartitionSets
from laion_assets.defs.pools import pool_of
from laion_assets.defs.recording import Watcher, materialize_partitions, materialize_whole
from laion_assets.partitions import Axis
from laion_assets.pipeline import STAGES, Stage
from laion_assets.settings import Settings

_OWNER = "team:data-sets"


def build_assets(
    settings: Settings, partitions: PartitionSets, watcher: Watcher
) -> list[dg.AssetsDefinition]:
    """Every stage as an asset, in flow order."""
    return [_asset(stage, settings, partitions, watcher) for stage in STAGES]


def _asset(
    stage: Stage, settings: Settings, partitions: PartitionSets, watcher: Watcher
) -> dg.AssetsDefinition:
    declare = dg.asset(
        name=stage.name,
        deps=partitions.deps(stage),
        partitions_def=partitions.definition(stage.axis),
        backfill_policy=_backfill_policy(stage, settings),
        pool=pool_of(stage),
        automation_condition=condition_of(stage, settings),
        freshness_policy=freshness_of(stage, settings),
        group_name=stage.group,
        kinds=set(stage.kinds),
        owners=[_OWNER],
        description=stage.description,
        code_version=stage.code_version,
        metadata=columns_of(stage),
    )
    if stage.axis is Axis.NONE:

        def whole() -> dg.MaterializeResult:
            return materialize_whole(stage, settings, watcher)

        return declare(whole)

    def partitioned(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult]:
        yield from materialize_partitions(context, stage, settings, watcher)

    return declare(partitioned)


def _backfill_policy(stage: Stage, settings: Settings) -> dg.BackfillPolicy | None:
    """The same along a whole branch, so that one run takes a batch of shards through all of it."""
    if stage.axis is Axis.NONE:
        return None
    if settings.one_run:
        return dg.BackfillPolicy.single_run()
    return dg.BackfillPolicy.multi_run(settings.batch_shards)
