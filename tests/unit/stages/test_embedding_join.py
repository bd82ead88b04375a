import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from embedding_inputs import WIDTH, cosines_of, metadata, pairs, place

from laion_assets.errors import (
    CorruptInput,
    CorruptParquet,
    MisalignedEmbeddings,
    MissingInput,
    SourceUnavailable,
)
from laion_assets.formats import parquet
from laion_assets.layout import EmbeddingShardId, Layout
from laion_assets.quality.thresholds import Thresholds
from laion_assets.schema import embedding_join
from laion_assets.stages.embedding_join import join_embeddings
from laion_assets.stages.embeddings import check_embeddings

SHARD = EmbeddingShardId(0)


@pytest.fixture
def layout(tmp_path):
    return Layout(tmp_path / "data")


@pytest.fixture
def join(layout, tmp_path):
    """Places three files, checks them and joins them."""

    def run(images, texts, rows, **thresholds):
        source = place(tmp_path / "release", 0, images, texts, rows)
        limits = Thresholds(**thresholds)
        check_embeddings(SHARD, layout, str(source), images.shape[1], limits)
        manifest = join_embeddings(SHARD, layout, limits)
        return manifest, parquet.read_table(
            layout.embedding_join(SHARD).only, embedding_join(images.shape[1])
        )

    return run


def vectors_of(table, name):
    values = table[name].to_pylist()
    return np.array([np.frombuffer(value, "<f2") for value in values])


@pytest.mark.parametrize("dtype", ["<f2", "<f4"])
def test_every_row_keeps_its_vectors_and_its_values(join, dtype):
    cosines = cosines_of(300)
    images, texts = (vectors.astype(dtype) for vectors in pairs(cosines))
    manifest, table = join(images, texts, metadata(cosines))
    assert manifest.rows == table.num_rows == 300
    assert vectors_of(table, "image_embedding").tobytes() == images.astype("<f2").tobytes()
    assert vectors_of(table, "text_embedding").tobytes() == texts.astype("<f2").tobytes()
    assert np.abs(table["cosine"].to_numpy() - cosines).max() < 2e-3
    row = {name: table[name][7].as_py() for name in table.column_names if "embedding" not in name}
    assert row.pop("cosine") == pytest.approx(cosines[7], abs=2e-3)
    assert row == {
        "shard_id": 12,
        "key": "000000007",
        "url": "http://example.org/7.jpg",
        "caption": "caption 7",
        "NSFW": "UNLIKELY",
        "similarity": cosines[7],
        "LICENSE": "?",
        "original_height": 480,
        "original_width": 640,
    }
    assert manifest.counts["rows_compared"] == 300
    assert manifest.counts["rows_off"] == manifest.counts["rows_unproven"] == 0


def test_many_rows_are_joined_in_pieces_and_the_same_each_time(layout, join, tmp_path):
    cosines = cosines_of(25_000)
    images, texts = pairs(cosines, width=4)
    rows = metadata(cosines)
    manifest, table = join(images, texts, rows)
    groups = pq.ParquetFile(layout.embedding_join(SHARD).only).metadata
    assert [groups.row_group(group).num_rows for group in range(groups.num_row_groups)] == [
        10_000,
        10_000,
        5_000,
    ]
    assert vectors_of(table, "text_embedding").tobytes() == texts.tobytes()
    assert table["key"].to_pylist() == rows["image_path"].to_pylist()
    # Neither the folder nor how the metadata's own rows are grouped shows in the table.
    source = place(tmp_path / "again", 0, images, texts, rows)
    pq.write_table(rows, source / "metadata" / "metadata_0.parquet", row_group_size=777)
    again = Layout(tmp_path / "again-data")
    check_embeddings(SHARD, again, str(source), 4, Thresholds())
    assert join_embeddings(SHARD, again, Thresholds()).files == manifest.files


# -- the proof of alignment -----------------------------------------------------------------------


def shuffled(array):
    return array[np.random.default_rng(1).permutation(len(array))]


@pytest.mark.parametrize(
    "change", [shuffled, lambda array: np.roll(array, 1, axis=0), lambda array: array[::-1]]
)
@pytest.mark.parametrize("which", ["images", "texts", "metadata"])
def test_rows_in_another_order_are_refused(layout, join, change, which):
    cosines = cosines_of(400)
    images, texts = pairs(cosines, width=64)
    rows = metadata(cosines)
    if which == "images":
        images = change(images)
    elif which == "texts":
        texts = change(texts)
    else:
        rows = rows.take(pa.array(change(np.arange(400))))
    with pytest.raises(
        MisalignedEmbeddings, match=r"median difference of 0\.\d+, and \d+ of 400 rows"
    ) as caught:
        join(images, texts, rows)
    message = str(caught.value)
    assert all(name in message for name in ("metadata_0.parquet", "img_emb_0.npy", "text_emb_0.npy"))
    assert not layout.embedding_join(SHARD).manifest.exists()
    assert not layout.embedding_join(SHARD).only.exists()


