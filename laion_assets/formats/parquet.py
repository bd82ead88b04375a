"""Parquet against a declared schema, with page checksums both ways.

Without page checksums a flipped byte can come back as different data (190 of 3,000 single-byte
mutations did, none with them), so every file is written with them and read checking them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Final

import pyarrow as pa
import pyarrow.fs as pa_fs
import pyarrow.parquet as pq

from laion_assets.errors import CorruptParquet
from laion_assets.formats.durable import identity
from laion_assets.formats.large_file import LargeFile
from laion_assets.schema import REPEATING_COLUMNS

# Bounds on what a hostile footer may make the reader allocate.
_THRIFT_STRING_LIMIT: Final = 256 << 20
_THRIFT_CONTAINER_LIMIT: Final = 16 << 20

MAGIC: Final = b"PAR1"
"""What a Parquet file begins and ends with."""
_READ_BUFFER_BYTES: Final = 1 << 20
_SMALL_TABLE_BYTES: Final = 8 << 20
_DISK: Final = pa_fs.LocalFileSystem()

_REMEDY: Final = (
    "Delete its manifest to have it made again, or fetch the file again if it came from elsewhere."
)


@contextmanager
def open_writer(
    path: Path,
    schema: pa.Schema,
    *,
    nested: Mapping[str, str] = MappingProxyType({}),
    cached: bool = True,
) -> Iterator[pq.ParquetWriter]:
    """A writer of tables that have exactly ``schema``.

    Vectors (values of a fixed number of bytes) are stored as they are, without compression and statistics:
    8 % larger, and read several times as fast.

    Args:
        path: the file.
        schema: of its tables.
        nested: how columns of columns are compressed, by their path in Parquet.
        cached: whether somebody reads the file before memory is full of others.
    """
    with LargeFile(path, cached=cached) as file, _writer(file, schema, nested=nested) as writer:
        yield writer


def _writer(
    sink: LargeFile | pa.NativeFile,
    schema: pa.Schema,
    *,
    nested: Mapping[str, str] = MappingProxyType({}),
    batch_rows: int = 1024,  # Arrow's own
) -> pq.ParquetWriter:
    """As :func:`open_writer`, to anywhere.

    Args:
        sink: takes the file's bytes.
        schema: of the tables.
        nested: how columns of columns are compressed.
        batch_rows: how many values of a column are encoded before its page is looked at, whether it is full.
    """
    return pq.ParquetWriter(
        sink,
        schema,
        compression={field.name: "none" if _is_vector(field) else "zstd" for field in schema} | dict(nested),
        # 10,000 samples take 7 ms like this, and 14 ms and a quarter more room with every column's.
        use_dictionary=[name for name in schema.names if name in REPEATING_COLUMNS],
        write_statistics=[field.name for field in schema if _is_compared(field)],
        write_page_checksum=True,
        write_batch_size=batch_rows,
        store_schema=True,
    )


def _is_vector(field: pa.Field) -> bool:
    return bool(pa.types.is_fixed_size_binary(field.type))


def _is_compared(field: pa.Field) -> bool:
    """Whether somebody may look for a range of a column's values, and skip row groups for it."""
    is_text = pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
    return not _is_vector(field) and (field.name == "key" or not is_text)


def write_table(
    path: Path,
    table: pa.Table,
    schema: pa.Schema,
    *,
    row_group_rows: int = 100_000,
    is_valid_text: bool = False,
) -> None:
    """Write a table whose columns must be those of ``schema``, nulls only where it allows them.

    Args:
        path: the file.
        table: what to write.
        schema: of the file.
        row_group_rows: most rows of a row group.
        is_valid_text: whether the caller has made sure that texts are UTF-8, which takes a tenth as long as
            to write them.

    Raises:
        pyarrow.ArrowInvalid: if the table does not have this schema.
    """
    if not table.schema.equals(schema, check_metadata=True):
        table = table.cast(schema)
    table.validate(full=not is_valid_text)
    if table.nbytes >= _SMALL_TABLE_BYTES:
        with open_writer(path, schema) as writer:
            writer.write_table(table, row_group_size=row_group_rows)
        return
    with LargeFile(path) as file:
        file.write(encode(table, schema, row_group_rows=row_group_rows))


