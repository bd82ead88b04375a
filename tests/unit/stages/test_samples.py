import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laion_assets.errors import CorruptParquet, MisalignedShard, MissingInput, PlanError
from laion_assets.formats.parquet import read_table
from laion_assets.layout import Layout, ShardId
from laion_assets.schema import RAW, SAMPLES
from laion_assets.stages.raw_metadata import check_part
from laion_assets.stages.samples import write_samples
from laion_assets.stages.shard_plan import plan_shards


def raw_rows(rows):
    return [
        {
            "SAMPLE_ID": row,
            "URL": f"http://example.org/{row}.jpg",
            "TEXT": f"text {row}",
            "HEIGHT": 10,
            "WIDTH": 20,
            "LICENSE": "?",
            "NSFW": "UNLIKELY",
            "similarity": 0.3,
        }
        for row in range(rows)
    ]


@pytest.fixture
def planned(tmp_path):
    def make(rows):
        layout = Layout(tmp_path / "data")
        source = tmp_path / "p.parquet"
        pq.write_table(pa.Table.from_pylist(rows, schema=RAW), source)
        check_part("p", layout, location=str(source), source_schema="laion400m", rows_per_shard=10)
        plan_shards(layout, ("p",), rows_per_shard=10)
        return layout

    return make


def test_each_row_gets_its_key_and_keeps_its_values(planned):
    layout = planned(raw_rows(25))
    for number, rows in ((0, 10), (1, 10), (2, 5)):
        manifest = write_samples(ShardId(number), layout)
        found = read_table(layout.samples(ShardId(number)).only, SAMPLES).to_pylist()
        assert manifest.rows == len(found) == rows
        assert [sample["key"] for sample in found] == [f"{number:05d}{row}" for row in range(rows)]
        assert [sample["sample_id"] for sample in found] == [number * 10 + row for row in range(rows)]
        assert found[0]["url"] == f"http://example.org/{number * 10}.jpg"
        assert (found[0]["declared_height"], found[0]["declared_width"]) == (10, 20)
        assert manifest.counts == {"asked_for": rows, "set_aside": 0}


def test_rows_that_cannot_be_asked_for_are_marked_and_counted(planned):
    rows = raw_rows(10)
    rows[1]["URL"] = None
    rows[2]["similarity"] = 6016.0
    rows[3]["similarity"] = -0.5
    rows[4]["similarity"] = None
    rows[5]["similarity"] = float("nan")
    rows[6]["similarity"] = 0.0
    rows[7]["similarity"] = -1.0
    layout = planned(rows)
    manifest = write_samples(ShardId(0), layout)
    found = read_table(layout.samples(ShardId(0)).only, SAMPLES)
    assert manifest.rows == 10
    assert found["set_aside"].to_pylist() == [
        None, "missing_url", "similarity_above_one", "similarity_below_zero", *[None] * 6,
    ]  # fmt: skip
    assert manifest.counts == {
        "asked_for": 7,
        "set_aside": 3,
        "set_aside:missing_url": 1,
        "set_aside:similarity_above_one": 1,
        "set_aside:similarity_below_zero": 1,
    }


def test_text_that_is_no_utf_8_costs_no_other_row(planned, tmp_path):
    layout = planned(raw_rows(3))
    texts = pa.array([b"text \xff", b"whole", None], pa.binary())
    table = pa.Table.from_pylist(raw_rows(3), schema=RAW)
    broken = pa.Array.from_buffers(pa.string(), 3, texts.buffers())
    pq.write_table(table.set_column(2, RAW.field("TEXT"), broken), tmp_path / "p.parquet")
    check_part(
        "p", layout, location=str(tmp_path / "p.parquet"), source_schema="laion400m", rows_per_shard=10
    )
    assert write_samples(ShardId(0), layout).rows == 3
    found = read_table(layout.samples(ShardId(0)).only, SAMPLES)
    assert found["caption"].to_pylist() == ["text \ufffd", "whole", None]


