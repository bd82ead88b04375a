"""Builds what is missing, through Dagster in this process, recorded where the UI shows it."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from uuid import uuid4

import dagster as dg
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.execution.api import execute_run

from laion_assets.defs.assembly import build_definitions
from laion_assets.defs.partitions import range_tags
from laion_assets.defs.recording import RETRY_TAG, Watcher
from laion_assets.defs.workers import BUILD_TAG, attended, fail_orphans
from laion_assets.download_progress import DownloadProgress
from laion_assets.errors import SettingsError
from laion_assets.formats.publish import Manifest
from laion_assets.layout import partition_name
from laion_assets.partitions import Axis, Partitions, batches, find_partitions
from laion_assets.pipeline import (
    EMBEDDINGS,
    IMAGES,
    JOINED,
    PARTS,
    PUBLICATION,
    STAGE_BY_NAME,
    Stage,
    is_asked_for,
    keys_of,
)
from laion_assets.plan import find_placed
from laion_assets.published import whole_partitions
from laion_assets.quality.checks import Rule, Verdict
from laion_assets.settings import Settings
from laion_assets.shard_work import Refusal
from laion_assets.space import check_room


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to build.

    Attributes:
        shards: image shards, or None for all that the plan has.
        embedding_shards: embedding shards, or None for all that are found.
        again: go over what is done too; a stage redoes it where its inputs, settings or code changed.
        retry_failed: image shards that are done, of which to ask again for pictures that failed for the
            moment: :func:`laion_assets.published.retryable_shards`.
    """

    shards: Sequence[str] | None = None
    embedding_shards: Sequence[str] | None = None
    again: bool = False
    retry_failed: Collection[str] = ()


