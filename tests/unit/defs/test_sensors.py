"""The sensor over real folders: what it says, makes known, requests, and how little it keeps."""

import json

import dagster as dg
import pyarrow.parquet as pq
import pytest
from dagster._core.storage.tags import SENSOR_NAME_TAG

from laion_assets.defs.assembly import build_definitions
from laion_assets.defs.jobs import build_jobs
from laion_assets.defs.partitions import PartitionSets
from laion_assets.defs.sensors import build_sensor
from laion_assets.partitions import find_partitions
from laion_assets.pipeline import STAGE_BY_NAME
from laion_assets.schema import RAW
from laion_assets.settings import Settings


@pytest.fixture
def instance():
    with dg.DagsterInstance.ephemeral() as found:
        yield found


class Location:
    """A code location over a folder, whose sensor ticks; it knows what was there when it was loaded."""

    def __init__(self, folder, instance, batch_shards=2, **automation):
        (folder / "raw").mkdir(exist_ok=True)
        self.folder = folder
        self.instance = instance
        self.settings = Settings(
            data_root="data",
            rows_per_shard=10,
            batch_shards=batch_shards,
            raw={"source": "raw"},
            automation=automation,
        ).relative_to(folder)
        self.cursor = None
        self.load()

    def load(self):
        known = PartitionSets(find_partitions(self.settings))
        self.sensor = build_sensor(self.settings, known, build_jobs(self.settings))

    def tick(self):
        context = dg.build_sensor_context(self.instance, cursor=self.cursor, sensor_name=self.sensor.name)
        data = self.sensor.evaluate_tick(context)
        self.cursor = data.cursor
        return data

    def put_part(self, name="part-0", rows=25):
        path = self.folder / "raw" / f"{name}.parquet"
        pq.write_table(RAW.empty_table().from_pylist([{}] * rows, schema=RAW), path)
        return path

    def run(self, stage, key=None):
        STAGE_BY_NAME[stage].run(self.settings, key or stage)


def asked(data):
    return [(request.job_name, tags_of(request)) for request in data.run_requests]


def tags_of(request):
    """Without the one that Dagster adds."""
    return {name: value for name, value in request.tags.items() if name != SENSOR_NAME_TAG}


PART_0 = ("read_parts", {"dagster/partition": "part-0"})
PLAN = ("plan_shards", {})
SHARDS = [
    (
        "build_shards",
        {"dagster/asset_partition_range_start": "00000", "dagster/asset_partition_range_end": "00001"},
    ),
    ("build_shards", {"dagster/partition": "00002"}),
]


def test_by_default_it_watches_and_requests_nothing(tmp_path, instance):
    sensors = {sensor.name: sensor for sensor in build_definitions(Settings(data_root=tmp_path)).sensors}
    assert sensors["watch_sources"].default_status is dg.DefaultSensorStatus.RUNNING
    location = Location(tmp_path, instance)
    assert location.tick().skip_message == "nothing is new"
    location.put_part()
    location.load()
    for _ in range(3):
        data = location.tick()
        assert not data.run_requests
        assert "parts to read: 1 (part-0)" in data.skip_message


def test_a_new_part_is_read_planned_and_built_and_each_is_requested_once(tmp_path, instance):
    location = Location(tmp_path, instance, request_runs=True)
    location.tick()
    location.put_part()
    assert "perhaps still arriving: 1 (part-0)" in location.tick().skip_message
    data = location.tick()
    assert not data.run_requests
    assert "lacks 1 new partitions: reload it in the UI" in data.skip_message
    assert "even after a reload was asked for" in location.tick().skip_message
    location.load()
    assert asked(location.tick()) == [PART_0]
    assert asked(location.tick()) == []

    location.run("raw_metadata", "part-0")
    assert asked(location.tick()) == [PLAN]
    assert asked(location.tick()) == []

    location.run("shard_plan")
    assert "lacks 3 new partitions" in location.tick().skip_message
    location.load()
    assert asked(location.tick()) == SHARDS
    assert asked(location.tick()) == []


def test_a_part_that_failed_is_requested_again_only_once_its_file_changed(tmp_path, instance):
    location = Location(tmp_path, instance, request_runs=True)
    location.put_part()
    location.load()
    assert [asked(location.tick()) for _ in range(4)] == [[], [PART_0], [], []]
    location.put_part(rows=7)
    assert [asked(location.tick()) for _ in range(3)] == [[], [PART_0], []]