def test_pairs_swapped_in_a_tenth_of_the_rows_are_refused(join):
    cosines = cosines_of(1000)
    images, texts = pairs(cosines, width=64)
    images[:100] = np.roll(images[:100], 1, axis=0)
    with pytest.raises(MisalignedEmbeddings, match="of 1000 rows off"):
        join(images, texts, metadata(cosines))


def test_vectors_of_another_number_are_refused(join):
    cosines = cosines_of(200)
    images, _ = pairs(cosines, width=64)
    _, others = pairs(cosines, width=64, seed=5)
    with pytest.raises(MisalignedEmbeddings):
        join(images, others, metadata(cosines))
    with pytest.raises(MisalignedEmbeddings):
        join(images, images, metadata(cosines))


def test_dirty_similarities_and_bad_vectors_do_not_hide_or_break_the_proof(join):
    cosines = cosines_of(1000)
    images, texts = pairs(cosines)
    similarities = cosines.tolist()
    similarities[:8] = [6016.0, None, float("nan"), -1.0, float("inf"), -0.2, 1.5, 0.99]
    images[10] = np.nan
    texts[11] = 0
    manifest, table = join(images, texts, metadata(similarities))
    assert manifest.counts["rows_compared"] == 1000 - 7 - 2
    assert manifest.counts["rows_off"] == 1
    assert manifest.counts["bad_vectors"] == 2
    assert np.flatnonzero(np.isnan(table["cosine"].to_numpy())).tolist() == [10, 11]
    assert table["similarity"].to_pylist()[:2] == [6016.0, None]


def test_a_shard_without_similarities_is_joined_and_counted_as_unproven(join):
    images, texts = pairs(cosines_of(200))
    for rows in (
        metadata([None] * 200),
        metadata([0.9] + [None] * 199),
        metadata([None] * 200, similarity=None),
    ):
        manifest, table = join(images, shuffled(texts), rows)
        assert manifest.counts["rows_unproven"] == 200
        assert table.num_rows == 200


def test_one_dirty_row_does_not_decide_over_a_small_shard(join):
    cosines = cosines_of(9)
    images, texts = pairs(cosines)
    manifest, _ = join(images, texts, metadata([0.95, *cosines[1:]]))
    assert manifest.counts["rows_off"] == 1


def test_an_empty_shard_is_joined(join):
    images, texts = pairs(np.empty(0))
    manifest, table = join(images, texts, metadata([]))
    assert manifest.rows == table.num_rows == 0


def test_real_vectors_come_out_as_they_are(join, shared_data):
    folder = shared_data / "clip_vectors"
    path = folder / "img_emb_0.npy"
    if not path.exists():
        pytest.skip(f"the real CLIP vectors are not on this machine ({path})")
    images = np.load(path)
    names = json.loads((folder / "img_emb_0_names.json").read_text())
    assert images.shape == (7, 512)
    # The set has no texts: pictures take their place, so that real vectors meet real vectors.
    texts = np.roll(images, 1, axis=0)
    exact = [
        float(np.dot(one, other) / np.linalg.norm(one) / np.linalg.norm(other))
        for one, other in zip(images.astype(float), texts.astype(float), strict=True)
    ]
    rows = metadata(exact, caption=pa.array(names))
    manifest, table = join(images, texts, rows)
    assert np.abs(table["cosine"].to_numpy() - exact).max() < 1e-5
    assert vectors_of(table, "image_embedding").tobytes() == images.tobytes()
    assert manifest.counts["rows_off"] == manifest.counts["bad_vectors"] == 0
    stored = set()
    for path in folder.glob("*.tar"):
        with tarfile.open(path) as tar:
            stored |= {Path(name).name.split(".", 1)[0] for name in tar.getnames()}
    assert set(names) <= stored
    with pytest.raises(MisalignedEmbeddings):
        join(images, texts, metadata(exact[::-1]))


# -- the metadata's many forms --------------------------------------------------------------------


def joined(join, **columns):
    cosines = cosines_of(4)
    return join(*pairs(cosines), metadata(cosines, **columns))


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({}, ["000000000", "000000001", "000000002", "000000003"]),
        ({"image_path": None}, ["0", "1", "2", "3"]),
        ({"key": None}, ["000000000", "000000001", "000000002", "000000003"]),
        ({"image_path": pa.array(["a/b.jpg", None, "", "7"])}, ["0", "1", "2", "7"]),
        ({"image_path": pa.array(["a/b.jpg", None, "", "7"]), "key": None}, ["a/b.jpg", "", "", "7"]),
        ({"image_path": None, "key": pa.array(["000120033", "x", None, "33"])}, ["000120033", "x", "", "33"]),
        ({"image_path": None, "key": pa.array([33.0, float("nan"), None, 2.5])}, ["33", "", "", ""]),
        ({"image_path": pa.nulls(4), "key": pa.array([33, None, -1, 2**62])}, ["33", "", "-1", str(2**62)]),
    ],
)
def test_a_key_is_the_text_in_image_path_or_the_number_in_key(join, columns, expected):
    manifest, table = joined(join, **columns)
    assert table["key"].to_pylist() == expected
    assert manifest.counts["key:null -> ''"] <= expected.count("")


