import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from embedding_inputs import WIDTH, cosines_of, metadata, pairs, place

from laion_assets.embedding_source import read_embedding_source
from laion_assets.errors import (
    CorruptManifest,
    CorruptNpy,
    CorruptParquet,
    MisalignedEmbeddings,
    MissingInput,
    SettingsError,
)
from laion_assets.formats.checksums import sha256_of
from laion_assets.layout import EmbeddingShardId, Layout
from laion_assets.quality.thresholds import Thresholds
from laion_assets.stages.embeddings import check_embeddings, find_embedding_shards

SHARD = EmbeddingShardId(0)


@pytest.fixture
def layout(tmp_path):
    return Layout(tmp_path / "data")


@pytest.fixture
def source(tmp_path):
    return tmp_path / "release"


def put(source, number=0, *, rows=40, **options):
    cosines = cosines_of(rows)
    return place(source, number, *pairs(cosines), metadata(cosines), **options)


def check(layout, source, shard=SHARD, **thresholds):
    return check_embeddings(shard, layout, str(source), WIDTH, Thresholds(**thresholds))


# -- discovery ------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("img_emb", "text_emb"), ("images", "texts")])
def test_shards_of_both_layouts_are_found_in_order(source, names):
    for number in (10, 9, 123456):
        put(source, number, names=names)
    (source / names[0] / "img_emb_11.npy.part").touch()
    (source / names[0] / "photo.jpg").touch()
    (source / names[0] / "img_emb_12.npy").mkdir()
    found = find_embedding_shards(str(source))
    assert [str(shard) for shard in found] == ["00009", "00010", "123456"]
    assert found[EmbeddingShardId(9)].image_vectors == source / names[0] / "img_emb_9.npy"
    assert found[EmbeddingShardId(9)].text_vectors == source / names[1] / "text_emb_9.npy"
    assert found[EmbeddingShardId(9)].metadata == source / "metadata" / "metadata_9.parquet"


def test_no_source_means_no_shards_and_a_wrong_one_is_refused(tmp_path):
    assert find_embedding_shards(None) == {}
    assert find_embedding_shards(str(tmp_path)) == {}
    for wrong in (str(tmp_path / "nowhere"), "s3://bucket/embeddings"):
        with pytest.raises(SettingsError, match="no such folder"):
            find_embedding_shards(wrong)


def test_two_layouts_at_once_and_two_files_of_one_number_are_refused(source):
    put(source)
    put(source, "000")
    with pytest.raises(SettingsError, match=r"two files of number 0.*img_emb_0\.npy and img_emb_000\.npy"):
        find_embedding_shards(str(source))
    for kind in ("img_emb/img_emb_000.npy", "text_emb/text_emb_000.npy", "metadata/metadata_000.parquet"):
        (source / kind).unlink()
    put(source, 1, names=("images", "texts"))
    with pytest.raises(SettingsError, match=r"img_emb/ and in images/"):
        find_embedding_shards(str(source))


@pytest.mark.parametrize(
    "missing", ["img_emb/img_emb_0007.npy", "text_emb/text_emb_0007.npy", "metadata/metadata_0007.parquet"]
)
def test_an_incomplete_shard_is_listed_and_names_what_it_lacks_when_run(layout, source, missing):
    put(source, "0007")
    (source / missing).unlink()
    shard = EmbeddingShardId(7)
    assert list(find_embedding_shards(str(source))) == [shard]
    with pytest.raises(MissingInput, match=r"embedding shard 00007 lacks") as caught:
        check(layout, source, shard)
    assert str(source / missing) in str(caught.value)
    assert not layout.embeddings(shard).manifest.exists()


def test_a_shard_that_is_not_there_and_a_source_that_is_not_set(layout, source):
    put(source)
    with pytest.raises(MissingInput, match="00003"):
        check(layout, source, EmbeddingShardId(3))
    with pytest.raises(SettingsError, match="not set"):
        check_embeddings(SHARD, layout, None, WIDTH, Thresholds())


# -- the check ------------------------------------------------------------------------------------


def test_the_record_says_what_was_checked(layout, source):
    put(source)
    manifest = check(layout, source)
    assert manifest.rows == 40
    assert set(manifest.counts.values()) == {0}
    record = json.loads(layout.embeddings(SHARD).only.read_text())
    for name, path in (
        ("image_vectors", source / "img_emb/img_emb_0.npy"),
        ("text_vectors", source / "text_emb/text_emb_0.npy"),
        ("metadata", source / "metadata/metadata_0.parquet"),
    ):
        assert record[name]["path"] == str(path)
        assert record[name]["sha256"] == sha256_of(path)
        assert record[name]["size_bytes"] == path.stat().st_size
    assert (record["rows"], record["width"], record["image_vectors"]["dtype"]) == (40, WIDTH, "float16")
    assert record["metadata"]["columns"][:2] == ["image_path", "caption"]
    assert json.loads(read_embedding_source(layout, SHARD).to_json()) == record


