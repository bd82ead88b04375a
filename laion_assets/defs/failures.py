"""What failed in a run: each step tells it of its partitions as it ends, and the steps after it read that.

A step that lost some of its partitions hands on the others and then fails, so that it is red, with the
reasons, and so is the run. The steps after it begin nevertheless, because our executor
(:mod:`laion_assets.defs.workers`) asks for the outputs of those before them, and not for their success. Under
one of Dagster's own with its default settings they do not begin, and nothing is made that should not be.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Final

import dagster as dg
from dagster._core.definitions.events import (
    AssetMaterializationFailure,
    AssetMaterializationFailureReason,
    AssetMaterializationFailureType,
)
from dagster._core.events import DagsterEvent, DagsterEventType

from laion_assets.text import printable

# A step's failure is recorded with the reasons of all its partitions, and each later step's with them again.
_REASON_CHARACTERS: Final = 500
_MOST_NAMED: Final = 5

_STAGE: Final = "stage"
_FAILED: Final = "failed partitions"
_LEFT_OUT: Final = "left out"


def failure_of(
    step: str, stage: str, keys: Sequence[str], failed: Mapping[str, str], left_out: Mapping[str, str]
) -> dg.Failure:
    """The failure of a step that lost some of its partitions, for :func:`lost_partitions` to read.

    Args:
        step: what did it, in the words of a person.
        stage: name of the stage that the step makes, or checks.
        keys: the partitions that it was asked for.
        failed: partition -> why it failed.
        left_out: partition -> why it was not tried.
    """
    parts = []
    if failed:
        parts.append(f"{step} failed on {len(failed)} of {len(keys)}: {_name(failed)}")
    if left_out:
        parts.append(f"{step} left out {len(left_out)} of {len(keys)}: {_name(left_out)}")
    return dg.Failure(
        description="; ".join(parts),
        metadata={
            _STAGE: dg.MetadataValue.text(stage),
            _FAILED: dg.MetadataValue.json(_cut(failed)),
            _LEFT_OUT: dg.MetadataValue.json(_cut(left_out)),
        },
        allow_retries=False,
    )


def lost_partitions(context: dg.OpExecutionContext, stages: Collection[str]) -> dict[str, str]:
    """Partitions on which a step of this run failed already, each with the stage and the reason.

    Args:
        context: of a step that comes after them. A step's failure is recorded right after its outputs, before
            another process could have begun with them.
        stages: names of the stages that count.
    """
    lost: dict[str, str] = {}
    records = context.instance.get_records_for_run(context.run.run_id, of_type=DagsterEventType.STEP_FAILURE)
    for record in records.records:
        told = record.event_log_entry.get_dagster_event().step_failure_data.user_failure_data
        metadata = told.metadata if told is not None else {}
        if _FAILED in metadata and metadata[_STAGE].value in stages:
            for key, reason in metadata[_FAILED].value.items():  # type: ignore[union-attr]
                lost.setdefault(key, f"{metadata[_STAGE].value} failed: {reason}")
    return lost


def report_partition(
    context: dg.AssetExecutionContext, key: str, reason: str, *, left_out: bool = False
) -> None:
    """Record that a partition was not made, and why: in the run's log, and on the partition's own page."""
    stage = context.asset_key.to_user_string()
    context.log.error("%s %s %s: %s", stage, key, "is left out" if left_out else "failed", reason)
    failure = AssetMaterializationFailure(
        asset_key=context.asset_key,
        partition=key,
        failure_type=AssetMaterializationFailureType.FAILED,
        reason=(
            AssetMaterializationFailureReason.UPSTREAM_FAILED_TO_MATERIALIZE
            if left_out
            else AssetMaterializationFailureReason.FAILED_TO_MATERIALIZE
        ),
        metadata={"reason": dg.MetadataValue.text(reason)},
    )
    event = DagsterEvent.build_asset_failed_to_materialize_event(
        context.job_name, str(context.op_execution_context.op_handle), failure
    )
    # Only storages that can show such events keep them: ours for SQLite does, Dagster's own do not.
    context.instance.report_dagster_event(event, context.run.run_id, logging.ERROR)


def _name(reasons: Mapping[str, str]) -> str:
    named = [f"{key}: {reason}" for key, reason in list(_cut(reasons).items())[:_MOST_NAMED]]
    return "; ".join([*named, "..."] if len(reasons) > _MOST_NAMED else named)


def _cut(reasons: Mapping[str, str]) -> dict[str, str]:
    return {key: printable(reason, _REASON_CHARACTERS) for key, reason in reasons.items()}
