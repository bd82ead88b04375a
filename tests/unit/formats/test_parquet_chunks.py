import math
from datetime import date

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laion_assets.errors import CorruptParquet
from laion_assets.formats import parquet
from laion_assets.formats.arrow import vector_column
from laion_assets.formats.parquet_chunks import open_writer, stored_columns, stored_vectors
from laion_assets.formats.parquet_values import value_offsets
from laion_assets.schema import vector_type

SOURCE = pa.schema(
    [
        pa.field("NUMBER", pa.int64()),
        pa.field("TEXT", pa.string()),
        pa.field("LICENSE", pa.string()),  # in a dictionary
        pa.field("SMALL", pa.int32()),
        pa.field("similarity", pa.float64()),
        pa.field("single", pa.float32()),
        pa.field("vector", pa.binary(4), nullable=False),  # neither compressed nor compared
        pa.field("sure", pa.bool_(), nullable=False),
    ]
)
COPIED = {
    "number": "NUMBER",
    "caption": "TEXT",
    "LICENSE": "LICENSE",
    "small": "SMALL",
    "similarity": "similarity",
    "single": "single",
    "vector": "vector",
    "sure": "sure",
}
DATE = "of.the\x16\x00\x19\x0cpage"  # no path, and what an empty footer has
ADDED = (
    pa.field("key", pa.string(), nullable=False, metadata={"description": "of the row"}),
    pa.field(DATE, pa.date32()),
    pa.field("set_aside", pa.string()),
)


def copied_field(name):
    return SOURCE.field(COPIED[name]).with_name(name)


# Copied and encoded columns among each other.
SCHEMA = pa.schema(
    [
        ADDED[0],
        *(copied_field(name) for name in ("caption", "number", "LICENSE")),
        ADDED[1],
        *(copied_field(name) for name in ("small", "similarity", "single", "vector", "sure")),
        ADDED[2],
    ]
)

ROW = st.fixed_dictionaries(
    {
        "NUMBER": st.none() | st.integers(-(2**63), 2**63 - 1),
        "TEXT": st.none() | st.text(max_size=40),
        "LICENSE": st.none() | st.sampled_from(["", "?", "CC"]),
        "SMALL": st.none() | st.integers(-(2**31), 2**31 - 1),
        "similarity": st.none() | st.floats(),
        "single": st.none() | st.floats(width=32),
        "vector": st.binary(min_size=4, max_size=4),
        "sure": st.booleans(),
        DATE: st.none() | st.dates(),
        "set_aside": st.none() | st.just("missing_url"),
    }
)


def rows_of(count):
    return [
        {
            "NUMBER": row,
            "TEXT": f"text {row}",
            "LICENSE": "?",
            "SMALL": row,
            "similarity": row / 7,
            "single": 0.5,
            "vector": bytes([row] * 4),
            "sure": row % 2 == 0,
            DATE: date(2021, 8, 20),
            "set_aside": None,
        }
        for row in range(count)
    ]


def written(folder, rows, *, group=0, before=()):
    """A file of the rows, those of a row group of another file copied; and what must be in it."""
    source = folder / "source.parquet"
    names = SOURCE.names
    with parquet.open_writer(source, SOURCE) as writer:
        for held in (*before, rows, rows_of(3)):
            taken = [{name: row[name] for name in names} for row in held]
            writer.write_table(pa.Table.from_pylist(taken, schema=SOURCE))
    added = [{"key": f"{at:09d}"} | row for at, row in enumerate(rows)]
    encoded = pa.Table.from_pylist(added, schema=pa.schema(ADDED))
    path = folder / "copied.parquet"
    stored = stored_columns(source, pq.read_metadata(source), group, COPIED)
    with open_writer(path, SCHEMA) as writer:
        writer.write(encoded, stored)
    values = [{field.name: row[COPIED.get(field.name, field.name)] for field in SCHEMA} for row in added]
    return path, pa.Table.from_pylist(values, schema=SCHEMA)


def same(value, other):
    return value == other or (isinstance(value, float) and math.isnan(value) and math.isnan(other))


