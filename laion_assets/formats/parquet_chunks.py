"""Parquet files some of whose columns are copied, as they are stored, from a row group of another file.

A column's pages say nothing of the file they lie in: copied byte for byte they are what encoding and
compressing the same values again would make, for none of the time. pyarrow copies no pages, so the list of
row groups in the footer is written here; the rest of the footer is what pyarrow writes for the schema.

The structs, their fields' numbers and the enumerations are those of parquet.thrift in apache/parquet-format.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from laion_assets.formats import parquet, thrift
from laion_assets.formats.large_file import LargeFile
from laion_assets.formats.thrift import BINARY, I16, I32, I64, LIST, STRUCT

_MAGIC: Final = b"PAR1"
_LENGTH: Final = struct.Struct("<I")
# num_rows = 0 and row_groups = [], fields 3 and 4 of FileMetaData, as they follow field 2.
_NO_ROWS: Final = b"\x16\x00\x19\x0c"

# In the order of their numbers.
_TYPES: Final = (
    *("BOOLEAN", "INT32", "INT64", "INT96"),
    *("FLOAT", "DOUBLE", "BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY"),
)
# Of the encodings and codecs, those that our files have.
_ENCODINGS: Final = {"PLAIN": 0, "RLE": 3, "RLE_DICTIONARY": 8}
_CODECS: Final = {"UNCOMPRESSED": 0, "ZSTD": 6}
# How the least and the greatest value of a column are packed; of other types neither is written.
_BOUNDS: Final[Mapping[str, Callable[[Any], bytes]]] = {
    "BOOLEAN": struct.Struct("<?").pack,
    "INT32": struct.Struct("<i").pack,
    "INT64": struct.Struct("<q").pack,
    "FLOAT": struct.Struct("<f").pack,
    "DOUBLE": struct.Struct("<d").pack,
    "BYTE_ARRAY": bytes,
}


class RowGroup(NamedTuple):
    """A row group of a file of ours, some of whose columns are copied."""

    path: Path
    """The file."""
    footer: pq.FileMetaData
    """What the file's footer says."""
    number: int
    """Of the row group."""
    columns: Mapping[str, str]
    """Name that a column gets -> its name here."""


class _Chunk(NamedTuple):
    """A column of a row group, as it is stored: pyarrow's word on it, and its pages."""

    column: Any
    metadata: Any
    pages: Any


class _Footer(NamedTuple):
    """What pyarrow writes for a schema before and behind the row groups, and which columns those have."""

    before: bytes
    behind: bytes
    columns: Sequence[Any]


def write_table(path: Path, table: pa.Table, schema: pa.Schema, source: RowGroup) -> None:
    """Write a table of at least one row, in one row group, some of its columns copied.

    Args:
        path: the file.
        table: the columns of ``schema`` that are not copied; texts have to be UTF-8.
        schema: of the file.
        source: where its other columns come from.

    Raises:
        ValueError: if the source has other rows, or a column that is not stored as ``schema`` says.
    """
    rows = table.num_rows
    if source.footer.row_group(source.number).num_rows != rows:
        raise ValueError(f"row group {source.number} of {source.path} has not {rows} rows")
    encoded = parquet.encode(table, pa.schema([schema.field(name) for name in table.column_names]))
    chunks = _chunks(pq.read_metadata(pa.BufferReader(encoded)), 0, encoded.slice)
    with source.path.open("rb", buffering=0) as file:
        theirs = _chunks(source.footer, source.number, lambda at, size: os.pread(file.fileno(), size, at))
    chunks |= {name: theirs[column] for name, column in source.columns.items()}
    footer = _footer(schema.serialize().to_pybytes())
    ordered = [(column, chunks[column.path]) for column in footer.columns]
    columns, at = [], len(_MAGIC)
    for column, chunk in ordered:
        if not _is_alike(column, chunk.column):
            raise ValueError(f"{source.path} does not store {column.path} as a column of this schema is")
        columns.append(_column_chunk(column.path, chunk.metadata, at))
        at += chunk.metadata.total_compressed_size
    row_group = thrift.struct(
        {
            1: (LIST, thrift.sequence(STRUCT, columns)),
            2: (I64, thrift.integer(sum(chunk.metadata.total_uncompressed_size for _, chunk in ordered))),
            3: (I64, thrift.integer(rows)),
            5: (I64, thrift.integer(len(_MAGIC))),  # where it begins
            6: (I64, thrift.integer(at - len(_MAGIC))),
            7: (I16, thrift.integer(0)),  # its place among the row groups
        }
    )
    # The two fields that _NO_ROWS stands for.
    described = b"\x16" + thrift.integer(rows) + b"\x19" + thrift.sequence(STRUCT, [row_group])
    body = footer.before + described + footer.behind
    with LargeFile(path) as written:
        for piece in (_MAGIC, *(chunk.pages for _, chunk in ordered), body, _LENGTH.pack(len(body)), _MAGIC):
            written.write(piece)


