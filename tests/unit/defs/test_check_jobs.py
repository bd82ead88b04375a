"""Jobs that check what is there, over batches of partitions, and materialize nothing."""

import dagster as dg
import pytest
from quality_inputs import LENIENT, PART, SHARDS, VECTORS, WIDTH, copy_root, shared_root

from laion_assets.defs.assembly import build_definitions
from laion_assets.partitions import Axis
from laion_assets.pipeline import STAGES
from laion_assets.quality.checks import evaluate, rules_of
from laion_assets.settings import Settings

BATCH = "00000..00002"
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


@pytest.fixture
def layout(tmp_path_factory, tmp_path):
    return copy_root(shared_root(tmp_path_factory), tmp_path).layout


@pytest.fixture
def instance():
    with dg.DagsterInstance.ephemeral() as found:
        yield found


@pytest.fixture
def run(tmp_path_factory, layout, instance):
    source = str(shared_root(tmp_path_factory).root.parent / "embeddings")
    embeddings = {"source": source, "width": WIDTH}
    definitions = build_definitions(Settings(data_root=layout.root, embeddings=embeddings, quality=LENIENT))

    def run_job(name, **arguments):
        job = definitions.resolve_job_def(name)
        return job.execute_in_process(
            instance=instance, raise_on_error=False, run_config=QUIET, **arguments
        ).get_asset_check_evaluations(), job

    return run_job


def history(instance, stage, rule):
    """What Dagster has of a check, the latest first."""
    key = dg.AssetCheckKey(dg.AssetKey(stage), rule)
    return instance.event_log_storage.get_asset_check_execution_history(key, limit=10)


def found_by(evaluations, axis):
    return {
        (evaluation.asset_key.to_user_string(), evaluation.check_name, evaluation.partition)
        for evaluation in evaluations
    }, {(stage.name, rule.name) for stage in STAGES if stage.axis is axis for rule in rules_of(stage.name)}


def test_each_rule_is_recorded_under_each_shard_that_is_there(run, instance):
    evaluations, job = run("check_shards", partition_key=BATCH)
    assert job.partitions_def.get_partition_keys() == [BATCH]
    found, rules = found_by(evaluations, Axis.SHARD)
    # The plan's third shard has its samples only.
    assert found == {
        (stage, rule, shard)
        for stage, rule in rules
        for shard in (["00000", "00001", "00002"] if stage == "samples" else ["00000", "00001"])
    }
    assert all(evaluation.passed for evaluation in evaluations)
    assert not instance.get_materialized_partitions(dg.AssetKey("images"))
    for stage, rule in rules:
        assert {record.partition for record in history(instance, stage, rule)} >= {"00000", "00001"}


def test_figures_are_numbers_that_the_ui_plots(run, layout):
    evaluations, _ = run("check_embedding_shards", partition_key=str(VECTORS))
    rules = {(rule.stage, rule.name): rule for stage in STAGES for rule in rules_of(stage.name)}
    for evaluation in evaluations:
        rule = rules[evaluation.asset_key.to_user_string(), evaluation.check_name]
        verdict = evaluate(rule, layout, LENIENT, evaluation.partition)
        values = {name: value.value for name, value in evaluation.metadata.items()}
        assert values == {
            **verdict.figures,
            "rows": verdict.rows,
            "offending": verdict.offending,
            "offenders": [*verdict.examples],
        }
        plotted = {
            name
            for name, value in evaluation.metadata.items()
            if isinstance(value, (dg.FloatMetadataValue, dg.IntMetadataValue))
        }
        assert plotted == {*verdict.figures, "rows", "offending"}


def test_an_evaluation_is_of_the_last_materialization_and_counts_for_it(run, instance):
    for stage in ("images", "laion400m_images"):
        partition = "00000" if stage == "images" else None
        for _ in range(2):
            instance.report_runless_asset_event(dg.AssetMaterialization(stage, partition=partition))
    run("check_shards", partition_key=BATCH)
    run("check_datasets")
    key = dg.AssetCheckKey(dg.AssetKey("images"), "keys_are_unique")
    infos = instance.event_log_storage.get_asset_check_partition_info([key])
    assert {info.partition_key: info.is_current for info in infos} == {"00000": True, "00001": True}
    (record,) = history(instance, "laion400m_images", "records_are_as_many")
    latest = instance.fetch_materializations(dg.AssetKey("laion400m_images"), limit=1).records[0]
    assert record.evaluation.target_materialization_data.storage_id == latest.storage_id


@pytest.mark.parametrize(
    ("name", "axis", "partition"),
    [
        ("check_parts", Axis.PART, PART),
        ("check_embedding_shards", Axis.EMBEDDING_SHARD, str(VECTORS)),
        ("check_datasets", Axis.NONE, None),
    ],
)
def test_every_stage_has_a_job(run, name, axis, partition):
    evaluations, _ = run(name, partition_key=partition)
    found, rules = found_by(evaluations, axis)
    assert found == {(stage, rule, partition) for stage, rule in rules}


def test_a_rule_that_blocks_fails_the_run_once_everything_is_recorded(run, instance, layout):
    layout.images_table(SHARDS[0]).write_bytes(b"")
    evaluations, _ = run("check_shards", partition_key=BATCH)
    found, rules = found_by(evaluations, Axis.SHARD)
    assert len(found) == 2 * len(rules) + len(rules_of("samples"))
    failed = {evaluation.partition for evaluation in evaluations if not evaluation.passed}
    assert failed == {str(SHARDS[0])}
    (latest,) = instance.get_runs()
    assert latest.status is dg.DagsterRunStatus.FAILURE


def test_a_rule_whose_other_side_is_not_there_finds_nothing(run, instance, layout):
    layout.samples(SHARDS[0]).manifest.unlink()
    evaluations, _ = run("check_shards", partition_key=BATCH)
    found, _ = found_by(evaluations, Axis.SHARD)
    assert ("images", "rows_are_accounted_for", "00000") not in found
    assert ("images", "rows_are_accounted_for", "00001") in found
    assert ("images", "keys_are_unique", "00000") in found
    (latest,) = instance.get_runs()
    assert latest.status is dg.DagsterRunStatus.SUCCESS
