import pytest
from hypothesis import given
from hypothesis import strategies as st

from laion_assets.errors import CorruptManifest, MissingInput, PlanError
from laion_assets.layout import Layout, ShardId
from laion_assets.plan import ShardPlan


@given(st.lists(st.integers(0, 350), max_size=6), st.integers(1, 100))
def test_every_row_of_every_part_is_in_exactly_one_shard(part_rows, rows_per_shard):
    plan = ShardPlan(rows_per_shard=rows_per_shard)
    for number, rows in enumerate(part_rows):
        plan = plan.with_part(f"p{number}", sha256="x", rows=rows)
    covered = {f"p{number}": [] for number in range(len(part_rows))}
    for shard in plan.shards:
        found = plan.rows_of(shard)
        assert 0 < found.rows <= rows_per_shard
        covered[found.part].extend(range(found.first, found.first + found.rows))
    assert covered == {f"p{number}": list(range(rows)) for number, rows in enumerate(part_rows)}
    assert [shard.number for shard in plan.shards] == list(range(plan.shard_count))


@given(st.lists(st.integers(1, 350), min_size=1, max_size=5), st.sets(st.integers(0, 40), max_size=5))
def test_what_is_planned_never_changes_when_the_plan_grows(part_rows, placed):
    plan = ShardPlan(rows_per_shard=100)
    seen = {}
    for number, rows in enumerate(part_rows):
        plan = plan.with_part(f"p{number}", sha256="x", rows=rows).with_placed(placed)
        assert plan.stable_version == ShardPlan(rows_per_shard=100).stable_version
        for shard, found in seen.items():
            assert plan.rows_of(shard) == found
        seen = {shard: plan.rows_of(shard) for shard in plan.shards}
    numbers = [shard.number for shard in plan.shards]
    assert len(numbers) == len(set(numbers))


def test_a_part_is_planned_once_and_must_not_change():
    plan = ShardPlan(rows_per_shard=10).with_part("p", sha256="x", rows=25)
    assert plan.with_part("p", sha256="x", rows=25) == plan
    assert [str(shard) for shard in plan.shards_of("p")] == ["00000", "00001", "00002"]
    with pytest.raises(PlanError, match="changed after it was planned"):
        plan.with_part("p", sha256="y", rows=25)


def test_shards_placed_elsewhere_keep_their_numbers():
    plan = ShardPlan(rows_per_shard=10).with_placed([7, 3]).with_part("p", sha256="x", rows=15)
    assert [shard.number for shard in plan.shards] == [3, 7, 8, 9]
    assert plan.rows_of(ShardId(7)) is None
    assert plan.rows_of(ShardId(9)).first == 10
    with pytest.raises(PlanError, match="no shard 00005"):
        plan.rows_of(ShardId(5))


@pytest.mark.parametrize(
    ("rows_per_shard", "shard", "row", "key"),
    [
        (10_000, 12, 34, "000120034"),
        (100, 2, 7, "0000207"),
        (1_000, 41_454, 999, "41454999"),
        (1, 3, 0, "000030"),
    ],
)
def test_keys_are_those_of_img2dataset(rows_per_shard, shard, row, key):
    keys = ShardPlan(rows_per_shard=rows_per_shard).keys(ShardId(shard), rows_per_shard).to_pylist()
    assert keys[row] == key
    assert len(set(keys)) == rows_per_shard
    assert keys == sorted(keys)


def test_a_plan_survives_its_file(tmp_path):
    layout = Layout(tmp_path)
    plan = ShardPlan(rows_per_shard=10).with_part("p", sha256="x", rows=25).with_placed([9])
    with pytest.raises(MissingInput, match="materialize shard_plan first"):
        ShardPlan.load(layout)
    path = layout.shard_plan().only
    path.parent.mkdir(parents=True)
    path.write_bytes(plan.to_json())
    assert ShardPlan.load(layout) == plan


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"format": 9}',
        '{"format": 1, "rows_per_shard": 1, "entries": [{}], "placed": []}',
    ],
)
def test_what_is_no_plan_is_named(tmp_path, text):
    path = Layout(tmp_path).shard_plan().only
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(CorruptManifest, match=r"shard_plan\.json"):
        ShardPlan.load(Layout(tmp_path))
