"""Parquet files some of whose columns are stored by us: copied from another file, or vectors as they are.

A column's pages say nothing of the file they lie in: copied byte for byte from a row group of another file
they are what encoding and compressing the same values again would make, for none of the time. Vectors are
stored without compression, so that a page of them is a header and what memory holds; pyarrow copies them
twice on their way. It takes no finished pages, so the list of row groups in the footer is written here; the
rest of the footer is what pyarrow writes for the schema. Columns of lists and structs are not for it.

The structs, their fields' numbers and the enumerations are those of parquet.thrift in apache/parquet-format.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from zlib_ng import zlib_ng

from laion_assets.errors import CorruptParquet
from laion_assets.formats import parquet, thrift
from laion_assets.formats.large_file import LargeFile
from laion_assets.formats.parquet import MAGIC
from laion_assets.formats.thrift import BINARY, I16, I32, I64, LIST, STRUCT

_LENGTH: Final = struct.Struct("<I")
# num_rows = 0 and row_groups = [], fields 3 and 4 of FileMetaData, as they follow field 2.
_NO_ROWS: Final = b"\x16\x00\x19\x0c"

# In the order of their numbers, by the names that pyarrow gives them.
_TYPES: Final = (
    *("BOOLEAN", "INT32", "INT64", "INT96"),
    *("FLOAT", "DOUBLE", "BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY"),
)
_ENCODINGS: Final = (
    *("PLAIN", "GROUP_VAR_INT", "PLAIN_DICTIONARY", "RLE", "BIT_PACKED", "DELTA_BINARY_PACKED"),
    *("DELTA_LENGTH_BYTE_ARRAY", "DELTA_BYTE_ARRAY", "RLE_DICTIONARY", "BYTE_STREAM_SPLIT"),
)
_CODECS: Final = ("UNCOMPRESSED", "SNAPPY", "GZIP", "LZO", "BROTLI", "LZ4_HADOOP", "ZSTD", "LZ4")
_DATA_PAGE: Final = 0
# Of a page of vectors, as pyarrow has it by default.
_PAGE_BYTES: Final = 1 << 20
# How the least and the greatest value of a column are packed; of other types neither is written.
_BOUNDS: Final[Mapping[str, Callable[[Any], bytes]]] = {
    "BOOLEAN": struct.Struct("<?").pack,
    "INT32": struct.Struct("<i").pack,
    "INT64": struct.Struct("<q").pack,
    "FLOAT": struct.Struct("<f").pack,
    "DOUBLE": struct.Struct("<d").pack,
    "BYTE_ARRAY": bytes,
}


class Chunk(NamedTuple):
    """A column of a row group, as it is stored."""

    stored_as: _Type
    encodings: Sequence[str]
    codec: str
    values: int
    plain_bytes: int
    """Of its pages, were they not compressed."""
    size: int
    """Bytes of its pages."""
    data_at: int
    """Where in them its first page of data begins; a dictionary lies before it."""
    statistics: bytes | None
    pages: Sequence[Any]
    """Buffers."""


class _Type(NamedTuple):
    """What pages of two columns have to have in common for one's to be the other's, whatever their names."""

    physical: str
    length: int
    definition_levels: int
    repetition_levels: int
    logical: str

    @classmethod
    def of(cls, column: Any) -> _Type:  # noqa: ANN401 (pyarrow has no types)
        """That of pyarrow's description of a column."""
        levels = (column.max_definition_level, column.max_repetition_level)
        return cls(column.physical_type, column.length, *levels, str(column.logical_type))


class _Footer(NamedTuple):
    """What pyarrow writes for a schema before and behind the row groups, and the columns of those."""

    before: bytes
    behind: bytes
    columns: Mapping[str, _Type]


