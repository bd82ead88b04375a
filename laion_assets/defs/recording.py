"""What Dagster is told of a partition: events, versions, metadata. Text of the data set is never markup."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import Final

import dagster as dg
from dagster._core.definitions.data_version import (
    CODE_VERSION_TAG,
    DATA_VERSION_IS_USER_PROVIDED_TAG,
    DATA_VERSION_TAG,
    NULL_EVENT_POINTER,
    get_input_data_version_tag,
    get_input_event_pointer_tag,
)
from dagster._core.definitions.source_asset import SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION

from laion_assets.defs.failures import failure_of, lost_partitions, report_partition
from laion_assets.defs.metadata import metadata_of
from laion_assets.download_progress import DownloadProgress, Follow, every
from laion_assets.errors import DiskFull, LaionAssetsError
from laion_assets.formats.publish import Manifest, done
from laion_assets.pipeline import Stage, upstream_of
from laion_assets.quality.checks import Rule, Verdict
from laion_assets.settings import Settings
from laion_assets.shard_work import (
    SECONDS_PER_LOG_LINE,
    Refusal,
    cores_of,
    end_with_parent,
    make,
    map_shards,
    settings_of_workers,
)
from laion_assets.space import check_room
from laion_assets.text import printable, with_printable_errors


class Watcher:
    """Is told of every partition and check as it ends; this one says nothing."""

    def partition_goes_on(self, stage: Stage, key: str, progress: DownloadProgress) -> None:
        """A stage is at work on one partition; called often, from another thread than the others."""

    def partition_ended(self, stage: Stage, key: str, outcome: Manifest | Refusal) -> None:
        """A stage ended with one partition: its manifest, or why there is none."""

    def check_ended(self, rule: Rule, key: str, verdict: Verdict) -> None:
        """A rule was evaluated on one partition."""


RETRY_TAG: Final = "laion_assets/retry_failed"
"""Tag of runs in which a stage does again only what failed and may not fail again, if it knows how."""

_MESSAGE_CHARACTERS: Final = 2_000
_NO_VERSION: Final = "none"

# In a run over a range, Dagster itself would record every partition with one common data version, and
# none of them if the last one failed. So each is recorded by hand as it ends, with its own version, and
# this marker, which Dagster 1.13.27 sets on observations recorded by hand, keeps it from doing so again.
_ALREADY_RECORDED: Final = {SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION: True}


@with_printable_errors
def materialize_partitions(
    context: dg.AssetExecutionContext, stage: Stage, settings: Settings, watcher: Watcher
) -> Iterator[dg.MaterializeResult]:
    """Run a stage over the partitions of this run; one that fails takes only itself down.

    What failed in a stage before, or in a check of it that blocks, is left out, whatever older files it has.
    The others are handed on, as long as there are any.

    Raises:
        dagster.Failure: at the end, if any partition failed or was left out; it names each with its reason.
    """
    end_with_parent()
    failed: dict[str, str] = {}
    lost = lost_partitions(context.op_execution_context, upstream_of(stage))
    left_out = {key: lost[key] for key in context.partition_keys if key in lost}
    for key, reason in left_out.items():
        report_partition(context, key, reason, left_out=True)
    seen = _latest_events(stage, context.instance)
    wanted = [key for key in context.partition_keys if key not in left_out]
    # Closed, so that what is still at work has ended when this process is told to.
    with closing(_outcomes(context, stage, settings, wanted, watcher)) as outcomes:
        for key, outcome in outcomes:
            try:
                if isinstance(outcome, Refusal):
                    raise outcome
                metadata = metadata_of(stage, settings, outcome)
            except (LaionAssetsError, OSError) as error:
                failed[key] = printable(str(error), _MESSAGE_CHARACTERS)
                report_partition(context, key, failed[key])
                watcher.partition_ended(stage, key, error)
                continue
            context.log_event(
                dg.AssetMaterialization(
                    asset_key=context.asset_key,
                    partition=key,
                    metadata=metadata,
                    tags=_version_tags(stage, outcome, seen),
                )
            )
            watcher.partition_ended(stage, key, outcome)
    if len(failed) < len(wanted):
        yield dg.MaterializeResult(metadata=_ALREADY_RECORDED)
    if failed or left_out:
        raise failure_of(stage.name, stage.name, context.partition_keys, failed, left_out)


def _room(stage: Stage, settings: Settings, wanted: Sequence[str]) -> dict[str, DiskFull]:
    """Partitions for which the disk has no room: none, or all that are still to be made."""
    undone = [key for key in wanted if done(stage.output(settings.layout, key)) is None]
    try:
        check_room(settings, {stage.name: len(undone)})
    except DiskFull as error:
        return dict.fromkeys(undone, error)
    return {}


def _outcomes(
    context: dg.AssetExecutionContext, stage: Stage, settings: Settings, keys: Sequence[str], watcher: Watcher
) -> Generator[tuple[str, Manifest | Refusal]]:
    """What came of each partition, as it ends."""
    full = _room(stage, settings, keys)
    yield from full.items()
    work = partial(make, stage.name, settings_of_workers(settings), retry=RETRY_TAG in context.run.tags)
    if settings.run.workers == "here":
        work = partial(work, follower=partial(_follower, context, watcher))
    others = [key for key in keys if key not in full]
    yield from map_shards(work, others, settings.run, cores_each=cores_of(stage, settings))


def _follower(context: dg.AssetExecutionContext, watcher: Watcher, stage: Stage, key: str) -> Follow:
    def log(progress: DownloadProgress) -> None:
        context.log.info("%s %s: %s", stage.name, key, progress.describe())

    log_soberly = every(SECONDS_PER_LOG_LINE, log)

    def follow(progress: DownloadProgress) -> None:
        watcher.partition_goes_on(stage, key, progress)
        log_soberly(progress)

    return follow


@with_printable_errors
def materialize_whole(stage: Stage, settings: Settings, watcher: Watcher) -> dg.MaterializeResult:
    """Run a stage that has no partitions.

    Raises:
        dagster.Failure: if it failed, with the reason.
    """
    end_with_parent()
    try:
        manifest = stage.run(settings, stage.name)
        metadata = metadata_of(stage, settings, manifest)
    except (LaionAssetsError, OSError) as error:
        watcher.partition_ended(stage, stage.name, error)
        raise dg.Failure(
            description=printable(str(error), _MESSAGE_CHARACTERS), allow_retries=False
        ) from error
    watcher.partition_ended(stage, stage.name, manifest)
    return dg.MaterializeResult(
        metadata=metadata, data_version=dg.DataVersion(_data_version(stage, manifest))
    )


def _data_version(stage: Stage, manifest: Manifest) -> str:
    # A plan is only appended to: what was made from it stays right when it grows, so its version, which
    # marks everything downstream as stale when it changes, follows from what can never be appended to.
    return manifest.recipe.settings if stage.name == "shard_plan" else manifest.data_version


def _latest_events(stage: Stage, instance: dg.DagsterInstance) -> dict[str, str]:
    """For each input, the newest materialization there is before the stage reads it.

    Dagster calls a partition stale if its input's partition has another data version in a later one.
    """
    records = {
        record.asset_entry.asset_key.to_user_string(): record.asset_entry.last_materialization_record
        for record in instance.get_asset_records([dg.AssetKey(name) for name in stage.inputs])
    }
    return {
        name: str(latest.storage_id) if (latest := records.get(name)) else NULL_EVENT_POINTER
        for name in stage.inputs
    }


def _version_tags(stage: Stage, manifest: Manifest, seen: Mapping[str, str]) -> dict[str, str]:
    """Tags by which Dagster tells, per partition, whether content or code changed since."""
    tags = {
        CODE_VERSION_TAG: stage.code_version,
        DATA_VERSION_TAG: _data_version(stage, manifest),
        DATA_VERSION_IS_USER_PROVIDED_TAG: "true",
    }
    for name, event in seen.items():
        key = dg.AssetKey(name)
        # A shard that img2dataset made follows from none of our inputs.
        tags[get_input_data_version_tag(key)] = manifest.recipe.inputs.get(name, _NO_VERSION)
        tags[get_input_event_pointer_tag(key)] = event
    return tags
