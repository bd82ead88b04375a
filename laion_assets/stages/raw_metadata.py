"""One raw file, local or fetched, as one checked part in LAION-400M's eight columns, and those asked for.

The part is written anew rather than linked, because that buys three things for the price of one pass:
one set of column names for all sister data sets, page checksums, and a row group for each shard, so that
the rows of any shard are one read away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.fs
import pyarrow.parquet as pq

from laion_assets.columns import NO_COLUMNS, ColumnPolicy, extra_field, find_columns, is_text, valid_text
from laion_assets.errors import CorruptInput, CorruptParquet, SettingsError, SourceUnavailable
from laion_assets.formats import parquet
from laion_assets.formats.checksums import sha256_of
from laion_assets.formats.publish import Draft, Manifest, Recipe, Tally, publish
from laion_assets.formats.sealed import fingerprint
from laion_assets.layout import Layout
from laion_assets.raw_source import RawSource, without_secrets
from laion_assets.schema import RAW, SOURCE_SCHEMAS, SourceSchema

CODE_VERSION: Final = "2"
_REQUIRED: Final = ("URL", "TEXT")
_BATCH_ROWS: Final = 65_536
_CSV_BLOCK_BYTES: Final = 16 << 20
_CHUNK_BYTES: Final = 1 << 20
_S3: Final = "s3://"
_S3_CHUNK_BYTES: Final = 16 << 20
_FETCH_ATTEMPTS: Final = 4
_STALL_TIMEOUT_S: Final = 60.0


def check_part(
    part: str,
    layout: Layout,
    *,
    location: str,
    source_schema: str,
    rows_per_shard: int,
    columns: ColumnPolicy = NO_COLUMNS,
) -> Manifest:
    """Publish one part from its raw file.

    Args:
        part: name of the part.
        layout: where the part is published.
        location: path, or http(s):// or s3:// URL, of the raw file, Parquet or tab-separated. For s3 the
            usual environment gives credentials, and ``?endpoint_override=`` another server.
        source_schema: name of the column mapping, a key of :data:`~laion_assets.schema.SOURCE_SCHEMAS`.
        rows_per_shard: rows of each row group written.
        columns: which further columns of the file are taken along, behind the eight.

    Raises:
        SettingsError: if further columns are asked for of a source schema that has none.
        SourceUnavailable: if the file cannot be opened or fetched.
        CorruptParquet: if it is damaged, or a column is missing or of a type that cannot be meant.
    """
    source = SOURCE_SCHEMAS[source_schema]
    if source.delimiter is not None and columns.carried:
        raise SettingsError(f"source_schema {source_schema!r} has no further columns to take along")
    settings: list[object] = [source_schema, rows_per_shard]
    if columns.carried:
        settings.append(columns.carried)
    recipe = Recipe(
        code_version=CODE_VERSION,
        settings=fingerprint(settings),
        inputs={"source": identity_of(location)},
    )

    def write(draft: Draft) -> Tally:
        if "://" in location:
            path = draft.scratch(location.rsplit("/", 1)[-1].split("?", 1)[0])
            _fetch(location, path)
        else:
            path = Path(location)
        record = RawSource(
            location=without_secrets(location),
            size_bytes=path.stat().st_size,
            sha256=sha256_of(path),
            source_schema=source_schema,
        )
        draft.path(layout.raw_source(part).name).write_bytes(record.to_json())
        destination = draft.path(layout.raw_table(part).name)
        schema = pa.schema([*RAW, *_further_fields(path, columns)])
        return _rewrite(_read(path, source, schema), destination, schema, rows_per_shard)

    return publish(layout.raw_metadata(part), recipe, write)


def identity_of(location: str) -> str:
    """Cheap proof that a raw file is the one read before: its address, size and time of change.

    Raises:
        SourceUnavailable: if it cannot be looked at.
    """
    if location.startswith(_S3):
        return fingerprint([location, _s3_identity(location)])
    if "://" in location:
        return fingerprint([location, asyncio.run(_head(location))])
    try:
        status = Path(location).stat()
    except OSError as error:
        raise SourceUnavailable(f"raw file {location} cannot be read: {error.strerror}") from error
    return fingerprint([location, status.st_size, status.st_mtime_ns])


async def _head(url: str) -> list[str | None]:
    """The headers that change when a remote file does."""
    import aiohttp

    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_STALL_TIMEOUT_S)) as session,
            session.head(url, allow_redirects=True) as response,
        ):
            response.raise_for_status()
            return [response.headers.get(name) for name in ("ETag", "Last-Modified", "Content-Length")]
    except (aiohttp.ClientError, TimeoutError) as error:
        raise _unavailable(url, error) from error


def _fetch(url: str, path: Path) -> None:
    """Download a raw file; the operator named it, so its address is trusted."""
    if url.startswith(_S3):
        _fetch_s3(url, path)
    else:
        asyncio.run(_fetch_http(url, path))


def _s3_identity(url: str) -> list[int]:
    """Size and time of change of an object."""
    try:
        filesystem, key = pyarrow.fs.FileSystem.from_uri(url)
        found = filesystem.get_file_info(key)
    except (OSError, pa.ArrowException) as error:
        raise _unavailable(url, error) from error
    if found.type != pyarrow.fs.FileType.File:
        raise SourceUnavailable(f"raw file {without_secrets(url)} is not there")
    return [found.size, found.mtime_ns]


def _fetch_s3(url: str, path: Path) -> None:
    try:
        filesystem, key = pyarrow.fs.FileSystem.from_uri(url)
        # A stream would ask for 256 KiB at a time.
        with filesystem.open_input_file(key) as source, path.open("wb") as file:
            while chunk := source.read(_S3_CHUNK_BYTES):
                file.write(chunk)
    except (OSError, pa.ArrowException) as error:
        raise _unavailable(url, error) from error


def _unavailable(url: str, error: Exception) -> SourceUnavailable:
    reason = str(error).split("\n", 1)[0][:300] or repr(error)
    return SourceUnavailable(f"raw file {without_secrets(url)} cannot be fetched: {reason}")


async def _fetch_http(url: str, path: Path) -> None:
    import aiohttp
    import stamina

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_STALL_TIMEOUT_S, sock_read=_STALL_TIMEOUT_S)
    passing = (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, TimeoutError)
    try:
        async for attempt in stamina.retry_context(on=passing, attempts=_FETCH_ATTEMPTS, timeout=None):
            with attempt:
                async with aiohttp.ClientSession(timeout=timeout) as session, session.get(url) as response:
                    response.raise_for_status()
                    with path.open("wb") as file:
                        async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
                            file.write(chunk)
    except (aiohttp.ClientError, TimeoutError) as error:
        raise _unavailable(url, error) from error


def _further_fields(path: Path, columns: ColumnPolicy) -> list[pa.Field]:
    """How the columns that are taken along are declared."""
    if not columns.carried:
        return []
    with parquet.open_reader(path) as reader:
        schema = reader.schema_arrow
    remedy = "Mend extra_columns, digest_column and boxes_column in [raw]."
    fields = []
    for name, column in find_columns(columns.carried, schema.names).items():
        if column is None:
            found = ", ".join(schema.names)[:300]
            raise CorruptParquet(path, expected=f"a column {name!r}", found=found, remedy=remedy)
        fields.append(extra_field(name, schema.field(column).type))
        if name.lower() == (columns.digest_column or "").lower() and not is_text(fields[-1].type):
            found = f"type {fields[-1].type}"
            raise CorruptParquet(path, expected=f"digests as text in {name!r}", found=found, remedy=remedy)
    return fields


def _read(path: Path, source: SourceSchema, schema: pa.Schema) -> Iterator[pa.Table]:
    """The file's rows in the columns of ``schema``, a batch at a time."""
    if source.delimiter is not None:
        yield from _read_text(path, source)
        return
    with parquet.open_reader(path) as reader:
        wanted = {**source.columns, **{name: name for name in schema.names[len(RAW) :]}}
        found = find_columns(wanted.values(), reader.schema_arrow.names)
        columns = {ours: column for ours, name in wanted.items() if (column := found[name]) is not None}
        for canonical in _REQUIRED:
            if canonical not in columns:
                raise CorruptParquet(
                    path,
                    expected=f"a column {source.columns[canonical]!r}",
                    found=", ".join(reader.schema_arrow.names)[:300],
                    remedy="Set source_schema in [raw] to the data set that this file is of.",
                )
        names = sorted(set(columns.values()))
        for batch in parquet.batches(path, reader, batch_rows=_BATCH_ROWS, columns=names):
            table = pa.Table.from_batches([batch])
            yield _canonical(
                {name: table[column] for name, column in columns.items()}, batch.num_rows, path, schema
            )


