import json
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from embedding_inputs import cosines_of, metadata, pairs, place
from hypothesis import given, settings
from hypothesis import strategies as st
from spoiling import vouch_anew

from laion_assets.errors import CorruptIndex, CorruptParquet, MissingInput
from laion_assets.formats import parquet
from laion_assets.formats.publish import Recipe, Tally, publish
from laion_assets.layout import EmbeddingShardId, Layout, ShardId
from laion_assets.quality.thresholds import Thresholds
from laion_assets.schema import NORMALIZED_IMAGES, ROWS_SET_ASIDE, image_embeddings
from laion_assets.stages.embedding_index import index_embeddings
from laion_assets.stages.embedding_join import join_embeddings
from laion_assets.stages.embeddings import check_embeddings
from laion_assets.stages.image_embeddings import join_image_embeddings

SHARD = ShardId(12)
WIDTH = 8


@pytest.fixture
def layout(tmp_path):
    return Layout(tmp_path / "data")


def publish_images(layout, samples, *, shard=SHARD, row_digits=4):
    """Normalized images: (row, url, caption) each."""
    table = pa.table(
        {
            "key": [f"{shard}{row:0{row_digits}d}" for row, _, _ in samples],
            "url": [url for _, url, _ in samples],
            "caption": [caption for _, _, caption in samples],
            **dict.fromkeys(("nsfw", "license", "image_xxh3"), pa.array([""] * len(samples), pa.string())),
            "similarity": pa.array([0.5] * len(samples), pa.float64()),
            **{
                name: pa.array([1] * len(samples), NORMALIZED_IMAGES.field(name).type)
                for name in (
                    "original_height",
                    "original_width",
                    "height",
                    "width",
                    "tar_offset",
                    "tar_bytes",
                )
            },
        }
    ).select(NORMALIZED_IMAGES.names)

    def write(draft):
        examples, aside = layout.normalized_images(shard).names
        parquet.write_table(draft.path(examples), table, NORMALIZED_IMAGES)
        parquet.write_table(draft.path(aside), ROWS_SET_ASIDE.empty_table(), ROWS_SET_ASIDE)
        return Tally(rows=table.num_rows)

    publish(layout.normalized_images(shard), Recipe(code_version=json.dumps(samples)), write)


def publish_vectors(layout, number, rows):
    """A joined and indexed embedding shard of (shard_id, key, url, caption) rows; returns its vectors."""
    cosines = cosines_of(len(rows), seed=number)
    images, texts = pairs(cosines, width=WIDTH, seed=number)
    shards, keys, urls, captions = ([row[column] for row in rows] for column in range(4))
    table = metadata(
        cosines,
        shard_id=pa.array(shards, pa.int64()),
        image_path=pa.array([key if isinstance(key, str) else None for key in keys], pa.string()),
        key=pa.array([key if isinstance(key, int) else None for key in keys], pa.int64()),
        url=pa.array(urls, pa.string()),
        caption=pa.array(captions, pa.string()),
    )
    source = place(layout.root / "release", number, images, texts, table)
    shard = EmbeddingShardId(number)
    check_embeddings(shard, layout, str(source), WIDTH, Thresholds())
    join_embeddings(shard, layout, Thresholds())
    index_embeddings(shard, layout)
    return images, texts


def join(layout, numbers, *, shard=SHARD):
    """The manifest, and (key, matched_by, embedding shard, vectors) of each row."""
    manifest = join_image_embeddings(shard, layout, [EmbeddingShardId(number) for number in numbers], WIDTH)
    table = parquet.read_table(layout.image_embeddings(shard).only, image_embeddings(WIDTH))
    assert manifest.rows == table.num_rows
    counts = manifest.counts
    assert counts["samples"] == (
        counts["matched_by_shard_and_key"] + counts["matched_by_url"] + counts["unmatched"]
    )
    return manifest, table.to_pylist()


def assert_vectors(row, vectors, at):
    images, texts = vectors
    assert row["image_embedding"] == images[at].tobytes()
    assert row["text_embedding"] == texts[at].tobytes()


@pytest.mark.parametrize("key", [33, "33", "000000033", "000120033", 120033, "0033"])
def test_local_and_global_keys_find_their_row(layout, key):
    publish_images(layout, [(33, "http://a/33", "c"), (34, "http://a/34", "c")])
    vectors = publish_vectors(layout, 0, [(11, key, "x", "c"), (12, key, "http://a/33", "other")])
    manifest, (row,) = join(layout, [0])
    assert (row["key"], row["matched_by"]) == ("000120033", "shard_and_key")
    assert row["embedding_shard"] == "00000"
    assert_vectors(row, vectors, 1)
    assert manifest.counts == {
        "samples": 2,
        "matched_by_shard_and_key": 1,
        "matched_by_url": 0,
        "unmatched": 1,
        "duplicates": 0,
        "caption_differs": 0,
        "embedding_shards": 1,
        "embedding_shards_missing": 0,
    }


