import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laion_assets.errors import CorruptParquet
from laion_assets.formats.parquet import open_reader, read_table, write_table
from laion_assets.schema import ROWS_SET_ASIDE


def table(rows=50):
    return pa.table(
        {"key": [f"{i:09d}" for i in range(rows)], "reason": ["r"] * rows, "detail": ["ü€"] * rows},
        schema=ROWS_SET_ASIDE,
    )


def test_round_trip(tmp_path):
    path = tmp_path / "a.parquet"
    write_table(path, table(), ROWS_SET_ASIDE)
    assert read_table(path, ROWS_SET_ASIDE).equals(table())
    assert read_table(path, ROWS_SET_ASIDE, columns=["key"]).column_names == ["key"]


def test_equal_tables_equal_bytes(tmp_path):
    for name in ("a", "b"):
        write_table(tmp_path / name, table(), ROWS_SET_ASIDE)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_nulls_are_refused_where_the_schema_forbids_them(tmp_path):
    columns = {"key": pa.array([None], pa.string()), "reason": ["r"], "detail": ["d"]}
    with pytest.raises((pa.ArrowInvalid, ValueError)):
        write_table(tmp_path / "a.parquet", pa.table(columns), ROWS_SET_ASIDE)


def test_another_schema_is_refused_by_name(tmp_path):
    path = tmp_path / "a.parquet"
    write_table(path, table(), ROWS_SET_ASIDE)
    with pytest.raises(CorruptParquet, match=r"a\.parquet: expected columns other int64"):
        read_table(path, pa.schema([pa.field("other", pa.int64())]))


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_a_flipped_byte_never_becomes_other_data(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("flipped")
    path = folder / "a.parquet"
    write_table(path, table(), ROWS_SET_ASIDE)
    body = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, len(body) - 1))
    body[position] ^= data.draw(st.integers(1, 255))
    path.write_bytes(body)
    try:
        found = read_table(path, ROWS_SET_ASIDE)
    except CorruptParquet as error:
        assert str(path) in str(error)  # noqa: PT017 (refusing is one of two right outcomes)
    else:
        assert found.equals(table())


@pytest.mark.parametrize("body", [b"", b"PAR1", b"PAR1" * 3, b"<html>not here</html>" * 100])
def test_what_is_no_parquet_is_named(tmp_path, body):
    path = tmp_path / "a.parquet"
    path.write_bytes(body)
    with pytest.raises(CorruptParquet, match=r"a\.parquet"), open_reader(path):
        pass


def test_a_missing_file_is_not_called_corrupt(tmp_path):
    with pytest.raises(FileNotFoundError), open_reader(tmp_path / "none.parquet"):
        pass