def test_columns_that_are_missing_are_null(join):
    optional = [
        "caption",
        "NSFW",
        "LICENSE",
        "shard_id",
        "original_width",
        "original_height",
        "exif",
        "status",
    ]
    _, table = joined(join, **dict.fromkeys(optional))
    for name in optional[:-2]:
        assert table[name].null_count == 4
    _, table = joined(join, url=None)
    assert table["url"].null_count == 4


def test_numbers_that_pandas_made_floats_are_numbers_again(join):
    shards = pa.array([19848.0, float("nan"), None, 0.5])
    heights = pa.array([480.0, float("nan"), float("inf"), -3.0])
    manifest, table = joined(join, shard_id=shards, original_height=heights)
    assert table["shard_id"].to_pylist() == [19848, None, None, None]
    assert table["original_height"].to_pylist() == [480, None, None, None]
    assert manifest.counts["original_height:no size -> null"] == 3
    _, table = joined(join, shard_id=pa.array(["19848", "00012", "x", None]))
    assert table["shard_id"].to_pylist() == [19848, 12, None, None]


def test_sizes_that_are_none_become_null_and_are_counted(join):
    widths = pa.array([2**31 - 1, 2**31, -1, None])
    manifest, table = joined(join, original_width=widths)
    assert table["original_width"].to_pylist() == [2**31 - 1, None, None, None]
    assert manifest.counts["original_width:no size -> null"] == 2


def test_text_of_other_types_is_text(join):
    urls = pa.array(["http://a/1", "http://a/1", None, "http://a/2"]).dictionary_encode()
    _, table = joined(join, url=urls, caption=pa.array(["a\0b", "ü|\n", "", None], pa.large_string()))
    assert table["url"].to_pylist() == ["http://a/1", "http://a/1", None, "http://a/2"]
    assert table["caption"].to_pylist() == ["a\0b", "ü|\n", "", None]


@pytest.mark.parametrize(
    "columns",
    [
        {"url": pa.array([["a"], [], None, ["b"]])},
        {"similarity": pa.array(["a", "b", "c", "d"])},
        {"caption": pa.array([b"\xff", b"\xfe\x00", b"a", b"b"])},
        {"caption": pa.array([b"\xff", b"\xfe\x00", b"a", b"b"]).view(pa.string())},
        {"shard_id": pa.array([{"a": 1}] * 4)},
    ],
)
def test_columns_that_cannot_be_meant_are_refused_by_file(join, columns):
    with pytest.raises(CorruptParquet, match=r"metadata_0\.parquet"):
        joined(join, **columns)


# -- sources that change --------------------------------------------------------------------------

FILES = ["img_emb/img_emb_0.npy", "text_emb/text_emb_0.npy", "metadata/metadata_0.parquet"]


@pytest.fixture
def checked(layout, tmp_path):
    cosines = cosines_of(50)
    source = place(tmp_path / "release", 0, *pairs(cosines), metadata(cosines))
    check_embeddings(SHARD, layout, str(source), WIDTH, Thresholds())
    return source


def test_without_a_check_there_is_no_join(layout):
    with pytest.raises(MissingInput, match="materialize embeddings first"):
        join_embeddings(SHARD, layout, Thresholds())


@pytest.mark.parametrize("name", FILES)
def test_a_source_that_shrank_after_the_check_is_refused(layout, checked, name):
    os.truncate(checked / name, (checked / name).stat().st_size - 1)
    with pytest.raises(CorruptInput, match="as when it was checked") as caught:
        join_embeddings(SHARD, layout, Thresholds())
    assert str(checked / name) in str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_a_byte_that_changed_after_the_check_is_refused(layout, checked, name):
    path = checked / name
    content = bytearray(path.read_bytes())
    # The last mantissa bit of the last element changes no cosine that could be told from rounding.
    content[-2 if name.endswith("npy") else 4] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptInput, match=r"XXH3-128 .*as when it was checked") as caught:
        join_embeddings(SHARD, layout, Thresholds())
    assert str(path) in str(caught.value)
    assert not layout.embedding_join(SHARD).manifest.exists()


@pytest.mark.parametrize("name", FILES)
def test_a_source_that_is_gone_is_named(layout, checked, name):
    (checked / name).unlink()
    with pytest.raises(SourceUnavailable, match=name.rsplit("/", 1)[-1]):
        join_embeddings(SHARD, layout, Thresholds())


def test_a_join_is_kept_until_its_check_or_its_limits_change(layout, checked):
    first = join_embeddings(SHARD, layout, Thresholds())
    assert join_embeddings(SHARD, layout, Thresholds()) == first
    with pytest.raises(MisalignedEmbeddings):
        join_embeddings(SHARD, layout, Thresholds(cosine_median_difference=1e-9))
