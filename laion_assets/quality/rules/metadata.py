"""Rules of the raw metadata, the plan and the samples."""

# ruff: noqa: S608 (queries are put together from this project's own words)

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from laion_assets.errors import MisalignedShard
from laion_assets.formats import parquet
from laion_assets.formats.publish import read_manifest, require
from laion_assets.keys import global_keys
from laion_assets.layout import ShardId
from laion_assets.normalization import SIMILARITY_TOLERANCE
from laion_assets.plan import PlanEntry, ShardPlan
from laion_assets.quality.row_stream import RowStream, stored_rows
from laion_assets.quality.rules.rule import Offences, Query, Rule, Subject, Verdict
from laion_assets.raw_source import read_source
from laion_assets.schema import MISSING_SIMILARITY, RAW, SAMPLES, SetAside

# In DuckDB NaN equals itself and is above every number, so it has to be named.
SIMILARITY_MISSING: Final = f"(similarity IS NULL OR isnan(similarity) OR similarity = {MISSING_SIMILARITY})"
SIMILARITY_IMPOSSIBLE: Final = (
    f"(NOT {SIMILARITY_MISSING} AND (similarity > 1 + {SIMILARITY_TOLERANCE} OR similarity < 0))"
)


# -- raw_metadata ---------------------------------------------------------------------------------


def _raw_rows(subject: Subject, columns: Sequence[str]) -> RowStream:
    return stored_rows(subject.layout.raw_table(subject.partition), RAW, columns, and_more=True)


def _raw_schema(subject: Subject) -> Verdict:
    manifest = require(subject.layout.raw_metadata(subject.partition))
    offences = Offences()
    with parquet.open_reader(subject.layout.raw_table(subject.partition)) as reader:
        found, rows = reader.schema_arrow, reader.metadata.num_rows
    # Columns taken along from the source follow.
    if found.names[: len(RAW)] != RAW.names:
        offences.add("columns", f"expected {', '.join(RAW.names)}; found {', '.join(found.names)}")
    for expected in RAW:
        if expected.name in found.names and not found.field(expected.name).equals(expected):
            offences.add(expected.name, f"expected {expected.type}, found {found.field(expected.name).type}")
    if rows != manifest.rows:
        offences.add("rows", f"the manifest says {manifest.rows}, the file has {rows}")
    return offences.verdict(rows=rows, figures={"columns": len(found.names)})


# -- shard_plan -----------------------------------------------------------------------------------


def _plan_covers_rows(subject: Subject) -> Verdict:
    plan = ShardPlan.load(subject.layout)
    offences = Offences()
    for entry in plan.entries:
        next_row = 0
        for shard in plan.shards_of(entry.part):
            rows = plan.rows_of(shard)
            if rows is None or (rows.part, rows.first) != (entry.part, next_row) or rows.rows < 1:
                offences.add(shard, f"expected rows of {entry.part} from {next_row}, found {rows}")
            else:
                next_row += rows.rows
        if next_row != entry.rows:
            offences.add(entry.part, f"{next_row} of {entry.rows} rows are in a shard")
    for part, times in Counter(entry.part for entry in plan.entries).items():
        if times > 1:
            offences.add(part, f"planned {times} times")
    return offences.verdict(
        rows=sum(entry.rows for entry in plan.entries),
        figures={"parts": len(plan.entries), "shards": len(plan.shards), "placed": len(plan.placed)},
    )


def _plan_numbers_unique(subject: Subject) -> Verdict:
    plan = ShardPlan.load(subject.layout)
    offences = Offences()
    for shard, times in Counter(plan.shards).items():
        if times > 1:
            offences.add(shard, f"in the plan {times} times")
    return offences.verdict(rows=len(plan.shards), figures={"shard_count": plan.shard_count})


def _plan_parts_unchanged(subject: Subject) -> Verdict:
    plan = ShardPlan.load(subject.layout)
    offences = Offences()
    for entry in plan.entries:
        if found := _part_change(subject, entry):
            offences.add(entry.part, found)
    return offences.verdict(rows=len(plan.entries))


def _part_change(subject: Subject, entry: PlanEntry) -> str | None:
    manifest = read_manifest(subject.layout.raw_metadata(entry.part))
    if manifest is None:
        return "planned, but no longer published"
    if manifest.rows != entry.rows:
        return f"planned with {entry.rows} rows, published with {manifest.rows}"
    if (found := read_source(subject.layout, entry.part).sha256) != entry.sha256:
        return f"planned from a file with sha256 {entry.sha256}, published from one with {found}"
    return None


