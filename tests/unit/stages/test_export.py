"""Exports: which files there are, which are made again, what is refused, and what readers see meanwhile."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tfds_datasets import (
    SHARDS,
    WITH_VECTORS,
    publish_embeddings,
    publish_image_embeddings,
    publish_images,
)
from tfds_inputs import Row, picture, vectors, write_embedding_inputs, write_image_inputs, write_image_vectors

from laion_assets.errors import CorruptInput, CorruptParquet, LaionAssetsError, MissingInput, ShardBusy
from laion_assets.formats import parquet
from laion_assets.formats.durable import identity
from laion_assets.formats.hugging_face import Batch, schema, write_shard
from laion_assets.formats.publish import verify
from laion_assets.formats.vector_rows import Pair
from laion_assets.layout import EmbeddingShardId, Layout, Output, ShardId
from laion_assets.shard_rows import _of_few_bytes
from laion_assets.stages.export import CONFIGS, built_shards, export, publish_export, write_parquet_shard
from laion_assets.stages.tfds_embeddings import write_tfds_embeddings
from laion_assets.stages.tfds_image_embeddings import write_tfds_image_embeddings
from laion_assets.stages.tfds_images import write_tfds_images

WIDTH = 16


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "data")


def _write_images(layout: Layout, number: int, examples: int = 2, caption: str = "c") -> list[Row]:
    rows = [
        Row(key=f"{number:05d}{row:04d}", caption=f"{caption} {number} {row}", picture=picture(row + number))
        for row in range(examples)
    ]
    write_image_inputs(layout, ShardId(number), rows)
    write_tfds_images(ShardId(number), layout)
    return rows


def _write_all(layout: Layout) -> None:
    """One shard of each config."""
    rows = _write_images(layout, 0, 3)
    image, text = vectors(3, WIDTH, seed=1), vectors(3, WIDTH, seed=2)
    write_embedding_inputs(layout, EmbeddingShardId(0), rows, image, text)
    write_tfds_embeddings(EmbeddingShardId(0), layout, WIDTH)
    write_image_vectors(layout, ShardId(0), [rows[0].key, rows[2].key], image[:2], text[:2])
    write_tfds_image_embeddings(ShardId(0), layout, WIDTH)


def _files(layout: Layout) -> dict[str, bytes]:
    folder = layout.export_folder
    return {f"{path.relative_to(folder)}": path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _inodes(layout: Layout) -> dict[str, int]:
    folder = layout.export_folder
    return {f"{path.relative_to(folder)}": path.stat().st_ino for path in folder.rglob("*.parquet")}


def _described(layout: Layout) -> set[str]:
    document = json.loads((layout.export_folder / "croissant.json").read_bytes())
    return {entry["@id"] for entry in document["distribution"] if entry["@type"] == "cr:FileObject"}


# -- what there is --------------------------------------------------------------------------------


def test_each_shard_that_is_there_and_has_rows_is_a_file_of_its_own_number(layout: Layout) -> None:
    publish_image_embeddings(layout, WIDTH)
    publish_images(layout)
    publish_embeddings(layout, WIDTH)
    manifest = export(layout, width=WIDTH)
    with_rows = [number for number, rows in SHARDS.items() if rows]
    with_vectors = [number for number, rows in WITH_VECTORS.items() if rows]
    expected = {f"images/train-{number:05d}.parquet" for number in with_rows}
    expected |= {f"embeddings/train-{number:05d}.parquet" for number in with_rows}
    expected |= {f"image_embeddings/train-{number:05d}.parquet" for number in with_vectors}
    assert _inodes(layout).keys() == expected == _described(layout)
    assert _files(layout).keys() - expected == {"README.md", "LICENSE", "SHA256SUMS", "croissant.json"}
    rows = {"images": 13, "embeddings": 13, "image_embeddings": 7}
    assert manifest.counts == {f"rows:{config}": count for config, count in rows.items()} | {
        "shards": 3 * len(SHARDS),
        "files": len(expected),
    }
    assert manifest.rows == 33


@pytest.mark.parametrize("config", CONFIGS)
def test_a_shard_has_the_rows_of_the_tfds_shard_in_its_order(config: str, layout: Layout) -> None:
    _write_all(layout)
    export(layout, width=WIDTH)
    output = layout.parquet_shard(config, ShardId(0))
    found = pq.read_table(output.path("00000.parquet"), page_checksum_verification=True)
    assert found.schema.equals(schema(config, WIDTH), check_metadata=False)
    assert found.schema.metadata == schema(config, WIDTH).metadata
    assert found["caption"].to_pylist() == ["c 0 0", "c 0 1", "c 0 2"][:: 2 if "image_" in config else 1]
    assert verify(output).rows == found.num_rows == verify(layout.tfds_shard(config, ShardId(0))).rows
    assert found["caption"].null_count == 0


def test_pictures_are_stored_as_they_are_and_in_small_row_groups(layout: Layout) -> None:
    rows = _write_images(layout, 0, 600)
    export(layout)
    path = layout.export_folder / "images" / "train-00000.parquet"
    body, footer = path.read_bytes(), pq.read_metadata(path)
    assert all(row.picture in body for row in rows)
    assert [footer.row_group(group).num_rows for group in range(footer.num_row_groups)] == [256, 256, 88]
    compression = {
        footer.row_group(0).column(column).path_in_schema: footer.row_group(0).column(column).compression
        for column in range(footer.num_columns)
    }
    assert compression.pop("image.bytes") == "UNCOMPRESSED"
    assert set(compression.values()) == {"ZSTD"}


def test_large_pictures_make_smaller_batches() -> None:
    sizes = [30 << 20, 30 << 20, 30 << 20, 1, 2, 100 << 20, 5, 1 << 30]
    rows = pa.record_batch({"tar_bytes": pa.array(sizes, pa.int64()), "row": range(len(sizes))})
    pieces = list(_of_few_bytes(rows))
    assert [row for piece in pieces for row in piece["row"].to_pylist()] == list(range(len(sizes)))
    for piece in pieces:
        _, *others = piece["tar_bytes"].to_pylist()
        assert sum(others) <= 64 << 20
    assert len(pieces) < len(sizes)
    assert list(_of_few_bytes(rows.slice(0, 0))) == []


def test_a_flipped_byte_in_an_exported_page_is_noticed_by_readers_that_ask(layout: Layout) -> None:
    (row,) = _write_images(layout, 0, 1)
    export(layout)
    body = bytearray((layout.export_folder / "images" / "train-00000.parquet").read_bytes())
    body[body.index(row.picture) + 40] ^= 1
    spoilt = layout.root / "spoilt.parquet"
    spoilt.write_bytes(body)
    with pytest.raises(CorruptParquet):
        parquet.read_table(spoilt, schema("images"))


def test_vectors_keep_their_bits(layout: Layout) -> None:
    image = np.arange(1 << 16, dtype=np.uint16).view(np.float16).reshape(-1, WIDTH)
    image = image[np.isfinite(image).all(axis=1)]
    rows = [Row(key=f"{row:09d}") for row in range(len(image))]
    write_embedding_inputs(layout, EmbeddingShardId(0), rows, image, image[::-1])
    write_tfds_embeddings(EmbeddingShardId(0), layout, WIDTH)
    export(layout, width=WIDTH)
    found = pq.read_table(layout.export_folder / "embeddings" / "train-00000.parquet")
    for name, expected in (("image_embedding", image), ("text_embedding", image[::-1])):
        values = found[name].combine_chunks().flatten().to_numpy()
        assert values.tobytes() == expected.tobytes()


def test_equal_shards_give_equal_bytes(tmp_path: Path) -> None:
    exports = []
    for name in ("a", "b"):
        layout = Layout(tmp_path / name)
        _write_all(layout)
        export(layout, width=WIDTH)
        exports.append(_files(layout))
    assert exports[0] == exports[1]
    assert len(exports[0]) == 3 + 4
    assert not any(str(tmp_path).encode() in body for body in exports[0].values())


# -- again ----------------------------------------------------------------------------------------


def test_without_a_change_nothing_is_written(layout: Layout) -> None:
    _write_all(layout)
    before = export(layout, width=WIDTH)
    link = layout.export_folder.readlink()
    times = {path: path.stat().st_mtime_ns for path in layout.root.rglob("*") if path.is_file()}
    assert export(layout, width=WIDTH) == before
    assert layout.export_folder.readlink() == link
    assert {path: path.stat().st_mtime_ns for path in layout.root.rglob("*") if path.is_file()} == times


def test_a_shard_that_changed_is_written_again_and_no_other(layout: Layout) -> None:
    for number in range(3):
        _write_images(layout, number)
    export(layout)
    before = _inodes(layout)
    _write_images(layout, 1, caption="other")
    _write_images(layout, 3)
    export(layout)
    after = _inodes(layout)
    assert after.keys() - before.keys() == {"images/train-00003.parquet"}
    changed = {name for name, inode in before.items() if after[name] != inode}
    assert changed == {"images/train-00001.parquet"}
    found = pq.read_table(layout.export_folder / "images" / "train-00001.parquet")
    assert found["caption"].to_pylist() == ["other 1 0", "other 1 1"]


def test_no_file_is_a_second_copy(layout: Layout) -> None:
    _write_images(layout, 0)
    export(layout)
    shard = layout.parquet_shard("images", ShardId(0)).path("00000.parquet")
    assert (layout.export_folder / "images" / "train-00000.parquet").samefile(shard)


def test_a_shard_that_is_withdrawn_disappears(layout: Layout) -> None:
    _write_images(layout, 0)
    _write_images(layout, 1)
    export(layout)
    layout.tfds_images(ShardId(1)).manifest.unlink()
    manifest = export(layout)
    assert manifest.counts["shards"] == 1
    assert _inodes(layout).keys() == {"images/train-00000.parquet"} == _described(layout)
    left = layout.parquet_shard("images", ShardId(1))
    assert not left.manifest.exists()
    assert not any(left.path(name).exists() for name in left.names)


def test_a_config_that_is_not_named_disappears_and_comes_back(layout: Layout) -> None:
    _write_all(layout)
    export(layout, width=WIDTH)
    everything = _files(layout)
    export(layout, ["embeddings"], WIDTH)
    assert _inodes(layout).keys() == {"embeddings/train-00000.parquet"}
    assert "images" not in (layout.export_folder / "README.md").read_text().split("---")[1].split()
    export(layout, width=WIDTH)
    assert _files(layout) == everything


def test_whoever_has_the_export_open_keeps_it_until_the_one_after_the_next(layout: Layout) -> None:
    _write_images(layout, 0)
    export(layout)
    opened = layout.export_folder.resolve()
    held = (opened / "images" / "train-00000.parquet").read_bytes()
    _write_images(layout, 0, caption="other")
    export(layout)
    assert layout.export_folder.resolve() != opened
    assert (opened / "images" / "train-00000.parquet").read_bytes() == held
    _write_images(layout, 0, caption="third")
    export(layout)
    assert not opened.exists()


def _remove_a_shard(folder: Path) -> None:
    (folder / "images" / "train-00000.parquet").unlink()


def _cut_a_shard(folder: Path) -> None:
    path = folder / "images" / "train-00000.parquet"
    body = path.read_bytes()
    path.unlink()  # it is a link to the shard itself
    path.write_bytes(body[:-1])


def _change_the_card(folder: Path) -> None:
    (folder / "README.md").write_text("mine")


def _remove_croissant(folder: Path) -> None:
    (folder / "croissant.json").unlink()


def _remove_all(folder: Path) -> None:
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    "damage", [_remove_a_shard, _cut_a_shard, _change_the_card, _remove_croissant, _remove_all]
)
def test_an_export_that_is_not_whole_is_made_again(layout: Layout, damage: Callable[[Path], None]) -> None:
    _write_images(layout, 0)
    export(layout)
    before = _files(layout)
    damage(layout.export_folder.resolve())
    export(layout)
    assert _files(layout) == before


# -- what is refused ------------------------------------------------------------------------------


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
    _write_all(layout)
    config, path = _inputs(layout)[which]
    _flip(path, int(path.stat().st_size * where))
    with pytest.raises(CorruptInput, match=path.name):
        export(layout, [config], WIDTH)
    assert not layout.export_folder.exists()
    assert not layout.parquet_shard(config, ShardId(0)).manifest.exists()


def test_an_export_stays_as_it_was_where_a_new_shard_is_refused(layout: Layout) -> None:
    _write_images(layout, 0)
    export(layout)
    before = _files(layout)
    _write_images(layout, 1)
    _flip(layout.images_tar(ShardId(1)), 700)
    with pytest.raises(CorruptInput, match=r"00001\.tar"):
        export(layout)
    assert _files(layout) == before


def test_a_shard_made_of_what_was_made_again_since_is_refused(layout: Layout) -> None:
    rows = _write_images(layout, 0)
    export(layout)
    before = _files(layout)
    write_image_inputs(layout, ShardId(0), [Row(key=row.key, picture=row.picture) for row in rows])
    with pytest.raises(MissingInput, match="made again after tfds_images 00000: materialize tfds_images"):
        export(layout)
    assert _files(layout) == before


@pytest.mark.parametrize("gone", ["normalized_images", "images"])
def test_an_input_that_is_gone_is_named(layout: Layout, gone: str) -> None:
    _write_images(layout, 0)
    output: Output = getattr(layout, gone)(ShardId(0))
    output.manifest.unlink()
    with pytest.raises(MissingInput, match=f"{gone} 00000 is not there yet"):
        export(layout)


def test_vectors_of_another_width_are_refused(layout: Layout) -> None:
    _write_all(layout)
    with pytest.raises(
        MissingInput, match="tfds_embeddings 00000 was not written with vectors of 8 elements"
    ):
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
    _write_images(layout, 0, 0)
    with pytest.raises(MissingInput, match="holds an example"):
        export(layout)
    _write_images(layout, 1, 1)
    export(layout)
    assert _inodes(layout).keys() == {"images/train-00001.parquet"}


def test_a_strangers_folder_is_left_alone(layout: Layout) -> None:
    _write_images(layout, 0)
    layout.export_folder.mkdir(parents=True)
    (layout.export_folder / "mine").write_text("mine")
    with pytest.raises(CorruptInput, match="not of this project's making"):
        export(layout)
    assert (layout.export_folder / "mine").read_text() == "mine"


def test_a_checksum_that_was_changed_is_not_passed_on(layout: Layout) -> None:
    _write_images(layout, 0)
    export(layout)
    _write_images(layout, 1)
    output = layout.parquet_shard("images", ShardId(0))
    _flip(output.path("00000.parquet.sha256"), 3)
    with pytest.raises(CorruptInput, match=r"00000\.parquet\.sha256"):
        export(layout)
    output.manifest.unlink()
    export(layout)
    assert _described(layout) == {"images/train-00000.parquet", "images/train-00001.parquet"}


def test_a_shard_that_is_not_in_parquet_cannot_be_published(layout: Layout) -> None:
    _write_images(layout, 0)
    with pytest.raises(MissingInput, match="parquet_images 00000"):
        publish_export(layout, {"images": [ShardId(0)]})


def test_a_shard_that_others_hold_is_busy(layout: Layout) -> None:
    import fcntl

    _write_images(layout, 0)
    lease = layout.images(ShardId(0)).lease
    lease.parent.mkdir(parents=True, exist_ok=True)
    with lease.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ShardBusy, match="images 00000"):
            write_parquet_shard("images", ShardId(0), layout)
    assert write_parquet_shard("images", ShardId(0), layout).rows == 2


def test_an_export_that_ended_early_goes_on(layout: Layout) -> None:
    for number in range(3):
        _write_images(layout, number)

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
    assert len(_inodes(layout)) == 3
    assert identity(path.stat()) == written
