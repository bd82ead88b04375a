"""What an export refuses, and what is left where one ends early."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from copying import copy_tree
from export_inputs import WIDTH, described_in, files_of, inodes_of, write_all, write_images
from file_changes import killed_at, watch
from tfds_inputs import Row, vectors, write_image_inputs

from laion_assets.errors import CorruptInput, CorruptParquet, LaionAssetsError, MissingInput, ShardBusy
from laion_assets.formats.durable import identity
from laion_assets.formats.hugging_face import Batch, write_shard
from laion_assets.formats.vector_rows import Pair
from laion_assets.layout import EmbeddingShardId, Layout, Output, ShardId
from laion_assets.stages.export import CONFIGS, built_shards, export, publish_export, write_parquet_shard


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "data")


def _flip(path: Path, at: int) -> None:
    body = bytearray(path.read_bytes())
    body[at] ^= 1
    path.write_bytes(body)


def _inputs(layout: Layout) -> list[tuple[str, Path]]:
    shard, found = ShardId(0), EmbeddingShardId(0)
    return [
        ("images", layout.images_tar(shard)),
        ("images", layout.normalized_table(shard)),
        ("embeddings", layout.embedding_join(found).only),
        ("embeddings", layout.normalized_embeddings_table(found)),
        ("image_embeddings", layout.image_embeddings(shard).only),
        ("image_embeddings", layout.images_tar(shard)),
    ]


@pytest.mark.parametrize("which", range(6))
@pytest.mark.parametrize("where", [0.1, 0.5, 0.9])
def test_a_flipped_byte_in_an_input_is_refused(layout: Layout, which: int, where: float) -> None:
    write_all(layout)
    config, path = _inputs(layout)[which]
    _flip(path, int(path.stat().st_size * where))
    with pytest.raises(CorruptInput, match=path.name):
        export(layout, [config], WIDTH)
    assert not layout.export_folder.exists()
    assert not layout.parquet_shard(config, ShardId(0)).manifest.exists()


def test_an_export_stays_as_it_was_where_a_new_shard_is_refused(layout: Layout) -> None:
    write_images(layout, 0)
    export(layout)
    before = files_of(layout)
    write_images(layout, 1)
    _flip(layout.images_tar(ShardId(1)), 700)
    with pytest.raises(CorruptInput, match=r"00001\.tar"):
        export(layout)
    assert files_of(layout) == before


def test_a_shard_made_of_what_was_made_again_since_is_refused(layout: Layout) -> None:
    rows = write_images(layout, 0)
    export(layout)
    before = files_of(layout)
    write_image_inputs(layout, ShardId(0), [Row(key=row.key, picture=row.picture) for row in rows])
    with pytest.raises(MissingInput, match="made again after tfds_images 00000: materialize tfds_images"):
        export(layout)
    assert files_of(layout) == before


@pytest.mark.parametrize("gone", ["normalized_images", "images"])
def test_an_input_that_is_gone_is_named(layout: Layout, gone: str) -> None:
    write_images(layout, 0)
    output: Output = getattr(layout, gone)(ShardId(0))
    output.manifest.unlink()
    with pytest.raises(MissingInput, match=f"{gone} 00000 is not there yet"):
        export(layout)


def test_vectors_of_another_width_are_refused(layout: Layout) -> None:
    write_all(layout)
    with pytest.raises(MissingInput, match="tfds_embeddings 00000 was not written with vectors of 8"):
        export(layout, ["embeddings"], 8)


def test_a_tag_that_is_none_is_refused(layout: Layout, tmp_path: Path) -> None:
    row = Row(nsfw="odd").columns()
    batch = Batch(pa.RecordBatch.from_pylist([row]), vectors=Pair(vectors(1, WIDTH), vectors(1, WIDTH)))
    with pytest.raises(CorruptParquet, match=r"table\.parquet: expected nsfw to be one of .* found 'odd'"):
        write_shard(tmp_path / "out", "embeddings", [batch], width=WIDTH, table=tmp_path / "table.parquet")


def test_nothing_built_is_said(layout: Layout) -> None:
    with pytest.raises(MissingInput, match="run laion-assets build first"):
        export(layout)
    assert built_shards(layout, CONFIGS) == {}


def test_shards_without_rows_make_no_export(layout: Layout) -> None:
    write_images(layout, 0, 0)
    with pytest.raises(MissingInput, match="holds an example"):
        export(layout)
    write_images(layout, 1, 1)
    export(layout)
    assert inodes_of(layout).keys() == {"images/train-00001.parquet"}


def test_a_strangers_folder_is_left_alone(layout: Layout) -> None:
    write_images(layout, 0)
    layout.export_folder.mkdir(parents=True)
    (layout.export_folder / "mine").write_text("mine")
    with pytest.raises(CorruptInput, match="not of this project's making"):
        export(layout)
    assert (layout.export_folder / "mine").read_text() == "mine"


def test_a_checksum_that_was_changed_is_not_passed_on(layout: Layout) -> None:
    write_images(layout, 0)
    export(layout)
    write_images(layout, 1)
    output = layout.parquet_shard("images", ShardId(0))
    _flip(output.path("00000.parquet.sha256"), 3)
    with pytest.raises(CorruptInput, match=r"00000\.parquet\.sha256"):
        export(layout)
    output.manifest.unlink()
    export(layout)
    assert described_in(layout) == {"images/train-00000.parquet", "images/train-00001.parquet"}


def test_a_shard_that_is_not_in_parquet_cannot_be_published(layout: Layout) -> None:
    write_images(layout, 0)
    with pytest.raises(MissingInput, match="parquet_images 00000"):
        publish_export(layout, {"images": [ShardId(0)]})


def test_a_shard_that_others_hold_is_busy(layout: Layout) -> None:
    write_images(layout, 0)
    lease = layout.images(ShardId(0)).lease
    lease.parent.mkdir(parents=True, exist_ok=True)
    with lease.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ShardBusy, match="images 00000"):
            write_parquet_shard("images", ShardId(0), layout)
    assert write_parquet_shard("images", ShardId(0), layout).rows == 2


def test_an_export_that_ended_early_goes_on(layout: Layout) -> None:
    for number in range(3):
        write_images(layout, number)

    def until_the_third(work):
        for config, shard in work:
            if shard == ShardId(2):
                raise LaionAssetsError("the end")
            yield config, shard

    with pytest.raises(LaionAssetsError, match="the end"):
        export(layout, watch=until_the_third)
    assert not layout.export_folder.exists()
    path = layout.parquet_shard("images", ShardId(0)).path("00000.parquet")
    written = identity(path.stat())
    export(layout)
    assert len(inodes_of(layout)) == 3
    assert identity(path.stat()) == written


def test_a_shard_made_again_meanwhile_stops_the_export(layout: Layout, on_change: Callable) -> None:
    write_images(layout, 0)
    write_images(layout, 1)

    def make_again(event: str) -> None:
        if event == "os.link":
            watch.on_change = None
            write_images(layout, 0, 3)
            write_parquet_shard("images", ShardId(0), layout)

    on_change(make_again)
    with pytest.raises(ShardBusy, match="parquet_images 00000 was made again"):
        export(layout)
    assert not layout.export_folder.exists()
    export(layout)
    assert described_in(layout) == inodes_of(layout).keys()


def _seen(layout: Layout) -> dict[str, bytes]:
    """What a reader finds: checksums too have to be of the files beside them."""
    found = files_of(layout)
    for line in found.get("SHA256SUMS", b"").decode().splitlines():
        checksum, name = line.split("  ")
        assert hashlib.sha256(found[name]).hexdigest() == checksum
        assert checksum.encode() in found["croissant.json"]
    return found


def _change_everything(layout: Layout) -> None:
    """A shard is made again, one is new, one is withdrawn."""
    write_images(layout, 0, caption="C")
    write_images(layout, 2)
    layout.tfds_images(ShardId(1)).manifest.unlink()


def test_a_kill_at_any_change_leaves_the_old_or_the_new(layout: Layout) -> None:
    write_images(layout, 0)
    write_images(layout, 1)
    export(layout)
    old = _seen(layout)
    _change_everything(layout)
    held = layout.root.with_name("held")
    copy_tree(layout.root, held)
    export(layout)
    new = _seen(layout)
    left = sorted(path.name for path in layout.parquet_shard("images", ShardId(0)).folder.iterdir())
    assert old.keys() != new.keys()

    killed = 0
    while True:
        shutil.rmtree(layout.root)
        copy_tree(held, layout.root)
        if not killed_at(killed, lambda: export(layout)):
            break
        assert _seen(layout) in (old, new)
        killed += 1
        export(layout)
        assert _seen(layout) == new
        folder = layout.parquet_shard("images", ShardId(0)).folder
        assert sorted(path.name for path in folder.iterdir()) == left
    assert killed > 20
    assert _seen(layout) == new