def test_shard_and_key_alone_prove_nothing(layout):
    publish_images(layout, [(33, "http://a/33", "c")])
    publish_vectors(layout, 0, [(12, 33, "http://b/of-another-numbering", "c")])
    manifest, rows = join(layout, [0])
    assert rows == []
    assert manifest.counts["unmatched"] == 1


@pytest.mark.parametrize("url", [None, ""])
def test_without_an_address_shard_and_key_are_taken(layout, url):
    publish_images(layout, [(33, "http://a/33", "c"), (34, "http://a/34", "c")])
    vectors = publish_vectors(layout, 0, [(12, 34, url, None), (None, 33, url, "c")])
    _, (row,) = join(layout, [0])
    assert (row["key"], row["matched_by"]) == ("000120034", "shard_and_key")
    assert_vectors(row, vectors, 0)


def test_the_surest_match_wins_wherever_it_is(layout):
    publish_images(layout, [(1, "http://a/1", "one")])
    rows = [
        (None, 1, "http://a/1", "another"),  # the address alone
        (7, 1, "http://a/1", "one"),  # the address and the caption
        (12, 1, None, None),  # shard and key, no address
        (12, 1, "http://a/1", "another"),  # shard, key and address
    ]
    for number, row in enumerate(rows):
        vectors = publish_vectors(layout, number, [row])
        manifest, (found,) = join(layout, range(number + 1))
        assert found["embedding_shard"] == f"{number:05d}"
        assert found["matched_by"] == ("url" if number < 2 else "shard_and_key")
        assert manifest.counts["caption_differs"] == (number == 0)
        assert_vectors(found, vectors, 0)


def test_of_several_rows_the_first_by_shard_and_row_is_taken_and_counted(layout):
    publish_images(layout, [(1, "http://a/1", "one"), (2, "http://a/2", "two")])
    publish_vectors(layout, 10, [(None, 0, "http://a/1", "one")])
    vectors = publish_vectors(
        layout,
        9,
        [(None, 0, "http://a/x", ""), (None, 0, "http://a/1", "one"), (None, 0, "http://a/1", "one")],
    )
    for numbers in ([9, 10], [10, 9, 9]):
        layout.image_embeddings(SHARD).manifest.unlink(missing_ok=True)
        manifest, (row,) = join(layout, numbers)
        assert (row["embedding_shard"], manifest.counts["duplicates"]) == ("00009", 1)
        assert_vectors(row, vectors, 1)


def test_samples_of_one_address_take_the_row_of_their_caption(layout):
    publish_images(layout, [(1, "http://a/1", "one"), (2, "http://a/1", ""), (3, "http://a/1", "three")])
    vectors = publish_vectors(
        layout,
        0,
        [(None, 5, "http://a/1", "four"), (None, 6, "http://a/1", None), (None, 7, "http://a/1", "one")],
    )
    manifest, rows = join(layout, [0])
    assert [row["key"] for row in rows] == ["000120001", "000120002", "000120003"]
    for row, at in zip(rows, (2, 1, 0), strict=True):
        assert_vectors(row, vectors, at)
    assert manifest.counts["caption_differs"] == 1


def test_addresses_are_compared_exactly(layout):
    publish_images(layout, [(1, "http://a/1", "c")])
    publish_vectors(
        layout, 0, [(12, 1, url, "c") for url in ("http://a/1 ", "HTTP://a/1", "https://a/1", "http://a/1#")]
    )
    assert join(layout, [0])[0].counts["unmatched"] == 1


@pytest.mark.parametrize(
    "key",
    ["", "x", "-1", "²", "1_0", "1\n", " 1", "9" * 30, 10_000, 130_001, "000130001", "0001200001", 2**62],
)
def test_keys_that_name_no_row_of_the_shard_match_nothing(layout, key):
    publish_images(layout, [(1, "http://a/1", "c"), (0, "http://a/0", "c")])
    publish_vectors(layout, 0, [(12, key, None, "c")])
    assert join(layout, [0])[1] == []