def _chunks(footer: Any, number: int, read: Callable[[int, int], Any]) -> dict[str, _Chunk]:  # noqa: ANN401 (pyarrow has no types)
    """The columns of a row group by their path."""
    chunks = {}
    for index in range(footer.num_columns):
        chunk = footer.row_group(number).column(index)
        first, dictionary = chunk.data_page_offset, chunk.dictionary_page_offset
        begin = first if dictionary is None else min(dictionary, first)
        pages = read(begin, chunk.total_compressed_size)
        chunks[chunk.path_in_schema] = _Chunk(footer.schema.column(index), chunk, pages)
    return chunks


def _is_alike(column: Any, other: Any) -> bool:  # noqa: ANN401
    """Whether the pages of one column can be those of another, whatever their names."""
    names = ("physical_type", "length", "max_definition_level", "max_repetition_level")
    return str(column.logical_type) == str(other.logical_type) and all(
        getattr(column, name) == getattr(other, name) for name in names
    )


def _column_chunk(path: str, chunk: Any, begin: int) -> bytes:  # noqa: ANN401
    """A ColumnChunk whose pages begin at a byte of the file."""
    first, dictionary = chunk.data_page_offset, chunk.dictionary_page_offset
    moved = begin - (first if dictionary is None else min(dictionary, first))
    encodings = [thrift.integer(_ENCODINGS[name]) for name in chunk.encodings]
    names = [thrift.binary(name.encode()) for name in path.split(".")]
    fields = {
        1: (I32, thrift.integer(_TYPES.index(chunk.physical_type))),
        2: (LIST, thrift.sequence(I32, encodings)),
        3: (LIST, thrift.sequence(BINARY, names)),
        4: (I32, thrift.integer(_CODECS[chunk.compression])),
        5: (I64, thrift.integer(chunk.num_values)),
        6: (I64, thrift.integer(chunk.total_uncompressed_size)),
        7: (I64, thrift.integer(chunk.total_compressed_size)),
        9: (I64, thrift.integer(first + moved)),
    }
    if dictionary is not None:
        fields[11] = (I64, thrift.integer(dictionary + moved))
    if chunk.is_stats_set:
        fields[12] = (STRUCT, _statistics(chunk.statistics))
    return thrift.struct({2: (I64, thrift.integer(0)), 3: (STRUCT, thrift.struct(fields))})


def _statistics(statistics: Any) -> bytes:  # noqa: ANN401
    fields = {}
    if statistics.has_null_count:
        fields[3] = (I64, thrift.integer(statistics.null_count))
    if statistics.has_min_max and (pack := _BOUNDS.get(statistics.physical_type)):
        fields[5] = (BINARY, thrift.binary(pack(statistics.max_raw)))
        fields[6] = (BINARY, thrift.binary(pack(statistics.min_raw)))
    return thrift.struct(fields)


@lru_cache(maxsize=8)
def _footer(schema: bytes) -> _Footer:
    """Of a serialized schema, for Arrow calls two schemas equal whose columns are described otherwise."""
    read = pa.ipc.read_schema(pa.py_buffer(schema))
    written = parquet.encode(None, read).to_pybytes()
    end = len(written) - len(_MAGIC) - _LENGTH.size
    footer = written[end - _LENGTH.unpack_from(written, end)[0] : end]
    before, behind = footer.split(_NO_ROWS)  # in two, or it is not what this module knows
    columns = pq.read_metadata(pa.BufferReader(written)).schema
    return _Footer(before, behind, [columns.column(index) for index in range(len(columns))])
