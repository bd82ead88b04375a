"""A code location whose assets do nothing but have Dagster record as many events as our image chain has.

What a backfill over them costs is what Dagster itself takes for that, so nothing of ours is imported here.
An environment variable describes the assets.
"""

import json
import os
from collections.abc import Iterator

import dagster as dg

DESCRIPTION_VARIABLE = "PLAIN_DAGSTER"
"""Names it: JSON of the number of ``shards``, of those in a ``batch``, and of ``assets``, each with the names
of its ``inputs`` and of its ``checks``, in the order in which they are made."""

_METADATA = {"rows": 10_000, "bytes": 250_000_000, "seconds": 1.5}


def _asset(
    name: str, inputs: list[str], checks: list[str], partitions: dg.PartitionsDefinition, batch: int
) -> dg.AssetsDefinition:
    @dg.asset(
        name=name,
        deps=inputs,
        partitions_def=partitions,
        backfill_policy=dg.BackfillPolicy.multi_run(batch),
        check_specs=[dg.AssetCheckSpec(check, asset=name, partitions_def=partitions) for check in checks],
    )
    def record(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult | dg.AssetCheckResult]:
        for check in checks:
            for key in context.partition_keys:
                evaluation = dg.AssetCheckEvaluation(
                    asset_key=context.asset_key,
                    check_name=check,
                    passed=True,
                    partition=key,
                    metadata={"rows": 10_000, "offending": 0},
                )
                # Dagster 1.13.27 takes evaluations here, though its annotation does not say so.
                context.log_event(evaluation)  # type: ignore[arg-type]
        yield dg.MaterializeResult(metadata=_METADATA)  # one event for each partition
        for check in checks:
            yield dg.AssetCheckResult(check_name=check, passed=True)  # one, which Dagster asks for

    return record


@dg.definitions
def defs() -> dg.Definitions:
    """What the environment describes."""
    described = json.loads(os.environ[DESCRIPTION_VARIABLE])
    partitions = dg.StaticPartitionsDefinition([f"{shard:05d}" for shard in range(described["shards"])])
    assets = [
        _asset(name, asset["inputs"], asset["checks"], partitions, described["batch"])
        for name, asset in described["assets"].items()
    ]
    return dg.Definitions(assets=assets, executor=dg.in_process_executor)
