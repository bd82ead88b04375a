"""The examples-to-be of one embedding shard: metadata normalized; vectors stay in the joined table."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from laion_assets.formats import parquet
from laion_assets.formats.publish import Draft, Manifest, Recipe, Tally, publish, require
from laion_assets.layout import EmbeddingShardId, Layout
from laion_assets.normalization import merge_counts, normalize_metadata, set_aside_reasons
from laion_assets.schema import (
    NORMALIZED_EMBEDDINGS,
    ROWS_SET_ASIDE,
    SET_ASIDE_PREFIX,
    SetAside,
    embedding_join,
)

CODE_VERSION: Final = "1"

_BATCH_ROWS: Final = 65_536
_SIZES: Final = ("original_height", "original_width")
_COLUMNS: Final = ("key", "url", "caption", "NSFW", "similarity", "LICENSE", *_SIZES, "cosine")


def normalize_embeddings(shard: EmbeddingShardId, layout: Layout) -> Manifest:
    """Publish the examples-to-be of one shard and, beside them, the rows set aside with their reasons.

    Counts: ``rows``, which is ``examples + set_aside``, the rows set aside for each reason, and what was
    mapped to what in the examples.

    Raises:
        MissingInput: if the shard's joined table is not there yet.
        CorruptParquet: if it is damaged.
    """
    joined = require(layout.embedding_join(shard))
    recipe = Recipe(code_version=CODE_VERSION, inputs={"embedding_join": joined.data_version})

    def write(draft: Draft) -> Tally:
        table, aside = layout.normalized_embeddings(shard).names
        counts = _normalize(layout.embedding_join(shard).only, draft.path(table), draft.path(aside))
        return Tally(rows=counts["examples"], counts=counts)

    return publish(layout.normalized_embeddings(shard), recipe, write, reads=[layout.embedding_join(shard)])


def _normalize(path: Path, table: Path, aside: Path) -> dict[str, int]:
    counts = [dict.fromkeys(("rows", "examples", "set_aside"), 0)]
    first = 0
    with (
        parquet.open_writer(table, NORMALIZED_EMBEDDINGS) as examples,
        parquet.open_writer(aside, ROWS_SET_ASIDE) as set_aside,
    ):
        schema = embedding_join(parquet.vector_width(path))
        for rows in parquet.read_batches(path, schema, batch_rows=_BATCH_ROWS, columns=_COLUMNS):
            reasons = _reasons(rows)
            numbers = pa.array(range(first, first + len(rows)), pa.int64())
            first += len(rows)
            accepted = rows.append_column("row", numbers).filter(pc.is_null(reasons))
            converted, mapped = _examples(accepted)
            refused = _set_aside(rows, reasons)
            examples.write_batch(converted)
            set_aside.write_batch(refused)
            tally = {"rows": len(rows), "examples": len(converted), "set_aside": len(refused)}
            named = Counter(f"{SET_ASIDE_PREFIX}{reason}" for reason in refused["reason"].to_pylist())
            counts = [merge_counts([*counts, mapped, tally, named])]
    return counts[0]


def _reasons(rows: pa.RecordBatch) -> pa.Array:
    # The join's cosine is NaN where a vector is zero or not finite.
    bad_vector = pc.if_else(pc.is_nan(rows["cosine"]), str(SetAside.BAD_VECTOR), pa.scalar(None, pa.string()))
    return pc.coalesce(set_aside_reasons(rows["url"], rows["similarity"]), bad_vector)


def _examples(rows: pa.RecordBatch) -> tuple[pa.RecordBatch, dict[str, int]]:
    normalized, counts = normalize_metadata(rows)
    columns = {
        "row": rows["row"],
        "key": rows["key"],
        "url": rows["url"],
        **normalized,
        **{name: pc.fill_null(rows[name], 0) for name in _SIZES},
    }
    counts |= {f"{name}:null -> 0": rows[name].null_count for name in _SIZES}
    examples = pa.record_batch([columns[name] for name in NORMALIZED_EMBEDDINGS.names], NORMALIZED_EMBEDDINGS)
    return examples, counts


def _set_aside(rows: pa.RecordBatch, reasons: pa.Array) -> pa.RecordBatch:
    refused, why = rows.filter(pc.is_valid(reasons)), pc.drop_null(reasons)
    details = [
        _detail(reason, similarity)
        for reason, similarity in zip(why.to_pylist(), refused["similarity"].to_pylist(), strict=True)
    ]
    return pa.record_batch([refused["key"], why, pa.array(details, pa.string())], schema=ROWS_SET_ASIDE)


def _detail(reason: str, similarity: float | None) -> str:
    if reason == SetAside.MISSING_URL:
        return "no address"
    if reason == SetAside.BAD_VECTOR:
        return "a vector is zero or not finite"
    return f"similarity {similarity}"
