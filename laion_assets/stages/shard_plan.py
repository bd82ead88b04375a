"""The plan of shards: every published part and every shard laid down by img2dataset, appended once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from laion_assets.errors import MissingInput, PlanError
from laion_assets.formats.publish import Draft, Manifest, Recipe, Tally, publish, require
from laion_assets.layout import Layout
from laion_assets.plan import ShardPlan, find_placed
from laion_assets.published import is_published
from laion_assets.raw_source import read_source

CODE_VERSION: Final = "1"


def plan_shards(layout: Layout, parts: Sequence[str], *, rows_per_shard: int) -> Manifest:
    """Append to the plan what is new: parts in the order given, then shards placed as images.

    Args:
        layout: where the files lie.
        parts: names of the parts of the raw source; those not published yet are left for later.
        rows_per_shard: rows of a shard; must be what the plan was begun with.

    Raises:
        MissingInput: if there is neither a published part nor a placed shard; it says what to put where.
        PlanError: if a planned part changed, or rows_per_shard did.
    """
    plan = _existing(layout, rows_per_shard)
    for part in parts:
        if is_published(layout.raw_metadata(part)):
            rows = require(layout.raw_metadata(part)).rows
            plan = plan.with_part(part, sha256=read_source(layout, part).sha256, rows=rows)
    plan = plan.with_placed(find_placed(layout))
    if not plan.shards:
        raise MissingInput(
            "there is nothing to plan: name the raw Parquet files in laion.toml ([raw] source = "
            '"folder/of/parts") and materialize raw_metadata, or place shards made by img2dataset '
            f"(NNNNN.tar, NNNNN.parquet, NNNNN_stats.json) in {layout.images_folder}"
        )
    inputs = {entry.part: entry.sha256 for entry in plan.entries}
    inputs |= {"placed": ",".join(map(str, plan.placed))} if plan.placed else {}
    recipe = Recipe(code_version=CODE_VERSION, settings=plan.stable_version, inputs=inputs)

    def write(draft: Draft) -> Tally:
        draft.only.write_bytes(plan.to_json())
        planned = sum(entry.rows for entry in plan.entries)
        counts = {"shards": len(plan.shards), "parts": len(plan.entries), "placed": len(plan.placed)}
        return Tally(rows=planned, counts=counts)

    return publish(layout.shard_plan(), recipe, write)


def _existing(layout: Layout, rows_per_shard: int) -> ShardPlan:
    try:
        plan = ShardPlan.load(layout)
    except MissingInput:
        return ShardPlan(rows_per_shard=rows_per_shard)
    if plan.rows_per_shard != rows_per_shard:
        raise PlanError(
            f"rows_per_shard is {rows_per_shard}, but the plan was begun with {plan.rows_per_shard} "
            f"and shards never change: set it back, or start another data_root"
        )
    return plan
