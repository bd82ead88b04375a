import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laion_assets.errors import CorruptParquet
from laion_assets.formats import parquet
from laion_assets.formats.parquet_values import value_offsets

SIZE = 24
SCHEMA = pa.schema(
    [
        pa.field("text", pa.string()),
        pa.field("a", pa.binary(SIZE), nullable=False),
        pa.field("b", pa.binary(SIZE), nullable=False),
    ]
)


def make(rows, seed=0):
    rng = np.random.default_rng(seed)
    return pa.table(
        {
            "text": [f"text {row}" for row in range(rows)],
            "a": pa.array([rng.bytes(SIZE) for _ in range(rows)], pa.binary(SIZE)),
            # Values of zeros look like the end of a page's header.
            "b": pa.array(
                [bytes(SIZE) if row % 3 else rng.bytes(SIZE) for row in range(rows)], pa.binary(SIZE)
            ),
        },
        schema=SCHEMA,
    )


def read_at(path, offsets):
    data = path.read_bytes()
    return [data[at : at + SIZE] for at in offsets.tolist()]


# A page takes 1 MiB, which is 43,690 values of 24 bytes, or fewer rows.
@pytest.mark.parametrize(("rows", "group_rows"), [(0, 10), (1, 10), (25, 10), (100_000, 60_000)])
def test_values_are_where_it_says(tmp_path, rows, group_rows):
    path, table = tmp_path / "x.parquet", make(rows)
    with parquet.open_writer(path, SCHEMA) as writer:
        writer.write_table(table, row_group_size=group_rows)
    for name in ("a", "b"):
        offsets = value_offsets(path, name)
        assert read_at(path, offsets) == table[name].to_pylist()
    if rows == 100_000:
        # More pages than row groups.
        assert np.count_nonzero(np.diff(offsets) != SIZE) > 1


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "zstd", "use_dictionary": False},
        {"compression": "none", "use_dictionary": True},
        {"compression": "none", "use_dictionary": False, "data_page_version": "2.0"},
        {"compression": "none", "use_dictionary": False, "column_encoding": "BYTE_STREAM_SPLIT"},
        {"compression": "none", "use_dictionary": False, "column_encoding": "DELTA_BYTE_ARRAY"},
    ],
)
def test_values_stored_otherwise_are_refused(tmp_path, options):
    path = tmp_path / "x.parquet"
    pq.write_table(make(100).select(["a", "b"]), path, **options)
    with pytest.raises(CorruptParquet, match="expected"):
        value_offsets(path, "a")


@pytest.mark.parametrize("type_", [pa.binary(SIZE), pa.binary(), pa.int64()])
def test_values_that_may_be_null_or_of_any_length_are_refused(tmp_path, type_):
    path = tmp_path / "x.parquet"
    column = pa.nulls(3, type_)
    pq.write_table(pa.table({"a": column}), path, compression="none", use_dictionary=False)
    with pytest.raises(CorruptParquet, match="values of one size in column a"):
        value_offsets(path, "a")


def test_statistics_in_a_page_are_no_integers(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(make(100), path, compression="none", use_dictionary=False, write_statistics=True)
    with pytest.raises(CorruptParquet, match=r"a data page at byte .* a field of type 8"):
        value_offsets(path, "a")


def test_a_damaged_header_leads_nowhere_else(tmp_path):
    path, table = tmp_path / "x.parquet", make(50)
    parquet.write_table(path, table, SCHEMA)
    with parquet.open_writer(path, SCHEMA) as writer:
        writer.write_table(table)
    whole, right = path.read_bytes(), value_offsets(path, "a")
    begin = pq.read_metadata(path).row_group(0).column(1).data_page_offset
    refused = 0
    for at in range(begin, int(right[0])):
        for value in (*(whole[at] ^ 1 << bit for bit in range(8)), 0x00, 0xFF):
            data = bytearray(whole)
            data[at] = value
            path.write_bytes(data)
            try:
                found = value_offsets(path, "a")
            except CorruptParquet:
                refused += 1
            else:
                assert found.tolist() == right.tolist()
    assert refused > 100
