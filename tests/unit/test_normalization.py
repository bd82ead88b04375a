import math

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laion_assets.normalization import (
    MAX_TAGS_NAMED,
    SIMILARITY_TOLERANCE,
    count_classes,
    fill_text,
    merge_counts,
    normalize_nsfw,
    normalize_similarity,
    set_aside_reasons,
)
from laion_assets.schema import MISSING_SIMILARITY, SIMILARITY_CLASSES, TAG_CLASSES, NsfwTag, SetAside

tags = st.one_of(st.none(), st.sampled_from(list(NsfwTag)), st.text(max_size=60))
similarities = st.one_of(st.none(), st.just(-1.0), st.floats(), st.floats(-0.1, 1.1))
urls = st.one_of(st.none(), st.text(max_size=6), st.just("http://example.org/a.jpg"))


def chunked(values, type_):
    """The same values as an array, and as one in chunks."""
    half = len(values) // 2
    return pa.array(values, type_), pa.chunked_array([values[:half], [], values[half:]], type_)


@settings(deadline=None, max_examples=50)
@given(st.lists(tags, max_size=60))
def test_every_tag_becomes_one_of_four(values):
    for array in chunked(values, pa.string()):
        found, counts = normalize_nsfw(array)
        expected = [value if value in set(NsfwTag) else "UNTAGGED" for value in values]
        assert found.to_pylist() == expected
        assert sum(counts.values()) == sum(value not in set(NsfwTag) for value in values)
        assert len(counts) <= MAX_TAGS_NAMED + 2
        assert all(len(name) <= 80 and name.isascii() and name.isprintable() for name in counts)


def test_what_tags_were_is_counted_without_their_wild_text():
    found, counts = normalize_nsfw(
        pa.array(["NSFW", "nsfw", "UNLIKELY ", None, "", "![](/graphql)", "x" * 41, "other", "nsfw"])
    )
    assert found[0].as_py() == "NSFW"
    assert counts == {
        "nsfw:'nsfw' -> UNTAGGED": 2,
        "nsfw:'UNLIKELY ' -> UNTAGGED": 1,
        "nsfw:'' -> UNTAGGED": 1,
        "nsfw:'other' -> UNTAGGED": 1,
        "nsfw:null -> UNTAGGED": 1,
        "nsfw:other -> UNTAGGED": 2,
    }


def test_only_the_most_frequent_tags_are_named():
    values = [f"tag {number}" for number in range(1000)] + ["often"] * 5
    _, counts = normalize_nsfw(pa.array(values))
    assert len(counts) == MAX_TAGS_NAMED + 1
    assert counts["nsfw:'often' -> UNTAGGED"] == 5
    assert counts["nsfw:other -> UNTAGGED"] == 1000 - (MAX_TAGS_NAMED - 1)
    again = normalize_nsfw(pa.array(values[::-1]))[1]
    assert again == counts


def test_counts_of_many_pieces_stay_bounded_and_lose_nothing():
    pieces = [normalize_nsfw(pa.array([f"tag {piece} {n}" for n in range(30)]))[1] for piece in range(30)]
    total = merge_counts([*pieces, {"rows": 900}])
    assert len(total) == MAX_TAGS_NAMED + 2
    assert sum(total.values()) == 1800


@settings(deadline=None, max_examples=50)
@given(st.lists(similarities, max_size=20))
def test_a_missing_similarity_is_minus_one_and_others_stay(values):
    for array in chunked(values, pa.float64()):
        found, counts = normalize_similarity(array)
        missing = [value is None or math.isnan(value) for value in values]
        expected = [
            MISSING_SIMILARITY if gone else value for gone, value in zip(missing, values, strict=True)
        ]
        assert found.to_pylist() == expected
        assert found.null_count == 0
        assert sum(counts.values()) == sum(missing)
        assert counts["similarity:null -> -1.0"] == values.count(None)