def encode(table: pa.Table | None, schema: pa.Schema, *, row_group_rows: int | None = None) -> pa.Buffer:
    """The bytes of a file of a small table.

    All values at once, and then all bytes, takes a tenth less time, where that makes no page too large.

    Args:
        table: what to write; None for a file without any row group.
        schema: of the table.
        row_group_rows: most rows of a row group, all by default.
    """
    written = pa.BufferOutputStream()
    rows = row_group_rows or max(1, 0 if table is None else table.num_rows)
    with _writer(written, schema, batch_rows=rows) as writer:
        if table is not None:
            writer.write_table(table, row_group_size=rows)
    return written.getvalue()


@contextmanager
def open_reader(path: Path, *, keep_footer: bool = False) -> Iterator[pq.ParquetFile]:
    """A reader that verifies checksums; any damage found while it is open is a CorruptParquet.

    Args:
        path: the file.
        keep_footer: for a file that is opened many times while it stays the same; a footer of 1,300 row
            groups takes 20 ms to parse, which is then done once.

    Raises:
        CorruptParquet: if the file is no Parquet file or is damaged.
    """
    try:
        footer = _footer(path, identity(path.stat())) if keep_footer else None
        with _open(path, footer) as reader:
            if footer is None:
                _check_row_counts(path, reader.metadata)
            yield reader
    # A damaged footer can hold names that are no UTF-8, which pyarrow does not call an ArrowException.
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the system's word on the disk or the limits, not the reader's on the file
        raise CorruptParquet(
            path, expected="a readable Parquet file", found=_first_line(error), remedy=_REMEDY
        ) from error


def _open(path: Path, footer: pq.FileMetaData | None = None) -> pq.ParquetFile:
    return pq.ParquetFile(
        path,
        filesystem=_DISK,  # or pyarrow looks whether the path is an address
        metadata=footer,
        page_checksum_verification=True,
        # Without these, pyarrow 26 holds whole column chunks, compressed, beside what it decodes: 400 MB
        # instead of 28 for a row group of 100,000 vectors, and slower.
        buffer_size=_READ_BUFFER_BYTES,
        pre_buffer=False,
        thrift_string_size_limit=_THRIFT_STRING_LIMIT,
        thrift_container_size_limit=_THRIFT_CONTAINER_LIMIT,
    )


@lru_cache(maxsize=2)
def _footer(path: Path, _: tuple[int, int, int]) -> pq.FileMetaData:
    """The checked footer of a file, as long as it is the same file."""
    with _open(path) as reader:
        _check_row_counts(path, reader.metadata)
        return reader.metadata


def read_table(
    path: Path, schema: pa.Schema, *, columns: Sequence[str] | None = None, and_more: bool = False
) -> pa.Table:
    """Read a file that this project wrote.

    Args:
        path: the file.
        schema: what it was declared as when written.
        columns: which columns to read, all by default.
        and_more: whether columns of the source may follow those declared.

    Raises:
        CorruptParquet: if the file is damaged or was declared otherwise.
    """
    with open_reader(path) as reader:
        _check_schema(path, schema, reader.schema_arrow, and_more=and_more)
        names = list(columns) if columns is not None else None
        groups = []
        for group in range(reader.num_row_groups):
            groups.append(reader.read_row_group(group, columns=names))
            _check_count(path, groups[-1].num_rows, reader.metadata.row_group(group).num_rows)
        if columns is None:
            _check_places(path, reader.metadata)
        # A table of no rows need have no row group.
        return pa.concat_tables(groups) if groups else reader.read(columns=names)


def read_batches(
    path: Path,
    schema: pa.Schema,
    *,
    batch_rows: int,
    columns: Sequence[str] | None = None,
    and_more: bool = False,
) -> Iterator[pa.RecordBatch]:
    """As :func:`read_table`, a batch of rows at a time, so that memory does not grow with the file.

    Args:
        path: the file.
        schema: what it was declared as when written.
        batch_rows: most rows of a batch; batches may be smaller.
        columns: which columns to read, all by default.
        and_more: whether columns of the source may follow those declared.

    Raises:
        CorruptParquet: if the file is damaged or was declared otherwise.
    """
    with open_reader(path) as reader:
        _check_schema(path, schema, reader.schema_arrow, and_more=and_more)
        for group in range(reader.num_row_groups):
            # One by one: a page that claims more values than it has would be followed into the next group's.
            yield from batches(path, reader, batch_rows=batch_rows, columns=columns, groups=[group])
        if columns is None:
            _check_places(path, reader.metadata)