class Writer:
    """Writes row groups to a file: :func:`open_writer`."""

    def __init__(self, file: LargeFile, schema: pa.Schema) -> None:
        self._file = file
        self._schema = schema
        self._footer = _footer(schema.serialize().to_pybytes())
        self._at = file.write(MAGIC)
        self._rows = 0
        self._groups: list[bytes] = []

    def write(self, table: pa.Table, stored: Mapping[str, Chunk]) -> None:
        """Append a row group.

        Args:
            table: the columns that are to be encoded, texts being UTF-8, with at least one row.
            stored: the others.

        Raises:
            ValueError: if a column is stored otherwise than the schema says, or has other rows.
        """
        encoded = parquet.encode(table, pa.schema([self._schema.field(name) for name in table.column_names]))
        footer = pq.read_metadata(pa.BufferReader(encoded))
        chunks = {**_chunks(footer, 0, encoded.slice, self._footer.columns), **stored}
        begin, columns = self._at, []
        for name, type_ in self._footer.columns.items():
            chunk = chunks[name]
            if chunk.stored_as != type_ or (name in stored and chunk.values != table.num_rows):
                raise ValueError(f"column {name}: {chunk.values} of {chunk.stored_as}, not {type_}")
            columns.append(_describe(name, chunk, self._at))
            for page in chunk.pages:
                self._file.write(page)
            self._at += chunk.size
        group = {
            1: (LIST, thrift.sequence(STRUCT, columns)),
            2: (I64, thrift.integer(sum(chunks[name].plain_bytes for name in self._footer.columns))),
            3: (I64, thrift.integer(table.num_rows)),
            5: (I64, thrift.integer(begin)),
            6: (I64, thrift.integer(self._at - begin)),
            7: (I16, thrift.integer(len(self._groups))),
        }
        self._groups.append(thrift.struct(group))
        self._rows += table.num_rows

    def finish(self) -> None:
        """Append the footer."""
        before, behind, _ = self._footer
        # The two fields that _NO_ROWS is.
        groups = b"\x16" + thrift.integer(self._rows) + b"\x19" + thrift.sequence(STRUCT, self._groups)
        footer = before + groups + behind
        self._file.write(footer + _LENGTH.pack(len(footer)) + MAGIC)


@contextmanager
def open_writer(path: Path, schema: pa.Schema, *, cached: bool = True) -> Iterator[Writer]:
    """A writer of a file of this schema.

    Args:
        path: the file.
        schema: of the file.
        cached: whether somebody reads the file before memory is full of others.

    Raises:
        ValueError: if it has columns of lists or structs.
    """
    with LargeFile(path, cached=cached) as file:
        writer = Writer(file, schema)
        yield writer
        writer.finish()


def stored_columns(
    path: Path, footer: pq.FileMetaData, group: int, names: Mapping[str, str]
) -> dict[str, Chunk]:
    """Columns of a row group of a file of ours, under other names.

    Args:
        path: the file.
        footer: the file's.
        group: number of the row group.
        names: name that a column gets -> its name here.

    Raises:
        CorruptParquet: if the file ends before a column does.
    """

    def read(at: int, size: int) -> bytes:
        pages = os.pread(file.fileno(), size, at)
        if len(pages) < size:
            raise CorruptParquet(
                path,
                expected=f"{size} bytes from byte {at} on",
                found=f"{len(pages)}",
                remedy="Delete its manifest to have it made again.",
            )
        return pages

    with path.open("rb", buffering=0) as file:
        chunks = _chunks(footer, group, read, frozenset(names.values()))
    return {name: chunks[column] for name, column in names.items()}