def test_bad_vectors_are_passed_over(layout):
    publish_images(layout, [(1, "http://a/1", "c")])
    cosines = cosines_of(40)
    images, texts = pairs(cosines, width=WIDTH)
    images[0] = np.nan
    texts[1] = 0
    table = metadata(cosines, url=pa.array(["http://a/1"] * 40))
    source = place(layout.root / "release", 0, images, texts, table)
    limits = Thresholds(cosine_far_share=0.1)
    check_embeddings(EmbeddingShardId(0), layout, str(source), WIDTH, limits)
    join_embeddings(EmbeddingShardId(0), layout, limits)
    index_embeddings(EmbeddingShardId(0), layout)
    _, (row,) = join(layout, [0])
    # The metadata's shard is 12, and row 1 of it has a bad vector, so the address decides.
    assert row["matched_by"] == "url"
    assert_vectors(row, (images, texts), 2)


def test_embedding_shards_not_joined_yet_are_passed_over_and_noticed_later(layout):
    publish_images(layout, [(1, "http://a/1", "c")])
    manifest, rows = join(layout, [0, 1])
    assert rows == []
    assert (manifest.counts["embedding_shards"], manifest.counts["embedding_shards_missing"]) == (0, 2)
    publish_vectors(layout, 1, [(None, 1, "http://a/1", "c")])
    manifest, rows = join(layout, [0, 1])
    assert len(rows) == 1
    assert (manifest.counts["embedding_shards"], manifest.counts["embedding_shards_missing"]) == (1, 1)
    assert join(layout, [1, 0])[0] == manifest


def test_vectors_are_taken_from_many_row_groups_in_key_order(layout):
    rows = 140_000
    vectors = publish_vectors(layout, 0, [(None, None, f"http://a/{row}", None) for row in range(rows)])
    groups = pq.ParquetFile(layout.embedding_join(EmbeddingShardId(0)).only).num_row_groups
    assert groups == 14
    # The first and last of row groups and of the scan's batches, and others, in an order of their own.
    edges = [0, 9_999, 10_000, 19_999, 20_000, 131_071, 131_072, rows - 1]
    others = np.random.default_rng(0).choice(np.setdiff1d(np.arange(rows), edges), 600, replace=False)
    at = [*edges[::-1], *others.tolist()]
    publish_images(layout, [(row, f"http://a/{at[row]}", "") for row in range(len(at))][::-1])
    manifest, found = join(layout, [0])
    assert manifest.counts["matched_by_url"] == len(at)
    assert [row["key"] for row in found] == [f"00012{row:04d}" for row in range(len(at))]
    for index, row in enumerate(found):
        assert_vectors(row, vectors, at[index])


def test_one_address_everywhere_takes_no_longer_than_its_rows(layout):
    publish_images(layout, [(row, "http://a/placeholder", f"caption {row}") for row in range(5000)])
    publish_vectors(layout, 0, [(12, None, "http://a/placeholder", "c") for _ in range(20_000)])
    manifest, rows = join(layout, [0])
    assert manifest.counts["duplicates"] == len(rows) == 5000
    assert len({row["image_embedding"] for row in rows}) == 1


def test_a_shard_of_six_digits_and_one_of_number_zero(layout):
    for shard, key in ((ShardId(123456), 1234560001), (ShardId(0), 1)):
        publish_images(layout, [(1, "http://a/1", "c")], shard=shard)
        publish_vectors(layout, 0, [(shard.number, key, "http://a/1", "c")])
        layout.image_embeddings(shard).manifest.unlink(missing_ok=True)
        assert join(layout, [0], shard=shard)[0].counts["matched_by_shard_and_key"] == 1


def test_what_is_missing_or_of_another_width_is_named(layout):
    with pytest.raises(MissingInput, match="materialize normalized_images first"):
        join(layout, [])
    publish_images(layout, [])
    assert join(layout, [])[1] == []
    publish_vectors(layout, 0, [(12, 1, "http://a/1", "c")])
    with pytest.raises(CorruptParquet, match=r"fixed_size_binary\[1024\]"):
        join_image_embeddings(SHARD, layout, [EmbeddingShardId(0)])


# -- beside a search through every row ------------------------------------------------------------

TEXTS = st.sampled_from(["http://a/1", "http://a/2", "http://a/3"])
SAMPLES = st.dictionaries(st.integers(0, 4), st.tuples(TEXTS, st.sampled_from(["", "c", "d"])), max_size=4)
ROWS = st.lists(
    st.tuples(
        st.sampled_from([12, 12, 13, None]),
        st.sampled_from([0, 1, 2, 3, 120_002, 13_0001, "x"]),
        st.one_of(TEXTS, st.sampled_from([None, "", "http://b"])),
        st.sampled_from([None, "", "c", "d"]),
    ),
    max_size=8,
)