def test_columns_that_stay_as_they_are_are_copied(planned):
    layout = planned(raw_rows(25))
    write_samples(ShardId(1), layout)
    part, samples = layout.raw_table("p"), layout.samples(ShardId(1)).only
    theirs, ours = pq.read_metadata(part).row_group(1), pq.read_metadata(samples).row_group(0)
    at = {theirs.column(index).path_in_schema: theirs.column(index) for index in range(8)}
    for index, name in ((1, "SAMPLE_ID"), (2, "URL"), (3, "TEXT"), (8, "similarity")):
        pages = [
            path.read_bytes()[chunk.data_page_offset :][: chunk.total_compressed_size]
            for path, chunk in ((part, at[name]), (samples, ours.column(index)))
        ]
        assert pages[0] == pages[1]
        assert pages[0]


def test_a_plan_that_grew_leaves_samples_as_they_are(planned, tmp_path):
    layout = planned(raw_rows(25))
    before = write_samples(ShardId(1), layout)
    source = tmp_path / "q.parquet"
    pq.write_table(pa.Table.from_pylist(raw_rows(5), schema=RAW), source)
    check_part("q", layout, location=str(source), source_schema="laion400m", rows_per_shard=10)
    plan_shards(layout, ("p", "q"), rows_per_shard=10)
    assert write_samples(ShardId(1), layout) == before
    assert write_samples(ShardId(3), layout).rows == 5


def test_what_is_not_there_is_named(planned, tmp_path):
    with pytest.raises(MissingInput, match="shard plan"):
        write_samples(ShardId(0), Layout(tmp_path / "empty"))
    layout = planned(raw_rows(5))
    with pytest.raises(PlanError, match="no shard 00001"):
        write_samples(ShardId(1), layout)


def test_a_part_cut_otherwise_is_refused(planned, tmp_path):
    layout = planned(raw_rows(25))
    check_part("p", layout, location=str(tmp_path / "p.parquet"), source_schema="laion400m", rows_per_shard=7)
    with pytest.raises(CorruptParquet, match="10 rows in row group 1"):
        write_samples(ShardId(1), layout)


def placed(tmp_path, columns):
    layout = Layout(tmp_path / "data")
    layout.images_folder.mkdir(parents=True)
    pq.write_table(pa.table(columns), layout.images_table(ShardId(4)))
    plan_shards(layout, (), rows_per_shard=10_000)
    return layout


def test_a_placed_shard_gives_its_samples_in_key_order(tmp_path):
    columns = {
        "caption": ["c", "a", "b"],
        "url": ["http://x/c", "http://x/a", "http://x/b"],
        "similarity": pa.array([0.3, 0.4, None], pa.float32()),
        "key": ["000040002", "000040000", "000040001"],
        "status": ["success", "success", "failed_to_download"],
    }
    layout = placed(tmp_path, columns)
    manifest = write_samples(ShardId(4), layout)
    found = read_table(layout.samples(ShardId(4)).only, SAMPLES)
    assert manifest.rows == 3
    assert found["caption"].to_pylist() == ["a", "b", "c"]
    assert found["key"].to_pylist() == ["000040000", "000040001", "000040002"]
    assert found["NSFW"].null_count == 3


@pytest.mark.parametrize(
    ("columns", "error"),
    [
        ({"url": ["u"], "key": ["000050000"], "status": ["success"]}, MisalignedShard),
        ({"url": ["u", "v"], "key": ["000040000", "000000000"], "status": ["success"] * 2}, MisalignedShard),
        ({"url": ["u"]}, MisalignedShard),
    ],
)
def test_a_placed_table_that_does_not_belong_is_refused(tmp_path, columns, error):
    layout = placed(tmp_path, columns)
    with pytest.raises(error, match=r"00004\.parquet"):
        write_samples(ShardId(4), layout)