@dataclass
class Build(Watcher):
    """What a build did, filled while it runs.

    Attributes:
        name: by which its runs prove that they live.
        manifests: (stage, partition) -> what was published or found current.
        failures: (stage, partition) -> why not.
        verdicts: (stage, rule, partition) -> what a rule found.
        blocked: (stage, rule, partition) whose rule failed and blocks what follows.
        crashes: errors that nobody foresaw, each with the run whose log has the traceback.
    """

    name: str
    watcher: Watcher = field(default_factory=Watcher)
    manifests: dict[tuple[str, str], Manifest] = field(default_factory=dict)
    failures: dict[tuple[str, str], Refusal] = field(default_factory=dict)
    verdicts: dict[tuple[str, str, str], Verdict] = field(default_factory=dict)
    blocked: set[tuple[str, str, str]] = field(default_factory=set)
    crashes: list[str] = field(default_factory=list)

    @property
    def went_well(self) -> bool:
        """Whether nothing failed, crashed, or was blocked."""
        return not (self.failures or self.blocked or self.crashes)

    @property
    def complaints(self) -> list[str]:
        """A line for each thing that did not go well, with the partition and the reason, each named once."""
        lines = []
        for (stage, key), error in sorted(self.failures.items()):
            name, message = partition_name(stage, key), str(error)
            lines.append(message if message.startswith(name) else f"{name}: {message}")
        for stage, rule, key in sorted(self.blocked):
            lines.append(f"{partition_name(stage, key)}: check {rule} failed and blocks what follows")
        return lines + [
            f"crash in {crash}; the run's log in the UI has the traceback" for crash in self.crashes
        ]

    def partition_ended(self, stage: Stage, key: str, outcome: Manifest | Refusal) -> None:
        """Keep what came of a partition."""
        if isinstance(outcome, Manifest):
            self.manifests[stage.name, key] = outcome
        else:
            self.failures[stage.name, key] = outcome
        self.watcher.partition_ended(stage, key, outcome)

    def partition_goes_on(self, stage: Stage, key: str, progress: DownloadProgress) -> None:
        """Pass it on."""
        self.watcher.partition_goes_on(stage, key, progress)

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

    Raises:
        SettingsError: if a shard is asked for that is not there.
    """
    home = Path(instance.root_directory)
    fail_orphans(instance, home)
    done = Build(name=f"build-{uuid4()}", watcher=watcher)
    with attended(home, done.name):
        _build(settings, instance, request, done)
    return done


def _build(settings: Settings, instance: dg.DagsterInstance, request: Request, done: Build) -> None:
    found = find_partitions(settings)
    _materialize_missing(settings, instance, done, PARTS, request)
    # Somebody who has vectors only needs no plan; somebody who has nothing is told so by the plan.
    if found.parts or find_placed(settings.layout) or not found.embedding_shards:
        _materialize(settings, instance, done, ["shard_plan"], {})
    found = find_partitions(settings)
    _refuse_unknown(request.shards, found.shards)
    _refuse_unknown(request.embedding_shards, found.embedding_shards)
    if not found.shards and not found.embedding_shards:
        return
    _materialize_missing(settings, instance, done, IMAGES, request)
    _materialize_missing(settings, instance, done, EMBEDDINGS, request)
    # A new embedding shard may hold vectors of any image shard.
    grown = any(name == "embedding_index" for name, _ in done.manifests)
    joined = replace(request, again=request.again or grown)
    _materialize_missing(settings, instance, done, _joined(settings), joined)
    _materialize(settings, instance, done, _published(settings, found), {})


def pending(settings: Settings, instance: dg.DagsterInstance, request: Request) -> Counter[str]:
    """Stage -> how many partitions a build has before it, as far as is known: the plan may add shards."""
    counts = Counter(_published(settings, find_partitions(settings)))
    for chain in (PARTS, IMAGES, EMBEDDINGS, _joined(settings)):
        counts |= Counter(dict.fromkeys(chain, len(_missing(settings, instance, chain, request))))
    return counts


def _joined(settings: Settings) -> list[str]:
    return [name for name in JOINED if is_asked_for(name, settings)]


def _published(settings: Settings, found: Partitions) -> list[str]:
    return [
        name for name in PUBLICATION if keys_of(STAGE_BY_NAME[name], found) and is_asked_for(name, settings)
    ]


def _refuse_unknown(asked: Sequence[str] | None, every: Sequence[str]) -> None:
    if unknown := sorted(set(asked or ()) - set(every)):
        last = f"the last one is {every[-1]}" if every else "there is none"
        raise SettingsError(f"there is no shard {unknown[0]}: {last}")


def _missing(
    settings: Settings, instance: dg.DagsterInstance, chain: Sequence[str], request: Request
) -> set[str]:
    """Partitions asked for that lack files, or a record in Dagster, in one of the stages, or are retried."""
    stages = [STAGE_BY_NAME[name] for name in chain]
    axis = stages[0].axis
    asked = {Axis.SHARD: request.shards, Axis.EMBEDDING_SHARD: request.embedding_shards}.get(axis)
    keys = set(keys_of(stages[0], find_partitions(settings)))
    keys = keys if asked is None else keys & set(asked)
    if request.again or not keys:
        return keys
    done = [
        whole_partitions(settings.layout, stage.name)
        & instance.get_materialized_partitions(dg.AssetKey(stage.name))
        for stage in stages
    ]
    retried = keys.intersection(request.retry_failed) if axis is Axis.SHARD else set()
    return retried | keys.difference(frozenset.intersection(*done))


def _materialize_missing(
    settings: Settings,
    instance: dg.DagsterInstance,
    done: Build,
    chain: Sequence[str],
    request: Request,
) -> None:
    every = keys_of(STAGE_BY_NAME[chain[0]], find_partitions(settings))
    missing = _missing(settings, instance, chain, request)
    check_room(settings, dict.fromkeys(chain, len(missing)))
    retry = {RETRY_TAG: "true"} if request.retry_failed else {}
    for batch in batches(every, missing, settings.batch_shards):
        _materialize(settings, instance, done, chain, retry | range_tags(batch))


def _materialize(
    settings: Settings,
    instance: dg.DagsterInstance,
    done: Build,
    names: Sequence[str],
    tags: dict[str, str],
) -> None:
    job = build_definitions(settings, watcher=done).resolve_implicit_global_asset_job_def()
    run = instance.create_run_for_job(
        job,
        asset_selection={dg.AssetKey(name) for name in names},
        # Nobody but this build can go on with its runs.
        tags={**tags, BUILD_TAG: done.name, "dagster/max_retries": "0"},
        # Failures are in `done` and in the instance; a traceback of each would only bury them.
        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
    )
    result = execute_run(InMemoryJob(job), run, instance)
    for event in result.all_events:
        failure = event.step_failure_data if event.is_step_failure else None
        # A Failure names partitions that `done` has already; anything else is a crash.
        if failure is not None and failure.user_failure_data is None and failure.error is not None:
            cause = failure.error.cause or failure.error
            if cause.cls_name == dg.DagsterExecutionInterruptedError.__name__:
                # Dagster ends the run at Ctrl+C or SIGTERM, and returns as if that were a failure.
                raise KeyboardInterrupt
            done.crashes.append(f"{event.step_key}: {cause.message.strip()} (run {result.run_id})")
