"""Shards held against the other shards: which are told apart, and from what."""

import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laion_assets.formats import parquet
from laion_assets.formats.publish import Recipe, Tally, publish
from laion_assets.layout import EmbeddingShardId, Layout, ShardId
from laion_assets.normalization import count_classes
from laion_assets.quality.checks import evaluate, rules_of
from laion_assets.quality.measures import SIMILARITIES, SUCCESS, TAGS, Shares
from laion_assets.quality.rules.drift import DRIFT_RULES, compare
from laion_assets.quality.thresholds import Thresholds
from laion_assets.schema import NORMALIZED_EMBEDDINGS, NORMALIZED_IMAGES, ROWS_SET_ASIDE, NsfwTag

LIMITS = Thresholds()
SHARD = ShardId(0)
TAG_NAMES = [str(tag) for tag in NsfwTag]

counts = st.integers(0, 10_000)
shards = st.fixed_dictionaries(
    {
        **{f"nsfw:{tag}": counts for tag in NsfwTag},
        **{f"similarity:{name}": counts for name in ("missing", "0.00", "0.30", "0.36", "0.98")},
        **{f"outcome:{name}": counts for name in ("success", "dns", "set_aside")},
    }
)


def is_off(own, others, floor):
    found = compare(own, others, floor=floor, deviations=LIMITS.drift_deviations)
    return bool((found.distance > found.allowed).any())


# -- what is off ----------------------------------------------------------------------------------


@settings(deadline=None)
@given(shards, st.integers(1, 40), st.sampled_from([SUCCESS, TAGS, SIMILARITIES]))
def test_of_equal_shards_none_is_off(counted, others, measure):
    shares = measure.shares(counted)
    if shares is not None:
        assert not is_off(shares, [shares] * others, floor=0.0)


@pytest.mark.parametrize("rows", [20, 200, 10_000])
@pytest.mark.parametrize("floor", [0.0, 0.02])
def test_of_shards_drawn_from_one_distribution_none_is_off(rows, floor):
    random = np.random.default_rng(rows)
    drawn = [
        Shares(rows, found / rows) for found in random.multinomial(rows, [0.93, 0.05, 0.02, 0], size=100)
    ]
    assert not [at for at in range(100) if is_off(drawn[at], drawn[:at] + drawn[at + 1 :], floor)]


@settings(deadline=None)
@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 20_000))
def test_what_is_off_by_more_than_the_floor_and_chance_is_found(share, own, rows):
    others = [Shares(10_000, np.array([share]))] * 20
    expected = (rows * share + 1) / (rows + 2)
    chance = 5 * np.sqrt(expected * (1 - expected) / rows)
    if abs(abs(own - share) - max(0.05, chance)) > 1e-9:
        off = abs(own - share) > max(0.05, chance)
        assert is_off(Shares(rows, np.array([own])), others, floor=0.05) == off


def test_shards_that_differ_by_themselves_allow_more():
    own = Shares(10_000, np.array([0.85]))
    alike = [Shares(10_000, np.array([0.7]))] * 21
    spread = [Shares(10_000, np.array([share])) for share in np.linspace(0.6, 0.8, 21)]
    assert is_off(own, alike, floor=0.05)
    assert not is_off(own, spread, floor=0.05)


def test_a_few_odd_shards_hide_no_other():
    others = [Shares(10_000, np.array([share])) for share in [0.7] * 13 + [0.1] * 8]
    assert is_off(Shares(10_000, np.array([0.6])), others, floor=0.05)
    assert not is_off(Shares(10_000, np.array([0.7])), others, floor=0.05)


# -- the rules ------------------------------------------------------------------------------------


def publish_files(output, counted, write=None):
    def write_files(draft):
        for name in output.names:
            draft.path(name).write_bytes(b"")
        if write is not None:
            write(draft)
        return Tally(rows=0, counts=counted)

    publish(output, Recipe(code_version=json.dumps(counted)), write_files)


