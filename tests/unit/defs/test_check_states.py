"""What is kept of checks' states, held against what Dagster makes of the same records."""

import random
import uuid
import warnings

import dagster as dg
import pytest
import sqlalchemy as db
from dagster._core.definitions.asset_checks.asset_check_evaluation import (
    AssetCheckEvaluationPlanned,
    AssetCheckEvaluationTargetMaterializationData,
)
from dagster._core.events import DagsterEvent, DagsterEventType
from dagster._core.storage.asset_check_state import AssetCheckState, bulk_update_asset_check_state

SHARDS = [f"{number:05d}" for number in range(6)]
PICTURES, REPORT = dg.AssetKey("pictures"), dg.AssetKey("report")
CHECKS = [
    dg.AssetCheckKey(PICTURES, "whole"),
    dg.AssetCheckKey(PICTURES, "plausible"),
    dg.AssetCheckKey(REPORT, "true"),
]


class Recorder:
    """Records at random what runs and people would."""

    def __init__(self, instance, seed):
        self.instance = instance
        self.random = random.Random(seed)
        self.runs = []
        self.told = set()

    def step(self):
        self.random.choice(
            [
                self.start,
                self.materialize,
                self.materialize,
                self.evaluate,
                self.evaluate,
                self.evaluate,
                self.evaluate_without_a_run,
                self.end,
                self.wipe,
            ]
        )()

    def start(self):
        run = dg.DagsterRun("job", run_id=str(uuid.UUID(int=self.random.getrandbits(128))))
        self.instance.add_run(run)
        self.runs.append(run)
        shards = self.random.sample(SHARDS, 3)
        for check in self.random.sample(CHECKS, 2):
            subset = None
            if check.asset_key == PICTURES:
                subset = dg.StaticPartitionsDefinition(SHARDS).subset_with_partition_keys(shards)
            self.report(
                DagsterEventType.ASSET_CHECK_EVALUATION_PLANNED,
                AssetCheckEvaluationPlanned(
                    asset_key=check.asset_key, check_name=check.name, partitions_subset=subset
                ),
                run.run_id,
            )

    def materialize(self):
        asset = self.random.choice([PICTURES, PICTURES, PICTURES, REPORT])
        shard = self.random.choice(SHARDS) if asset == PICTURES else None
        self.instance.report_runless_asset_event(dg.AssetMaterialization(asset, partition=shard))

    def evaluate(self):
        if self.runs:
            self.report(
                DagsterEventType.ASSET_CHECK_EVALUATION,
                self.evaluation(),
                self.random.choice(self.runs[-3:]).run_id,
            )

    def evaluate_without_a_run(self):
        evaluation = self.evaluation()
        # Dagster's table takes one for each partition.
        if (told := (evaluation.check_name, evaluation.partition)) not in self.told:
            self.told.add(told)
            self.instance.report_runless_asset_event(evaluation)

    def evaluation(self):
        check = self.random.choice(CHECKS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", dg.PreviewWarning)
            return dg.AssetCheckEvaluation(
                asset_key=check.asset_key,
                check_name=check.name,
                passed=self.random.random() < 0.7,
                metadata={},
                target_materialization_data=self.target(check.asset_key),
                partition=self.random.choice([*SHARDS, "99999"]) if check.asset_key == PICTURES else None,
            )

    def target(self, asset):
        found = self.instance.fetch_materializations(asset, limit=2).records
        if not found:
            return None
        one = self.random.choice(found)
        return AssetCheckEvaluationTargetMaterializationData(
            storage_id=one.storage_id, run_id=one.run_id, timestamp=one.timestamp
        )

    def end(self):
        if self.runs:
            run = self.runs.pop(0)
            event = self.random.choice([DagsterEventType.RUN_SUCCESS, DagsterEventType.RUN_FAILURE])
            self.report(event, None, run.run_id)

    def wipe(self):
        if self.random.random() < 0.2:
            self.instance.wipe_assets([self.random.choice([PICTURES, REPORT])])

    def report(self, event_type, data, run_id):
        event = DagsterEvent(event_type.value, job_name="job", event_specific_data=data)
        self.instance.report_dagster_event(event, run_id)


def keys(shards):
    pictures = dg.StaticPartitionsDefinition(shards)
    return [(check, pictures if check.asset_key == PICTURES else None) for check in CHECKS]


def dagsters_own(instance, asked):
    return bulk_update_asset_check_state(instance, asked, {key: AssetCheckState.empty() for key, _ in asked})


def said(states):
    return {
        key: (
            {status: subset for status, subset in state.subsets.items() if not subset.is_empty},
            dict(state.in_progress_runs),
        )
        for key, state in states.items()
    }


@pytest.mark.parametrize(("seed", "settles_s"), [(3, 0.0), (5, 30.0)])
def test_states_are_those_that_dagster_makes_of_the_records(instance, seed, settles_s):
    storage = instance.event_log_storage
    storage.settles_s = settles_s
    recorder = Recorder(instance, seed)
    seen = set()
    for _ in range(50):
        recorder.step()
        kept = said(storage.get_asset_check_state(keys(SHARDS)))
        assert kept == said(dagsters_own(instance, keys(SHARDS)))
        seen |= {status for subsets, _ in kept.values() for status in subsets}
    assert len(seen) == 5  # of five statuses


def test_shards_that_were_added_have_the_states_that_were_recorded_of_them(instance):
    recorder = Recorder(instance, 1)
    for _ in range(30):
        recorder.step()
    for shards in (SHARDS[:3], [*SHARDS, "99999"], SHARDS):
        states = instance.event_log_storage.get_asset_check_state(keys(shards))
        assert said(states) == said(dagsters_own(instance, keys(shards)))


def test_records_of_a_deleted_run_are_forgotten(instance):
    storage = instance.event_log_storage
    result = dg.materialize([pictures], partition_key=SHARDS[0], instance=instance)
    evaluation = dg.AssetCheckEvaluation(
        asset_key=PICTURES,
        check_name="whole",
        passed=True,
        metadata={},
        target_materialization_data=Recorder(instance, 0).target(PICTURES),
        partition=SHARDS[0],
    )
    instance.report_runless_asset_event(evaluation)
    assert "SUCCEEDED" in str(said(storage.get_asset_check_state(keys(SHARDS)))[CHECKS[0]])
    instance.delete_run(result.run_id)
    assert said(storage.get_asset_check_state(keys(SHARDS))) == said(dagsters_own(instance, keys(SHARDS)))


def test_nothing_is_read_again_where_nothing_was_recorded(instance):
    storage = instance.event_log_storage
    storage.settles_s = 0.0
    recorder = Recorder(instance, 2)
    recorder.start()
    for _ in range(20):
        recorder.materialize()
        recorder.evaluate()
    run = recorder.runs[0]
    recorder.end()
    statements = []

    def note(_connection, _cursor, statement, *_):
        statements.append(statement)

    for _ in range(3):
        states = storage.get_asset_check_state(keys(SHARDS))
    db.event.listen(db.Engine, "before_cursor_execute", note)
    try:
        assert storage.get_asset_check_state(keys(SHARDS)) == states
        assert len(statements) == 2
        recorder.runs.append(run)
        recorder.evaluate()
        statements.clear()
        storage.get_asset_check_state(keys(SHARDS))
    finally:
        db.event.remove(db.Engine, "before_cursor_execute", note)
    assert any("asset_check_executions" in statement for statement in statements)


@dg.asset(name="pictures", partitions_def=dg.StaticPartitionsDefinition(SHARDS))
def pictures() -> None:
    """Made of nothing."""
