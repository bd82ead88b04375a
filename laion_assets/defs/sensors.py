"""Looks at the sources: says what is new or lost, makes it known to Dagster, and may request its runs."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Final

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._core.remote_origin import GrpcServerCodeLocationOrigin
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES, RunsFilter
from dagster._core.storage.tags import SENSOR_NAME_TAG

from laion_assets.defs.checks import evaluation_of
from laion_assets.defs.jobs import JOB_OF, PLAN_JOB
from laion_assets.defs.partitions import PartitionSets, range_tags
from laion_assets.discovery import NO_IDENTITY, Discovery, discover
from laion_assets.errors import LaionAssetsError
from laion_assets.formats.publish import done
from laion_assets.formats.sealed import fingerprint
from laion_assets.partitions import Axis, Partitions, batches, find_partitions
from laion_assets.quality.checks import evaluate, rules_of
from laion_assets.settings import Settings
from laion_assets.text import printable

Event = dg.AssetObservation | dg.AssetMaterialization | dg.AssetCheckEvaluation

# What is beyond these waits: a tick stays short, and its cursor small.
_MOST_RUNS: Final = 10
_MOST_REMEMBERED: Final = 1_000
_MOST_OBSERVED: Final = 20
_MOST_NAMED: Final = 5
_MESSAGE_CHARACTERS: Final = 1_000

# Dagster waits for a tick for 60 seconds.
_RELOAD_S: Final = 30


@dataclass(frozen=True, kw_only=True)
class _Memory:
    """What a tick leaves for the next, as JSON in the sensor's cursor.

    Attributes:
        seen: job -> what is new and was not asked for -> its identity, to see whether it lies still.
        asked: job -> what a run was requested for and is not done -> its identity then.
        reload: of the partitions for which a reload was asked.
        lost: [stage, partition] of what was observed to be gone or changed.
    """

    seen: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    asked: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    reload: str = ""
    lost: Sequence[list[str]] = ()


def build_sensor(
    settings: Settings, partitions: PartitionSets, jobs: Sequence[UnresolvedAssetJobDefinition]
) -> dg.SensorDefinition:
    """Looks at the sources; on unless somebody turns it off in the UI."""

    @dg.sensor(
        name="watch_sources",
        jobs=[job for job in jobs if job.name in (PLAN_JOB, *JOB_OF.values())],
        minimum_interval_seconds=settings.automation.interval_s,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=(
            "Notices new raw parts, embedding shards and shards laid down by img2dataset, has the code "
            "location reload to show them, and says which are gone or changed. With `request_runs = true` "
            "under `[automation]` it requests the runs that read, plan and build what is new."
        ),
    )
    def watch_sources(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        try:
            found = find_partitions(settings)
            return _Tick(context, settings, partitions.found, found, discover(settings, found)).result()
        except (LaionAssetsError, OSError) as error:
            return dg.SkipReason(printable(str(error), _MESSAGE_CHARACTERS))

    return watch_sources


def _observe(pair: Sequence[str], state: str) -> dg.AssetObservation:
    # An observation, for Dagster 1.13.27 can record one result of a partition's check without a run, and no
    # second one.
    stage, key = pair
    return dg.AssetObservation(stage, partition=key, metadata={"files": dg.MetadataValue.text(state)})


class _Tick:
    """One look at the sources.

    What is new must have been the same a tick before, so that a file that is still arriving is left alone.
    """

    def __init__(
        self,
        context: dg.SensorEvaluationContext,
        settings: Settings,
        known: Partitions,
        found: Partitions,
        discovery: Discovery,
    ) -> None:
        self._context = context
        self._settings = settings
        self._known = known
        self._found = found
        self._discovery = discovery
        self._before = _Memory(**json.loads(context.cursor)) if context.cursor else _Memory()
        self._new: dict[Axis, Mapping[str, str]] = {
            Axis.PART: discovery.parts,
            Axis.SHARD: dict.fromkeys(discovery.unbuilt, NO_IDENTITY),
            Axis.EMBEDDING_SHARD: discovery.embedding_shards,
        }
        # What was asked for once is not again, unless its files changed since.
        self._asked = {
            job: {
                key: identity
                for key, identity in self._before.asked.get(job, {}).items()
                if self._new[axis].get(key) == identity
            }
            for axis, job in JOB_OF.items()
        } | {PLAN_JOB: dict(self._before.asked.get(PLAN_JOB, {}))}
        self._said: list[str] = []

    def result(self) -> dg.SensorResult:
        """What follows from it."""
        self._say_what_is_new()
        events, lost = self._look_at_what_is_lost()
        unknown = self._unknown()
        requests = [] if unknown else list(self._requests())
        memory = _Memory(
            seen={job: self._to_remember(axis) for axis, job in JOB_OF.items()},
            asked=self._asked,
            reload=self._make_known(unknown) if unknown else "",
            lost=lost,
        )
        message = printable("; ".join(self._said) or "nothing is new", _MESSAGE_CHARACTERS)
        self._context.log.info(message)
        return dg.SensorResult(
            run_requests=requests,
            skip_reason=None if requests else message,
            cursor=json.dumps(asdict(memory)),
            asset_events=events,
        )

    def _say_what_is_new(self) -> None:
        for axis, verb in ((Axis.PART, "read"), (Axis.EMBEDDING_SHARD, "check"), (Axis.SHARD, "build")):
            self._name(f"{axis}s to {verb}", self._new[axis])
            arriving = [key for key in self._new[axis] if not self._lies_still(axis, key)]
            self._name("of these perhaps still arriving", arriving)
        self._name("to be planned", self._discovery.unplanned)

    def _name(self, what: str, keys: Sequence[str] | Mapping[str, str]) -> None:
        if keys:
            more = ", …" if len(keys) > _MOST_NAMED else ""
            self._said.append(f"{what}: {len(keys)} ({', '.join(islice(keys, _MOST_NAMED))}{more})")

    def _lies_still(self, axis: Axis, key: str) -> bool:
        identity = self._new[axis][key]
        job = JOB_OF[axis]
        return identity in (
            NO_IDENTITY,
            self._before.seen.get(job, {}).get(key),
            self._asked[job].get(key),
        )

    def _to_remember(self, axis: Axis) -> dict[str, str]:
        asked, known = self._asked[JOB_OF[axis]], set(self._known.keys(axis))
        new = [
            (key, identity)
            for key, identity in self._new[axis].items()
            if identity != NO_IDENTITY and key not in asked
        ]
        return dict(sorted(new, key=lambda item: item[0] in known)[:_MOST_REMEMBERED])

    # -- partitions that the loaded code location lacks ---------------------------------------------

    def _unknown(self) -> list[str]:
        """New partitions of all axes, those still arriving left out. What is gone stays in the UI."""
        return [
            f"{axis} {key}"
            for axis, new in self._new.items()
            for key in set(self._found.keys(axis)).difference(self._known.keys(axis))
            if key not in new or self._lies_still(axis, key)
        ]

    def _make_known(self, unknown: list[str]) -> str:
        """Have the code location reload, once for the same partitions; what the next tick compares with."""
        identity = fingerprint(sorted(unknown))
        count = f"the code location lacks {len(unknown)} new partitions"
        if self._before.reload == identity:
            self._said.append(
                f"{count} even after a reload was asked for: reload it in the UI, or restart it"
            )
            return identity
        origin = self._context.code_location_origin
        if not isinstance(origin, GrpcServerCodeLocationOrigin):
            self._said.append(f"{count}: reload it in the UI")
            return identity
        try:
            # The server that proxies this process starts another, and ends this one after its runs and ticks.
            origin.create_client().reload_code(timeout=_RELOAD_S)
        except DagsterUserCodeUnreachableError as error:
            self._said.append(f"{count}, and reloading it failed: {error}")
        else:
            self._said.append(f"{count}: it was reloaded")
        return identity

    # -- what is gone or changed --------------------------------------------------------------------

    def _look_at_what_is_lost(self) -> tuple[list[Event], list[list[str]]]:
        """Observations of the first few, when they are lost and when they are back, and the plan's check."""
        lost = []
        for stage, keys in self._discovery.lost.items():
            self._name(f"{stage} gone or changed", keys)
            lost += [[stage, key] for key in islice(keys, _MOST_OBSERVED)]
        before = self._before.lost
        events: list[Event] = [
            *(_observe(pair, "gone or changed") for pair in lost if pair not in before),
            *(_observe(pair, "there, or made anew") for pair in before if pair not in lost),
        ]
        if events and done(self._settings.layout.shard_plan()) is not None:
            events.append(self._check_plan())
        return events, lost

    def _check_plan(self) -> dg.AssetCheckEvaluation:
        (rule,) = (rule for rule in rules_of("shard_plan") if rule.name == "sources_are_there")
        verdict = evaluate(rule, self._settings.layout, self._settings.quality, rule.stage)
        return evaluation_of(rule, rule.stage, verdict)

    # -- runs ---------------------------------------------------------------------------------------

    def _requests(self) -> Iterator[dg.RunRequest]:
        if not self._settings.automation.request_runs:
            return
        runs = self._context.instance.get_runs(RunsFilter(statuses=NOT_FINISHED_STATUSES), limit=100)
        ours = [run for run in runs if run.tags.get(SENSOR_NAME_TAG) == self._context.sensor_name]
        if len(ours) < len(runs):
            # They may be over the same partitions, and two runs of one contend for its lease.
            self._said.append(f"{len(runs) - len(ours)} other runs go first")
            return
        # The shards of a plan follow the order in which parts were planned: all that are read, at once.
        if not ours and self._discovery.unplanned:
            yield from self._request_plan()
        room = _MOST_RUNS - len(ours)
        for axis in JOB_OF:
            for batch in islice(self._batches(axis), max(room, 0)):
                room -= 1
                self._asked[JOB_OF[axis]] |= {key: self._new[axis][key] for key in batch}
                yield dg.RunRequest(job_name=JOB_OF[axis], tags=range_tags(batch))

    def _request_plan(self) -> Iterator[dg.RunRequest]:
        unplanned = {"shard_plan": fingerprint(self._discovery.unplanned)}
        if self._asked[PLAN_JOB] != unplanned:
            self._asked[PLAN_JOB] = unplanned
            yield dg.RunRequest(job_name=PLAN_JOB)

    def _batches(self, axis: Axis) -> Iterator[list[str]]:
        asked = self._asked[JOB_OF[axis]]
        if len(asked) >= _MOST_REMEMBERED:
            self._said.append(f"{len(asked)} {axis}s were requested and are not done: no more are requested")
            return iter(())
        wanted = {
            key
            for key, identity in self._new[axis].items()
            if asked.get(key) != identity and self._lies_still(axis, key)
        }
        return batches(self._known.keys(axis), wanted, self._settings.batch_shards)