def examples(rows, *, nsfw="UNLIKELY", similarity=0.33):
    """Columns of a table of which every tenth row has another tag, and no similarity."""
    return {
        "nsfw": pa.array([TAG_NAMES[3] if row % 10 == 0 else nsfw for row in range(rows)]),
        "similarity": pa.array([-1.0 if row % 10 == 0 else similarity for row in range(rows)]),
    }


def publish_examples(layout, stage, number, columns):
    """A normalized table of which only tags and similarities mean anything."""
    is_image = stage == "normalized_images"
    shard = ShardId(number) if is_image else EmbeddingShardId(number)
    output = layout.normalized_images(shard) if is_image else layout.normalized_embeddings(shard)
    schema = NORMALIZED_IMAGES if is_image else NORMALIZED_EMBEDDINGS
    rows = len(columns["nsfw"])
    values = {
        field.name: columns.get(
            field.name,
            pa.array(["x"] * rows if field.type == pa.string() else [1] * rows, field.type),
        )
        for field in schema
    }

    def write(draft):
        parquet.write_table(draft.path(output.names[0]), pa.table(values, schema=schema), schema)
        aside = pa.table({name: [] for name in ROWS_SET_ASIDE.names}, schema=ROWS_SET_ASIDE)
        parquet.write_table(draft.path(output.names[1]), aside, ROWS_SET_ASIDE)

    publish_files(output, count_classes(**columns), write)


def verdict_on(layout, stage, name, limits=LIMITS):
    (rule,) = [rule for rule in rules_of(stage) if rule.name == name]
    return evaluate(rule, layout, limits, str(SHARD))


@pytest.fixture(scope="module", params=["normalized_images", "normalized_embeddings"])
def drifting(request, tmp_path_factory):
    """A data root of twelve shards alike, but for the first, which has other tags and similarities."""
    layout = Layout(tmp_path_factory.mktemp(request.param))
    publish_examples(layout, request.param, 0, examples(1_000, nsfw="NSFW", similarity=0.41))
    for number in range(1, 12):
        publish_examples(layout, request.param, number, examples(1_000))
    return layout, request.param


def test_a_shard_with_other_tags_is_told(drifting):
    verdict = verdict_on(*drifting, "tags_are_as_elsewhere")
    assert not verdict.passed
    assert verdict.figures == {
        "shards_sampled": 11,
        "shards_compared": 11,
        "unlikely_share": 0.0,
        "unsure_share": 0.0,
        "nsfw_share": 0.9,
        "untagged_share": 0.1,
        "unlikely_share_median": 0.9,
        "unsure_share_median": 0.0,
        "nsfw_share_median": 0.0,
        "untagged_share_median": 0.1,
        "distance": 0.9,
        "allowed": pytest.approx(0.02),
    }
    assert (verdict.offending, verdict.rows) == (900, 1_000)
    (example,) = verdict.examples
    assert "NSFW: 0.9000 of the rows" in example
    assert "in 11 other shards the median is 0.0000" in example


def test_a_shard_with_other_similarities_is_told(drifting):
    verdict = verdict_on(*drifting, "similarities_are_as_elsewhere")
    assert not verdict.passed
    figures = verdict.figures
    assert (figures["similarity_median"], figures["similarity_median_median"]) == (0.41, 0.33)
    assert figures["similarity_missing_share"] == figures["similarity_missing_share_median"] == 0.1
    assert figures["distance"] == 0.9
    assert "a similarity below 0.34: 0.1000 of the rows" in verdict.examples[0]


@pytest.mark.parametrize("name", ["tags_are_as_elsewhere", "similarities_are_as_elsewhere"])
def test_the_other_shards_pass(drifting, name):
    layout, stage = drifting
    (rule,) = [rule for rule in rules_of(stage) if rule.name == name]
    for number in (1, 11):
        verdict = evaluate(rule, layout, LIMITS, str(ShardId(number)))
        assert verdict.passed
        assert (verdict.offending, verdict.examples, verdict.figures["shards_compared"]) == (0, (), 11)


@pytest.mark.parametrize("name", ["tags_are_as_elsewhere", "similarities_are_as_elsewhere"])
def test_where_the_limits_are_wide_it_passes_too(drifting, name):
    wide = Thresholds(drift_tag_share=0.95, drift_similarity_distance=0.95)
    verdict = verdict_on(*drifting, name, wide)
    assert verdict.passed
    assert verdict.figures["distance"] == 0.9


