"""Counts of what is repeated and cannot be meant, beside a plain count, in memory that does not do for it."""

from __future__ import annotations

import math
import resource
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laion_assets.errors import CorruptInput, FileTooLong, MissingInput, SettingsError
from laion_assets.formats import parquet
from laion_assets.formats.durable import identity
from laion_assets.formats.publish import Manifest, Recipe, Tally, read_manifest, verify, vouch
from laion_assets.layout import Layout
from laion_assets.quality.thresholds import Thresholds
from laion_assets.schema import DUPLICATES, RAW
from laion_assets.stages.duplicates import search_duplicates

Rows = Sequence[tuple[str | None, str | None, float | None]]
PLENTY = Thresholds()
LITTLE = Thresholds(duckdb_memory_bytes=24 << 20)


def write_part(layout: Layout, name: str, rows: Rows) -> None:
    """Publish a part of these URLs, texts and similarities."""
    columns: dict[str, Any] = dict(zip(("URL", "TEXT", "similarity"), zip(*rows, strict=True), strict=False))
    arrays = [pa.array(columns.get(field.name, [None] * len(rows)), field.type) for field in RAW]
    output = layout.raw_metadata(name)
    output.folder.mkdir(parents=True, exist_ok=True)
    parquet.write_table(layout.raw_table(name), pa.table(arrays, schema=RAW), RAW)
    layout.raw_source(name).write_text("{}")
    vouch(output, Recipe(code_version="test"), lambda: Tally(rows=len(rows)))


def counted(rows: Rows) -> dict[str, int]:
    """The same by Python alone."""
    known = [value for *_, value in rows if value is not None and not math.isnan(value) and value != -1]
    urls = Counter(url for url, *_ in rows if url is not None)
    pairs = Counter((url, text) for url, text, _ in rows if url is not None)
    return {
        "rows": len(rows),
        "url_null": sum(url is None for url, *_ in rows),
        "text_null": sum(text is None for _, text, _ in rows),
        "similarity_missing": len(rows) - len(known),
        "similarity_outside": sum(not 0.3 <= value <= 1.001 for value in known),
        "similarity_impossible": sum(not 0 <= value <= 1.001 for value in known),
        "url_repeated": sum(urls.values()) - len(urls),
        "pair_repeated": sum(pairs.values()) - len(pairs),
    }


def check(layout: Layout, parts: dict[str, Rows], thresholds: Thresholds = PLENTY) -> Manifest:
    """Search parts for duplicates, and count them."""
    for name, rows in parts.items():
        write_part(layout, name, rows)
    manifest = search_duplicates(layout, thresholds)
    each = {name: counted(rows) for name, rows in sorted(parts.items())}
    total = counted([row for rows in parts.values() for row in rows])
    found = parquet.read_table(layout.duplicates().only, DUPLICATES).to_pylist()
    assert found == [*({"part": name, **counts} for name, counts in each.items()), {"part": None, **total}]
    across = {
        f"{name}_across_parts": total[name] - sum(counts[name] for counts in each.values())
        for name in ("url_repeated", "pair_repeated")
    }
    assert manifest.counts == {"parts": len(parts), **total, **across}
    assert verify(layout.duplicates()) == manifest
    return manifest


A: Rows = (
    ("a", "x", 0.3),
    ("a", "x", None),  # the pair once more
    ("a", "y", math.nan),  # the URL once more
    ("a", None, -1.0),
    ("a", "", 0.29),
    ("a", None, 1.0005),
    (None, "x", 1.01),  # no URL is nobody's repetition
    (None, "x", -0.1),
    ("", "", 6016.0),
)


def test_what_is_repeated_within_and_across_parts_is_counted(tmp_path: Path) -> None:
    manifest = check(Layout(tmp_path), {"b": A, "a": A[:2], "none": ()})
    assert manifest.rows == 11
    assert manifest.counts["url_repeated"] == 7
    assert manifest.counts["url_repeated_across_parts"] == 1
    assert manifest.counts["pair_repeated"] == 4
    assert manifest.counts["pair_repeated_across_parts"] == 1


def test_where_a_url_ends_and_a_text_begins_makes_another_pair(tmp_path: Path) -> None:
    rows = (("a", "b:c", None), ("a:b", "c", None), ("ab", "c", None), ("a", "bc", None), ("a", ":b:c", None))
    assert check(Layout(tmp_path), {"a": rows}).counts["pair_repeated"] == 0


texts = st.one_of(st.none(), st.sampled_from(["a", "b", "a:b", ":", "", "日本"]), st.text(max_size=3))


@settings(max_examples=25, deadline=None)
@given(
    parts=st.dictionaries(
        st.sampled_from(["p", "q", "r"]),
        st.lists(st.tuples(texts, texts, st.one_of(st.none(), st.floats())), max_size=40),
        min_size=1,
    )
)
def test_as_a_plain_count_says(tmp_path_factory: pytest.TempPathFactory, parts: dict[str, Rows]) -> None:
    check(Layout(tmp_path_factory.mktemp("parts")), parts)