def test_a_second_run_does_nothing_and_a_changed_source_is_noticed(layout, source):
    put(source)
    first = check(layout, source)
    written = layout.embeddings(SHARD).only.stat().st_mtime_ns
    assert check(layout, source) == first
    assert layout.embeddings(SHARD).only.stat().st_mtime_ns == written
    # A file that was only touched is looked at again, and found to be the same.
    path = source / "img_emb" / "img_emb_0.npy"
    os.utime(path, ns=(0, 0))
    touched = check(layout, source)
    assert touched.recipe != first.recipe
    assert touched.data_version == first.data_version
    images = np.load(path)
    np.save(path, images[::-1])
    changed = check(layout, source)
    assert changed.data_version != first.data_version


def test_a_source_that_moved_is_recorded_anew(layout, source, tmp_path):
    put(source)
    check(layout, source)
    source.rename(tmp_path / "elsewhere")
    check(layout, tmp_path / "elsewhere")
    assert read_embedding_source(layout, SHARD).metadata.path.startswith(str(tmp_path / "elsewhere"))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_bad_vectors_are_counted_and_not_held_against_the_shard(layout, source, dtype):
    cosines = cosines_of(1000)
    images, texts = (vectors.astype(dtype) for vectors in pairs(cosines))
    images[3] = np.nan
    images[4, 2] = np.inf
    texts[4] *= 1.5  # of a row that is bad already
    images[5] = 0
    texts[5, 0] = -np.inf
    texts[6] = 0
    texts[7] *= 1.5
    if dtype == np.float32:
        images[8] *= 1e30  # beyond float16, and its squares beyond float32
    place(source, 0, images, texts, metadata(cosines))
    manifest = check(layout, source)
    more = dtype == np.float32
    assert manifest.counts == {
        "bad_image_vectors": 3 + more,
        "bad_text_vectors": 2,
        "bad_rows": 4 + more,
        "norm_off": 1,
    }
    with pytest.raises(CorruptNpy, match=r"_emb_0\.npy: .*4 others of 1000 here, and \d rows"):
        check(layout, source, cosine_far_share=0.004)


@pytest.mark.parametrize("side", [0, 1])
def test_vectors_that_are_not_normalized_are_refused_by_file(layout, source, side):
    cosines = cosines_of(40)
    vectors = list(pairs(cosines))
    vectors[side] *= 3
    place(source, 0, *vectors, metadata(cosines))
    with pytest.raises(CorruptNpy, match="40 others of 40") as caught:
        check(layout, source)
    assert caught.value.path.name == ("img_emb_0.npy", "text_emb_0.npy")[side]
    assert not layout.embeddings(SHARD).manifest.exists()


@pytest.mark.parametrize("short", [0, 1, 2])
def test_different_numbers_of_rows_are_refused(layout, source, short):
    cosines = cosines_of(40)
    files = [*pairs(cosines), metadata(cosines)]
    files[short] = files[short][:39]
    place(source, 0, *files)
    with pytest.raises(MisalignedEmbeddings, match="39"):
        check(layout, source)


def test_vectors_of_another_width_are_refused(layout, source):
    put(source)
    with pytest.raises(CorruptNpy, match=r"shape \(rows, 17\), found \(40, 16\)"):
        check_embeddings(SHARD, layout, str(source), 17, Thresholds())


def test_metadata_that_is_none_is_refused(layout, source):
    put(source)
    path = source / "metadata" / "metadata_0.parquet"
    for rows in (
        pa.table({"similarity": [0.3] * 40}),
        pa.table([[0] * 40, ["a"] * 40, ["b"] * 40], names=["key", "url", "url"]),
    ):
        pq.write_table(rows, path)
        with pytest.raises(CorruptParquet, match="one of them of url, key, image_path"):
            check(layout, source)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CorruptParquet, match="readable Parquet"):
        check(layout, source)


def test_an_empty_shard_is_a_shard(layout, source):
    put(source, rows=0)
    assert check(layout, source).rows == 0


def test_a_record_that_is_none_is_refused(layout):
    path = layout.embeddings(SHARD).only
    path.parent.mkdir(parents=True)
    for text in ("", "[]", "{}", '{"rows": 1, "width": 2, "metadata": {}}', "\x00"):
        path.write_text(text)
        with pytest.raises(CorruptManifest, match="Materialize embeddings 00000 again"):
            read_embedding_source(layout, SHARD)
