from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from embedding_inputs import cosines_of, metadata, pairs, place
from hypothesis import given, settings
from hypothesis import strategies as st
from spoiling import vouch_anew

from laion_assets.errors import CorruptInput, CorruptParquet, MissingInput
from laion_assets.formats import parquet
from laion_assets.layout import EmbeddingShardId, Layout
from laion_assets.quality.thresholds import Thresholds
from laion_assets.schema import (
    NORMALIZED_EMBEDDINGS,
    ROWS_SET_ASIDE,
    SIMILARITY_CLASSES,
    NsfwTag,
    SetAside,
)
from laion_assets.stages.embedding_join import join_embeddings
from laion_assets.stages.embeddings import check_embeddings
from laion_assets.stages.normalized_embeddings import normalize_embeddings

SHARD = EmbeddingShardId(3)


def normalize(folder, images, texts, rows):
    """The manifest, the examples and the rows set aside."""
    layout = Layout(folder / "data")
    source = place(folder / "release", 3, images, texts, rows)
    # Dirt is the point here, so that none of it makes the shard a bad one.
    limits = Thresholds(cosine_far_share=1, cosine_median_difference=2)
    check_embeddings(SHARD, layout, str(source), images.shape[1], limits)
    join_embeddings(SHARD, layout, limits)
    manifest = normalize_embeddings(SHARD, layout)
    _, aside = layout.normalized_embeddings(SHARD).names
    return (
        manifest,
        parquet.read_table(layout.normalized_embeddings_table(SHARD), NORMALIZED_EMBEDDINGS),
        parquet.read_table(layout.normalized_embeddings(SHARD).path(aside), ROWS_SET_ASIDE),
    )


def test_values_become_what_tfds_has(tmp_path):
    cosines = cosines_of(6)
    rows = metadata(
        [None, float("nan"), -1.0, *cosines[3:]],
        caption=pa.array([None, "", "a|b\nc", "ü", "\0", "x"]),
        NSFW=pa.array([None, "", "NSFW", "UNSURE", "maybe", "UNLIKELY"]),
        LICENSE=pa.array([None, "?", "", "https://creativecommons.org/", "?", "?"]),
        original_height=pa.array([None, 1, 2, 3, 4, 5], pa.int64()),
    )
    manifest, examples, aside = normalize(tmp_path, *pairs(cosines), rows)
    assert aside.num_rows == 0
    assert examples["row"].to_pylist() == list(range(6))
    assert examples["key"].to_pylist() == rows["image_path"].to_pylist()
    assert examples["url"].to_pylist() == rows["url"].to_pylist()
    assert examples["caption"].to_pylist() == ["", "", "a|b\nc", "ü", "\0", "x"]
    assert examples["nsfw"].to_pylist() == ["UNTAGGED", "UNTAGGED", "NSFW", "UNSURE", "UNTAGGED", "UNLIKELY"]
    assert examples["similarity"].to_pylist() == [-1.0, -1.0, -1.0, *cosines[3:]]
    assert examples["license"].to_pylist() == ["", "?", "", "https://creativecommons.org/", "?", "?"]
    assert examples["original_height"].to_pylist() == [0, 1, 2, 3, 4, 5]
    assert examples["original_width"].to_pylist() == [640] * 6
    assert manifest.counts == {
        "rows": 6,
        "examples": 6,
        "set_aside": 0,
        "nsfw:null -> UNTAGGED": 1,
        "nsfw:'' -> UNTAGGED": 1,
        "nsfw:'maybe' -> UNTAGGED": 1,
        "nsfw:UNLIKELY": 1,
        "nsfw:UNSURE": 1,
        "nsfw:NSFW": 1,
        "nsfw:UNTAGGED": 3,
        "similarity:missing": 3,
        **Counter(SIMILARITY_CLASSES[1 + int(50 * cosine)] for cosine in cosines[3:]),
        "similarity:null -> -1.0": 1,
        "similarity:NaN -> -1.0": 1,
        "caption:null -> ''": 1,
        "license:null -> ''": 1,
        "original_height:null -> 0": 1,
        "original_width:null -> 0": 0,
    }


def test_rows_that_make_no_example_are_set_aside_with_their_reason(tmp_path):
    cosines = cosines_of(8)
    images, texts = pairs(cosines)
    images[4] = np.nan
    texts[5] = 0
    images[6, 0] = np.inf
    rows = metadata(
        [0.4, 6016.0, -0.2, 0.4, 0.4, 0.4, 6016.0, 0.4],
        url=pa.array(
            ["http://a/0", "http://a/1", "http://a/2", " ", "http://a/4", "http://a/5", "http://a/6", "u"]
        ),
    )
    manifest, examples, aside = normalize(tmp_path, images, texts, rows)
    assert examples["row"].to_pylist() == [0, 7]
    assert examples["key"].to_pylist() == ["000000000", "000000007"]
    assert aside.to_pylist() == [
        {"key": "000000001", "reason": "similarity_above_one", "detail": "similarity 6016.0"},
        {"key": "000000002", "reason": "similarity_below_zero", "detail": "similarity -0.2"},
        {"key": "000000003", "reason": "missing_url", "detail": "no address"},
        {"key": "000000004", "reason": "bad_vector", "detail": "a vector is zero or not finite"},
        {"key": "000000005", "reason": "bad_vector", "detail": "a vector is zero or not finite"},
        {"key": "000000006", "reason": "similarity_above_one", "detail": "similarity 6016.0"},
    ]
    assert manifest.rows == manifest.counts["examples"] == 2
    assert manifest.counts["set_aside"] == 6
    assert manifest.counts["set_aside:bad_vector"] == 2