@settings(deadline=None, max_examples=100)
@given(rows=st.lists(ROW, min_size=1, max_size=30), before=st.lists(st.integers(1, 5), max_size=3))
def test_what_is_copied_is_what_was_there(tmp_path_factory, rows, before):
    folder = tmp_path_factory.mktemp("copied")
    path, expected = written(folder, rows, group=len(before), before=[rows_of(count) for count in before])
    found = parquet.read_table(path, SCHEMA)
    assert found.schema.equals(expected.schema, check_metadata=True)
    for name in SCHEMA.names:
        for value, meant in zip(found[name].to_pylist(), expected[name].to_pylist(), strict=True):
            assert same(value, meant), name
    # The footer says of each column what pyarrow says of the same values.
    plain = folder / "plain.parquet"
    parquet.write_table(plain, expected, SCHEMA)
    assert pq.read_metadata(path).row_group(0).num_rows == len(rows)
    for column in range(pq.read_metadata(path).num_columns):
        ours, theirs = (
            pq.read_metadata(file).row_group(0).column(column).to_dict() for file in (path, plain)
        )
        assert {**ours, **PLACED} == {**theirs, **PLACED}


# Where pages lie, and how long they are: pages differ where a dictionary outgrows what it is of.
PLACED = dict.fromkeys(
    ("data_page_offset", "dictionary_page_offset", "total_compressed_size", "total_uncompressed_size")
)


def test_duckdb_reads_it_and_its_bounds(tmp_path):
    path, expected = written(tmp_path, rows_of(232), group=1, before=[rows_of(5)])
    with duckdb.connect() as connection:
        found = connection.execute("FROM read_parquet($1)", [str(path)]).fetchall()
        assert found == [tuple(row.values()) for row in expected.to_pylist()]
        bounds = connection.execute(
            "SELECT path_in_schema, stats_min_value, stats_max_value, stats_null_count "
            "FROM parquet_metadata($1) WHERE path_in_schema IN ('key', 'number', 'similarity')",
            [str(path)],
        ).fetchall()
        counted = connection.execute("SELECT count(*) FROM read_parquet($1) WHERE number > 230", [str(path)])
        assert counted.fetchall() == [(1,)]
    assert bounds == [
        ("key", "000000000", "000000231", 0),
        ("number", "0", "231", 0),
        ("similarity", "-0.0", "33.0", 0),  # the format has a least zero written as this one
    ]


def test_equal_rows_equal_bytes(tmp_path):
    bodies = []
    for name, before in (("a", ()), ("b", [rows_of(7)])):
        folder = tmp_path / name
        folder.mkdir()
        bodies.append(written(folder, rows_of(40), group=len(before), before=before)[0].read_bytes())
    assert bodies[0] == bodies[1]


