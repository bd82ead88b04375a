"""Whatever rows a release has, stock TFDS reads of each what went in, of all three data sets, in order.

From the raw Parquet file, a web that a function answers for and the vectors' files, through every stage. What
must come out is said here once more, row by row, without a word of the stages' code.
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import one_host
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from embedding_inputs import metadata, place
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from releases import (
    TAGS,
    WIDTH,
    Recipe,
    Row,
    acceptable,
    answer,
    check,
    has_direction,
    pictures,
    raw_rows,
    vector_rows,
)

from laion_assets.errors import MissingInput
from laion_assets.fetch.policy import FetchPolicy
from laion_assets.fetch.transport import FakeTransport
from laion_assets.formats.publish import require
from laion_assets.image_policy import ImagePolicy
from laion_assets.layout import EmbeddingShardId, Layout
from laion_assets.plan import ShardPlan
from laion_assets.quality.thresholds import Thresholds
from laion_assets.schema import RAW
from laion_assets.stages.embedding_index import index_embeddings
from laion_assets.stages.embedding_join import join_embeddings
from laion_assets.stages.embeddings import check_embeddings
from laion_assets.stages.image_embeddings import join_image_embeddings
from laion_assets.stages.images import download_images
from laion_assets.stages.laion400m import publish_dataset
from laion_assets.stages.normalized_embeddings import normalize_embeddings
from laion_assets.stages.normalized_images import normalize_images
from laion_assets.stages.raw_metadata import check_part
from laion_assets.stages.samples import write_samples
from laion_assets.stages.shard_plan import plan_shards
from laion_assets.stages.tfds_embeddings import write_tfds_embeddings
from laion_assets.stages.tfds_image_embeddings import write_tfds_image_embeddings
from laion_assets.stages.tfds_images import write_tfds_images

pytestmark = pytest.mark.filterwarnings(r"ignore:label\(\) is deprecated:DeprecationWarning")

FETCH = FetchPolicy(attempts=1, backoff_s=0, **one_host.MANNERS)
IMAGE = ImagePolicy(workers=1)
# Similarities are arbitrary here, and so are vectors: what would refuse a shard for them is tested elsewhere.
LENIENT = Thresholds(cosine_median_difference=10, cosine_far=10, cosine_far_share=1)
HUGE = ("x" * 61_192, "日本語 🙂" * 30_000)


# -- through the stages -----------------------------------------------------------------------------------


def build_images(recipe: Recipe, layout: Layout, folder: Path, rows: Sequence[Row]) -> int:
    """Everything up to the data set of pictures; how many shards there are."""
    parts, first = [], 0
    for part, count in enumerate(recipe.rows):
        name, some = f"part-{part}", rows[first : first + count]
        first += count
        columns = {
            "URL": [row.url for row in some],
            "TEXT": [row.caption for row in some],
            "NSFW": [row.tag for row in some],
            "LICENSE": [row.license for row in some],
            "similarity": [row.similarity for row in some],
        }
        arrays = [pa.array(columns.get(field.name, [None] * count), field.type) for field in RAW]
        pq.write_table(pa.table(arrays, schema=RAW), folder / f"{name}.parquet")
        location = str(folder / f"{name}.parquet")
        check_part(
            name,
            layout,
            location=location,
            source_schema="laion400m",
            rows_per_shard=recipe.rows_per_shard,
        )
        parts.append(name)
    plan_shards(layout, parts, rows_per_shard=recipe.rows_per_shard)
    plan = ShardPlan.load(layout)
    for shard in plan.shards:
        write_samples(shard, layout)
        web = FakeTransport(lambda url: answer(recipe, url), FETCH)
        download_images(shard, layout, FETCH, IMAGE, transport=web)
        normalize_images(shard, layout)
        write_tfds_images(shard, layout)
    publish_dataset("images", layout, shard_count=plan.shard_count)
    return plan.shard_count


def build_embeddings(layout: Layout, folder: Path, shards: Sequence[Sequence[Row]]) -> None:
    def column(rows: Sequence[Row], name: str, type_: pa.DataType) -> pa.Array:
        return pa.array([getattr(row, name) for row in rows], type_)

    for number, rows in enumerate(shards):
        table = metadata(
            pa.array([row.similarity for row in rows], pa.float64()),
            url=column(rows, "url", pa.string()),
            caption=column(rows, "caption", pa.string()),
            NSFW=column(rows, "tag", pa.string()),
            LICENSE=column(rows, "license", pa.string()),
            image_path=column(rows, "key", pa.string()),
            shard_id=column(rows, "shard", pa.int64()),
            original_height=column(rows, "height", pa.int64()),
            original_width=column(rows, "width", pa.int64()),
        )
        arrays = [np.array([getattr(row, name) for row in rows], np.float16) for name in ("image", "text")]
        place(folder, number, *(array.reshape(-1, WIDTH) for array in arrays), table)
        shard = EmbeddingShardId(number)
        check_embeddings(shard, layout, str(folder), WIDTH, LENIENT)
        join_embeddings(shard, layout, LENIENT)
        index_embeddings(shard, layout)
        normalize_embeddings(shard, layout)
        write_tfds_embeddings(shard, layout, WIDTH)
    publish_dataset("embeddings", layout, shard_count=len(shards), width=WIDTH)


def build_image_embeddings(layout: Layout, shard_count: int, vectors: int) -> None:
    for shard in ShardPlan.load(layout).shards:
        join_image_embeddings(shard, layout, [EmbeddingShardId(number) for number in range(vectors)], WIDTH)
        write_tfds_image_embeddings(shard, layout, WIDTH)
    publish_dataset("image_embeddings", layout, shard_count=shard_count, width=WIDTH)


def read(layout: Layout, config: str, expected: int) -> list[dict[str, Any]]:
    """Every example, shard by shard, in order."""
    import tensorflow_datasets as tfds

    # The official class takes vectors of 512 elements only, and from the folder any.
    builder = (
        tfds.builder("laion400m/images", data_dir=str(layout.tfds_data_dir))
        if config == "images"
        else tfds.builder_from_directory(str(layout.tfds_version(config)))
    )
    assert builder.info.splits["train"].num_examples == expected
    is_at_random = layout.file_format == "array_record"
    if not expected:
        # The word of TFDS, and of array_record's reader, on a split of no examples.
        with pytest.raises(ValueError, match="0 length" if is_at_random else "no data"):
            (builder.as_data_source if is_at_random else builder.as_dataset)(split="train")
        return []
    if is_at_random:
        return list(builder.as_data_source(split="train"))
    one_by_one = tfds.ReadConfig(interleave_cycle_length=1)
    return list(tfds.as_numpy(builder.as_dataset(split="train", read_config=one_by_one)))


def went_in_comes_out(recipe: Recipe, folder: Path) -> dict[str, int]:
    """Build it and read it; how many examples each data set has."""
    rows = raw_rows(recipe)
    layout = Layout(folder / "data", recipe.file_format)
    if not rows:
        with pytest.raises(MissingInput, match="nothing to plan"):
            build_images(recipe, layout, folder, rows)
        return {}
    shards = vector_rows(recipe, rows)
    shard_count = build_images(recipe, layout, folder, rows)
    build_embeddings(layout, folder / "vectors", shards)
    build_image_embeddings(layout, shard_count, len(shards))

    expected = pictures(recipe, rows)
    check(read(layout, "images", len(expected)), expected, picture=True, vectors=False)

    with_vectors = [row for shard in shards for row in shard if has_direction(row)]
    examples = [row for row in with_vectors if acceptable(row)]
    check(read(layout, "embeddings", len(examples)), examples, picture=False, vectors=True)

    found = {row.url: row for row in with_vectors}
    both = [
        replace(row, image=found[row.url].image, text=found[row.url].text)
        for row in expected
        if row.url in found
    ]
    check(read(layout, "image_embeddings", len(both)), both, picture=True, vectors=True)
    counted_once(layout, len(rows), [len(shard) for shard in shards])
    return {"images": len(expected), "embeddings": len(examples), "image_embeddings": len(both)}


def counted_once(layout: Layout, rows: int, vectors: Sequence[int]) -> None:
    """Every row is an example, set aside or failed, by the manifests' counts."""
    manifests = [require(layout.normalized_images(shard)) for shard in ShardPlan.load(layout).shards]
    told = [found.counts for found in manifests]
    assert sum(counts["rows"] for counts in told) == rows
    for counts in told:
        assert counts["rows"] == counts["examples"] + counts["set_aside"] + counts["failed"]
    for number, count in enumerate(vectors):
        counts = require(layout.normalized_embeddings(EmbeddingShardId(number))).counts
        assert counts["rows"] == count == counts["examples"] + counts["set_aside"]


