"""Runs over a batch in which a shard fails, and one fails a check that blocks: the others go on."""

import dagster as dg
import pytest
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.execution.api import create_execution_plan, execute_run
from dagster._core.execution.plan.state import KnownExecutionState
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus
from dagster._core.storage.partition_status_cache import get_and_update_asset_status_cache_value
from embedding_inputs import WIDTH, cosines_of, metadata, pairs, place

from laion_assets.defs.assembly import build_definitions
from laion_assets.defs.instance import open_instance, prepare_home
from laion_assets.defs.partitions import PartitionSets, range_tags
from laion_assets.defs.recording import Watcher
from laion_assets.formats.publish import Recipe, publish
from laion_assets.partitions import Axis, find_partitions
from laion_assets.pipeline import EMBEDDINGS, STAGE_BY_NAME, upstream_of
from laion_assets.settings import Settings

KEYS = ["00000", "00001", "00002", "00003"]
DAMAGED, BLOCKED, *GOOD = ["00001", "00002", "00000", "00003"]
RULE = "cosines_match_similarities"
ROWS = 40


class Data:
    """Four embedding shards, and Dagster's records of runs over them."""

    def __init__(self, folder, instance, workers="here"):
        self.instance = instance
        self.settings = Settings(
            data_root=folder / "data",
            embeddings={"source": str(folder / "release"), "width": WIDTH},
            run={"workers": workers, "cores": 2},
        )
        self.source = folder / "release"
        for key in KEYS:
            self.place(int(key))

    def place(self, number):
        cosines = cosines_of(ROWS, seed=number)
        place(self.source, number, *pairs(cosines, seed=number), metadata(cosines))

    def damage(self, number):
        path = self.source / "img_emb" / f"img_emb_{number}.npy"
        path.write_bytes(path.read_bytes()[:200])

    def run(self, keys, watcher=None, job="build_embedding_shards"):
        """Launch a job over a range, as Dagster's daemon would; the finished run."""
        found = build_definitions(self.settings, watcher=watcher).resolve_job_def(job)
        run = self.instance.create_run_for_job(found, tags=range_tags(keys))
        execute_run(InMemoryJob(found), run, self.instance)
        return self.instance.get_run_by_id(run.run_id)

    def run_from_failure(self, parent):
        """Start a run anew from where it failed, as the UI does; the finished run."""
        found = build_definitions(self.settings).resolve_job_def(parent.job_name)
        steps, state = KnownExecutionState.build_resume_retry_reexecution(self.instance, parent)
        plan = create_execution_plan(found, step_keys_to_execute=steps, known_state=state)
        tags = {name: value for name, value in parent.tags.items() if "range" in name}
        run = self.instance.create_run_for_job(
            found, execution_plan=plan, tags=tags, parent_run_id=parent.run_id, root_run_id=parent.run_id
        )
        execute_run(InMemoryJob(found), run, self.instance)
        return self.instance.get_run_by_id(run.run_id)

    def output(self, stage, key):
        return STAGE_BY_NAME[stage].output(self.settings.layout, key)

    def events(self, run, kind):
        records = self.instance.get_records_for_run(run.run_id, of_type=kind).records
        return [record.event_log_entry.get_dagster_event() for record in records]

    def failures(self, run):
        """Step -> what it told of its failure; None where it crashed."""
        return {
            event.step_key: event.step_failure_data.user_failure_data
            for event in self.events(run, dg.DagsterEventType.STEP_FAILURE)
        }

    def statuses(self, stage):
        """Partitions that Dagster's backfill dialogue shows as failed, and as missing."""
        partitions = PartitionSets(find_partitions(self.settings)).definition(Axis.EMBEDDING_SHARD)
        status = get_and_update_asset_status_cache_value(self.instance, dg.AssetKey(stage), partitions)
        done = status.deserialize_materialized_partition_subsets(partitions).get_partition_keys()
        failed = status.deserialize_failed_partition_subsets(partitions).get_partition_keys()
        return set(failed), set(KEYS) - set(done) - set(failed)

    def materialized(self, run):
        """Stage -> partitions that a run recorded."""
        found = {stage: set() for stage in EMBEDDINGS}
        for event in self.events(run, dg.DagsterEventType.ASSET_MATERIALIZATION):
            found[event.asset_key.to_user_string()].add(event.partition)
        return found


