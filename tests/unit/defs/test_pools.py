"""Which runs wait for which in the queue of a real instance, by the pools that they hold."""

import dagster as dg
import pytest
from dagster._core.events import DagsterEvent, DagsterEventType
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._daemon.run_coordinator.queued_run_coordinator_daemon import QueuedRunCoordinatorDaemon

from laion_assets.decoding import cores
from laion_assets.defs.assembly import build_definitions
from laion_assets.defs.instance import open_instance, prepare_home
from laion_assets.defs.partitions import range_tags
from laion_assets.defs.pools import CORES, NETWORK, limits, set_limits
from laion_assets.partitions import Axis
from laion_assets.pipeline import STAGES
from laion_assets.settings import Settings
from laion_assets.stages.shard_plan import plan_shards

REPOSITORY = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("laion_assets"), "__repository__")
STARTED = DagsterEvent(DagsterEventType.PIPELINE_START.value, job_name="any")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pools")


@pytest.fixture(scope="module")
def settings(folder):
    """Four image shards, planned and not looked into, and two embedding shards."""
    images, vectors = folder / "data" / "images", folder / "vectors" / "img_emb"
    for path in (images, vectors):
        path.mkdir(parents=True)
    for number in range(4):
        for name in (f"{number:05d}.tar", f"{number:05d}.parquet", f"{number:05d}_stats.json"):
            (images / name).touch()
        (vectors / f"img_emb_{number}.npy").touch()
    found = Settings(data_root=folder / "data", embeddings={"source": str(vectors.parent)})
    plan_shards(found.layout, [], rows_per_shard=found.rows_per_shard)
    return found


@pytest.fixture(scope="module")
def instance(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGSTER_HOME", str(folder))  # which preparing sets, restored at the end
        with open_instance(prepare_home(folder / "home")) as found:
            yield found


@pytest.fixture
def queue(instance, settings):
    """Queues a run, and says which of those queued Dagster's daemon would launch now."""
    definitions = build_definitions(settings)
    runs = []

    class Queue:
        def add(self, job, keys):
            found = definitions.resolve_job_def(job)
            runs.append(
                instance.create_run_for_job(
                    found,
                    tags=range_tags(keys),
                    status=dg.DagsterRunStatus.QUEUED,
                    remote_job_origin=RemoteJobOrigin(REPOSITORY, job),
                )
            )
            return runs[-1].run_id

        def next(self):
            config = instance.get_concurrency_config()
            launched = daemon._get_runs_to_dequeue(instance, config, fixed_iteration_time=None)
            return {run.run_id for run in launched}

    daemon = QueuedRunCoordinatorDaemon(interval_seconds=5)
    yield Queue()
    for run in runs:
        instance.delete_run(run.run_id)


def limits_in(instance):
    return {pool.name: pool.limit for pool in instance.event_log_storage.get_pool_limits()}


def test_a_fresh_home_has_limits_by_the_number_of_cores_and_keeps_those_that_a_person_set(instance):
    storage = instance.event_log_storage
    assert limits_in(instance) == limits(cores())
    storage.set_concurrency_slots(NETWORK, 7)
    set_limits(instance)
    assert limits_in(instance) == limits(cores()) | {NETWORK: 7}
    storage.set_concurrency_slots(NETWORK, 1)


@pytest.mark.parametrize(
    ("machine", "expected"),
    [(1, (1, 2)), (2, (1, 2)), (8, (2, 8)), (64, (16, 64))],
)
def test_limits_grow_with_the_machine(machine, expected):
    assert tuple(limits(machine)[pool] for pool in (NETWORK, CORES)) == expected


def test_of_two_runs_that_download_one_waits_until_the_other_has_ended(instance, queue):
    instance.event_log_storage.set_concurrency_slots(NETWORK, 1)
    instance.event_log_storage.set_concurrency_slots(CORES, 2)
    first = queue.add("build_shards", ["00000", "00001"])
    second = queue.add("build_shards", ["00002", "00003"])
    beside = queue.add("build_embedding_shards", ["00001", "00002"])
    later = queue.add("build_embedding_shards", ["00003"])
    assert queue.next() == {first, beside}
    for run in (first, beside):
        instance.report_dagster_event(STARTED, run)
    assert queue.next() == set()
    instance.report_run_failed(instance.get_run_by_id(first))
    assert queue.next() == {second}
    instance.report_run_failed(instance.get_run_by_id(beside))
    assert queue.next() == {second, later}


def test_ranges_that_begin_alike_wait_for_each_other(instance, queue):
    instance.event_log_storage.set_concurrency_slots(NETWORK, 2)
    first = queue.add("build_shards", ["00000", "00001"])
    queue.add("build_shards", ["00000", "00001", "00002"])
    assert queue.next() == {first}


def test_every_stage_over_partitions_holds_a_pool(settings):
    graph = build_definitions(settings).resolve_asset_graph()
    pools = {stage.name: graph.get(dg.AssetKey(stage.name)).pools for stage in STAGES}
    assert pools.pop("images") == {NETWORK}
    for stage in STAGES:
        if stage.name != "images":
            assert pools[stage.name] == (set() if stage.axis is Axis.NONE else {CORES}), stage.name