# -- the tests --------------------------------------------------------------------------------------------

texts = st.one_of(st.none(), st.just(""), st.text(), st.sampled_from(HUGE))
similarities = st.one_of(
    st.none(), st.floats(), st.floats(0, 1), st.sampled_from([math.nan, -1.0, 0.0, 1.0, 1.0005, 1.01, 6016.0])
)


def some(values: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(values, min_size=1, max_size=12)


def recipes(most: int) -> st.SearchStrategy[Recipe]:
    counts = st.lists(st.integers(0, most), min_size=1, max_size=2).map(tuple)
    return st.builds(
        Recipe,
        rows=counts,
        vectors=counts,
        rows_per_shard=st.integers(max(2, most // 3), 2 * most),
        captions=some(texts),
        tags=some(st.one_of(st.sampled_from([*TAGS, "unlikely", " NSFW"]), st.none(), st.text())),
        licenses=some(st.one_of(st.none(), st.text())),
        similarities=some(similarities),
        queries=some(st.text(max_size=40)),
        gone=st.sampled_from([0.0, 0.3, 1.0]),
        seed=st.integers(0, 2**32),
        file_format=st.sampled_from(["tfrecord", "array_record"][: 1 + (sys.platform == "linux")]),
    )


def examples(count: int) -> settings:
    # One takes a second, so that shrinking it would outlast the test.
    phases = (Phase.explicit, Phase.reuse, Phase.generate)
    return settings(max_examples=count, deadline=None, phases=phases, suppress_health_check=list(HealthCheck))


PLAIN = Recipe(
    rows=(30, 0, 11),
    vectors=(25, 0),
    rows_per_shard=12,
    captions=("a", "", None, "日本語 🙂 e\u0301", "a|b\n\tc\x00d", *HUGE),
    tags=(*TAGS, None, "unlikely", ""),
    licenses=("?", "", None, "é"),
    similarities=(0.3, None, math.nan, -1.0, 1.0, 6016.0, -0.5),
    queries=("", "ü 日本", "a=b&c"),
    gone=0.3,
    seed=1,
)


@pytest.mark.parametrize(
    ("recipe", "full"),
    [
        (PLAIN, {"images", "embeddings", "image_embeddings"}),
        (replace(PLAIN, gone=1.0), {"embeddings"}),  # no picture at all
        (replace(PLAIN, rows=(0,)), set()),
        (replace(PLAIN, vectors=(0,)), {"images"}),
        pytest.param(
            replace(PLAIN, file_format="array_record"),
            {"images", "embeddings", "image_embeddings"},
            marks=pytest.mark.skipif(sys.platform != "linux", reason="array_record exists for Linux only"),
        ),
    ],
    ids=["plain", "all failed", "no rows", "no vectors", "array_record"],
)
def test_what_went_in_comes_out(tmp_path: Path, recipe: Recipe, full: set[str]) -> None:
    found = went_in_comes_out(recipe, tmp_path)
    assert {config for config, count in found.items() if count} == full


@examples(4)
@given(recipe=recipes(25))
def test_whatever_the_rows(recipe: Recipe) -> None:
    with tempfile.TemporaryDirectory() as folder:
        went_in_comes_out(recipe, Path(folder))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@examples(60 if os.environ.get("LAION_LONG") == "1" else 15)
@given(recipe=recipes(300))
def test_whatever_many_rows(recipe: Recipe) -> None:
    with tempfile.TemporaryDirectory() as folder:
        went_in_comes_out(recipe, Path(folder))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("gone", [0.3, 1.0])
def test_a_shard_of_ten_thousand_rows(tmp_path: Path, gone: float) -> None:
    captions = (*PLAIN.captions[:-2], *(f"caption {number}" for number in range(1_000)), HUGE[0])
    whole = replace(
        PLAIN, rows=(10_000,), vectors=(10_000,), rows_per_shard=10_000, captions=captions, gone=gone
    )
    found = went_in_comes_out(whole, tmp_path)
    assert (found["images"] > 1_000) == (found["image_embeddings"] > 1_000) == (gone < 1)
