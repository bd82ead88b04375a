"""Exports: which files there are, which are made again, and what readers see meanwhile."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from export_inputs import WIDTH, described_in, files_of, inodes_of, write_all, write_images
from tfds_datasets import (
    SHARDS,
    WITH_VECTORS,
    publish_embeddings,
    publish_image_embeddings,
    publish_images,
)
from tfds_inputs import Row, write_embedding_inputs

from laion_assets.errors import CorruptParquet
from laion_assets.formats import parquet
from laion_assets.formats.hugging_face import schema
from laion_assets.formats.publish import verify
from laion_assets.layout import EmbeddingShardId, Layout, ShardId
from laion_assets.shard_rows import _of_few_bytes
from laion_assets.stages.export import CONFIGS, export
from laion_assets.stages.tfds_embeddings import write_tfds_embeddings


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "data")


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
    assert inodes_of(layout).keys() == expected == described_in(layout)
    assert files_of(layout).keys() - expected == {"README.md", "LICENSE", "SHA256SUMS", "croissant.json"}
    rows = {"images": 13, "embeddings": 13, "image_embeddings": 7}
    assert manifest.counts == {f"rows:{config}": count for config, count in rows.items()} | {
        "shards": 3 * len(SHARDS),
        "files": len(expected),
    }
    assert manifest.rows == 33


@pytest.mark.parametrize("config", CONFIGS)
def test_a_shard_has_the_rows_of_the_tfds_shard_in_its_order(config: str, layout: Layout) -> None:
    write_all(layout)
    export(layout, width=WIDTH)
    output = layout.parquet_shard(config, ShardId(0))
    found = pq.read_table(output.path("00000.parquet"), page_checksum_verification=True)
    assert found.schema.equals(schema(config, WIDTH), check_metadata=False)
    assert found.schema.metadata == schema(config, WIDTH).metadata
    assert found["caption"].to_pylist() == ["c 0 0", "c 0 1", "c 0 2"][:: 2 if "image_" in config else 1]
    assert verify(output).rows == found.num_rows == verify(layout.tfds_shard(config, ShardId(0))).rows
    assert found["caption"].null_count == 0


def test_pictures_are_stored_as_they_are_and_in_small_row_groups(layout: Layout) -> None:
    rows = write_images(layout, 0, 600)
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
    (row,) = write_images(layout, 0, 1)
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
        write_all(layout)
        export(layout, width=WIDTH)
        exports.append(files_of(layout))
    assert exports[0] == exports[1]
    assert len(exports[0]) == 3 + 4
    assert not any(str(tmp_path).encode() in body for body in exports[0].values())


# -- again ----------------------------------------------------------------------------------------


def test_without_a_change_nothing_is_written(layout: Layout) -> None:
    write_all(layout)
    before = export(layout, width=WIDTH)
    link = layout.export_folder.readlink()
    times = {path: path.stat().st_mtime_ns for path in layout.root.rglob("*") if path.is_file()}
    assert export(layout, width=WIDTH) == before
    assert layout.export_folder.readlink() == link
    assert {path: path.stat().st_mtime_ns for path in layout.root.rglob("*") if path.is_file()} == times


def test_a_shard_that_changed_is_written_again_and_no_other(layout: Layout) -> None:
    for number in range(3):
        write_images(layout, number)
    export(layout)
    before = inodes_of(layout)
    write_images(layout, 1, caption="other")
    write_images(layout, 3)
    export(layout)
    after = inodes_of(layout)
    assert after.keys() - before.keys() == {"images/train-00003.parquet"}
    changed = {name for name, inode in before.items() if after[name] != inode}
    assert changed == {"images/train-00001.parquet"}
    found = pq.read_table(layout.export_folder / "images" / "train-00001.parquet")
    assert found["caption"].to_pylist() == ["other 1 0", "other 1 1"]


def test_no_file_is_a_second_copy(layout: Layout) -> None:
    write_images(layout, 0)
    export(layout)
    shard = layout.parquet_shard("images", ShardId(0)).path("00000.parquet")
    assert (layout.export_folder / "images" / "train-00000.parquet").samefile(shard)


def test_a_shard_that_is_withdrawn_disappears(layout: Layout) -> None:
    write_images(layout, 0)
    write_images(layout, 1)
    export(layout)
    layout.tfds_images(ShardId(1)).manifest.unlink()
    manifest = export(layout)
    assert manifest.counts["shards"] == 1
    assert inodes_of(layout).keys() == {"images/train-00000.parquet"} == described_in(layout)
    left = layout.parquet_shard("images", ShardId(1))
    assert not left.manifest.exists()
    assert not any(left.path(name).exists() for name in left.names)


def test_a_config_that_is_not_named_disappears_and_comes_back(layout: Layout) -> None:
    write_all(layout)
    export(layout, width=WIDTH)
    everything = files_of(layout)
    export(layout, ["embeddings"], WIDTH)
    assert inodes_of(layout).keys() == {"embeddings/train-00000.parquet"}
    assert "images" not in (layout.export_folder / "README.md").read_text().split("---")[1].split()
    export(layout, width=WIDTH)
    assert files_of(layout) == everything


def test_whoever_has_the_export_open_keeps_it_until_the_one_after_the_next(layout: Layout) -> None:
    write_images(layout, 0)
    export(layout)
    opened = layout.export_folder.resolve()
    held = (opened / "images" / "train-00000.parquet").read_bytes()
    write_images(layout, 0, caption="other")
    export(layout)
    assert layout.export_folder.resolve() != opened
    assert (opened / "images" / "train-00000.parquet").read_bytes() == held
    write_images(layout, 0, caption="third")
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
    write_images(layout, 0)
    export(layout)
    before = files_of(layout)
    damage(layout.export_folder.resolve())
    export(layout)
    assert files_of(layout) == before
