"""Copies of published data sets: what comes, what stays, and what TFDS is told of it."""

from __future__ import annotations

import json
from pathlib import Path

import obstore
import pytest
from obstore.store import from_url
from tfds_inputs import Row, picture, write_image_inputs

from laion_assets.dataset_sync import sync_dataset
from laion_assets.errors import CorruptInput, MissingInput, SettingsError
from laion_assets.formats.publish import Manifest, withdraw
from laion_assets.layout import Layout, ShardId
from laion_assets.orphans import delete_orphans, find_orphans
from laion_assets.published_dataset import verify_dataset
from laion_assets.stages.laion400m import publish_dataset
from laion_assets.stages.tfds_images import write_tfds_images

SHARDS = {0: 2, 1: 3, 3: 1, 4: 0}


@pytest.fixture(params=["local", "stored"])
def layout(request, tmp_path) -> Layout:
    """A data root, or a store, with four shards of five."""
    store = request.getfixturevalue("store") if request.param == "stored" else ""
    layout = Layout(tmp_path / "data", store=store)
    for number, examples in SHARDS.items():
        write_shard(layout, number, examples)
    publish_dataset("images", layout, shard_count=5)
    return layout


def write_shard(layout: Layout, number: int, examples: int, caption: str = "c") -> Manifest:
    keys = [f"{number:05d}{row:04d}" for row in range(examples)]
    rows = [Row(key=key, caption=caption, picture=picture(row)) for row, key in enumerate(keys)]
    write_image_inputs(layout, ShardId(number), rows)
    return write_tfds_images(ShardId(number), layout)


def lengths(folder: Path) -> list[int]:
    (split,) = json.loads((folder / "dataset_info.json").read_bytes())["splits"]
    return [int(length) for length in split["shardLengths"]]


