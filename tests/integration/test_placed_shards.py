"""Shards as img2dataset lays them down give a right dataset: every caption with its own picture."""

import io
import json
import random
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from laion_assets.defs.recording import Watcher
from laion_assets.demo.dataset import captions_true
from laion_assets.demo.scenes import Scene, paint
from laion_assets.formats.tfrecord import read_records
from laion_assets.layout import ShardId

SETTINGS = 'data_root = "data"\ndagster_home = "dagster_home"\nrows_per_shard = 10000\n'


def lay_down(
    folder,
    shard,
    *,
    rows,
    local_keys=False,
    integer_keys=False,
    cut_pictures=False,
    columns=("NSFW", "similarity", "LICENSE"),
    seed=0,
):
    """Write a shard as img2dataset 1.47 does: completion order, failures in between, PAX headers."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    scenes = list(Scene.every())
    order = list(range(rows))
    rng.shuffle(order)
    table = []
    with tarfile.open(folder / f"{shard:05d}.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for row in order:
            scene = rng.choice(scenes)
            key = f"{0 if local_keys else shard:05d}{row:04d}"
            entry = {
                "caption": scene.caption,
                "url": f"http://example.org/{shard}/{row}.jpg",
                "NSFW": rng.choice(["UNLIKELY", "UNSURE", "NSFW", "", None, "weird"]),
                "similarity": rng.choice([0.3, 0.4, None]),
                "LICENSE": rng.choice(["?", None]),
                "key": key,
                "status": rng.choice(
                    ["success", "success", "success", "failed_to_download", "failed_to_resize"]
                ),
                "error_message": None,
                "width": None,
                "height": None,
                "original_width": None,
                "original_height": None,
                "exif": None,
                "sha256": None,
            }
            if entry["status"] == "success":
                picture = paint(scene, seed=row, width=256, height=200)
                body = io.BytesIO()
                picture.save(body, "JPEG", quality=95)
                entry |= {"width": 256, "height": 200, "original_width": 512, "original_height": 400}
                entry |= {"exif": "{}", "sha256": "0" * 64}
                described = {name: value for name, value in entry.items() if name in columns or name == "key"}
                for extension, data in (
                    ("jpg", body.getvalue()[: len(body.getvalue()) // (2 if cut_pictures else 1)]),
                    ("txt", scene.caption.encode()),
                    ("json", json.dumps(described).encode()),
                ):
                    member = tarfile.TarInfo(f"{key}.{extension}")
                    member.size, member.mtime = len(data), 1_690_000_000.25 + row
                    tar.addfile(member, io.BytesIO(data))
            else:
                entry["error_message"] = "HTTP Error 404: Not Found"
            table.append(
                {name: value for name, value in entry.items() if name not in DROPPABLE or name in columns}
            )
    if integer_keys:
        table = [entry | {"key": int(entry["key"])} for entry in table]
    types = {
        "similarity": pa.float64(),
        "LICENSE": pa.string(),
        "NSFW": pa.string(),
        "error_message": pa.string(),
    }
    arrow = pa.table({name: pa.array([entry[name] for entry in table], types.get(name)) for name in table[0]})
    pq.write_table(arrow, folder / f"{shard:05d}.parquet")
    succeeded = [entry for entry in table if entry["status"] == "success"]
    stats = {"count": rows, "successes": len(succeeded), "failed_to_download": 0, "failed_to_resize": 0}
    (folder / f"{shard:05d}_stats.json").write_text(json.dumps(stats))
    return {entry["url"]: entry for entry in succeeded}


DROPPABLE = {"NSFW", "similarity", "LICENSE"}


def examples(layout, shard):
    for payload in read_records(layout.tfds_images(ShardId(shard)).only):
        feature = tf_example_pb2.Example.FromString(payload).features.feature
        with Image.open(io.BytesIO(feature["image"].bytes_list.value[0])) as picture:
            yield (
                feature["url"].bytes_list.value[0].decode(),
                feature["caption"].bytes_list.value[0].decode(),
                np.asarray(picture.convert("RGB")),
            )


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param({"local_keys": True}, id="local keys"),
        pytest.param({}, id="global keys", marks=pytest.mark.slow),
        pytest.param({"columns": ()}, id="no extra columns", marks=pytest.mark.slow),
        pytest.param({"integer_keys": True}, id="keys that became numbers", marks=pytest.mark.slow),
    ],
)
def test_every_caption_stays_with_its_picture(build_all, tmp_path, kind):
    truth = {
        shard: lay_down(tmp_path / "data" / "images", shard, rows=40, seed=shard, **kind) for shard in (0, 3)
    }
    settings, done = build_all(SETTINGS)
    assert done.failures == {}
    assert not done.blocked
    for shard, expected in truth.items():
        found = list(examples(settings.layout, shard))
        assert {url for url, _, _ in found} == set(expected)
        assert all(expected[url]["caption"] == caption for url, caption, _ in found)
        true, false = captions_true((caption, pixels) for _, caption, pixels in found)
        assert (true, false) == (len(expected), [])


@pytest.mark.slow
def test_placed_files_are_left_as_they_are_and_a_second_build_does_nothing(build_all, tmp_path):
    lay_down(tmp_path / "data" / "images", 0, rows=20)
    before = {path: path.read_bytes() for path in (tmp_path / "data" / "images").glob("00000*")}
    settings, _ = build_all(SETTINGS)
    build_all(SETTINGS + "[image]\nsize = 64\n", again=True)
    assert {path: path.read_bytes() for path in before} == before
    info = json.loads((settings.layout.tfds_version("images") / "dataset_info.json").read_text())
    assert sum(map(int, info["splits"][0]["shardLengths"])) > 0


def test_a_truncated_tar_is_named_and_takes_only_itself_down(build_all, tmp_path):
    folder = tmp_path / "data" / "images"
    for shard in (0, 1):
        lay_down(folder, shard, rows=20, seed=shard)
    whole = (folder / "00001.tar").read_bytes()
    (folder / "00001.tar").write_bytes(whole[: len(whole) // 2])
    settings, done = build_all(SETTINGS)
    assert set(done.failures) == {("images", "00001")}
    assert "00001.tar" in str(done.failures["images", "00001"])
    assert settings.layout.tfds_images(ShardId(0)).manifest.exists()
    (folder / "00001.tar").write_bytes(whole)
    _, mended = build_all(SETTINGS)
    assert mended.failures == {}
    assert settings.layout.tfds_images(ShardId(1)).manifest.exists()


@pytest.mark.slow
def test_pictures_that_cannot_be_decoded_are_set_aside(build_all, tmp_path):
    folder = tmp_path / "data" / "images"
    expected = lay_down(folder, 0, rows=20)
    # The header of each picture stays right, so that only decoding it shows the damage.
    cut = lay_down(folder, 1, rows=20, cut_pictures=True)
    _, done = build_all(SETTINGS)
    assert done.went_well
    assert done.manifests["normalized_images", "00001"].counts["set_aside:unreadable_image"] == len(cut)
    assert done.manifests["laion400m_images", "laion400m_images"].rows == len(expected)


@pytest.mark.slow
def test_a_check_that_blocks_stops_its_shard_and_no_other(build_all, tmp_path):
    folder = tmp_path / "data" / "images"
    for shard in (0, 1):
        lay_down(folder, shard, rows=20, seed=shard)

    class Saboteur(Watcher):
        """Exchanges a picture's bytes between a stage and the checks that follow it."""

        def partition_ended(self, stage, key, outcome):
            if (stage.name, key) == ("normalized_images", "00001"):
                tar = bytearray((folder / "00001.tar").read_bytes())
                start = tar.index(b"\xff\xda") + 20
                tar[start : start + 100] = bytes(100)
                (folder / "00001.tar").write_bytes(tar)

    settings, done = build_all(SETTINGS, watcher=Saboteur())
    assert done.blocked == {("normalized_images", "sampled_pictures_are_as_described", "00001")}
    assert not done.went_well
    assert settings.layout.tfds_images(ShardId(0)).manifest.exists()
    assert not settings.layout.tfds_images(ShardId(1)).manifest.exists()


def test_a_table_of_another_shard_is_refused(build_all, tmp_path):
    folder = tmp_path / "data" / "images"
    lay_down(folder, 0, rows=20, seed=0)
    lay_down(tmp_path / "other", 0, rows=20, seed=5)
    (folder / "00000.parquet").write_bytes((tmp_path / "other" / "00000.parquet").read_bytes())
    _, done = build_all(SETTINGS)
    assert ("images", "00000") in done.failures