def _read_text(path: Path, source: SourceSchema) -> Iterator[pa.Table]:
    try:
        with pyarrow.csv.open_csv(
            path,
            read_options=pyarrow.csv.ReadOptions(
                column_names=list(source.columns), block_size=_CSV_BLOCK_BYTES
            ),
            parse_options=pyarrow.csv.ParseOptions(delimiter=source.delimiter, quote_char=False),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types={name: RAW.field(name).type for name in source.columns}
            ),
        ) as reader:
            for batch in reader:
                columns = dict(zip(batch.schema.names, batch.columns, strict=True))
                yield _canonical(columns, batch.num_rows, path, RAW)
    except pa.ArrowInvalid as error:
        raise CorruptInput(
            path,
            expected=f"lines of {', '.join(source.columns)}, separated by {source.delimiter!r}",
            found=str(error).split("\n", 1)[0][:300],
            remedy="Mend the line, or set source_schema in [raw] to the data set that this file is of.",
        ) from error


def _canonical(columns: dict[str, pa.ChunkedArray], rows: int, path: Path, schema: pa.Schema) -> pa.Table:
    arrays = [
        _cast(columns[field.name], field, path) if field.name in columns else pa.nulls(rows, field.type)
        for field in RAW
    ]
    further = [valid_text(columns[field.name].cast(field.type)) for field in list(schema)[len(RAW) :]]
    return pa.Table.from_arrays([*arrays, *further], schema=schema)