def check_flipped(path, expected, data):
    """Flip a byte of a file: it is refused by name, or read as what it was."""
    body = bytearray(path.read_bytes())
    body[data.draw(st.integers(0, len(body) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(body)
    try:
        found = parquet.read_table(path, expected.schema)
    except CorruptParquet as error:
        assert str(path) in str(error)  # noqa: PT017 (refusing is one of two right outcomes)
    else:
        assert found.equals(expected)


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_a_flipped_byte_never_becomes_other_data(tmp_path_factory, data):
    path, expected = written(tmp_path_factory.mktemp("flipped"), rows_of(20))
    check_flipped(path, expected, data)


def test_what_is_stored_otherwise_is_refused(tmp_path):
    written(tmp_path, rows_of(4))
    source = tmp_path / "source.parquet"
    footer = pq.read_metadata(source)
    key = pa.table({"key": ["a", "b", "c", "d"]}, schema=pa.schema([ADDED[0]]))
    wrong = (
        (0, pa.field("n", pa.int32())),
        (0, pa.field("n", pa.int64(), nullable=False)),
        (0, pa.field("n", pa.uint64())),
        (1, pa.field("n", pa.int64())),  # as it is stored, but three rows
    )
    for group, field in wrong:
        stored = stored_columns(source, footer, group, {"n": "NUMBER"})
        with (
            pytest.raises(ValueError, match=r"column n: [34] of .*INT64"),
            open_writer(tmp_path / "n", pa.schema([ADDED[0], field])) as writer,
        ):
            writer.write(key, stored)


def test_columns_of_lists_are_refused(tmp_path):
    nested = pa.schema([ADDED[0], pa.field("boxes", pa.list_(pa.float64()))])
    with pytest.raises(ValueError, match="not columns of single values"), open_writer(tmp_path / "n", nested):
        pass


def test_a_file_that_ends_too_early_is_named(tmp_path):
    written(tmp_path, rows_of(4))
    source = tmp_path / "source.parquet"
    footer = pq.read_metadata(source)
    source.write_bytes(source.read_bytes()[:100])
    with pytest.raises(CorruptParquet, match=r"source\.parquet: expected \d+ bytes from byte \d+ on"):
        stored_columns(source, footer, 0, COPIED)


def vectors_of(rows, width):
    """Every float16 that there is, NaN and infinities among them."""
    bits = np.arange(7, 7 + rows * width, dtype=np.uint64) * 40_503 % 65_536
    return bits.astype(np.uint16).view(np.float16).reshape(rows, width)


def with_vectors(path, groups, width):
    schema = pa.schema(
        [
            pa.field("row", pa.int64(), nullable=False),
            pa.field("image_embedding", vector_type(width), nullable=False),
            pa.field("key", pa.string(), nullable=False),
            pa.field("text_embedding", vector_type(width), nullable=False),
        ]
    )
    tables = []
    with open_writer(path, schema) as writer:
        for rows in groups:
            images, texts = vectors_of(rows, width), -vectors_of(rows, width)
            numbers = range(rows)
            encoded = pa.schema([schema.field("row"), schema.field("key")])
            table = pa.table([numbers, [f"{row:09d}" for row in numbers]], schema=encoded)
            writer.write(
                table, {"image_embedding": stored_vectors(images), "text_embedding": stored_vectors(texts)}
            )
            columns = [table["row"], vector_column(images), table["key"], vector_column(texts)]
            tables.append(pa.table(columns, schema=schema))
    return schema, tables


# 512 elements are a kilobyte: 1,024 rows to a page.
@pytest.mark.parametrize(("groups", "width"), [((1,), 512), ((1_024, 1_025, 2_500, 3), 512), ((5, 7), 3)])
def test_vectors_are_what_pyarrow_stores(tmp_path, groups, width):
    path, plain = tmp_path / "a.parquet", tmp_path / "plain.parquet"
    schema, tables = with_vectors(path, groups, width)
    with parquet.open_writer(plain, schema) as writer:
        for table in tables:
            writer.write_table(table)
    assert parquet.read_table(path, schema).equals(pa.concat_tables(tables))
    found, meant = pq.read_metadata(path), pq.read_metadata(plain)
    assert [found.row_group(number).num_rows for number in range(found.num_row_groups)] == list(groups)
    for group in range(len(groups)):
        for column in range(4):
            ours, theirs = (footer.row_group(group).column(column).to_dict() for footer in (found, meant))
            assert {**ours, "data_page_offset": 0} == {**theirs, "data_page_offset": 0}
    # The pages themselves, too: all but the footers.
    end = meant.row_group(len(groups) - 1).column(3)
    size = end.data_page_offset + end.total_compressed_size
    assert path.read_bytes()[:size] == plain.read_bytes()[:size]
    vectors = np.concatenate([vectors_of(rows, width) for rows in groups])
    body = path.read_bytes()
    for at, vector in zip(value_offsets(path, "image_embedding"), vectors, strict=True):
        assert body[at : at + 2 * width] == vector.tobytes()


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_a_flipped_byte_among_vectors_is_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("flipped") / "a.parquet"
    _, tables = with_vectors(path, (2, 3), 4)
    check_flipped(path, pa.concat_tables(tables), data)
