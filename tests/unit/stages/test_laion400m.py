"""The published data sets: what is linked, what is recorded, and what a reader sees meanwhile."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from copying import copy_tree
from file_changes import killed_at, watch
from tfds_inputs import Row, picture, vectors, write_embedding_inputs, write_image_inputs

from laion_assets.errors import CorruptInput, MissingInput, PlanError, ShardBusy
from laion_assets.formats.publish import Manifest, read_manifest, verify
from laion_assets.formats.tfds import METADATA_FILES
from laion_assets.formats.tfrecord import check_records
from laion_assets.layout import EmbeddingShardId, Layout, ShardId
from laion_assets.published_dataset import verify_dataset
from laion_assets.quality.checks import evaluate, rules_of
from laion_assets.quality.thresholds import Thresholds
from laion_assets.stages.laion400m import publish_dataset
from laion_assets.stages.tfds_embeddings import write_tfds_embeddings
from laion_assets.stages.tfds_images import write_tfds_images


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "data")


def _write_images(layout: Layout, number: int, examples: int, *, caption: str = "c") -> Manifest:
    rows = [
        Row(key=f"{number:05d}{row:04d}", caption=caption, picture=picture(row)) for row in range(examples)
    ]
    write_image_inputs(layout, ShardId(number), rows)
    return write_tfds_images(ShardId(number), layout)


def _write_embeddings(layout: Layout, number: int, examples: int, width: int = 512) -> Manifest:
    rows = [Row(key=f"{row:09d}") for row in range(examples)]
    shard = EmbeddingShardId(number)
    write_embedding_inputs(layout, shard, rows, vectors(examples, width), vectors(examples, width))
    return write_tfds_embeddings(shard, layout, width)


def _info(layout: Layout, config: str = "images") -> dict:
    return json.loads((layout.tfds_version(config) / "dataset_info.json").read_bytes())


def _lengths(layout: Layout, config: str = "images") -> list[int]:
    (split,) = _info(layout, config)["splits"]
    return [int(length) for length in split["shardLengths"]]


def _files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _bodies(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _seen(layout: Layout) -> dict[str, bytes]:
    """What TFDS reads: its metadata, and the files of the shards that these give a length."""
    lengths = _lengths(layout)
    names = [f"laion400m-train.tfrecord-{k:05d}-of-{len(lengths):05d}" for k in range(len(lengths))]
    seen = [*METADATA_FILES, *(name for name, length in zip(names, lengths, strict=True) if length)]
    return {name: (layout.tfds_version("images") / name).read_bytes() for name in seen}


def test_missing_and_empty_shards_keep_their_numbers(layout: Layout) -> None:
    one, four = _write_images(layout, 1, 2), _write_images(layout, 4, 3)
    _write_images(layout, 3, 0)
    manifest = publish_dataset("images", layout, shard_count=6)

    assert manifest.rows == 5
    assert manifest.counts == {"examples": 5, "shards_present": 3, "shards_missing": 3}
    assert _lengths(layout) == [0, 2, 0, 0, 3, 0]
    (split,) = _info(layout)["splits"]
    payload_bytes = one.counts["payload_bytes"] + four.counts["payload_bytes"]
    assert int(split["numBytes"]) == payload_bytes
    folder = layout.tfds_version("images")
    assert _files(folder) == [
        "LICENSE",
        "dataset_info.json",
        "features.json",
        "laion400m-train.tfrecord-00001-of-00006",
        "laion400m-train.tfrecord-00004-of-00006",
        "metadata.json",
        "nsfw.labels.txt",
    ]
    linked = folder / "laion400m-train.tfrecord-00004-of-00006"
    assert linked.samefile(layout.tfds_images(ShardId(4)).only)
    assert check_records(linked).records == 3
    assert json.loads(layout.tfds_default_config.read_text()) == {"default_config_name": "images"}

    assert verify(layout.dataset("images")) == manifest
    record = json.loads(layout.dataset("images").only.read_bytes())
    assert record["shards_missing"] == ["00000", "00002", "00005"]
    assert record["shard_count"] == 6
    assert record["examples"] == 5
    assert record["payload_bytes"] == payload_bytes
    assert record["bytes"] == one.bytes + four.bytes
    assert record["shards"]["00004"] == {
        "examples": 3,
        "bytes": four.bytes,
        "data_version": four.data_version,
    }
    assert record["shards"]["00003"]["examples"] == 0


def test_without_any_example_a_data_set_is_checked_as_others_are(layout: Layout) -> None:
    _write_images(layout, 0, 0)
    publish_dataset("images", layout, shard_count=2)
    for rule in rules_of("laion400m_images"):
        assert evaluate(rule, layout, Thresholds(), "laion400m_images").passed


def test_embeddings_of_any_width(layout: Layout) -> None:
    _write_embeddings(layout, 0, 2, width=8)
    publish_dataset("embeddings", layout, shard_count=1, width=8)
    features = json.loads((layout.tfds_version("embeddings") / "features.json").read_bytes())
    shape = features["featuresDict"]["features"]["image_embedding"]["tensor"]["shape"]
    assert shape == {"dimensions": ["8"]}
    assert _lengths(layout, "embeddings") == [2]


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    found = []
    for name in ("a", "elsewhere/b"):
        layout = Layout(tmp_path / name)
        _write_images(layout, 1, 2)
        publish_dataset("images", layout, shard_count=3)
        found.append((_bodies(layout.tfds_version("images")), layout.dataset("images").only.read_bytes()))
    assert found[0] == found[1]


def test_with_nothing_new_nothing_is_done(layout: Layout) -> None:
    _write_images(layout, 0, 2)
    first = publish_dataset("images", layout, shard_count=2)
    build = layout.tfds_version("images").resolve()
    written = (build / "dataset_info.json").stat()
    assert publish_dataset("images", layout, shard_count=2) == first
    assert layout.tfds_version("images").resolve() == build
    after = (build / "dataset_info.json").stat()  # and was read, which may move its access time
    assert (after.st_ino, after.st_mtime_ns) == (written.st_ino, written.st_mtime_ns)


def _delete_everything(layout: Layout) -> None:
    shutil.rmtree(layout.tfds_data_dir)


def _delete_link(layout: Layout) -> None:
    layout.tfds_version("images").unlink()


def _delete_build(layout: Layout) -> None:
    shutil.rmtree(layout.tfds_version("images").resolve())


def _delete_shard(layout: Layout) -> None:
    (layout.tfds_version("images") / "laion400m-train.tfrecord-00000-of-00002").unlink()


def _cut_shard(layout: Layout) -> None:
    path = layout.tfds_version("images") / "laion400m-train.tfrecord-00000-of-00002"
    body = path.read_bytes()
    path.unlink()
    path.write_bytes(body[:-1])


def _delete_info(layout: Layout) -> None:
    (layout.tfds_version("images") / "dataset_info.json").unlink()


def _change_features(layout: Layout) -> None:
    path = layout.tfds_version("images") / "features.json"
    path.write_bytes(path.read_bytes().replace(b"caption", b"Caption"))


def _change_license(layout: Layout) -> None:
    (layout.tfds_version("images") / "LICENSE").write_text("public domain")


def _delete_default(layout: Layout) -> None:
    layout.tfds_default_config.unlink()


@pytest.mark.parametrize(
    "damage",
    [
        _delete_everything,
        _delete_link,
        _delete_build,
        _delete_shard,
        _cut_shard,
        _delete_info,
        _change_features,
        _change_license,
        _delete_default,
    ],
)
def test_a_damaged_folder_is_built_again(layout: Layout, damage: Callable[[Layout], None]) -> None:
    _write_images(layout, 0, 2)
    first = publish_dataset("images", layout, shard_count=2)
    whole = _bodies(layout.tfds_version("images"))
    damage(layout)
    again = publish_dataset("images", layout, shard_count=2)
    assert _bodies(layout.tfds_version("images")) == whole
    assert layout.tfds_default_config.exists()
    assert again.data_version == first.data_version


def test_only_new_shards_have_their_manifests_read(layout: Layout, opened: list[str]) -> None:
    for number in range(4):
        _write_images(layout, number, 1)
    publish_dataset("images", layout, shard_count=6)
    _write_images(layout, 4, 2)
    _write_images(layout, 1, 3)  # made again
    opened.clear()
    publish_dataset("images", layout, shard_count=6)
    folder = str(layout.tfds_images(ShardId(0)).folder)
    read = [Path(path).name for path in opened if path.startswith(folder) and path.endswith(".manifest.json")]
    assert sorted(set(read)) == ["00001.manifest.json", "00004.manifest.json"]
    assert _lengths(layout) == [1, 3, 1, 1, 2, 0]


@pytest.mark.parametrize("damage", [b"", b"PAR1", None])
def test_what_is_known_of_shards_is_not_needed(layout: Layout, damage: bytes | None) -> None:
    _write_images(layout, 0, 2)
    publish_dataset("images", layout, shard_count=2)
    known = layout.known_shards("images")
    if damage is None:
        body = bytearray(known.read_bytes())
        body[len(body) // 3] ^= 1
        known.write_bytes(body)
    else:
        known.write_bytes(damage)
    _write_images(layout, 1, 1)
    publish_dataset("images", layout, shard_count=2)
    assert _lengths(layout) == [2, 1]


def test_a_shard_made_again_in_the_same_size_is_taken_anew(layout: Layout) -> None:
    _write_images(layout, 0, 2, caption="one")
    publish_dataset("images", layout, shard_count=1)
    _write_images(layout, 0, 2, caption="two")
    manifest = publish_dataset("images", layout, shard_count=1)
    link = layout.tfds_version("images") / "laion400m-train.tfrecord-00000-of-00001"
    assert link.samefile(layout.tfds_images(ShardId(0)).only)
    assert b"two" in link.read_bytes()
    record = json.loads(layout.dataset("images").only.read_bytes())
    assert record["shards"]["00000"]["data_version"] == verify(layout.tfds_images(ShardId(0))).data_version
    assert manifest.counts["examples"] == 2


def test_a_lost_record_is_written_again(layout: Layout) -> None:
    _write_images(layout, 0, 2)
    first = publish_dataset("images", layout, shard_count=2)
    shutil.rmtree(layout.dataset("images").folder)
    assert publish_dataset("images", layout, shard_count=2).data_version == first.data_version
    assert _lengths(layout) == [2, 0]


def test_a_grown_plan_renames_every_shard(layout: Layout) -> None:
    _write_images(layout, 0, 2)
    publish_dataset("images", layout, shard_count=1)
    publish_dataset("images", layout, shard_count=3)
    assert _lengths(layout) == [2, 0, 0]
    assert [name for name in _files(layout.tfds_version("images")) if "tfrecord" in name] == [
        "laion400m-train.tfrecord-00000-of-00003"
    ]


def test_a_resolved_folder_survives_the_next_publication(layout: Layout) -> None:
    _write_images(layout, 0, 2)
    publish_dataset("images", layout, shard_count=3)
    link = layout.tfds_version("images")
    first, held = link.resolve(), _bodies(link)

    _write_images(layout, 0, 3, caption="made again")  # a shard that changes, and one that is new
    _write_images(layout, 1, 1)
    publish_dataset("images", layout, shard_count=3)
    assert link.resolve() != first
    assert _lengths(layout) == [3, 1, 0]
    assert _bodies(first) == held

    _write_images(layout, 2, 1)
    publish_dataset("images", layout, shard_count=3)
    assert not first.exists()
    assert _files(layout.tfds_builds("images")) == [link.resolve().name]


def test_one_more_shard_is_one_more_link(layout: Layout, on_change: Callable) -> None:
    for number in (0, 1, 3):
        _write_images(layout, number, 2)
    publish_dataset("images", layout, shard_count=5)
    build, before = layout.tfds_version("images").resolve(), _bodies(layout.tfds_version("images"))
    inodes = {path: path.stat().st_ino for path in build.iterdir()}
    _write_images(layout, 2, 3)
    _write_images(layout, 4, 0)
    events: list[str] = []
    on_change(events.append)
    publish_dataset("images", layout, shard_count=5)
    on_change(None)
    assert (events.count("os.link"), events.count("os.symlink")) == (1, 0)
    assert layout.tfds_version("images").resolve() == build
    assert _lengths(layout) == [2, 2, 3, 2, 0]
    after = _bodies(build)
    new = "laion400m-train.tfrecord-00002-of-00005"
    assert after.keys() - before.keys() == {new}
    changed = {"dataset_info.json", "metadata.json"}
    assert {name for name in before if before[name] != after[name]} == changed
    assert {path.name for path, inode in inodes.items() if path.stat().st_ino != inode} == changed
    assert (build / new).samefile(layout.tfds_images(ShardId(2)).only)


def _grow_plan(layout: Layout) -> int:
    _write_images(layout, 2, 1)
    return 4


def _make_again(layout: Layout) -> int:
    _write_images(layout, 1, 2, caption="other")
    return 3


def _withdraw(layout: Layout) -> int:
    layout.tfds_images(ShardId(1)).manifest.unlink()
    return 3


def _make_empty(layout: Layout) -> int:
    _write_images(layout, 1, 0)
    return 3


def _add_with_other_features(layout: Layout) -> int:
    _change_features(layout)
    _write_images(layout, 2, 1)
    return 3


@pytest.mark.parametrize(
    "change", [_grow_plan, _make_again, _withdraw, _make_empty, _add_with_other_features]
)
def test_whatever_does_not_only_add_is_built_anew(layout: Layout, change: Callable[[Layout], int]) -> None:
    _write_images(layout, 0, 2)
    _write_images(layout, 1, 2)
    publish_dataset("images", layout, shard_count=3)
    build = layout.tfds_version("images").resolve()
    shard_count = change(layout)
    held = _bodies(build)
    manifest = publish_dataset("images", layout, shard_count=shard_count)
    assert layout.tfds_version("images").resolve() != build
    assert _bodies(build) == held
    assert manifest.rows == sum(_lengths(layout))


def test_leftovers_of_a_killed_run_are_removed(layout: Layout) -> None:
    _write_images(layout, 0, 2)
    publish_dataset("images", layout, shard_count=1)
    leftover = layout.tfds_builds("images") / "0123-0"
    leftover.mkdir()
    (leftover / "laion400m-train.tfrecord-00000-of-00001").write_bytes(b"x")
    draft = layout.tfds_version("images").with_name(".1.0.0.draft")
    draft.symlink_to("nowhere")
    _write_images(layout, 1, 2)
    publish_dataset("images", layout, shard_count=2)
    assert not leftover.exists()
    assert not draft.is_symlink()


def test_the_data_root_can_be_moved(layout: Layout) -> None:
    _write_images(layout, 0, 2)
    publish_dataset("images", layout, shard_count=1)
    moved = Layout(layout.root.rename(layout.root.with_name("moved")))
    assert _lengths(moved) == [2]


def test_without_a_shard_there_is_no_data_set(layout: Layout) -> None:
    for shard_count in (0, 3):
        with pytest.raises(MissingInput, match=r"no shard of tfds_images .* materialize tfds_images first"):
            publish_dataset("images", layout, shard_count=shard_count)
    assert not layout.tfds_data_dir.exists()


def test_a_shard_beyond_the_plan_is_not_left_out_silently(layout: Layout) -> None:
    _write_images(layout, 0, 1)
    _write_images(layout, 2, 1)
    with pytest.raises(PlanError, match=r"00002\.manifest\.json is of a shard beyond the 2 of images"):
        publish_dataset("images", layout, shard_count=2)


def test_a_shard_whose_file_changed_is_refused(layout: Layout) -> None:
    _write_images(layout, 0, 1)
    path = layout.tfds_images(ShardId(0)).only
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(CorruptInput, match=r"00000\.tfrecord"):
        publish_dataset("images", layout, shard_count=1)


def test_shards_of_another_width_are_refused(layout: Layout) -> None:
    _write_embeddings(layout, 0, 1, width=8)
    with pytest.raises(MissingInput, match="tfds_embeddings 00000 was not written with vectors of 512"):
        publish_dataset("embeddings", layout, shard_count=1)


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_what_others_put_in_its_place_is_left_alone(layout: Layout, kind: str) -> None:
    _write_images(layout, 0, 1)
    place = layout.tfds_version("images")
    place.parent.mkdir(parents=True)
    if kind == "folder":
        place.mkdir()
    elif kind == "file":
        place.touch()
    else:
        place.symlink_to("/somewhere/else")
    with pytest.raises(CorruptInput, match=r"1\.0\.0: expected nothing, or a link"):
        publish_dataset("images", layout, shard_count=1)
    assert os.path.lexists(place)


@pytest.fixture
def other_file_system(tmp_path: Path) -> Iterator[Path]:
    shared_memory = Path("/dev/shm")
    if not shared_memory.is_dir() or shared_memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("this machine has no second file system at /dev/shm")
    folder = Path(tempfile.mkdtemp(dir=shared_memory))
    yield folder
    shutil.rmtree(folder)


def test_shards_on_another_file_system_are_copied(layout: Layout, other_file_system: Path) -> None:
    layout.root.mkdir()
    (layout.root / "tfds_images").symlink_to(other_file_system)
    _write_images(layout, 0, 2)
    publish_dataset("images", layout, shard_count=2)
    copy = layout.tfds_version("images") / "laion400m-train.tfrecord-00000-of-00002"
    assert not copy.samefile(layout.tfds_images(ShardId(0)).only)
    assert check_records(copy).records == 2
    # A copy cannot be told from one of an older shard, so all are made anew.
    build = layout.tfds_version("images").resolve()
    _write_images(layout, 1, 1)
    publish_dataset("images", layout, shard_count=2)
    assert layout.tfds_version("images").resolve() != build
    assert _lengths(layout) == [2, 1]


def test_a_failed_publication_leaves_the_last_one(layout: Layout) -> None:
    _write_images(layout, 0, 2)
    first = publish_dataset("images", layout, shard_count=2)
    whole = _bodies(layout.tfds_version("images"))
    _write_images(layout, 1, 1)
    path = layout.tfds_images(ShardId(1)).only
    path.unlink()
    with pytest.raises(CorruptInput, match="found no file"):
        publish_dataset("images", layout, shard_count=2)
    assert _bodies(layout.tfds_version("images")) == whole
    assert read_manifest(layout.dataset("images")) == first


# -- without gaps ---------------------------------------------------------------------------------


def test_a_dense_data_set_numbers_what_is_there(layout: Layout) -> None:
    dense = Layout(layout.root, dense=True)
    one, four = _write_images(layout, 1, 2), _write_images(layout, 4, 3)
    _write_images(layout, 3, 0)
    publish_dataset("images", layout, shard_count=6)
    manifest = publish_dataset("images", dense, shard_count=6)
    assert manifest.counts == {"examples": 5, "shards_present": 3, "shards_missing": 3}
    assert (_lengths(dense), _lengths(layout)) == ([2, 3], [0, 2, 0, 0, 3, 0])
    folder = dense.tfds_version("images")
    assert folder == layout.root / "tfds_dense" / "laion400m" / "images" / "1.0.0"
    assert [name for name in _files(folder) if "tfrecord" in name] == [
        "laion400m-train.tfrecord-00000-of-00002",
        "laion400m-train.tfrecord-00001-of-00002",
    ]
    for number, shard in enumerate((1, 4)):
        linked = folder / f"laion400m-train.tfrecord-{number:05d}-of-00002"
        assert linked.samefile(layout.tfds_images(ShardId(shard)).only)
    (split,) = _info(dense)["splits"]
    assert int(split["numBytes"]) == one.counts["payload_bytes"] + four.counts["payload_bytes"]
    assert json.loads((folder / "metadata.json").read_bytes())["shard_of_number"] == [1, 4]
    assert "shard_of_number" not in json.loads((layout.tfds_version("images") / "metadata.json").read_bytes())
    assert publish_dataset("images", dense, shard_count=6) == manifest


def test_a_dense_data_set_is_numbered_anew_in_another_build(layout: Layout) -> None:
    dense = Layout(layout.root, dense=True)
    _write_images(layout, 2, 2)
    publish_dataset("images", dense, shard_count=6)
    build, held = dense.tfds_version("images").resolve(), _bodies(dense.tfds_version("images"))
    _write_images(layout, 0, 1)
    publish_dataset("images", dense, shard_count=6)
    assert _lengths(dense) == [1, 2]
    assert _bodies(build) == held
    # A shard without examples changes no number, nor does a plan that grew.
    build = dense.tfds_version("images").resolve()
    _write_images(layout, 1, 0)
    assert publish_dataset("images", dense, shard_count=7).counts["shards_missing"] == 4
    assert dense.tfds_version("images").resolve() == build
    # As many shards, and others.
    layout.tfds_images(ShardId(0)).manifest.unlink()
    _write_images(layout, 5, 3)
    publish_dataset("images", dense, shard_count=7)
    assert _lengths(dense) == [2, 3]
    assert dense.tfds_version("images").resolve() != build


def test_a_dense_data_set_needs_an_example(layout: Layout) -> None:
    _write_images(layout, 0, 0)
    with pytest.raises(MissingInput, match="no shard of tfds_images that is there holds an example"):
        publish_dataset("images", Layout(layout.root, dense=True), shard_count=6)


# -- kills ----------------------------------------------------------------------------------------


def test_a_shard_made_again_meanwhile_stops_the_publication(layout: Layout, on_change: Callable) -> None:
    _write_images(layout, 0, 2)
    _write_images(layout, 1, 2)

    def make_again(event: str) -> None:
        if event == "os.link":
            watch.on_change = None
            _write_images(layout, 0, 3)

    on_change(make_again)
    with pytest.raises(ShardBusy, match="tfds_images 00000 was made again"):
        publish_dataset("images", layout, shard_count=2)
    assert not layout.tfds_version("images").exists()
    publish_dataset("images", layout, shard_count=2)
    assert _lengths(layout) == [3, 2]


def _add_shard(layout: Layout) -> None:
    _write_images(layout, 1, 1)


def _replace_shard(layout: Layout) -> None:
    _write_images(layout, 0, 2, caption="C")  # of the same size


def _bring_back(layout: Layout) -> None:
    _write_images(layout, 0, 2)
    layout.tfds_images(ShardId(1)).manifest.unlink(missing_ok=True)


_CHANGED_AGAIN = [
    pytest.param(change, then, marks=pytest.mark.slow)
    for change in (_add_shard, _replace_shard)
    for then in (_add_shard, _replace_shard, _bring_back)
    if change is not then
]


@pytest.mark.parametrize(("change", "then"), [(_add_shard, None), (_replace_shard, None), *_CHANGED_AGAIN])
def test_a_kill_at_any_change_leaves_the_old_or_the_new(
    layout: Layout, change: Callable, then: Callable | None
) -> None:
    """Whether shards were added or replaced, and whatever is there when the next run begins."""
    _write_images(layout, 0, 2)
    publish_dataset("images", layout, shard_count=2)
    old = _seen(layout)
    held = layout.root.with_name("held")
    copy_tree(layout.root, held)
    change(layout)
    publish_dataset("images", layout, shard_count=2)
    new = _seen(layout)
    assert old != new

    killed = 0
    while True:
        shutil.rmtree(layout.root)
        copy_tree(held, layout.root)
        change(layout)
        if not killed_at(killed, lambda: publish_dataset("images", layout, shard_count=2)):
            break
        assert _seen(layout) in (old, new)
        # Who resolved the link and read what is there goes on reading it.
        build, reader = layout.tfds_version("images").resolve(), _seen(layout)
        del reader["dataset_info.json"]
        killed += 1
        if then is not None:
            then(layout)
        publish_dataset("images", layout, shard_count=2)
        assert {name: (build / name).read_bytes() for name in reader} == reader
        record = json.loads(layout.dataset("images").only.read_bytes())
        assert record["examples"] == sum(_lengths(layout))
        for number in map(int, record["shards"]):
            linked = layout.tfds_version("images") / f"laion400m-train.tfrecord-{number:05d}-of-00002"
            assert linked.read_bytes() == layout.tfds_images(ShardId(number)).only.read_bytes()
        if then is None:
            assert _seen(layout) == new
    assert killed > 10
    assert _seen(layout) == new


def test_a_dense_data_set_is_verified_by_the_numbers_of_its_files(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "data", dense=True)
    for number in (1, 4):
        _write_images(layout, number, 2)
    publish_dataset("images", layout, shard_count=6)
    verify_dataset("images", layout)
    # A shard that was made again since leaves the data set what it was.
    _write_images(layout, 1, 2, caption="d")
    verify_dataset("images", layout)
    second = layout.tfds_version("images") / "laion400m-train.tfrecord-00001-of-00002"
    body = bytearray(second.read_bytes())
    second.unlink()
    with pytest.raises(CorruptInput, match=r"00001-of-00002: expected shard 00004 .*found no file"):
        verify_dataset("images", layout)
    body[-1] ^= 1
    second.write_bytes(body)
    with pytest.raises(CorruptInput, match=r"00001-of-00002: .*found another file"):
        verify_dataset("images", layout)


def test_a_data_set_that_is_not_published_is_not_verified(layout: Layout) -> None:
    with pytest.raises(MissingInput, match="laion400m_images is not there yet"):
        verify_dataset("images", layout)
