"""One embedding shard: every row becomes the example of its own vectors, or the shard is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensorflow_datasets.proto import tf_example_pb2
from tfds_inputs import Row, vectors, write_embedding_inputs

from laion_assets.errors import CorruptParquet, MisalignedEmbeddings, MissingInput
from laion_assets.formats.publish import verify
from laion_assets.formats.tfds_examples import tag_counts
from laion_assets.formats.tfrecord import read_records
from laion_assets.layout import EmbeddingShardId, Layout
from laion_assets.stages.tfds_embeddings import write_tfds_embeddings

_SHARD = EmbeddingShardId(7)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path)


def _rows(keys: list[str]) -> list[Row]:
    return [Row(key=key, caption=f"caption of {key}") for key in keys]


def _keys(count: int) -> list[str]:
    return [f"{row:09d}" for row in range(count)]


def _check(layout: Layout, rows: list[Row], image: np.ndarray, text: np.ndarray) -> None:
    """The shard holds exactly these rows, in this order, with these vectors."""
    manifest = verify(layout.tfds_embeddings(_SHARD))
    records = list(read_records(layout.tfds_embeddings(_SHARD).only))
    assert manifest.rows == manifest.counts["examples"] == len(records) == len(rows)
    assert manifest.counts["payload_bytes"] == sum(map(len, records))
    for row, record, one, other in zip(rows, records, image, text, strict=True):
        feature = tf_example_pb2.Example.FromString(record).features.feature
        assert feature["caption"].bytes_list.value == [row.caption.encode()]
        assert np.array(feature["image_embedding"].float_list.value, np.float16).tobytes() == one.tobytes()
        assert np.array(feature["text_embedding"].float_list.value, np.float16).tobytes() == other.tobytes()


def test_every_row_becomes_the_example_of_its_vectors(layout: Layout) -> None:
    image, text = vectors(10, seed=1), vectors(10, seed=2)
    rows = _rows(_keys(10))
    write_embedding_inputs(layout, _SHARD, rows, image, text)
    write_tfds_embeddings(_SHARD, layout)
    _check(layout, rows, image, text)


@given(
    total=st.integers(1, 60),
    row_group_rows=st.integers(1, 70),
    chosen=st.sets(st.integers(0, 59)),
)
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rows_set_aside_leave_the_pairing_right(
    layout: Layout, total: int, row_group_rows: int, chosen: set[int]
) -> None:
    positions = sorted(row for row in chosen if row < total)
    image, text = vectors(total, 3, seed=1), vectors(total, 3, seed=2)
    keys = _keys(total)
    rows = _rows([keys[row] for row in positions])
    write_embedding_inputs(
        layout,
        _SHARD,
        rows,
        image,
        text,
        positions=positions,
        joined_keys=keys,
        row_group_rows=row_group_rows,
    )
    write_tfds_embeddings(_SHARD, layout, 3)
    _check(layout, rows, image[positions], text[positions])


def test_more_rows_than_are_held_at_a_time(layout: Layout) -> None:
    total = 10_000
    image, text = vectors(total, 4, seed=1), vectors(total, 4, seed=2)
    positions = [row for row in range(total) if row % 3 and not 4_000 < row < 8_500]
    keys = _keys(total)
    rows = _rows([keys[row] for row in positions])
    write_embedding_inputs(
        layout, _SHARD, rows, image, text, positions=positions, joined_keys=keys, row_group_rows=1_111
    )
    write_tfds_embeddings(_SHARD, layout, 4)
    _check(layout, rows, image[positions], text[positions])


def test_memory_does_not_grow_with_the_shard(layout: Layout) -> None:
    total = 40_000  # 82 MB of vectors, in one row group
    image = np.tile(vectors(4_000), (10, 1))
    write_embedding_inputs(layout, _SHARD, _rows(_keys(total)), image, image)
    pool, before = pa.proxy_memory_pool(pa.default_memory_pool()), pa.default_memory_pool()
    pa.set_memory_pool(pool)
    try:
        write_tfds_embeddings(_SHARD, layout)
    finally:
        pa.set_memory_pool(before)
    assert 1_000_000 < pool.max_memory() < 45_000_000


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    bodies = []
    for name in ("a", "b"):
        layout = Layout(tmp_path / name)
        write_embedding_inputs(layout, _SHARD, _rows(_keys(5)), vectors(5), vectors(5))
        write_tfds_embeddings(_SHARD, layout)
        bodies.append(layout.tfds_embeddings(_SHARD).only.read_bytes())
    assert bodies[0] == bodies[1]


def test_a_shard_of_no_examples_is_an_empty_file(layout: Layout) -> None:
    write_embedding_inputs(layout, _SHARD, [], vectors(4), vectors(4), joined_keys=_keys(4))
    counts = write_tfds_embeddings(_SHARD, layout).counts
    assert counts == {"examples": 0, "payload_bytes": 0, **tag_counts({})}
    assert layout.tfds_embeddings(_SHARD).only.read_bytes() == b""


def test_a_row_that_points_at_anothers_vectors_is_refused(layout: Layout) -> None:
    keys = _keys(6)
    keys[2], keys[3] = keys[3], keys[2]
    write_embedding_inputs(layout, _SHARD, _rows(_keys(6)), vectors(6), vectors(6), joined_keys=keys)
    with pytest.raises(MisalignedEmbeddings, match=r"expected key 000000003 at row 2.*found key 000000002"):
        write_tfds_embeddings(_SHARD, layout)
    assert not layout.tfds_embeddings(_SHARD).manifest.exists()


@pytest.mark.parametrize("positions", [[0, 2, 1], [0, 0, 1], [-1, 0, 1], [2, 1, 0], [-(2**63), 0, 1]])
def test_rows_out_of_order_are_refused(layout: Layout, positions: list[int]) -> None:
    write_embedding_inputs(layout, _SHARD, _rows(_keys(3)), vectors(3), vectors(3), positions=positions)
    with pytest.raises(MisalignedEmbeddings, match="expected column row to ascend"):
        write_tfds_embeddings(_SHARD, layout)


@pytest.mark.parametrize("last", [3, 2**40, 2**63 - 1])
def test_a_row_beyond_the_vectors_is_refused(layout: Layout, last: int) -> None:
    write_embedding_inputs(layout, _SHARD, _rows(_keys(3)), vectors(3), vectors(3), positions=[0, 1, last])
    with pytest.raises(MisalignedEmbeddings, match=rf"which has 3, found row {last}"):
        write_tfds_embeddings(_SHARD, layout)


def test_vectors_of_another_width_are_refused(layout: Layout) -> None:
    write_embedding_inputs(layout, _SHARD, _rows(_keys(3)), vectors(3), vectors(3))
    with pytest.raises(CorruptParquet, match=r"image_embedding fixed_size_binary\[1536\]"):
        write_tfds_embeddings(_SHARD, layout, 768)


def test_another_width_is_another_recipe(layout: Layout) -> None:
    write_embedding_inputs(layout, _SHARD, [], vectors(3), vectors(3), joined_keys=_keys(3))
    narrow = write_tfds_embeddings(_SHARD, layout)
    write_embedding_inputs(layout, _SHARD, [], vectors(3, 768), vectors(3, 768), joined_keys=_keys(3))
    assert write_tfds_embeddings(_SHARD, layout, 768).recipe.settings != narrow.recipe.settings


def test_a_missing_input_is_named(layout: Layout) -> None:
    with pytest.raises(MissingInput, match="materialize normalized_embeddings first"):
        write_tfds_embeddings(_SHARD, layout)
