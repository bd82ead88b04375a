import pyarrow.parquet as pq
import pytest

from laion_assets.errors import MissingInput, PlanError
from laion_assets.layout import Layout
from laion_assets.plan import ShardPlan
from laion_assets.schema import RAW
from laion_assets.stages.raw_metadata import check_part
from laion_assets.stages.shard_plan import plan_shards


@pytest.fixture
def layout(tmp_path):
    return Layout(tmp_path / "data")


def add_part(layout, tmp_path, name, rows):
    source = tmp_path / f"{name}.parquet"
    table = RAW.empty_table() if not rows else RAW.empty_table().from_pylist([{}] * rows, schema=RAW)
    pq.write_table(table, source)
    return check_part(name, layout, location=str(source), source_schema="laion400m", rows_per_shard=10)


def test_without_anything_it_says_what_to_put_where(layout):
    with pytest.raises(MissingInput, match=r"\[raw\] source") as caught:
        plan_shards(layout, (), rows_per_shard=10)
    assert str(layout.images_folder) in str(caught.value)


def test_parts_are_appended_and_never_moved(layout, tmp_path):
    add_part(layout, tmp_path, "b", 25)
    first = plan_shards(layout, ("a", "b"), rows_per_shard=10)
    assert (first.rows, first.counts["shards"]) == (25, 3)
    add_part(layout, tmp_path, "a", 5)
    second = plan_shards(layout, ("a", "b"), rows_per_shard=10)
    plan = ShardPlan.load(layout)
    assert [(entry.part, entry.first_shard) for entry in plan.entries] == [("b", 0), ("a", 3)]
    assert second.rows == 30
    assert plan_shards(layout, ("a", "b"), rows_per_shard=10) == second


def test_a_plan_refuses_changed_parts_and_sizes(layout, tmp_path):
    add_part(layout, tmp_path, "a", 25)
    plan_shards(layout, ("a",), rows_per_shard=10)
    with pytest.raises(PlanError, match="rows_per_shard is 20"):
        plan_shards(layout, ("a",), rows_per_shard=20)
    add_part(layout, tmp_path, "a", 26)
    with pytest.raises(PlanError, match="part a changed"):
        plan_shards(layout, ("a",), rows_per_shard=10)


def test_shards_laid_down_by_img2dataset_are_found(layout):
    layout.images_folder.mkdir(parents=True)
    for name in ("00004.parquet", "00004.tar", "00011.parquet", "notes.parquet", "00012.tar"):
        (layout.images_folder / name).touch()
    plan_shards(layout, (), rows_per_shard=10)
    assert ShardPlan.load(layout).placed == (4, 11)