def stored_vectors(vectors: npt.NDArray[np.float16]) -> Chunk:
    """A column of vectors, which has to stay as it is until it is written.

    Args:
        vectors: float16 (rows, width), contiguous.
    """
    rows, width = vectors.shape
    each = width * vectors.itemsize
    pages: list[Any] = []
    size = 0
    for first in range(0, rows, max(1, _PAGE_BYTES // each)):
        values = vectors[first : first + max(1, _PAGE_BYTES // each)]
        body = values.data.cast("B")
        header = _page_header(len(values), body)
        pages += (header, body)
        size += len(header) + len(body)
    stored_as = _Type("FIXED_LEN_BYTE_ARRAY", each, 0, 0, "None")
    return Chunk(stored_as, ("RLE", "PLAIN"), "UNCOMPRESSED", rows, size, size, 0, None, pages)


def _page_header(values: int, body: memoryview) -> bytes:
    """A PageHeader of values that are never null, as they are."""
    checksum = zlib_ng.crc32(body)  # five times as fast as zlib's
    data = {
        1: (I32, thrift.integer(values)),
        2: (I32, thrift.integer(_ENCODINGS.index("PLAIN"))),
        3: (I32, thrift.integer(_ENCODINGS.index("RLE"))),  # of the levels, of which there are none
        4: (I32, thrift.integer(_ENCODINGS.index("RLE"))),
        5: (STRUCT, thrift.struct({})),  # no statistics; so pyarrow writes it, and so pages are equal to its
    }
    return thrift.struct(
        {
            1: (I32, thrift.integer(_DATA_PAGE)),
            2: (I32, thrift.integer(len(body))),
            3: (I32, thrift.integer(len(body))),
            4: (I32, thrift.integer(checksum - (checksum >> 31 << 32))),  # the same bits, signed
            5: (STRUCT, thrift.struct(data)),
        }
    )


def _chunks(
    footer: Any,  # noqa: ANN401
    group: int,
    read: Callable[[int, int], Any],
    paths: Container[str],
) -> dict[str, Chunk]:
    """Columns of a row group by their path, which is their name."""
    chunks = {}
    row_group = footer.row_group(group)
    for index in range(footer.num_columns):
        chunk = row_group.column(index)
        if chunk.path_in_schema not in paths:
            continue
        begin, size = parquet.first_page(chunk), chunk.total_compressed_size
        chunks[chunk.path_in_schema] = Chunk(
            stored_as=_Type.of(footer.schema.column(index)),
            encodings=chunk.encodings,
            codec=chunk.compression,
            values=chunk.num_values,
            plain_bytes=chunk.total_uncompressed_size,
            size=size,
            data_at=chunk.data_page_offset - begin,
            statistics=_statistics(chunk.statistics) if chunk.is_stats_set else None,
            pages=(read(begin, size),),
        )
    return chunks


def _describe(name: str, chunk: Chunk, begin: int) -> bytes:
    """The ColumnChunk of a column whose pages begin at a byte of the file."""
    encodings = [thrift.integer(_ENCODINGS.index(encoding)) for encoding in chunk.encodings]
    fields = {
        1: (I32, thrift.integer(_TYPES.index(chunk.stored_as.physical))),
        2: (LIST, thrift.sequence(I32, encodings)),
        3: (LIST, thrift.sequence(BINARY, [thrift.binary(name.encode())])),
        4: (I32, thrift.integer(_CODECS.index(chunk.codec))),
        5: (I64, thrift.integer(chunk.values)),
        6: (I64, thrift.integer(chunk.plain_bytes)),
        7: (I64, thrift.integer(chunk.size)),
        9: (I64, thrift.integer(begin + chunk.data_at)),
    }
    if chunk.data_at:
        fields[11] = (I64, thrift.integer(begin))
    if chunk.statistics is not None:
        fields[12] = (STRUCT, chunk.statistics)
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
    end = len(written) - len(MAGIC) - _LENGTH.size
    footer = written[end - _LENGTH.unpack_from(written, end)[0] : end]
    # Names of columns may hold anything, and stand before it.
    before, behind = footer.rsplit(_NO_ROWS, 1)
    columns = pq.read_metadata(pa.BufferReader(written)).schema
    described = [columns.column(index) for index in range(len(columns))]
    if [column.path for column in described] != read.names:
        raise ValueError(f"not columns of single values: {read}")
    return _Footer(before, behind, {column.path: _Type.of(column) for column in described})
