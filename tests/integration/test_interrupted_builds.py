"""What a build records when something is wrong, and what it does once that is mended."""

import signal
import subprocess
import sys
import time

import dagster as dg
import one_host
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContextForTest

from laion_assets.defs.assembly import build_definitions
from laion_assets.defs.instance import open_instance
from laion_assets.defs.recording import Watcher
from laion_assets.defs.status import stage_statuses
from laion_assets.demo.pictures import Encoding, Picture
from laion_assets.demo.scenes import Scene
from laion_assets.demo.web import DemoWeb, Fault
from laion_assets.errors import SettingsError
from laion_assets.image_policy import ImagePolicy
from laion_assets.layout import Layout, ShardId
from laion_assets.partitions import Axis
from laion_assets.pipeline import STAGES
from laion_assets.plan import ShardPlan
from laion_assets.schema import RAW

pytestmark = pytest.mark.slow

LOCATIONS = 'data_root = "data"\ndagster_home = "dagster_home"\n'
SETTINGS = f"""\
{LOCATIONS}
rows_per_shard = 5
batch_shards = 3
[raw]
source = "raw"
[fetch]
allow_loopback = true
per_domain_concurrency = 16
{one_host.SETTINGS}"""


@pytest.fixture
def web():
    with DemoWeb() as running:
        yield running


def write_part(folder, name, web, rows, fault=Fault.OK):
    scenes = list(Scene.every())
    table = []
    for row in range(rows):
        scene = scenes[(7 * row) % len(scenes)]
        picture = Picture(scene=scene, seed=row, width=120, height=100, encoding=Encoding.JPEG)
        table.append({"URL": web.url_for(fault, picture), "TEXT": scene.caption, "similarity": 0.31})
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(table, schema=RAW), folder / name)


def test_a_damaged_part_takes_only_itself_down(build_all, tmp_path, web):
    raw = tmp_path / "raw"
    write_part(raw, "part-0.parquet", web, 12)
    (raw / "part-1.parquet").write_bytes(b"not parquet at all")
    settings, done = build_all(SETTINGS)
    assert set(done.failures) == {("raw_metadata", "part-1")}
    assert "part-1.parquet" in str(done.failures["raw_metadata", "part-1"])
    assert [str(shard) for shard in ShardPlan.load(settings.layout).shards] == ["00000", "00001", "00002"]
    assert done.manifests["laion400m_images", "laion400m_images"].rows == 12
    with open_instance(settings.dagster_home) as instance:
        assert instance.get_materialized_partitions(dg.AssetKey("raw_metadata")) == {"part-0"}
        (raw_status,) = [
            status for status in stage_statuses(settings, instance) if status.stage == "raw_metadata"
        ]
        assert (raw_status.done, raw_status.failed, raw_status.missing) == (1, 1, 0)

    write_part(raw, "part-1.parquet", web, 8)
    asked = dict(web.requests)
    settings, mended = build_all(SETTINGS)
    assert mended.failures == {}
    assert len(ShardPlan.load(settings.layout).shards) == 5
    assert mended.manifests["laion400m_images", "laion400m_images"].rows == 20
    # The finished shards were not fetched again: 8 new rows, 8 more requests.
    assert sum(web.requests.values()) - sum(asked.values()) == 8


@pytest.mark.parametrize("signal_", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_build_ends_and_leaves_nothing_half_done(build_all, tmp_path, web, signal_):
    write_part(tmp_path / "raw", "part-0.parquet", web, 5, fault=Fault.STALLED)
    (tmp_path / "laion.toml").write_text(SETTINGS)
    command = [sys.executable, "-m", "laion_assets", "build"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not web.requests:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal_)
        _, printed = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in printed
    assert "Traceback" not in printed
    images = Layout(tmp_path / "data").images(ShardId(0))
    assert not images.manifest.exists()
    assert not images.draft.exists()
    _, done = build_all(SETTINGS + "total_timeout_s = 0.5\nattempts = 1\n")
    assert done.manifests["images", "00000"].counts["outcome:timeout"] == 5


def test_a_disk_that_says_no_is_a_named_failure(build_all, tmp_path, web, run_cli):
    write_part(tmp_path / "raw", "part-0.parquet", web, 5)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "normalized_images").write_text("a file where a folder must be")
    _, done = build_all(SETTINGS)
    assert ("normalized_images", "00000") in done.failures
    assert not done.went_well
    printed = run_cli("build", "--settings", tmp_path / "laion.toml", cwd=tmp_path)
    assert printed.returncode == 1
    assert "normalized_images 00000: " in printed.stderr
    assert "Traceback" not in printed.stderr