def shown(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def file_name(number: int, count: int = 5) -> str:
    return f"laion400m-train.tfrecord-{number:05d}-of-{count:05d}"


def test_all_of_it_comes_as_it_was_published(tmp_path, layout):
    verify_dataset("images", layout)
    report = sync_dataset("images", layout, tmp_path / "target")
    assert (report.copied, report.kept, report.shards, report.shards_published) == (3, 0, 3, 3)
    assert report.folder == tmp_path / "target" / "laion400m" / "images" / "1.0.0"
    found = shown(report.folder)
    beside = {"LICENSE", "metadata.json", "features.json", "nsfw.labels.txt", "dataset_info.json"}
    assert set(found) == {file_name(number) for number in (0, 1, 3)} | beside
    assert lengths(report.folder) == [2, 3, 0, 1, 0]
    default = json.loads((tmp_path / "target/laion400m/.config/metadata.json").read_bytes())
    assert default == {"default_config_name": "images"}
    if not layout.store:
        assert found == shown(layout.tfds_version("images"))
        return
    # No shard of a store lies where it was published, and the same inputs make the same bytes anywhere.
    assert not layout.tfds_data_dir.exists()
    local = Layout(tmp_path / "local")
    for number, examples in SHARDS.items():
        write_shard(local, number, examples)
    publish_dataset("images", local, shard_count=5)
    assert found == shown(local.tfds_version("images"))


def test_some_shards_come_and_the_others_hold_nothing(tmp_path, layout):
    whole = sync_dataset("images", layout, tmp_path / "whole").folder
    report = sync_dataset("images", layout, tmp_path / "target", {ShardId(1)})
    assert (report.copied, report.bytes) == (1, (report.folder / file_name(1)).stat().st_size)
    assert lengths(report.folder) == [0, 3, 0, 0, 0]
    (split,) = json.loads((report.folder / "dataset_info.json").read_bytes())["splits"]
    assert int(split["numBytes"]) == report.bytes - 3 * 16
    report = sync_dataset("images", layout, tmp_path / "target", {ShardId(3)})
    assert (report.copied, report.kept) == (1, 1)
    assert lengths(report.folder) == [0, 3, 0, 1, 0]
    sync_dataset("images", layout, tmp_path / "target")
    assert shown(report.folder) == shown(whole)


def test_what_is_there_stays_and_what_changed_does_not(tmp_path, layout):
    folder = sync_dataset("images", layout, tmp_path / "target").folder
    before = (folder / file_name(0)).stat()
    report = sync_dataset("images", layout, tmp_path / "target")
    assert (report.copied, report.kept) == (0, 3)
    after = (folder / file_name(0)).stat()  # and was read, which may move its access time
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    found = shown(folder)
    (folder / file_name(1)).write_bytes(found[file_name(1)][:-1])
    (folder / file_name(3)).unlink()
    report = sync_dataset("images", layout, tmp_path / "target")
    assert (report.copied, report.kept) == (2, 1)
    assert shown(folder) == found


def test_a_copy_that_was_interrupted_goes_on(tmp_path, layout):
    copied = []

    def interrupted(work):
        for shard in work:
            if copied:
                raise KeyboardInterrupt
            yield shard
            copied.append(shard)

    with pytest.raises(KeyboardInterrupt):
        sync_dataset("images", layout, tmp_path / "target", watch=interrupted)
    folder = tmp_path / "target" / "laion400m" / "images" / "1.0.0"
    assert set(shown(folder)) == {file_name(0)}  # TFDS is told nothing yet
    with (folder / ".synced.jsonl").open("ab") as notes:
        notes.write(b'{"shard": "00001", "fi')  # of a machine that went down
    report = sync_dataset("images", layout, tmp_path / "target")
    assert (report.copied, report.kept) == (2, 1)
    assert lengths(folder) == [2, 3, 0, 1, 0]


def test_a_damaged_shard_is_not_taken(tmp_path, layout):
    if layout.store:
        store = from_url(layout.store)
        objects = [entry for page in obstore.list(store, "tfds_images/objects") for entry in page]
        (key,) = (entry["path"] for entry in objects if entry["path"].endswith("/00001.tfrecord"))
        body = bytearray(obstore.get(store, key).bytes())
        body[-1] ^= 1
        obstore.put(store, key, bytes(body))
    else:
        path = layout.tfds_version("images") / file_name(1)
        body = bytearray(path.read_bytes())
        body[-1] ^= 1
        path.write_bytes(bytes(body))
    with pytest.raises(CorruptInput, match=r"00001 of version .*as it was published"):
        sync_dataset("images", layout, tmp_path / "target")
    folder = tmp_path / "target" / "laion400m" / "images" / "1.0.0"
    assert set(shown(folder)) == {file_name(0)}
    assert not list(folder.glob("*.draft"))


def test_a_data_set_that_changed_is_brought_up_to_date(tmp_path, layout):
    folder = sync_dataset("images", layout, tmp_path / "target", {ShardId(0), ShardId(1)}).folder
    inode = (folder / file_name(0)).stat().st_ino
    write_shard(layout, 1, 4, caption="made again")
    write_shard(layout, 6, 1)
    # Until it is published again, it is as it was.
    assert sync_dataset("images", layout, tmp_path / "target", {ShardId(0)}).copied == 0
    publish_dataset("images", layout, shard_count=7)
    report = sync_dataset("images", layout, tmp_path / "target", {ShardId(6)})
    assert (report.copied, report.kept) == (2, 1)
    names = {name for name in shown(folder) if name.startswith("laion400m-")}
    assert names == {file_name(number, 7) for number in (0, 1, 6)}
    assert (folder / file_name(0, 7)).stat().st_ino == inode  # under its new name, and not copied
    assert lengths(folder) == [2, 4, 0, 0, 0, 0, 1]


def test_what_cannot_be_meant_is_refused(tmp_path, layout):
    with pytest.raises(MissingInput, match="none of these shards"):
        sync_dataset("images", layout, tmp_path / "target", {ShardId(2)})
    with pytest.raises(MissingInput, match="laion400m_embeddings is not there yet"):
        sync_dataset("embeddings", layout, tmp_path / "target")
    if not layout.store:
        with pytest.raises(SettingsError, match="choose another folder"):
            sync_dataset("images", layout, layout.tfds_data_dir)


@pytest.mark.parametrize("layout", ["stored"], indirect=True)
def test_a_published_object_that_went_is_noticed(tmp_path, layout):
    store = from_url(layout.store)
    for page in list(obstore.list(store, "tfds_images/objects")):
        obstore.delete(store, [entry["path"] for entry in page if "00003" in entry["path"]])
    with pytest.raises(CorruptInput, match=r"00003\.tfrecord.*found no bytes"):
        verify_dataset("images", layout)


@pytest.mark.parametrize("layout", ["stored"], indirect=True)
def test_only_what_nothing_names_is_an_orphan(tmp_path, layout):
    assert find_orphans(layout, older_than_days=0) == []
    write_shard(layout, 1, 4, caption="made again")
    # The tar, the two tables, and logs that did not change; the shard of examples is published still.
    names = ["00001.tar", "00001.parquet", "00001.set_aside.parquet"]
    found = find_orphans(layout, older_than_days=0)
    assert {Path(orphan.key).name for orphan in found} <= set(names)
    assert "00001.tar" in {Path(orphan.key).name for orphan in found}
    publish_dataset("images", layout, shard_count=5)
    found = find_orphans(layout, older_than_days=0)
    assert "00001.tfrecord" in {Path(orphan.key).name for orphan in found}
    assert find_orphans(layout, older_than_days=1) == []
    delete_orphans(layout, found)
    assert find_orphans(layout, older_than_days=0) == []
    verify_dataset("images", layout)
    assert sync_dataset("images", layout, tmp_path / "target").copied == 3


@pytest.mark.parametrize("layout", ["stored"], indirect=True)
def test_a_shard_withdrawn_from_a_store_stays_in_what_is_published(tmp_path, layout):
    withdraw(layout.tfds_images(ShardId(0)))
    report = sync_dataset("images", layout, tmp_path / "target")
    assert report.copied == 3