@settings(deadline=None, max_examples=80)
@given(st.lists(st.tuples(urls, similarities), max_size=20))
def test_reasons_are_those_of_each_row_alone(rows):
    def reason(url, similarity):
        if url is None or not url.strip():
            return SetAside.MISSING_URL
        if similarity is None or math.isnan(similarity) or similarity == MISSING_SIMILARITY:
            return None
        if similarity > 1 + SIMILARITY_TOLERANCE:
            return SetAside.SIMILARITY_ABOVE_ONE
        return SetAside.SIMILARITY_BELOW_ZERO if similarity < 0 else None

    # str.strip() also takes four control characters for blank that Arrow does not.
    rows = [(url, value) for url, value in rows if not set(url or "") & set("\x1c\x1d\x1e\x1f\x85")]
    addresses, values = [url for url, _ in rows], [value for _, value in rows]
    for url, similarity in zip(chunked(addresses, pa.string()), chunked(values, pa.float64()), strict=True):
        found = set_aside_reasons(url, similarity)
        assert found.type == pa.string()
        assert found.to_pylist() == [reason(*row) for row in rows]


@pytest.mark.parametrize(
    ("similarity", "expected"),
    [
        (6016.0, "similarity_above_one"),
        (math.inf, "similarity_above_one"),
        (1.002, "similarity_above_one"),
        (1.0000001, None),
        (1.0005, None),
        (0.0, None),
        (-0.0, None),
        (-1.0, None),
        (None, None),
        (math.nan, None),
        (-0.2, "similarity_below_zero"),
        (-1.0000001, "similarity_below_zero"),
        (-math.inf, "similarity_below_zero"),
    ],
)
def test_which_similarities_are_acceptable(similarity, expected):
    url = pa.array(["http://example.org/a.jpg"])
    assert set_aside_reasons(url, pa.array([similarity], pa.float64())).to_pylist() == [expected]


def test_columns_of_nulls_and_of_other_widths_are_taken():
    assert set_aside_reasons(pa.nulls(2), pa.nulls(2)).to_pylist() == ["missing_url"] * 2
    assert normalize_nsfw(pa.nulls(2))[0].to_pylist() == ["UNTAGGED"] * 2
    assert normalize_similarity(pa.nulls(2))[0].to_pylist() == [-1.0] * 2
    assert normalize_similarity(pa.array([0.5], pa.float32()))[0].type == pa.float64()
    assert fill_text(pa.nulls(2)).to_pylist() == ["", ""]
    assert fill_text(pa.array(["a", None, " "], pa.large_string())).to_pylist() == ["a", "", " "]
    assert fill_text(pa.chunked_array([], pa.string())).to_pylist() == []


@pytest.mark.parametrize(
    ("similarity", "class_"),
    [
        (-1.0, "similarity:missing"),
        (0.0, "similarity:0.00"),
        (0.3, "similarity:0.30"),
        (0.3199, "similarity:0.30"),
        (0.32, "similarity:0.32"),
        (1.0, "similarity:0.98"),
        (1.0005, "similarity:0.98"),
        # Of tables that are not as they were written, which other rules find.
        (math.nan, "similarity:missing"),
        (math.inf, "similarity:0.98"),
    ],
)
def test_a_similarity_is_counted_in_its_bin(similarity, class_):
    counts = count_classes(pa.array(["NSFW"]), pa.array([similarity]))
    assert counts == {**dict.fromkeys(TAG_CLASSES, 0), "nsfw:NSFW": 1, class_: 1}


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.sampled_from(list(NsfwTag)), st.floats(0, 1) | st.just(-1.0)), max_size=30))
def test_every_example_is_counted_by_its_tag_and_by_its_similarity(rows):
    counts = count_classes(
        pa.array([tag for tag, _ in rows], pa.string()), pa.array([value for _, value in rows], pa.float64())
    )
    assert set(counts) <= {*TAG_CLASSES, *SIMILARITY_CLASSES}
    assert set(counts) >= set(TAG_CLASSES)
    assert sum(counts[name] for name in TAG_CLASSES) == len(rows)
    assert sum(counts.get(name, 0) for name in SIMILARITY_CLASSES) == len(rows)
    for tag in NsfwTag:
        assert counts[f"nsfw:{tag}"] == sum(found == tag for found, _ in rows)


def test_the_four_tags_are_never_lumped_together():
    odd = {f"nsfw:'tag {number}' -> UNTAGGED": 5 for number in range(MAX_TAGS_NAMED)}
    four = dict.fromkeys(TAG_CLASSES, 1)
    assert merge_counts([odd, four, four]) == odd | dict.fromkeys(TAG_CLASSES, 2)
