"""Every quality rule as an asset check, recorded for each partition."""

from collections.abc import Iterator

import dagster as dg

from laion_assets.defs.partitions import PartitionSets, keys_of_run
from laion_assets.defs.recording import Watcher
from laion_assets.formats.publish import read_manifest
from laion_assets.pipeline import STAGES, Stage
from laion_assets.quality.checks import Rule, Verdict, evaluate, rules_of
from laion_assets.settings import Settings


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
        there = [key for key in keys if read_manifest(stage.output(settings.layout, key)) is not None]
        for name in sorted(key.name for key in context.selected_asset_check_keys):
            verdicts = {key: evaluate(rules[name], settings.layout, settings.quality, key) for key in there}
            for key, verdict in verdicts.items():
                watcher.check_ended(rules[name], key, verdict)
            yield _record(context, rules[name], verdicts, single=len(keys) == 1)

    return checks


def _record(
    context: dg.AssetCheckExecutionContext, rule: Rule, verdicts: dict[str, Verdict], *, single: bool
) -> dg.AssetCheckResult:
    """In a run over many partitions, record each verdict, and return what holds of all."""
    if single and verdicts:
        (verdict,) = verdicts.values()
        return dg.AssetCheckResult(
            asset_key=rule.stage,
            check_name=rule.name,
            passed=verdict.passed,
            severity=_severity(rule),
            metadata=_metadata(verdict),
        )
    for key, verdict in verdicts.items():
        evaluation = dg.AssetCheckEvaluation(
            asset_key=dg.AssetKey(rule.stage),
            check_name=rule.name,
            passed=verdict.passed,
            severity=_severity(rule),
            metadata=_metadata(verdict),
            partition=key,
            blocking=rule.blocking,
        )
        # Dagster 1.13.27 takes evaluations here, though its annotation does not say so.
        context.op_execution_context.log_event(evaluation)  # type: ignore[arg-type]
    failed = [key for key, verdict in verdicts.items() if not verdict.passed]
    return dg.AssetCheckResult(
        asset_key=rule.stage,
        check_name=rule.name,
        passed=not failed,
        severity=_severity(rule),
        metadata={"partitions": len(verdicts), "failed partitions": dg.MetadataValue.json(failed)},
    )


def _severity(rule: Rule) -> dg.AssetCheckSeverity:
    return dg.AssetCheckSeverity.ERROR if rule.blocking else dg.AssetCheckSeverity.WARN


def _metadata(verdict: Verdict) -> dict[str, dg.MetadataValue]:
    return {
        "rows": dg.MetadataValue.int(verdict.rows),
        "offending": dg.MetadataValue.int(verdict.offending),
        "examples": dg.MetadataValue.json(list(verdict.examples)),
        "figures": dg.MetadataValue.json(dict(verdict.figures)),
    }
