"""The rows of one shard, each with its key; rows that cannot be asked for are marked, never dropped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from laion_assets.columns import NO_COLUMNS, ColumnPolicy, extra_field, find_columns, valid_texts
from laion_assets.errors import CorruptParquet, MissingInput
from laion_assets.formats import parquet, parquet_chunks
from laion_assets.formats.checksums import sha256_of
from laion_assets.formats.parquet_chunks import Chunk
from laion_assets.formats.publish import Draft, Manifest, Recipe, Tally, bring, publish, require
from laion_assets.formats.sealed import fingerprint
from laion_assets.image_table import read_image_table
from laion_assets.keys import check_unique
from laion_assets.layout import Layout, ShardId
from laion_assets.normalization import set_aside_reasons
from laion_assets.plan import RowRange, ShardPlan
from laion_assets.schema import RAW, SAMPLES, SET_ASIDE_PREFIX

CODE_VERSION: Final = "1"

# Column of SAMPLES -> column of RAW it is taken from.
_FROM_RAW: Final = {
    "sample_id": "SAMPLE_ID",
    "url": "URL",
    "caption": "TEXT",
    "declared_height": "HEIGHT",
    "declared_width": "WIDTH",
    "LICENSE": "LICENSE",
    "NSFW": "NSFW",
    "similarity": "similarity",
}


def write_samples(shard: ShardId, layout: Layout, *, columns: ColumnPolicy = NO_COLUMNS) -> Manifest:
    """Publish the samples of one shard, from its part or from the table that img2dataset laid down.

    Memory is that of one row group, since a part holds a row group for each shard; shards taken in
    ascending order are one sequential pass over the part.

    Args:
        shard: the shard.
        layout: where the plan and the part are, and where the samples go.
        columns: which further columns of the part are taken along, behind our own; a placed shard has none,
            since its own table keeps them.

    Raises:
        MissingInput: if the plan, the part or a column of it is not there yet.
        PlanError: if the plan has no such shard.
        CorruptParquet: if the part's rows are not where the plan says.
    """
    plan = ShardPlan.load(layout)
    rows = plan.rows_of(shard)
    if rows is None:
        placed, table = layout.images(shard), layout.images_table(shard)
        if placed.store and not table.exists():  # laid down on another machine, and adopted there
            bring(placed, [table.name])
        reads, inputs = [], {"images_table": sha256_of(table)}
    else:
        reads = [layout.raw_metadata(rows.part)]
        inputs = {"raw_metadata": require(reads[0]).data_version}
    # A plan that grew changes none of its shards, so only what it can never change counts here.
    inputs["shard_plan"] = plan.stable_version
    carried = () if rows is None else columns.carried
    settings = fingerprint(carried) if carried else ""
    recipe = Recipe(code_version=CODE_VERSION, settings=settings, inputs=inputs)

    def write(draft: Draft) -> Tally:
        if rows is None:
            found = _placed_rows(shard, layout)
        else:
            found = _planned_rows(layout, plan, shard, rows, carried)
        table = found.table
        reasons = set_aside_reasons(table["url"], table["similarity"])
        schema = pa.schema([*SAMPLES, *list(table.schema)[len(SAMPLES) - 1 :]])
        columns = table.columns
        columns.insert(schema.get_field_index("set_aside"), reasons)
        samples = pa.table(columns, schema=schema)
        if found.stored is None:
            parquet.write_table(draft.only, samples, schema, is_valid_text=True)
        else:
            with parquet_chunks.open_writer(draft.only, schema) as writer:
                writer.write(samples.drop_columns(list(found.stored)), found.stored)
        is_any = reasons.null_count < len(reasons)
        counted = Counter(pc.drop_null(reasons).to_pylist() if is_any else ())
        counts = {f"{SET_ASIDE_PREFIX}{reason}": count for reason, count in counted.items()}
        counts["set_aside"] = counted.total()
        counts["asked_for"] = table.num_rows - counts["set_aside"]
        return Tally(rows=table.num_rows, counts=counts)

    return publish(layout.samples(shard), recipe, write, reads=reads)


class _Rows(NamedTuple):
    """Rows in the columns of SAMPLES but ``set_aside``, then in those taken along; texts are UTF-8."""

    table: pa.Table
    stored: dict[str, Chunk] | None
    """Some of the columns as they are stored in the part, if they need not be encoded anew."""


def _planned_rows(
    layout: Layout, plan: ShardPlan, shard: ShardId, rows: RowRange, carried: Sequence[str]
) -> _Rows:
    """The rows that the plan gives the shard; every page of theirs is checked."""
    path = layout.raw_table(rows.part)
    with parquet.open_reader(path, keep_footer=True) as reader:
        group = rows.first // plan.rows_per_shard
        found = reader.metadata.row_group(group).num_rows if group < reader.num_row_groups else 0
        if found != rows.rows:
            raise CorruptParquet(
                path,
                expected=f"{rows.rows} rows in row group {group} for shard {shard}",
                found=f"{found} rows",
                remedy=f"Materialize raw_metadata {rows.part} again.",
            )
        names = find_columns(carried, reader.schema_arrow.names) if carried else {}
        if missing := [name for name, column in names.items() if column is None]:
            raise MissingInput(
                f"{path} was made without the column {missing[0]!r}: materialize raw_metadata {rows.part} "
                "again"
            )
        raw = reader.read_row_group(group, columns=[*RAW.names, *names.values()])
        footer = reader.metadata
    read = raw.select(list(_FROM_RAW.values()))
    # What is no UTF-8 in one row must not cost the shard.
    ours = valid_texts(read)
    # Unless a text had to be mended, columns are copied: to encode them would be half of what a shard costs.
    is_flat = not any(pa.types.is_nested(raw.schema.field(column).type) for column in names.values())
    is_stored = ours is read and is_flat and rows.rows
    stored = parquet_chunks.stored_columns(path, footer, group, _FROM_RAW) if is_stored else None
    table = ours.rename_columns(list(_FROM_RAW)).add_column(0, "key", plan.keys(shard, rows.rows))
    for name, column in names.items():
        field = extra_field(name, raw.schema.field(column).type)
        table = table.append_column(field, raw[column].cast(field.type))
    return _Rows(table, stored)


def _placed_rows(shard: ShardId, layout: Layout) -> _Rows:
    """Rows of a table that img2dataset wrote, in completion order there, in key order here."""
    placed = read_image_table(shard, layout)
    check_unique(placed["key"], layout.images_table(shard))
    columns = {
        field.name: placed[field.name]
        if field.name in placed.column_names
        else pa.nulls(placed.num_rows, field.type)
        for field in SAMPLES
        if field.name != "set_aside"
    }
    return _Rows(valid_texts(pa.table(columns)).sort_by("key"), stored=None)