def _plan_sources_there(subject: Subject) -> Verdict:
    plan = ShardPlan.load(subject.layout)
    offences = Offences()
    for entry in plan.entries:
        if lost := _lost_file(subject, entry.part):
            offences.add(entry.part, lost)
    for shard in map(ShardId, plan.placed):
        output = subject.layout.placed_images(shard)
        # What was laid down and adopted is in object storage, wherever that was.
        is_kept = output.store and read_manifest(subject.layout.images(shard)) is not None
        missing = [name for name in output.names if not is_kept and not output.path(name).is_file()]
        if missing:
            offences.add(shard, f"laid down and planned, but {', '.join(missing)} is gone")
    return offences.verdict(rows=len(plan.entries) + len(plan.placed))


def _lost_file(subject: Subject, part: str) -> str | None:
    if read_manifest(subject.layout.raw_metadata(part)) is None:
        return None  # which another rule says
    source = read_source(subject.layout, part)
    if "://" in source.location:
        return None
    try:
        found = Path(source.location).stat().st_size
    except OSError:
        return f"the file it was read from is gone: {source.location}"
    return None if found == source.size_bytes else f"read from {source.size_bytes} bytes, now {found}"


# -- samples --------------------------------------------------------------------------------------


def _sample_rows(subject: Subject, columns: Sequence[str]) -> RowStream:
    return stored_rows(subject.layout.samples(subject.shard).only, SAMPLES, columns, and_more=True)


def _sample_keys(subject: Subject) -> Verdict:
    path = subject.layout.samples(subject.shard).only
    found = parquet.read_table(path, SAMPLES, columns=["key"], and_more=True)["key"].combine_chunks()
    plan = ShardPlan.load(subject.layout)
    offences = Offences()
    if plan.rows_of(subject.shard) is None:
        _check_placed_keys(subject, found, offences)
    else:
        expected = plan.keys(subject.shard, len(found))
        for row in pc.indices_nonzero(pc.not_equal(found, expected)).to_pylist():
            offences.add(found[row], f"row {row} should be {expected[row]}")
    return offences.verdict(rows=len(found))


def _check_placed_keys(subject: Subject, found: pa.Array, offences: Offences) -> None:
    """Keys of a shard that img2dataset made may leave gaps, but are the shard's, ascend and do not repeat."""
    try:
        expected = global_keys(found, subject.shard, subject.layout.samples(subject.shard).only)
    except MisalignedShard as error:
        offences.add("keys", f"expected {error.expected}, found {error.found}")
        return
    if not found.equals(expected) or not found.equals(found.sort()):
        offences.add("keys", "not global, or not ascending")


def _sample_count(subject: Subject) -> Verdict:
    manifest = require(subject.layout.samples(subject.shard))
    with parquet.open_reader(subject.layout.samples(subject.shard).only) as reader:
        found = reader.metadata.num_rows
    planned = ShardPlan.load(subject.layout).rows_of(subject.shard)
    offences = Offences()
    expected = {"manifest": manifest.rows} | ({"plan": planned.rows} if planned else {})
    for source, rows in expected.items():
        if rows != found:
            offences.add(subject.shard, f"the {source} says {rows} rows, the file has {found}")
    return offences.verdict(rows=found)


_REASONS: Final = ", ".join(f"'{reason}'" for reason in SetAside)