@settings(deadline=None, max_examples=25)
@given(
    rows=st.lists(
        st.tuples(
            st.one_of(st.none(), st.text(max_size=3), st.just("http://a/b")),
            st.one_of(st.none(), st.floats()),
            st.one_of(st.none(), st.sampled_from(list(NsfwTag)), st.text(max_size=3)),
            st.sampled_from(["good", "good", "nan", "zero"]),
        ),
        max_size=12,
    )
)
def test_every_row_is_an_example_or_set_aside(tmp_path_factory, rows):
    images, texts = pairs(cosines_of(len(rows)))
    for index, row in enumerate(rows):
        if row[3] != "good":
            texts[index] = {"nan": np.nan, "zero": 0}[row[3]]
    table = metadata(
        [row[1] for row in rows],
        url=pa.array([row[0] for row in rows], pa.string()),
        NSFW=pa.array([row[2] for row in rows], pa.string()),
    )
    manifest, examples, aside = normalize(tmp_path_factory.mktemp("n"), images, texts, table)
    keys = examples["key"].to_pylist() + aside["key"].to_pylist()
    assert sorted(keys) == table["image_path"].to_pylist()
    assert set(aside["reason"].to_pylist()) <= set(SetAside)
    assert set(examples["nsfw"].to_pylist()) <= set(NsfwTag)
    counts = manifest.counts
    assert counts["rows"] == counts["examples"] + counts["set_aside"] == len(rows)
    reasons = Counter(f"set_aside:{reason}" for reason in aside["reason"].to_pylist())
    assert {name: count for name, count in counts.items() if name.startswith("set_aside:")} == reasons
    for row in examples["row"].to_pylist():
        assert rows[row][3] == "good"
        assert rows[row][0].strip()


def test_rows_are_numbered_across_batches(tmp_path):
    cosines = cosines_of(70_000)
    rows = metadata(cosines, NSFW=pa.array([f"tag {n}" for n in range(70_000)]))
    images, texts = pairs(cosines, width=2)
    images[69_000] = np.nan
    manifest, examples, aside = normalize(tmp_path, images, texts, rows)
    assert examples["row"].to_pylist() == [row for row in range(70_000) if row != 69_000]
    assert aside["key"].to_pylist() == ["000069000"]
    assert manifest.counts["examples"] == 69_999
    mapped = {
        name: count for name, count in manifest.counts.items() if name.startswith("nsfw:") and " -> " in name
    }
    assert len(mapped) <= 21
    assert sum(mapped.values()) == manifest.counts["nsfw:UNTAGGED"] == 69_999
    binned = [count for name, count in manifest.counts.items() if name in SIMILARITY_CLASSES]
    assert sum(binned) == 69_999


def test_an_empty_shard_is_normalized_and_a_missing_one_is_named(tmp_path):
    manifest, examples, aside = normalize(tmp_path, *pairs(np.empty(0)), metadata([]))
    assert manifest.rows == examples.num_rows == aside.num_rows == 0
    with pytest.raises(MissingInput, match="materialize embedding_join first"):
        normalize_embeddings(EmbeddingShardId(4), Layout(tmp_path / "data"))


def test_a_joined_table_that_changed_is_refused(tmp_path):
    cosines = cosines_of(50)
    normalize(tmp_path, *pairs(cosines), metadata(cosines))
    layout = Layout(tmp_path / "data")
    layout.normalized_embeddings(SHARD).manifest.unlink()
    path = layout.embedding_join(SHARD).only
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(CorruptInput, match="bytes"):
        normalize_embeddings(SHARD, layout)
    # Of the same size, so that only what is in it can tell.
    for start in (bytes(8), b"PAR1"):
        path.write_bytes(start.ljust(len(whole), b"\0"))
        with pytest.raises(CorruptInput, match="XXH3-128"):
            normalize_embeddings(SHARD, layout)
        vouch_anew(layout.embedding_join(SHARD))
        with pytest.raises(CorruptParquet):
            normalize_embeddings(SHARD, layout)


def test_every_changed_byte_of_the_metadata_is_refused_or_changes_nothing(tmp_path):
    cosines = cosines_of(50)
    _, expected, _ = normalize(tmp_path, *pairs(cosines), metadata(cosines))
    layout = Layout(tmp_path / "data")
    path = layout.embedding_join(SHARD).only
    whole = path.read_bytes()
    refused = 0
    for at in np.random.default_rng(0).integers(4, len(whole), 150).tolist():
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        layout.normalized_embeddings(SHARD).manifest.unlink(missing_ok=True)
        with pytest.raises(CorruptInput, match="XXH3-128"):
            normalize_embeddings(SHARD, layout)
        vouch_anew(layout.embedding_join(SHARD))
        try:
            normalize_embeddings(SHARD, layout)
        except CorruptParquet:
            refused += 1
        else:
            found = parquet.read_table(layout.normalized_embeddings_table(SHARD), NORMALIZED_EMBEDDINGS)
            assert found.equals(expected)
        path.write_bytes(whole)
        vouch_anew(layout.embedding_join(SHARD))
    assert refused > 30
