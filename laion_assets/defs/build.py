"""Builds what is missing, through Dagster in this process, recorded where the UI shows it."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import cast

import dagster as dg

from laion_assets.definitions import build_definitions
from laion_assets.defs.partitions import range_tags
from laion_assets.defs.recording import Watcher
from laion_assets.errors import LaionAssetsError
from laion_assets.formats.publish import Manifest, read_manifest
from laion_assets.partitions import Axis, find_partitions
from laion_assets.pipeline import STAGE_BY_NAME, STAGES, Stage
from laion_assets.quality.checks import Rule, Verdict
from laion_assets.settings import Settings

# Its input is every embedding shard, so it comes after both branches.
_JOINED_LAST = "image_embeddings"
_PUBLICATION = ("laion400m_images", "laion400m_embeddings", "catalog", "dataset_report")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to build.

    Attributes:
        shards: image shards, or None for all that the plan has.
        embedding_shards: embedding shards, or None for all that are found.
        again: go over what is done too; a stage redoes it where its inputs, settings or code changed.
    """

    shards: Sequence[str] | None = None
    embedding_shards: Sequence[str] | None = None
    again: bool = False


@dataclass
class Build(Watcher):
    """What a build did, filled while it runs.

    Attributes:
        manifests: (stage, partition) -> what was published or found current.
        failures: (stage, partition) -> why not.
        verdicts: (stage, rule, partition) -> what a rule found.
        blocked: (stage, rule, partition) whose rule failed and blocks what follows.
    """

    watcher: Watcher = field(default_factory=Watcher)
    manifests: dict[tuple[str, str], Manifest] = field(default_factory=dict)
    failures: dict[tuple[str, str], LaionAssetsError] = field(default_factory=dict)
    verdicts: dict[tuple[str, str, str], Verdict] = field(default_factory=dict)
    blocked: set[tuple[str, str, str]] = field(default_factory=set)

    def bad(self, names: Collection[str]) -> set[str]:
        """Partitions that failed in one of these stages, or in a check that blocks what follows it."""
        failed = {key for name, key in self.failures if name in names}
        return failed | {key for name, _, key in self.blocked if name in names}

    def partition_ended(self, stage: Stage, key: str, outcome: Manifest | LaionAssetsError) -> None:
        """Keep what came of a partition."""
        if isinstance(outcome, Manifest):
            self.manifests[stage.name, key] = outcome
        else:
            self.failures[stage.name, key] = outcome
        self.watcher.partition_ended(stage, key, outcome)

    def check_ended(self, rule: Rule, key: str, verdict: Verdict) -> None:
        """Keep what a rule found."""
        self.verdicts[rule.stage, rule.name, key] = verdict
        if rule.blocking and not verdict.passed:
            self.blocked.add((rule.stage, rule.name, key))
        self.watcher.check_ended(rule, key, verdict)


def build(settings: Settings, instance: dg.DagsterInstance, request: Request, watcher: Watcher) -> Build:
    """Materialize what is missing: parts and plan, then shards in batches, then the datasets.

    Args:
        settings: what the user set.
        instance: where runs and materializations are recorded.
        request: which partitions.
        watcher: is told of every partition and check as it ends.
    """
    done = Build(watcher=watcher)
    parts = find_partitions(settings).parts
    _materialize_missing(settings, instance, done, ["raw_metadata"], parts, again=request.again)
    _materialize(settings, instance, done, ["shard_plan"], {})
    if ("shard_plan", "shard_plan") in done.failures and not find_partitions(settings).embedding_shards:
        return done
    found = find_partitions(settings)
    shards = found.shards if request.shards is None else request.shards
    embedding_shards = (
        found.embedding_shards if request.embedding_shards is None else request.embedding_shards
    )
    for axis, keys in ((Axis.SHARD, shards), (Axis.EMBEDDING_SHARD, embedding_shards)):
        names = [stage.name for stage in STAGES if stage.axis is axis and stage.name != _JOINED_LAST]
        _materialize_missing(settings, instance, done, names, keys, again=request.again)
    if found.embedding_shards:
        # A new embedding shard may hold vectors of any image shard.
        grown = any(name == "embedding_join" for name, _ in done.manifests)
        _materialize_missing(settings, instance, done, [_JOINED_LAST], shards, again=request.again or grown)
    published = [name for name in _PUBLICATION if found.embedding_shards or name != "laion400m_embeddings"]
    _materialize(settings, instance, done, published, {})
    return done


def pending(settings: Settings, request: Request) -> int:
    """How many partitions a build has before it, as far as is known: the plan may add shards."""
    found = find_partitions(settings)
    wanted = {
        Axis.PART: found.parts,
        Axis.SHARD: found.shards if request.shards is None else request.shards,
        Axis.EMBEDDING_SHARD: found.embedding_shards
        if request.embedding_shards is None
        else request.embedding_shards,
    }
    missing = sum(
        request.again or read_manifest(stage.output(settings.layout, key)) is None
        for stage in STAGES
        for key in wanted.get(stage.axis, ())
    )
    return missing + len(_PUBLICATION)


def _materialize_missing(
    settings: Settings,
    instance: dg.DagsterInstance,
    done: Build,
    names: Sequence[str],
    keys: Sequence[str],
    *,
    again: bool,
) -> None:
    recorded = [instance.get_materialized_partitions(dg.AssetKey(name)) for name in names]

    def is_missing(key: str) -> bool:
        return again or any(
            key not in known or read_manifest(STAGE_BY_NAME[name].output(settings.layout, key)) is None
            for name, known in zip(names, recorded, strict=True)
        )

    every = find_partitions(settings).keys(STAGE_BY_NAME[names[0]].axis)
    missing = {key for key in keys if is_missing(key)}
    for batch in batches(every, missing, settings.batch_shards):
        _materialize(settings, instance, done, names, range_tags(batch))
        # A bad shard ends its run for the whole batch; the others go on in runs without it.
        good = set(batch) - done.bad(names)
        if len(good) < len(batch):
            for rest in batches(every, good, settings.batch_shards):
                _materialize(settings, instance, done, names, range_tags(rest))


def batches(every: Iterable[str], wanted: Collection[str], size: int) -> Iterator[list[str]]:
    """Wanted keys in runs of at most ``size`` that follow each other without a gap in ``every``."""
    batch: list[str] = []
    for key in every:
        if key not in wanted or len(batch) == size:
            if batch:
                yield batch
            batch = []
        if key in wanted:
            batch.append(key)
    if batch:
        yield batch


def _materialize(
    settings: Settings,
    instance: dg.DagsterInstance,
    done: Build,
    names: Sequence[str],
    tags: dict[str, str],
) -> None:
    definitions = build_definitions(settings, watcher=done)
    assets = cast(
        "list[dg.AssetsDefinition]", [*(definitions.assets or []), *(definitions.asset_checks or [])]
    )
    dg.materialize(
        assets,
        selection=dg.AssetSelection.assets(*names),
        instance=instance,
        tags=tags,
        # Failures are in `done` and in the instance; a traceback of each would only bury them.
        raise_on_error=False,
        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
    )