def batches(
    path: Path,
    reader: pq.ParquetFile,
    *,
    batch_rows: int,
    columns: Sequence[str] | None = None,
    groups: Sequence[int] | None = None,
) -> Iterator[pa.RecordBatch]:
    """Rows of an open file, a batch at a time, however they are grouped in it.

    Args:
        path: the file.
        reader: reads it.
        batch_rows: rows of each batch but the last.
        columns: which columns to read, all by default.
        groups: which row groups to read, all by default.

    Raises:
        CorruptParquet: if there are fewer than the footer says: pyarrow ends without a word where a
            column's page claims to hold nothing.
    """
    footer = reader.metadata
    taken = list(range(footer.num_row_groups)) if groups is None else list(groups)
    names = list(columns) if columns is not None else None
    rows = 0
    for batch in reader.iter_batches(batch_size=batch_rows, row_groups=taken, columns=names):
        rows += len(batch)
        yield batch
    _check_count(path, rows, sum(footer.row_group(group).num_rows for group in taken))


def _check_count(path: Path, found: int, expected: int) -> None:
    if found != expected:
        raise CorruptParquet(
            path, expected=f"{expected} rows, as the footer says,", found=str(found), remedy=_REMEDY
        )


def vector_width(path: Path) -> int:
    """Elements of the vectors in a Parquet file of ours, which its own schema says.

    Raises:
        CorruptParquet: if it holds no vectors.
    """
    with open_reader(path) as reader:
        schema = reader.schema_arrow
    found = schema.field("image_embedding").type if "image_embedding" in schema.names else None
    if found is None or not pa.types.is_fixed_size_binary(found):
        raise CorruptParquet(
            path,
            expected="vectors as fixed-size binary values in image_embedding",
            found=str(found or schema.names)[:300],
            remedy="Delete its manifest to have it made again.",
        )
    return int(found.byte_width) // 2


def _check_row_counts(path: Path, footer: pq.FileMetaData) -> None:
    """The footer has no checksum: a row group whose count is damaged would silently yield fewer rows."""
    counted = sum(footer.row_group(group).num_rows for group in range(footer.num_row_groups))
    if counted != footer.num_rows:
        raise CorruptParquet(
            path,
            expected=f"{footer.num_rows} rows, as the footer says,",
            found=f"{counted} in its row groups",
            remedy=_REMEDY,
        )


def _check_places(path: Path, footer: pq.FileMetaData) -> None:
    """Check what no page's checksum covers of a file that this project wrote, once all of it was read.

    Before that, pyarrow 26 ends the process where ``column()`` meets a footer that its reader refuses.

    Raises:
        CorruptParquet: if a column does not begin where the one before it ends: what its place leads to are
            then another column's pages, whose checksums hold.
    """
    at = len(MAGIC)
    for group in range(footer.num_row_groups):
        for column in range(footer.num_columns):
            chunk = footer.row_group(group).column(column)
            first = first_page(chunk)
            # A row group of no rows may have columns without a page, and so without a place.
            if first != at and chunk.num_values:
                raise CorruptParquet(
                    path,
                    expected=f"column {column} of row group {group} at byte {at}",
                    found=f"byte {first} in the footer",
                    remedy=_REMEDY,
                )
            at += chunk.total_compressed_size


def first_page(chunk: pq.ColumnChunkMetaData) -> int:
    """Byte of the file at which pyarrow begins to read a column of a row group."""
    dictionary, data = chunk.dictionary_page_offset, chunk.data_page_offset
    return int(data if dictionary is None else min(dictionary, data))


def _check_schema(path: Path, schema: pa.Schema, found: pa.Schema, *, and_more: bool) -> None:
    compared = pa.schema(list(found)[: len(schema)]) if and_more else found
    if not compared.equals(schema, check_metadata=False):
        raise CorruptParquet(
            path,
            expected=f"columns {_spell(schema)}",
            found=_spell(found),
            remedy=_REMEDY,
        )


def _spell(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)


def _first_line(error: BaseException) -> str:
    return str(error).split("\n", 1)[0][:300]
