"""Every quality rule as an asset check, recorded for each partition."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial

import dagster as dg
from dagster._core.definitions.asset_checks.asset_check_evaluation import (
    AssetCheckEvaluationTargetMaterializationData,
)

from laion_assets.defs.failures import failure_of, lost_partitions
from laion_assets.defs.partitions import PartitionSets, keys_of_run
from laion_assets.defs.recording import Watcher
from laion_assets.formats.publish import read_manifest
from laion_assets.pipeline import STAGES, Stage, upstream_of
from laion_assets.quality.checks import Rule, Verdict, rules_of
from laion_assets.settings import Settings
from laion_assets.shard_work import Refusal, check, map_shards

Targets = Mapping[str, AssetCheckEvaluationTargetMaterializationData]
"""Partition -> the materialization that a verdict on it is about."""


def build_checks(
    settings: Settings, partitions: PartitionSets, watcher: Watcher
) -> list[dg.AssetChecksDefinition]:
    """The rules of every stage, one op for each stage."""
    return [_checks(stage, settings, partitions, watcher) for stage in STAGES]


def _checks(
    stage: Stage, settings: Settings, partitions: PartitionSets, watcher: Watcher
) -> dg.AssetChecksDefinition:
    definition = partitions.definition(stage.axis)
    rules = {rule.name: rule for rule in rules_of(stage.name)}

    @dg.multi_asset_check(
        name=f"{stage.name}_checks",
        specs=[
            dg.AssetCheckSpec(
                rule.name,
                asset=stage.name,
                description=rule.description,
                blocking=rule.blocking,
                partitions_def=definition,
            )
            for rule in rules.values()
        ],
        can_subset=True,
    )
    def checks(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        keys = keys_of_run(dict(context.run.tags), definition) or [stage.name]
        lost = lost_partitions(context.op_execution_context, upstream_of(stage) | {stage.name})
        left_out = {key: lost[key] for key in keys if key in lost}
        there = [
            key
            for key in keys
            if key not in left_out and read_manifest(stage.output(settings.layout, key)) is not None
        ]
        targets = latest_materializations(context.instance, stage.name, there)
        names = sorted(key.name for key in context.selected_asset_check_keys)
        found = {}
        for key, found_of in _evaluate(stage, names, settings, there):
            found[key] = found_of
            for name, verdict in found_of.items():
                watcher.check_ended(rules[name], key, verdict)
        blocked: dict[str, str] = {}
        for name in names:
            rule = rules[name]
            verdicts = {key: found[key][name] for key in there}
            bad = _blocked(rule, verdicts)
            blocked = bad | blocked
            if bad and bad.keys() == verdicts.keys():
                # Under our executor it is the missing output that blocks what follows, and no failed result.
                _record(context, rule, verdicts, targets)
            elif len(keys) == 1 and verdicts:
                yield _result(rule, verdicts[keys[0]])
            else:
                _record(context, rule, verdicts, targets)
                yield _result_of_all(rule, verdicts)
        if blocked or left_out:
            raise failure_of(f"checks of {stage.name}", stage.name, keys, blocked, left_out)

    return checks


def _evaluate(
    stage: Stage, names: Sequence[str], settings: Settings, keys: Sequence[str]
) -> Iterator[tuple[str, Mapping[str, Verdict]]]:
    """Each partition with what every rule found, worked out where the stages' work is done."""
    with closing(map_shards(partial(check, stage.name, names, settings), keys, settings.run)) as outcomes:
        for key, outcome in outcomes:
            if isinstance(outcome, Refusal):
                raise outcome
            yield key, outcome


def _blocked(rule: Rule, verdicts: Mapping[str, Verdict]) -> dict[str, str]:
    """Partitions that the rule blocks, and why."""
    return {
        key: f"check {rule.name} failed and blocks: {'; '.join(verdict.examples)}"
        for key, verdict in verdicts.items()
        if rule.blocking and not verdict.passed
    }


def _result(rule: Rule, verdict: Verdict) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        asset_key=rule.stage,
        check_name=rule.name,
        passed=verdict.passed,
        severity=_severity(rule),
        metadata=_metadata(verdict),
    )


def _result_of_all(rule: Rule, verdicts: Mapping[str, Verdict]) -> dg.AssetCheckResult:
    """What holds of all partitions of a run over many: Dagster takes one result, and for no partition."""
    failed = [key for key, verdict in verdicts.items() if not verdict.passed]
    return dg.AssetCheckResult(
        asset_key=rule.stage,
        check_name=rule.name,
        passed=not failed,
        severity=_severity(rule),
        metadata={"partitions": len(verdicts), "failed partitions": dg.MetadataValue.json(failed)},
    )


def _record(
    context: dg.AssetCheckExecutionContext, rule: Rule, verdicts: Mapping[str, Verdict], targets: Targets
) -> None:
    """Record each verdict under its own partition."""
    for key, verdict in verdicts.items():
        evaluation = evaluation_of(rule, key, verdict, targets.get(key))
        # Dagster 1.13.27 takes evaluations here, though its annotation does not say so.
        context.op_execution_context.log_event(evaluation)  # type: ignore[arg-type]


def latest_materializations(instance: dg.DagsterInstance, stage: str, keys: Sequence[str]) -> Targets:
    """What verdicts on these partitions are about; Dagster takes those on anything else for outdated."""
    asset = dg.AssetKey(stage)
    if list(keys) == [stage]:
        newest = instance.fetch_materializations(asset, limit=1).records
        return {stage: _target(newest[0])} if newest else {}
    latest = instance.event_log_storage.get_latest_storage_id_by_partition(
        asset, dg.DagsterEventType.ASSET_MATERIALIZATION, set(keys)
    )
    wanted = dg.AssetRecordsFilter(asset_key=asset, storage_ids=list(latest.values()))
    records = instance.fetch_materializations(wanted, limit=len(latest)).records if latest else []
    return {record.partition_key: _target(record) for record in records if record.partition_key is not None}


def _target(record: dg.EventLogRecord) -> AssetCheckEvaluationTargetMaterializationData:
    return AssetCheckEvaluationTargetMaterializationData(
        storage_id=record.storage_id, run_id=record.run_id, timestamp=record.timestamp
    )


def _severity(rule: Rule) -> dg.AssetCheckSeverity:
    return dg.AssetCheckSeverity.ERROR if rule.blocking else dg.AssetCheckSeverity.WARN


def _metadata(verdict: Verdict) -> dict[str, dg.MetadataValue]:
    """Figures by themselves, since the UI plots what is a number, and nothing within a JSON value."""
    return {
        **{name: dg.MetadataValue.float(float(figure)) for name, figure in verdict.figures.items()},
        "rows": dg.MetadataValue.int(verdict.rows),
        "offending": dg.MetadataValue.int(verdict.offending),
        "offenders": dg.MetadataValue.json(list(verdict.examples)),
    }


def evaluation_of(
    rule: Rule,
    key: str,
    verdict: Verdict,
    target: AssetCheckEvaluationTargetMaterializationData | None = None,
) -> dg.AssetCheckEvaluation:
    """A verdict as Dagster records it.

    Args:
        rule: the rule.
        key: partition key; the stage's own name where it has no partitions.
        verdict: what it found.
        target: the materialization that it is about, if Dagster knows of one.
    """
    return dg.AssetCheckEvaluation(
        asset_key=dg.AssetKey(rule.stage),
        check_name=rule.name,
        passed=verdict.passed,
        severity=_severity(rule),
        metadata=_metadata(verdict),
        partition=None if key == rule.stage else key,
        blocking=rule.blocking,
        target_materialization_data=target,
    )