def search(samples, tables):
    """What each sample takes, as (key, matched_by, embedding shard, row), and counts, by trying every row."""
    found, counts = [], Counter()
    for number, (url, caption) in sorted(samples.items()):
        tried = ([], [], [], [])
        for shard, table in enumerate(tables):
            for at, (shard_id, key, row_url, row_caption) in enumerate(table):
                names_it = shard_id == 12 and key in (number, 120_000 + number)
                agree = (
                    names_it and row_url == url,
                    names_it and not row_url,
                    row_url == url and (row_caption or "") == caption,
                    row_url == url,
                )
                for places, agrees in zip(tried, agree, strict=True):
                    if agrees:
                        places.append((shard, at))
        way = next((way for way, places in enumerate(tried) if places), None)
        if way is None:
            counts["unmatched"] += 1
            continue
        matched_by = "shard_and_key" if way < 2 else "url"
        found.append((f"00012{number:04d}", matched_by, *tried[way][0]))
        counts[f"matched_by_{matched_by}"] += 1
        counts["duplicates"] += len(tried[way]) > 1
        counts["caption_differs"] += way == 3
    return found, counts


@settings(max_examples=30, deadline=None)
@given(SAMPLES, st.lists(ROWS, min_size=1, max_size=3))
def test_samples_take_what_a_search_through_every_row_finds(tmp_path_factory, samples, tables):
    layout = Layout(tmp_path_factory.mktemp("root"))
    publish_images(layout, [(number, *texts) for number, texts in samples.items()])
    # A shard without rows cannot be proven aligned, nor be there.
    vectors = [
        publish_vectors(layout, shard, [*table, (None, "x", None, None)])
        for shard, table in enumerate(tables)
    ]
    expected, counts = search(samples, tables)
    manifest, rows = join(layout, range(len(tables)))
    assert [(row["key"], row["matched_by"], int(row["embedding_shard"])) for row in rows] == [
        taken[:3] for taken in expected
    ]
    for row, (_, _, shard, at) in zip(rows, expected, strict=True):
        assert_vectors(row, vectors[shard], at)
    told = {name: count for name, count in manifest.counts.items() if not name.startswith("embedding_shards")}
    assert told == {name: counts[name] for name in told} | {"samples": len(samples)}


# -- what is not as it should be ------------------------------------------------------------------


def test_shards_joined_and_not_indexed_since_are_passed_over(layout):
    publish_images(layout, [(1, "http://a/1", "c")])
    publish_vectors(layout, 0, [(None, 1, "http://a/1", "c")])
    index = layout.embedding_index(EmbeddingShardId(0)).manifest
    index.rename(index.with_suffix(".aside"))
    manifest, rows = join(layout, [0])
    assert (rows, manifest.counts["embedding_shards_missing"]) == ([], 1)
    index.with_suffix(".aside").rename(index)
    assert len(join(layout, [0])[1]) == 1


def test_a_shard_joined_anew_is_passed_over_until_it_is_indexed(layout):
    publish_images(layout, [(1, "http://a/1", "c")])
    publish_vectors(layout, 0, [(None, 1, "http://a/1", "c")])
    joined, index = (
        output(EmbeddingShardId(0)) for output in (layout.embedding_join, layout.embedding_index)
    )
    kept = [(path, path.read_bytes()) for path in (index.only, index.manifest)]
    publish_vectors(layout, 0, [(None, 1, "http://a/1", "other")])
    assert joined.only.exists()
    for path, data in kept:
        path.write_bytes(data)
    manifest, rows = join(layout, [0])
    assert (rows, manifest.counts["embedding_shards_missing"]) == ([], 1)
    index_embeddings(EmbeddingShardId(0), layout)
    assert join(layout, [0])[0].counts["caption_differs"] == 1


def test_a_flipped_byte_of_what_is_read_is_refused(layout):
    publish_images(layout, [(1, "http://a/1", "c")])
    images, texts = publish_vectors(layout, 0, [(None, row, f"http://a/{row}", "c") for row in range(3)])
    joined = layout.embedding_join(EmbeddingShardId(0)).only
    whole = joined.read_bytes()
    for vector, is_read in ((images[1], True), (texts[1], True), (images[0], False), (texts[2], False)):
        data = bytearray(whole)
        data[whole.index(vector.tobytes()) + 5] ^= 1
        joined.write_bytes(data)
        layout.image_embeddings(SHARD).manifest.unlink(missing_ok=True)
        if is_read:
            with pytest.raises(CorruptParquet, match="the vectors of row 1 that were indexed"):
                join(layout, [0])
        else:
            assert_vectors(join(layout, [0])[1][0], (images, texts), 1)
    index = layout.embedding_index(EmbeddingShardId(0))
    data = bytearray(index.only.read_bytes())
    data[50] ^= 1
    index.only.write_bytes(data)
    vouch_anew(index)
    joined.write_bytes(whole)
    with pytest.raises(CorruptIndex, match=r"00000\.index: expected crc32c .* of the heads"):
        join(layout, [0])