class Saboteur(Watcher):
    """Cuts a file short between the stage that wrote it and the checks that follow."""

    def __init__(self, data, key):
        self.data = data
        self.key = key

    def partition_ended(self, stage, key, outcome):
        if (stage.name, key) == ("embedding_join", self.key):
            path = self.data.output("embedding_join", key).only
            path.write_bytes(path.read_bytes()[:-100])


@pytest.fixture(scope="module", params=["here", pytest.param("processes", marks=pytest.mark.slow)])
def batch(tmp_path_factory, request):
    """A run over four shards of which one had been finished before its source was damaged."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("batch")
        patch.setenv("DAGSTER_HOME", str(folder))  # which preparing sets, restored at the end
        data = Data(folder, open_instance(prepare_home(folder / "home")), request.param)
        for stage in EMBEDDINGS:
            STAGE_BY_NAME[stage].run(data.settings, DAMAGED)
        data.damage(1)
        older = data.output("tfds_embeddings", DAMAGED).manifest
        before = older.stat().st_mtime_ns
        data.last = data.run(KEYS, Saboteur(data, BLOCKED))
        assert None not in data.failures(data.last).values()
        assert older.stat().st_mtime_ns == before
        yield data
        data.instance.dispose()


def test_the_others_go_on_through_all_stages(batch):
    through = {*GOOD, BLOCKED}
    assert batch.materialized(batch.last) == {
        "embeddings": through,
        "embedding_join": through,
        "embedding_index": set(GOOD),
        "normalized_embeddings": set(GOOD),
        "tfds_embeddings": set(GOOD),
    }


def test_the_run_fails_and_is_not_retried_by_itself(batch):
    assert batch.last.status is dg.DagsterRunStatus.FAILURE
    assert batch.last.tags["dagster/will_retry"] == "false"


def test_its_steps_name_each_shard_with_stage_and_reason(batch):
    failures = batch.failures(batch.last)
    # Whatever lost a shard is done again when a run is started anew from where it failed; checks, too.
    assert set(failures) == {*EMBEDDINGS, *(f"{stage}_checks" for stage in EMBEDDINGS)}
    assert set(failures["embeddings"].metadata["failed partitions"].value) == {DAMAGED}
    assert set(failures["embedding_join_checks"].metadata["failed partitions"].value) == {BLOCKED}
    left_out = failures["tfds_embeddings"].metadata["left out"].value
    assert set(left_out) == {DAMAGED, BLOCKED}
    assert left_out[DAMAGED].startswith("embeddings failed: ")
    assert "img_emb_1.npy" in left_out[DAMAGED]
    assert left_out[BLOCKED].startswith(f"embedding_join failed: check {RULE} failed and blocks: ")
    for reason in left_out.values():
        assert reason in failures["tfds_embeddings"].description


def test_a_partitions_page_says_why(batch):
    def reasons(stage):
        found = batch.instance.fetch_failed_materializations(dg.AssetKey(stage), limit=10).records
        return {record.partition_key: record.event_log_entry.get_dagster_event() for record in found}

    (failed,) = reasons("embeddings").items()
    assert failed[0] == DAMAGED
    failure = failed[1].asset_failed_to_materialize_data
    assert "img_emb_1.npy" in failure.asset_materialization_failure.metadata["reason"].value
    later = reasons("tfds_embeddings")
    assert set(later) == {DAMAGED, BLOCKED}
    assert {event.asset_failed_to_materialize_data.reason.value for event in later.values()} == {
        "UPSTREAM_FAILED_TO_MATERIALIZE"
    }


def test_check_results_are_each_shards_own_and_current(batch):
    key = dg.AssetCheckKey(dg.AssetKey("embedding_join"), RULE)
    infos = batch.instance.event_log_storage.get_asset_check_partition_info([key], partition_keys=KEYS)
    found = {info.partition_key: info for info in infos}
    succeeded, failed = AssetCheckExecutionRecordStatus.SUCCEEDED, AssetCheckExecutionRecordStatus.FAILED
    for partition in GOOD:
        assert (found[partition].latest_execution_status, found[partition].is_current) == (succeeded, True)
    assert (found[BLOCKED].latest_execution_status, found[BLOCKED].is_current) == (failed, True)
    # Planned by the run, and left out.
    assert found[DAMAGED].latest_execution_status is AssetCheckExecutionRecordStatus.PLANNED


def test_failed_and_missing_ones_are_those_that_failed_and_a_run_over_them_mends_all(batch):
    assert batch.statuses("embeddings") == ({DAMAGED}, set())
    assert batch.statuses("embedding_join") == ({DAMAGED}, set())
    for stage in ("embedding_index", "normalized_embeddings", "tfds_embeddings"):
        assert batch.statuses(stage) == ({DAMAGED, BLOCKED}, set())
    batch.place(1)
    again = batch.run([DAMAGED, BLOCKED])
    assert again.is_success
    assert set.union(*batch.materialized(again).values()) == {DAMAGED, BLOCKED}
    for stage in EMBEDDINGS:
        assert batch.statuses(stage) == (set(), set())


@pytest.fixture
def data(tmp_path):
    with dg.DagsterInstance.ephemeral() as instance:
        yield Data(tmp_path, instance)


def test_a_shard_alone_fails_in_its_step_or_check_and_no_later_step_begins(data):
    def begun(run):
        return [event.step_key for event in data.events(run, dg.DagsterEventType.STEP_START)]

    run = data.run([BLOCKED], Saboteur(data, BLOCKED))
    assert run.is_failure
    assert begun(run) == ["embeddings", "embeddings_checks", "embedding_join", "embedding_join_checks"]
    data.damage(1)
    run = data.run([DAMAGED])
    assert run.is_failure
    assert begun(run) == ["embeddings"]


def test_of_ranges_that_overlap_the_second_loses_the_shard_that_the_first_writes_and_may_be_redone(data):
    output = data.output("embedding_join", "00001")

    class Interrupted(Exception):
        pass

    def write(_):
        data.last = data.run(["00000", "00001"])
        raise Interrupted

    with pytest.raises(Interrupted):
        publish(output, Recipe(code_version="of the first run"), write)
    assert data.last.is_failure
    assert data.materialized(data.last)["embedding_join"] == {"00000"}
    assert data.materialized(data.last)["tfds_embeddings"] == {"00000"}
    reason = data.failures(data.last)["embedding_join"].metadata["failed partitions"].value["00001"]
    assert "being written or read by another process" in reason
    again = data.run_from_failure(data.last)
    assert again.is_success
    assert data.materialized(again)["embeddings"] == set()
    assert data.materialized(again)["tfds_embeddings"] == {"00000", "00001"}


def test_under_an_executor_of_dagsters_own_nothing_is_made_of_what_failed(data):
    data.damage(1)
    job = build_definitions(data.settings).resolve_job_def("build_embedding_shards")
    result = job.execute_in_process(
        instance=data.instance, tags=range_tags(["00000", "00001"]), raise_on_error=False
    )
    assert not result.success
    assert not any(event.step_key == "embedding_join" for event in result.all_node_events)


def test_a_stage_is_made_from_those_along_its_own_axis():
    stages = {name: upstream_of(stage) for name, stage in STAGE_BY_NAME.items()}
    assert stages["tfds_images"] == {"samples", "images", "normalized_images"}
    assert stages["tfds_embeddings"] == {"embeddings", "embedding_join", "normalized_embeddings"}
    assert stages["tfds_image_embeddings"] == {
        "samples", "images", "normalized_images", "image_embeddings",
    }  # fmt: skip
    assert all(stages[name] == set() for name, stage in STAGE_BY_NAME.items() if stage.axis is Axis.PART)