def test_with_too_few_others_nothing_is_compared_and_that_is_said(drifting):
    verdict = verdict_on(*drifting, "tags_are_as_elsewhere", Thresholds(drift_least_shards=12))
    assert verdict.passed
    assert verdict.figures == {
        "shards_sampled": 11,
        "shards_compared": 0,
        "unlikely_share": 0.0,
        "unsure_share": 0.0,
        "nsfw_share": 0.9,
        "untagged_share": 0.1,
    }


def test_no_more_manifests_are_read_than_the_limit_says(drifting):
    limits = Thresholds(drift_sampled_shards=5, drift_least_shards=4)
    figures = verdict_on(*drifting, "tags_are_as_elsewhere", limits).figures
    # The first of the five is the shard itself.
    assert figures["shards_sampled"] == figures["shards_compared"] == 4


def downloads(layout, number, *, successes, failures):
    """Images of which the table alone can be read."""
    shard = ShardId(number)
    statuses = ["success"] * successes + ["failed_to_download"] * failures
    table = pa.table(
        {
            "key": [f"{number:05d}{row:04d}" for row in range(len(statuses))],
            "url": [""] * len(statuses),
            "status": statuses,
            "outcome": [{"success": "success"}.get(status, "dns") for status in statuses],
        }
    )

    def write(draft):
        parquet.write_table(draft.path(layout.images_table(shard).name), table, table.schema)

    counted = {"outcome:success": successes, "outcome:dns": failures}
    publish_files(layout.images(shard), counted, write)


def test_a_shard_of_which_few_downloads_succeeded_is_told_and_those_alike_are_not(tmp_path):
    layout = Layout(tmp_path)
    downloads(layout, 0, successes=50, failures=50)
    for number in range(1, 12):
        downloads(layout, number, successes=90, failures=10)
    verdict = verdict_on(layout, "images", "success_share_is_as_elsewhere")
    assert not verdict.passed
    assert verdict.figures["success_share"] == 0.5
    assert verdict.figures["success_share_median"] == 0.9
    assert (verdict.offending, verdict.rows) == (40, 100)
    downloads(layout, 0, successes=85, failures=15)
    assert verdict_on(layout, "images", "success_share_is_as_elsewhere").passed


def test_shards_whose_manifests_count_nothing_are_passed_over_and_counted(tmp_path):
    """Older versions counted neither tags nor similarities."""
    layout = Layout(tmp_path)
    stage = "normalized_embeddings"
    publish_examples(layout, stage, 0, examples(100, nsfw="NSFW"))
    for number in range(1, 14):
        publish_files(layout.normalized_embeddings(EmbeddingShardId(number)), {"rows": 100, "examples": 100})
    verdict = verdict_on(layout, stage, "tags_are_as_elsewhere")
    assert verdict.passed
    assert (verdict.figures["shards_sampled"], verdict.figures["shards_compared"]) == (13, 0)
    for number in range(1, 12):
        publish_examples(layout, stage, number, examples(100))
    layout.normalized_embeddings(EmbeddingShardId(13)).manifest.write_bytes(b"damaged")
    verdict = verdict_on(layout, stage, "tags_are_as_elsewhere")
    assert not verdict.passed
    assert (verdict.figures["shards_sampled"], verdict.figures["shards_compared"]) == (12, 11)


def test_a_shard_without_rows_passes(tmp_path):
    layout = Layout(tmp_path)
    for number in range(12):
        publish_examples(layout, "normalized_images", number, examples(100 if number else 0))
    for name in ("tags_are_as_elsewhere", "similarities_are_as_elsewhere"):
        verdict = verdict_on(layout, "normalized_images", name)
        assert (verdict.passed, verdict.rows) == (True, 0)
        assert verdict.figures == {"shards_sampled": 11, "shards_compared": 0}


def test_drift_only_warns():
    assert not any(rule.blocking for rule in DRIFT_RULES)