def test_the_requested_runs_do_it(tmp_path, instance):
    location = Location(tmp_path, instance, request_runs=True)
    location.put_part()
    location.load()
    location.tick()
    for expected in (PART_0, PLAN):
        (request,) = location.tick().run_requests
        assert (request.job_name, tags_of(request)) == expected
        job = build_definitions(location.settings).resolve_job_def(request.job_name)
        assert job.execute_in_process(tags=request.tags, instance=instance).success
    assert find_partitions(location.settings).shards == ("00000", "00001", "00002")


def test_other_runs_go_first(tmp_path, instance):
    location = Location(tmp_path, instance, request_runs=True)
    location.put_part()
    location.load()
    location.tick()
    job = build_definitions(location.settings).resolve_job_def("publish_datasets")
    other = instance.create_run_for_job(job)
    data = location.tick()
    assert (asked(data), "1 other runs go first" in data.skip_message) == ([], True)
    instance.report_run_canceled(other)
    assert asked(location.tick()) == [PART_0]


def test_few_runs_are_requested_at_a_time(tmp_path, instance):
    location = Location(tmp_path, instance, request_runs=True)
    location.put_part(rows=500)
    location.run("raw_metadata", "part-0")
    location.run("shard_plan")
    location.load()
    first = asked(location.tick())
    assert len(first) == 10
    job = build_definitions(location.settings).resolve_job_def("build_shards")
    for _, tags in first[:4]:
        instance.create_run_for_job(job, tags={SENSOR_NAME_TAG: "watch_sources"} | tags)
    second = asked(location.tick())
    assert len(second) == 6
    assert not {tags["dagster/asset_partition_range_start"] for _, tags in first} & {
        tags["dagster/asset_partition_range_start"] for _, tags in second
    }


def test_what_is_gone_is_recorded_once_and_said_in_every_tick(tmp_path, instance):
    location = Location(tmp_path, instance)
    path = location.put_part()
    location.put_part("part-1")
    location.run("raw_metadata", "part-0")
    location.run("raw_metadata", "part-1")
    location.run("shard_plan")
    location.load()
    assert not location.tick().asset_events
    for _ in range(2):
        away = path.rename(tmp_path / "away")
        observed, checked = location.tick().asset_events
        assert (observed.asset_key, observed.partition) == (dg.AssetKey("raw_metadata"), "part-0")
        assert (checked.asset_key, checked.check_name) == (dg.AssetKey("shard_plan"), "sources_are_there")
        assert (checked.passed, checked.severity) == (False, dg.AssetCheckSeverity.WARN)
        assert "part-0" in str(checked.metadata["offenders"].value)
        for event in (observed, checked):
            instance.report_runless_asset_event(event)
        data = location.tick()
        assert not data.asset_events
        assert "raw_metadata gone or changed: 1 (part-0)" in data.skip_message
        away.rename(path)
        observed, checked = location.tick().asset_events
        assert checked.passed
        for event in (observed, checked):
            instance.report_runless_asset_event(event)


def test_shards_laid_down_are_planned_and_their_loss_is_said(tmp_path, instance):
    location = Location(tmp_path, instance, request_runs=True)
    images = location.settings.layout.images_folder
    images.mkdir(parents=True)
    for suffix in (".tar", ".parquet", "_stats.json"):
        (images / f"00004{suffix}").touch()
    assert asked(location.tick()) == [PLAN]
    location.run("shard_plan")
    location.tick()
    location.load()
    assert asked(location.tick()) == [("build_shards", {"dagster/partition": "00004"})]
    (images / "00004.tar").unlink()
    data = location.tick()
    assert "images gone or changed: 1 (00004)" in data.skip_message


def test_a_source_that_is_not_there_is_said_and_nothing_is_forgotten(tmp_path, instance):
    location = Location(tmp_path, instance, request_runs=True)
    location.put_part()
    location.load()
    location.tick()
    location.tick()
    before = json.loads(location.cursor)
    assert before["asked"]["read_parts"]
    (tmp_path / "raw").rename(tmp_path / "unmounted")
    data = location.tick()
    assert "no such folder" in data.skip_message
    assert json.loads(location.cursor) == before
    (tmp_path / "unmounted").rename(tmp_path / "raw")
    assert asked(location.tick()) == []


def test_its_cursor_stays_small_whatever_is_put_down(tmp_path, instance):
    location = Location(tmp_path, instance, batch_shards=60, request_runs=True)
    for number in range(1_500):
        (tmp_path / "raw" / f"part-{number:05d}.parquet").touch()
    location.load()
    first = [asked(location.tick()) for _ in range(5)]
    assert [len(requests) for requests in first] == [0, 10, 10, 0, 0]
    assert "1200 parts were requested and are not done" in location.tick().skip_message
    assert len(location.cursor) < 150_000
