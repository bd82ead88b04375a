"""One image shard: every row becomes its picture's example, or the shard is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from spoiling import vouch_anew
from tensorflow_datasets.proto import tf_example_pb2
from tfds_inputs import Row, picture, write_image_inputs

from laion_assets.errors import CorruptInput, CorruptParquet, CorruptTar, MissingInput
from laion_assets.formats.publish import verify
from laion_assets.formats.tfds_examples import tag_counts
from laion_assets.formats.tfrecord import RecordsSummary, read_records
from laion_assets.layout import Layout, ShardId
from laion_assets.stages.tfds_images import write_tfds_images

_SHARD = ShardId(3)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path)


def _rows(count: int) -> list[Row]:
    return [
        Row(key=f"00003{row:04d}", caption=f"picture {row}", picture=picture(row)) for row in range(count)
    ]


def _examples(layout: Layout) -> list[tf_example_pb2.Example]:
    manifest = verify(layout.tfds_images(_SHARD))
    expected = RecordsSummary(
        records=manifest.counts["examples"], payload_bytes=manifest.counts["payload_bytes"]
    )
    records = read_records(layout.tfds_images(_SHARD).only, expected=expected)
    return [tf_example_pb2.Example.FromString(record) for record in records]


def test_every_row_becomes_the_example_of_its_picture(layout: Layout) -> None:
    rows = [
        *_rows(2),
        Row(key="000030002", caption="", license="?", nsfw="NSFW", similarity=-1.0, picture=picture(2)),
        Row(key="000030003", caption="x" * 61_192, nsfw="UNTAGGED", picture=picture(3, mode="L")),
        Row(key="000030004", caption="日本\n\x00🙂", nsfw="UNSURE", picture=picture(4, format_="PNG")),
    ]
    write_image_inputs(layout, _SHARD, rows)
    manifest = write_tfds_images(_SHARD, layout)
    found = _examples(layout)
    assert manifest.rows == manifest.counts["examples"] == len(found) == len(rows)
    for row, example in zip(rows, found, strict=True):
        feature = example.features.feature
        assert feature["image"].bytes_list.value == [row.picture]
        assert feature["caption"].bytes_list.value == [row.caption.encode()]
        assert feature["license"].bytes_list.value == [row.license.encode()]
        assert feature["similarity"].float_list.value == [row.similarity]
        tags = ["UNLIKELY", "UNSURE", "NSFW", "UNTAGGED"]
        assert feature["nsfw"].int64_list.value == [tags.index(row.nsfw)]
        assert feature["original_height"].int64_list.value == [row.original_height]
        assert feature["original_width"].int64_list.value == [row.original_width]


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    bodies = []
    for name in ("a", "b"):
        layout = Layout(tmp_path / name)
        write_image_inputs(layout, _SHARD, _rows(3))
        write_tfds_images(_SHARD, layout)
        bodies.append(layout.tfds_images(_SHARD).only.read_bytes())
    assert bodies[0] == bodies[1]
    again = write_tfds_images(_SHARD, layout)
    assert again.data_version == verify(layout.tfds_images(_SHARD)).data_version


def test_a_shard_of_no_examples_is_an_empty_file(layout: Layout) -> None:
    write_image_inputs(layout, _SHARD, [])
    manifest = write_tfds_images(_SHARD, layout)
    assert manifest.counts == {"examples": 0, "payload_bytes": 0, **tag_counts({})}
    assert layout.tfds_images(_SHARD).only.read_bytes() == b""


def test_a_missing_input_is_named(layout: Layout) -> None:
    with pytest.raises(MissingInput, match="materialize normalized_images first"):
        write_tfds_images(_SHARD, layout)


def test_another_picture_in_the_tar_is_refused(layout: Layout) -> None:
    rows = _rows(3)
    write_image_inputs(layout, _SHARD, rows)
    tar = layout.images_tar(_SHARD)
    body = bytearray(tar.read_bytes())
    at = body.index(rows[1].picture)
    body[at + len(rows[1].picture) // 2] ^= 1
    tar.write_bytes(body)
    with pytest.raises(CorruptInput, match=r"00003\.tar: expected XXH3-128"):
        write_tfds_images(_SHARD, layout)
    vouch_anew(layout.images(_SHARD))
    with pytest.raises(MissingInput, match="images 00003 was made again after normalized_images 00003"):
        write_tfds_images(_SHARD, layout)
    assert not layout.tfds_images(_SHARD).manifest.exists()
    assert not layout.tfds_images(_SHARD).only.exists()


@pytest.mark.parametrize(("offset", "size"), [(-1, 10), (0, -1), (10**12, 10), (0, 2**62), (2**63 - 1, 1)])
def test_places_outside_the_tar_are_refused(layout: Layout, offset: int, size: int) -> None:
    write_image_inputs(layout, _SHARD, _rows(1), tar_offset=[offset], tar_bytes=[size])
    with pytest.raises(CorruptTar, match=r"expected the picture of key 000030000 in -?\d+ bytes"):
        write_tfds_images(_SHARD, layout)


def test_a_tar_cut_short_is_refused(layout: Layout) -> None:
    write_image_inputs(layout, _SHARD, _rows(2))
    tar = layout.images_tar(_SHARD)
    tar.write_bytes(tar.read_bytes()[:1024])
    with pytest.raises(CorruptInput, match=r"00003\.tar: expected \d+ bytes, found 1024 bytes"):
        write_tfds_images(_SHARD, layout)


def test_a_picture_other_than_the_tables_is_refused(layout: Layout) -> None:
    write_image_inputs(layout, _SHARD, _rows(3), image_xxh3=["0" * 32] * 3)
    with pytest.raises(CorruptTar, match=r"key 000030000 with XXH3-128 0+, found [0-9a-f]{32}"):
        write_tfds_images(_SHARD, layout)
    assert not layout.tfds_images(_SHARD).manifest.exists()


def test_a_table_of_other_columns_is_refused(layout: Layout) -> None:
    write_image_inputs(layout, _SHARD, _rows(1))
    path = layout.normalized_table(_SHARD)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"PAR1", b"PAR2"))
    vouch_anew(layout.normalized_images(_SHARD))
    with pytest.raises(CorruptParquet):
        write_tfds_images(_SHARD, layout)


def test_a_new_picture_makes_a_new_shard(layout: Layout) -> None:
    write_image_inputs(layout, _SHARD, _rows(2))
    before = write_tfds_images(_SHARD, layout)
    write_image_inputs(layout, _SHARD, _rows(3))
    after = write_tfds_images(_SHARD, layout)
    assert before.data_version != after.data_version
    assert len(_examples(layout)) == 3