def _cast(values: pa.ChunkedArray, field: pa.Field, path: Path) -> pa.ChunkedArray:
    """Values in the canonical type; a number that cannot be one of it (NaN, too large) becomes null."""
    is_text = pa.types.is_string(values.type) or pa.types.is_large_string(values.type)
    if is_text != pa.types.is_string(field.type) and not pa.types.is_null(values.type):
        raise _wrong_values(path, field, f"type {values.type}")
    try:
        if pa.types.is_integer(field.type):
            bound = float(2 ** (field.type.bit_width - 1))
            number = values.cast(pa.float64(), safe=False)
            usable = pc.and_(pc.less(number, bound), pc.greater_equal(number, -bound))
            values = pc.if_else(usable, values, pa.scalar(None, values.type))
            values = pc.round(values) if pa.types.is_floating(values.type) else values
        return values.cast(field.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise _wrong_values(path, field, str(error).split("\n", 1)[0][:200]) from error


def _wrong_values(path: Path, field: pa.Field, found: str) -> CorruptParquet:
    return CorruptParquet(
        path,
        expected=f"values of {field.name} that fit {field.type}",
        found=found,
        remedy="Set source_schema in [raw] to the data set that this file is of.",
    )


def _rewrite(tables: Iterable[pa.Table], destination: Path, schema: pa.Schema, rows_per_shard: int) -> Tally:
    """Write row groups of exactly one shard each, however the source was cut."""
    rows = 0
    pending: list[pa.Table] = []
    with parquet.open_writer(destination, schema) as writer:
        for table in tables:
            rows += table.num_rows
            pending.append(table)
            if sum(held.num_rows for held in pending) >= rows_per_shard:
                pending = [_write_whole_shards(pa.concat_tables(pending), writer, rows_per_shard)]
        rest = pa.concat_tables(pending) if pending else schema.empty_table()
        writer.write_table(rest, row_group_size=rows_per_shard)
    return Tally(rows=rows)


def _write_whole_shards(table: pa.Table, writer: pq.ParquetWriter, rows_per_shard: int) -> pa.Table:
    whole = table.num_rows - table.num_rows % rows_per_shard
    writer.write_table(table.slice(0, whole), row_group_size=rows_per_shard)
    return table.slice(whole)
