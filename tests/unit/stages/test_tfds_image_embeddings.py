"""One image shard with its vectors: every row that has any becomes an example, and no other."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensorflow_datasets.proto import tf_example_pb2
from tfds_inputs import Row, picture, vectors, write_image_inputs, write_image_vectors

from laion_assets.errors import CorruptParquet, CorruptTar, MisalignedEmbeddings, MissingInput
from laion_assets.formats.publish import Manifest, verify
from laion_assets.formats.records import read_records
from laion_assets.formats.tfds_examples import tag_counts
from laion_assets.layout import Layout, ShardId
from laion_assets.stages.tfds_image_embeddings import write_tfds_image_embeddings

_SHARD = ShardId(3)
_WIDTH = 4
_PICTURES = [picture(seed) for seed in range(10)]


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path)


def _rows(count: int) -> list[Row]:
    return [
        Row(key=f"00003{row:04d}", caption=f"picture {row}", picture=_PICTURES[row % 10])
        for row in range(count)
    ]


def _pairs(count: int, width: int = _WIDTH) -> tuple[np.ndarray, np.ndarray]:
    return vectors(count, width, seed=1), vectors(count, width, seed=2)


def _write(layout: Layout, rows: Sequence[Row], chosen: Sequence[int], **how: int) -> Manifest:
    """The shard of these rows, of which those chosen have vectors."""
    write_image_inputs(layout, _SHARD, rows)
    keys = [rows[row].key for row in chosen]
    write_image_vectors(layout, _SHARD, keys, *_pairs(len(chosen)), **how)
    layout.tfds_image_embeddings(_SHARD).manifest.unlink(missing_ok=True)
    return write_tfds_image_embeddings(_SHARD, layout, _WIDTH)


def _check(layout: Layout, rows: Sequence[Row], chosen: Sequence[int]) -> None:
    """The shard holds just the rows chosen, in their order, each with its picture and its vectors."""
    output = layout.tfds_image_embeddings(_SHARD)
    manifest = verify(output)
    records = list(read_records(output.only, layout.file_format)) if chosen else []
    assert manifest.rows == len(records) == len(chosen)
    assert manifest.counts == {
        "rows": len(rows),
        "examples": len(chosen),
        "without_vectors": len(rows) - len(chosen),
        "payload_bytes": sum(map(len, records)),
        **tag_counts(Counter(rows[number].nsfw for number in chosen)),
    }
    for row, record, *pair in zip(chosen, records, *_pairs(len(chosen)), strict=True):
        feature = tf_example_pb2.Example.FromString(record).features.feature
        assert feature["caption"].bytes_list.value == [rows[row].caption.encode()]
        assert feature["image"].bytes_list.value == [rows[row].picture]
        for name, vector in zip(("image_embedding", "text_embedding"), pair, strict=True):
            assert np.array(feature[name].float_list.value, np.float16).tobytes() == vector.tobytes()


@pytest.mark.parametrize("chosen", [(0, 1, 2, 3, 4, 5), (1, 2, 5), (5,), ()])
def test_rows_with_vectors_become_examples_and_the_others_are_counted(
    layout: Layout, chosen: Sequence[int]
) -> None:
    rows = _rows(6)
    _write(layout, rows, chosen)
    _check(layout, rows, chosen)


@given(
    total=st.integers(0, 40),
    chosen=st.sets(st.integers(0, 39)),
    row_group_rows=st.integers(1, 50),
)
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whichever_rows_have_vectors_have_their_own(
    layout: Layout, total: int, chosen: set[int], row_group_rows: int
) -> None:
    rows, there = _rows(total), sorted(row for row in chosen if row < total)
    _write(layout, rows, there, row_group_rows=row_group_rows)
    _check(layout, rows, there)


def test_more_rows_than_are_held_at_a_time(layout: Layout) -> None:
    rows = _rows(6_000)
    # More than a batch of pictures, and than one of vectors, and a gap longer than the former.
    chosen = [row for row in range(6_000) if row % 7 and not 1_000 < row < 2_100]
    _write(layout, rows, chosen, row_group_rows=1_111)
    _check(layout, rows, chosen)


def test_memory_does_not_grow_with_the_shard(layout: Layout) -> None:
    _write(layout, _rows(2), (0, 1))  # what is made once and kept must not come from the pool below
    total, width = 10_000, 512  # 20 MB of vectors, in one row group
    rows = [Row(key=f"00003{row:05d}", picture=_PICTURES[0]) for row in range(total)]
    write_image_inputs(layout, _SHARD, rows)
    image = np.tile(vectors(1_000, width), (10, 1))
    write_image_vectors(layout, _SHARD, [row.key for row in rows], image, image)
    pool, before = pa.proxy_memory_pool(pa.default_memory_pool()), pa.default_memory_pool()
    pa.set_memory_pool(pool)
    try:
        write_tfds_image_embeddings(_SHARD, layout, width)
    finally:
        pa.set_memory_pool(before)
    assert 1_000_000 < pool.max_memory() < 15_000_000


@pytest.mark.skipif(sys.platform != "linux", reason="array_record exists for Linux only")
def test_both_formats_hold_the_same(tmp_path: Path) -> None:
    rows, chosen = _rows(6), (0, 3, 4)
    for layout in (Layout(tmp_path), Layout(tmp_path, "array_record")):
        _write(layout, rows, chosen)
        _check(layout, rows, chosen)


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    bodies = []
    for name in ("a", "b"):
        layout = Layout(tmp_path / name)
        _write(layout, _rows(5), (0, 2, 3))
        bodies.append(layout.tfds_image_embeddings(_SHARD).only.read_bytes())
    assert bodies[0] == bodies[1]


def test_a_shard_without_vectors_is_an_empty_file(layout: Layout) -> None:
    assert _write(layout, _rows(3), ()).counts["without_vectors"] == 3
    assert layout.tfds_image_embeddings(_SHARD).only.read_bytes() == b""


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (["000030000", "000030007"], r"each of its 2 keys to be of one row of .*, found 1 of them"),
        (["000030001", "000030001"], r"each of its 2 keys to be of one row of .*, found 1 of them"),
        (["000030002", "000030000"], "column row to ascend from 0, found 0 where it does not"),
        (["3", "000030000"], "each of its 2 keys"),
    ],
)
def test_vectors_of_other_keys_are_refused(layout: Layout, keys: list[str], expected: str) -> None:
    write_image_inputs(layout, _SHARD, _rows(3))
    write_image_vectors(layout, _SHARD, keys, *_pairs(2))
    with pytest.raises(MisalignedEmbeddings, match=expected):
        write_tfds_image_embeddings(_SHARD, layout, _WIDTH)
    assert not layout.tfds_image_embeddings(_SHARD).manifest.exists()


def test_missing_inputs_are_named(layout: Layout) -> None:
    with pytest.raises(MissingInput, match="materialize normalized_images first"):
        write_tfds_image_embeddings(_SHARD, layout)
    write_image_inputs(layout, _SHARD, _rows(1))
    with pytest.raises(MissingInput, match="materialize image_embeddings first"):
        write_tfds_image_embeddings(_SHARD, layout)


def test_vectors_of_an_older_normalized_table_are_refused(layout: Layout) -> None:
    _write(layout, _rows(3), (0, 1))
    write_image_inputs(layout, _SHARD, _rows(4))
    with pytest.raises(MissingInput, match=r"00003 was made again after image_embeddings 00003"):
        write_tfds_image_embeddings(_SHARD, layout, _WIDTH)


def test_a_tar_made_again_is_refused(layout: Layout) -> None:
    _write(layout, _rows(3), (0, 1))
    normalized = {path: path.read_bytes() for path in layout.normalized_images(_SHARD).folder.glob("00003*")}
    write_image_inputs(layout, _SHARD, _rows(4))
    for path, body in normalized.items():
        path.write_bytes(body)
    with pytest.raises(MissingInput, match="images 00003 was made again after normalized_images 00003"):
        write_tfds_image_embeddings(_SHARD, layout, _WIDTH)


def test_vectors_of_another_width_are_refused(layout: Layout) -> None:
    _write(layout, _rows(3), (0, 1))
    with pytest.raises(CorruptParquet, match=r"image_embedding fixed_size_binary\[1536\]"):
        write_tfds_image_embeddings(_SHARD, layout, 768)


def test_a_picture_other_than_the_tables_is_refused(layout: Layout) -> None:
    rows = _rows(3)
    _write(layout, rows, (0, 1))
    write_image_inputs(layout, _SHARD, rows, image_xxh3=[*map(_xxh3, rows[:2]), "0" * 32])
    write_image_vectors(layout, _SHARD, [rows[0].key, rows[2].key], *_pairs(2))
    with pytest.raises(CorruptTar, match="key 000030002 with XXH3-128 0"):
        write_tfds_image_embeddings(_SHARD, layout, _WIDTH)
    # One that no example needs is in nobody's way.
    write_image_vectors(layout, _SHARD, [row.key for row in rows[:2]], *_pairs(2))
    write_tfds_image_embeddings(_SHARD, layout, _WIDTH)
    _check(layout, rows, (0, 1))


def _xxh3(row: Row) -> str:
    return xxhash.xxh3_128_hexdigest(row.picture)


def test_what_changes_the_examples_makes_a_new_shard(layout: Layout) -> None:
    rows = _rows(4)
    before = _write(layout, rows, (0, 1))
    assert write_tfds_image_embeddings(_SHARD, layout, _WIDTH) == before
    write_image_vectors(layout, _SHARD, [row.key for row in rows], *_pairs(4))
    after = write_tfds_image_embeddings(_SHARD, layout, _WIDTH)
    assert (before.rows, after.rows) == (2, 4)
    assert before.recipe.inputs["images"] == after.recipe.inputs["images"]
