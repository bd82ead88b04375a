import pytest
from quality_inputs import SHARDS, shared_root

from laion_assets.formats.publish import require
from laion_assets.quality.measures import SIMILARITIES, SUCCESS, TAGS, key_figures
from laion_assets.schema import NsfwTag

NO_TAGS = {f"nsfw:{tag}": 0 for tag in NsfwTag}


def test_rows_set_aside_are_no_failures():
    counts = {"outcome:success": 3, "outcome:dns": 1, "outcome:set_aside": 96, "bytes_downloaded": 999}
    assert key_figures(counts) == {"success_share": 0.75}
    assert SUCCESS.shares(counts).rows == 4


def test_tags_and_similarities_give_their_figures():
    counts = NO_TAGS | {"nsfw:UNLIKELY": 3, "nsfw:NSFW": 1, "similarity:missing": 2}
    counts |= {"similarity:0.30": 1, "similarity:0.32": 1, "nsfw:null -> UNTAGGED": 5}
    assert key_figures(counts) == {
        "unlikely_share": 0.75,
        "unsure_share": 0.0,
        "nsfw_share": 0.25,
        "untagged_share": 0.0,
        "similarity_missing_share": 0.5,
        "similarity_median": 0.32,
    }


@pytest.mark.parametrize(
    ("counts", "median"),
    [
        ({"similarity:0.30": 4}, 0.31),  # the middle of the only bin
        ({"similarity:0.98": 1}, 0.99),
        ({"similarity:0.00": 1, "similarity:missing": 9}, 0.01),
        ({"similarity:0.30": 3, "similarity:0.40": 1}, 0.30 + 0.02 * 2 / 3),
        ({"similarity:missing": 9}, None),
    ],
)
def test_the_median_is_of_the_similarities_that_are_there(counts, median):
    found = key_figures(counts).get("similarity_median")
    assert found == (None if median is None else pytest.approx(median, abs=1e-6))


@pytest.mark.parametrize("counts", [{}, {"rows": 5, "examples": 5}, {"outcome:set_aside": 5}, NO_TAGS])
def test_where_nothing_was_counted_there_is_no_figure(counts):
    assert key_figures(counts) == {}
    assert [measure.shares(counts) for measure in (SUCCESS, TAGS, SIMILARITIES)] == [None] * 3


def test_stages_count_what_is_measured(tmp_path_factory):
    layout = shared_root(tmp_path_factory)
    found = {
        stage: set(key_figures(require(output).counts))
        for stage, output in {
            "samples": layout.samples(SHARDS[0]),
            "images": layout.images(SHARDS[0]),
            "normalized_images": layout.normalized_images(SHARDS[0]),
        }.items()
    }
    tags = {f"{tag.lower()}_share" for tag in NsfwTag}
    assert found == {
        "samples": set(),
        "images": {"success_share"},
        "normalized_images": tags | {"similarity_median", "similarity_missing_share"},
    }


def test_every_share_has_a_name():
    for measure in (TAGS, SIMILARITIES):
        shares = measure.shares({"nsfw:NSFW": 1, "similarity:0.30": 1})
        assert len(shares.values) == len(measure.names)