def many(rows: int, seed: int) -> Rows:
    """Rows of which a few share URL or text."""
    rng = np.random.default_rng(seed)
    numbers = np.where(
        rng.random(rows) < 0.05, rng.integers(0, rows, rows), np.arange(rows) + seed * rows // 2
    )
    similarities = rng.uniform(0.25, 1.05, rows)
    return [
        (f"http://example.org/{number}.jpg" if number % 50 else None, f"caption {number % 3}", similarity)
        for number, similarity in zip(numbers.tolist(), similarities.tolist(), strict=True)
    ]


def written() -> int:
    """Bytes that this process has handed to the disk."""
    (line,) = [line for line in Path("/proc/self/io").read_text().splitlines() if line.startswith("wchar")]
    return int(line.split()[1])


@pytest.mark.skipif(sys.platform != "linux", reason="/proc exists for Linux only")
def test_what_does_not_fit_into_memory_goes_to_the_disk_and_makes_no_other_counts(tmp_path: Path) -> None:
    parts = {name: many(150_000, seed) for seed, name in enumerate("ab")}
    took = {}
    for name, thresholds in (("plenty", PLENTY), ("little", LITTLE)):
        layout = Layout(tmp_path / name)
        for part, rows in parts.items():
            write_part(layout, part, rows)
        before = written()
        search_duplicates(layout, thresholds)
        took[name] = written() - before
    assert took["plenty"] < 1 << 20
    assert took["little"] > 8 << 20
    bodies = [Layout(tmp_path / name).duplicates().only.read_bytes() for name in took]
    assert bodies[0] == bodies[1]
    check(Layout(tmp_path / "little"), parts, LITTLE)
    assert not Layout(tmp_path / "little").duplicates().draft.exists()


def test_a_disk_that_does_not_take_what_does_not_fit_is_named(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    for seed, part in enumerate("ab"):
        write_part(layout, part, many(150_000, seed))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (256 << 10, limits[1]))
    try:
        with pytest.raises(FileTooLong, match=r"duplicates: .* outgrew"):
            search_duplicates(layout, LITTLE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert read_manifest(layout.duplicates()) is None
    assert not layout.duplicates().draft.exists()
    assert search_duplicates(layout, LITTLE).counts["parts"] == 2


def test_memory_that_does_not_do_at_all_is_named(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    write_part(layout, "a", many(300_000, 0))
    # Less than a user may set, since how little does not do is DuckDB's to decide.
    tiny = Thresholds.model_construct(**PLENTY.model_dump() | {"duckdb_memory_bytes": 1 << 20})
    with pytest.raises(SettingsError, match=r"quality\.duckdb_memory_bytes"):
        search_duplicates(layout, tiny)
    assert read_manifest(layout.duplicates()) is None
    assert not layout.duplicates().draft.exists()


def test_nothing_is_done_again_but_for_other_parts(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    first = check(layout, {"a": A})
    assert search_duplicates(layout, LITTLE) == first
    before = identity(layout.duplicates().only.stat())
    assert search_duplicates(layout, Thresholds(similarity_low=0.2)).counts["similarity_outside"] == 3
    write_part(layout, "b", A)
    assert search_duplicates(layout, PLENTY).counts["parts"] == 2
    assert identity(layout.duplicates().only.stat()) != before


def test_without_a_part_it_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match="materialize raw_metadata first"):
        search_duplicates(Layout(tmp_path), PLENTY)


def test_a_part_that_is_not_the_one_published_is_refused(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    write_part(layout, "a", A)
    path = layout.raw_table("a")
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 1
    path.write_bytes(body)
    with pytest.raises(CorruptInput, match=r"a\.parquet: expected XXH3-128"):
        search_duplicates(layout, PLENTY)


def test_text_that_is_no_utf8_is_counted_all_the_same(tmp_path: Path) -> None:
    layout, output = Layout(tmp_path), Layout(tmp_path).raw_metadata("a")
    bytes_ = pa.array([b"\xff\xfe"] * 3 + [b"ok"], pa.binary())
    text = pa.Array.from_buffers(pa.string(), len(bytes_), bytes_.buffers())
    columns = {field.name: pa.nulls(4, field.type) for field in RAW} | {"URL": text, "TEXT": text}
    output.folder.mkdir(parents=True)
    pq.write_table(pa.table(columns, schema=RAW), layout.raw_table("a"))
    layout.raw_source("a").write_text("{}")
    vouch(output, Recipe(code_version="test"), lambda: Tally(rows=4))
    assert search_duplicates(layout, PLENTY).counts["pair_repeated"] == 2