METADATA_RULES: Final = (
    Rule(
        name="columns_are_canonical",
        stage="raw_metadata",
        blocking=True,
        description="The part has exactly LAION-400M's eight columns, in its types, and all its rows.",
        check=_raw_schema,
    ),
    Rule(
        name="url_is_known",
        stage="raw_metadata",
        blocking=False,
        description="Few rows lack a URL.",
        check=Query(
            read=_raw_rows,
            columns=("URL",),
            sql="SELECT row_index AS key, 'URL is null' AS detail FROM rows WHERE URL IS NULL",
            allowed_share="null_url_share",
        ),
    ),
    Rule(
        name="text_is_known",
        stage="raw_metadata",
        blocking=False,
        description="Few rows lack an alt text.",
        check=Query(
            read=_raw_rows,
            columns=("TEXT",),
            sql="SELECT row_index AS key, 'TEXT is null' AS detail FROM rows WHERE TEXT IS NULL",
            allowed_share="null_text_share",
        ),
    ),
    Rule(
        name="url_and_text_are_unique",
        stage="raw_metadata",
        blocking=False,
        description="Few pairs of URL and text are there more than once.",
        check=Query(
            read=_raw_rows,
            columns=("URL", "TEXT"),
            # 64-bit hashes stand for the pairs, so that 13 million of them take 0.5 GB; that two pairs of
            # a part share one by chance has odds of one in 200,000.
            sql="""
                SELECT row_index AS key, url AS detail
                FROM (SELECT row_index, left(URL, 200) AS url, hash(URL, TEXT) AS pair FROM rows
                      WHERE URL IS NOT NULL)
                QUALIFY row_number() OVER (PARTITION BY pair ORDER BY row_index) > 1
            """,
            allowed_share="duplicate_share",
        ),
    ),
    Rule(
        name="similarity_is_in_range",
        stage="raw_metadata",
        blocking=False,
        description="Few known similarities lie outside of what the release's own filter kept.",
        check=Query(
            read=_raw_rows,
            columns=("similarity",),
            sql=f"""
                SELECT row_index AS key, 'similarity ' || similarity AS detail FROM rows
                WHERE NOT {SIMILARITY_MISSING}
                  AND (similarity < $similarity_low OR similarity > 1 + {SIMILARITY_TOLERANCE})
            """,
            allowed_share="similarity_outside_share",
        ),
    ),
    Rule(
        name="similarity_is_known",
        stage="raw_metadata",
        blocking=False,
        description="Not too many rows lack a similarity.",
        check=Query(
            read=_raw_rows,
            columns=("similarity",),
            sql=f"""
                SELECT row_index AS key, coalesce('similarity ' || similarity, 'similarity is null') AS detail
                FROM rows WHERE {SIMILARITY_MISSING}
            """,
            allowed_share="similarity_null_share",
        ),
    ),
    Rule(
        name="similarity_is_possible",
        stage="raw_metadata",
        blocking=False,
        description="No similarity is above 1 or below 0; rows where one is are set aside as samples.",
        check=Query(
            read=_raw_rows,
            columns=("similarity",),
            sql=f"""
                SELECT row_index AS key, 'similarity ' || similarity AS detail FROM rows
                WHERE {SIMILARITY_IMPOSSIBLE}
            """,
            allowed_share="similarity_impossible_share",
        ),
    ),
    Rule(
        name="rows_are_covered_once",
        stage="shard_plan",
        blocking=True,
        description="Every row of every part is in exactly one shard, and a part's shards follow its order.",
        check=_plan_covers_rows,
    ),
    Rule(
        name="shard_numbers_are_unique",
        stage="shard_plan",
        blocking=True,
        description="No two shards have one number.",
        check=_plan_numbers_unique,
    ),
    Rule(
        name="parts_are_unchanged",
        stage="shard_plan",
        blocking=True,
        description="Every planned part is still published, with the rows and sha256 it was planned with.",
        check=_plan_parts_unchanged,
    ),
    Rule(
        name="sources_are_there",
        stage="shard_plan",
        blocking=False,
        description="The file of every planned part and those of every shard laid down are still there.",
        check=_plan_sources_there,
    ),
    Rule(
        name="keys_are_the_shards",
        stage="samples",
        blocking=True,
        description="Keys are the shard's number and the row's, in order, each once.",
        check=_sample_keys,
    ),
    Rule(
        name="rows_are_the_plans",
        stage="samples",
        blocking=True,
        description="The shard has as many rows as the plan and its manifest say.",
        check=_sample_count,
    ),
    Rule(
        name="unacceptable_rows_are_set_aside",
        stage="samples",
        blocking=True,
        description="Rows without a URL or with an impossible similarity are set aside, and no others are.",
        check=Query(
            read=_sample_rows,
            columns=("key", "url", "similarity", "set_aside"),
            sql=f"""
                SELECT key, 'set_aside is ' || coalesce(set_aside, 'null') || ', similarity '
                    || coalesce(similarity::VARCHAR, 'null') || ', url ' || coalesce(left(url, 100), 'null')
                    AS detail
                FROM rows
                WHERE (set_aside IS NULL)
                      = (url IS NULL OR regexp_full_match(url, '\\s*') OR {SIMILARITY_IMPOSSIBLE})
                   OR set_aside NOT IN ({_REASONS})
            """,
        ),
    ),
    Rule(
        name="few_rows_are_set_aside",
        stage="samples",
        blocking=False,
        description="Few rows are set aside without being asked for.",
        check=Query(
            read=_sample_rows,
            columns=("key", "set_aside"),
            sql="SELECT key, set_aside AS detail FROM rows WHERE set_aside IS NOT NULL",
            allowed_share="set_aside_share",
        ),
    ),
)