def test_a_crash_is_never_taken_for_success(build_all, tmp_path, web):
    class Faulty(Watcher):
        def partition_ended(self, stage, key, outcome):
            if stage.name == "normalized_images":
                raise ZeroDivisionError("a bug")

    write_part(tmp_path / "raw", "part-0.parquet", web, 5)
    _, done = build_all(SETTINGS, watcher=Faulty())
    assert not done.went_well
    assert any("normalized_images" in crash and "a bug" in crash for crash in done.crashes)


def test_vectors_alone_give_their_dataset(build_all, tmp_path, demo):
    settings, done = build_all(f"{LOCATIONS}[embeddings]\nsource = '{demo / 'embeddings'}'\n")
    assert done.failures == {}
    assert not done.blocked
    assert done.manifests["laion400m_embeddings", "laion400m_embeddings"].rows > 350
    assert not settings.layout.shard_plan().manifest.exists()


def test_a_range_of_shards_is_built_alone(build_all, tmp_path, web):
    write_part(tmp_path / "raw", "part-0.parquet", web, 20)
    settings, done = build_all(SETTINGS, shards=["00001", "00002"])
    assert done.failures == {}
    built = {key for name, key in done.manifests if name == "tfds_images"}
    assert built == {"00001", "00002"}
    assert not settings.layout.images(ShardId(0)).manifest.exists()
    assert done.manifests["laion400m_images", "laion400m_images"].rows == 10
    with pytest.raises(SettingsError, match="no shard 00004: the last one is 00003"):
        build_all(SETTINGS, shards=["00004"])


def test_new_settings_redo_only_what_they_change(build_all, tmp_path, web):
    write_part(tmp_path / "raw", "part-0.parquet", web, 5)
    _, first = build_all(SETTINGS)
    same = build_all(SETTINGS + "[image]\nsize = 64\n")[1]
    assert same.failures == {}
    assert not any(name == "images" for name, _ in same.manifests)
    _, again = build_all(SETTINGS + "[image]\nsize = 64\n", again=True)
    key = ("images", "00000")
    assert again.manifests[key].recipe.settings != first.manifests[key].recipe.settings
    assert again.manifests[key].data_version != first.manifests[key].data_version
    assert again.manifests["samples", "00000"] == first.manifests["samples", "00000"]
    assert (
        again.manifests["tfds_images", "00000"].data_version
        != first.manifests["tfds_images", "00000"].data_version
    )


def stale(settings, instance, key, *, newer=None):
    """Stages whose partition Dagster calls stale, if the code of one is newer."""

    def code(spec):
        return spec.replace_attributes(code_version="newer") if spec.key == dg.AssetKey(newer) else spec

    assets = build_definitions(settings).assets
    if newer is not None:
        assets = [asset.map_asset_specs(code) for asset in assets]
    graph = dg.Definitions(assets=assets).resolve_asset_graph()
    resolver = CachingStaleStatusResolver(instance, graph, LoadingContextForTest(instance))
    return {
        stage.name
        for stage in STAGES
        if stage.axis is Axis.SHARD and stage.name != "image_embeddings"
        if resolver.get_status(dg.AssetKey(stage.name), key) is StaleStatus.STALE
    }


def test_staleness_follows_content_in_each_partition(build_all, tmp_path, web):
    write_part(tmp_path / "raw", "part-0.parquet", web, 10)
    settings, _ = build_all(SETTINGS)
    with open_instance(settings.dagster_home) as instance:
        assert stale(settings, instance, "00000") == stale(settings, instance, "00001") == set()
        # The same again changes nothing; other pictures of one shard are news for what follows from them.
        for image, expected in (
            (settings.image, set()),
            (ImagePolicy(size=64), {"normalized_images", "tfds_images"}),
        ):
            changed = settings.model_copy(update={"image": image})
            images = [
                asset for asset in build_definitions(changed).assets if asset.key == dg.AssetKey("images")
            ]
            assert dg.materialize(images, instance=instance, partition_key="00001").success
            assert stale(changed, instance, "00001") == expected
            assert stale(changed, instance, "00000") == set()


def test_newer_code_makes_every_partition_of_its_stage_stale_and_no_other(build_all, tmp_path, web):
    write_part(tmp_path / "raw", "part-0.parquet", web, 10)
    settings, _ = build_all(SETTINGS)
    with open_instance(settings.dagster_home) as instance:
        for key in ("00000", "00001"):
            assert stale(settings, instance, key, newer="normalized_images") == {"normalized_images"}


def test_versions_follow_content_through_the_chain(build_all, tmp_path, web):
    write_part(tmp_path / "raw", "part-0.parquet", web, 5)
    settings, done = build_all(SETTINGS)
    with open_instance(settings.dagster_home) as instance:
        for upstream, stage in (("samples", "images"), ("images", "normalized_images")):
            (record,) = instance.fetch_materializations(dg.AssetKey(stage), limit=5).records
            assert (
                record.asset_materialization.tags[f"dagster/input_data_version/{upstream}"]
                == done.manifests[upstream, "00000"].data_version
            )
