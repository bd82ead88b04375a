"""A DuckDB database of views over every stage's tables and manifests.

The views name folders, not files, and ask for the manifests each time: a shard published later is in them at
once, and a file without a manifest never is. What a view cannot do is appear: one of a stage that had
published nothing when the catalog was written has the right columns and stays empty until it is written
again, which materializing the catalog does; and so do columns of the source that were taken along since.
Paths are absolute, so a data root that moved needs that too.
"""

# ruff: noqa: S608 (statements are put together from this project's own words and quoted paths)

from __future__ import annotations

import glob
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import duckdb
import pyarrow as pa

from laion_assets.formats.publish import Draft, Manifest, Recipe, Tally, bring_all, publish
from laion_assets.formats.sealed import fingerprint
from laion_assets.layout import IMAGES_MANIFEST_SUFFIX, Layout
from laion_assets.published import (
    DATA_STAGES,
    manifest_suffixes,
    output_of,
    partitions_of,
    sample_output,
    version_of_everything,
)
from laion_assets.schema import (
    DUPLICATES,
    IMAGES,
    NORMALIZED_EMBEDDINGS,
    NORMALIZED_IMAGES,
    RAW,
    REQUESTS,
    ROWS_SET_ASIDE,
    SAMPLES,
    describe,
    embedding_join,
    image_embeddings,
)

CODE_VERSION: Final = "3"


@dataclass(frozen=True, kw_only=True)
class _View:
    """One table of a stage.

    Attributes:
        name: name of the view.
        stage: the stage whose files it shows.
        file: which of the stage's files, by its place among their names.
        partition: name of the column that holds the partition key.
        schema: columns of the files.
        description: what a row is.
        same_columns: whether every file has these columns and no others; shards that img2dataset made may
            lack some, and others may have columns of the source.
    """

    name: str
    stage: str
    file: int = 0
    partition: str = "shard"
    schema: pa.Schema
    description: str
    same_columns: bool = True


_VIEWS: Final = (
    _View(
        name="raw_metadata",
        stage="raw_metadata",
        partition="part",
        schema=RAW,
        description="The rows of the raw parts.",
        same_columns=False,
    ),
    _View(
        name="duplicates",
        stage="duplicates",
        partition="stage",
        schema=DUPLICATES,
        description="Repeated and impossible values of each part, and of all parts.",
    ),
    _View(
        name="samples",
        stage="samples",
        schema=SAMPLES,
        description="The rows of the shards, keyed.",
        same_columns=False,
    ),
    _View(
        name="images",
        stage="images",
        file=1,
        schema=IMAGES,
        description="What became of every sample: its picture, or why there is none.",
        same_columns=False,
    ),
    _View(
        name="image_requests",
        stage="images",
        file=3,
        schema=REQUESTS,
        description="How often each row of images was asked for, and how long that took.",
    ),
    _View(
        name="normalized_images",
        stage="normalized_images",
        schema=NORMALIZED_IMAGES,
        description="The examples of laion400m/images, without the pictures' bytes.",
    ),
    _View(
        name="normalized_images_set_aside",
        stage="normalized_images",
        file=1,
        schema=ROWS_SET_ASIDE,
        description="Pictures that make no example, with the reason.",
    ),
    _View(
        name="embedding_join",
        stage="embedding_join",
        partition="embedding_shard",
        schema=embedding_join(),
        description="Vectors (float16, as bytes) and metadata of the embedding shards.",
    ),
    _View(
        name="normalized_embeddings",
        stage="normalized_embeddings",
        partition="embedding_shard",
        schema=NORMALIZED_EMBEDDINGS,
        description="The examples of laion400m/embeddings, without the vectors.",
    ),
    _View(
        name="normalized_embeddings_set_aside",
        stage="normalized_embeddings",
        file=1,
        partition="embedding_shard",
        schema=ROWS_SET_ASIDE,
        description="Rows that make no example, with the reason.",
    ),
    _View(
        name="image_embeddings",
        stage="image_embeddings",
        schema=image_embeddings(),
        description="The vectors (float16, as bytes) of the image shards' examples.",
    ),
)

_MANIFEST_COLUMNS: Final[Mapping[str, tuple[str, str]]] = {
    "stage": ("VARCHAR", "the stage"),
    "partition": ("VARCHAR", "the partition: a shard, a part, or the stage's own name"),
    "rows": ("BIGINT", "rows it holds"),
    "seconds": ("DOUBLE", "wall-clock time it took to make"),
    "data_version": ("VARCHAR", "digest of its files"),
    "counts": ("MAP(VARCHAR, BIGINT)", "what became of its rows, by name"),
    "files": (
        "MAP(VARCHAR, STRUCT(bytes BIGINT, blake3 VARCHAR, xxh3_128 VARCHAR, is_log BOOLEAN))",
        "its files, by name",
    ),
}

_FROM_ELSEWHERE: Final = "column of the source, or one that img2dataset saved, as it is there"

_QUERIES: Final = (
    (
        "What is done: partitions, rows, bytes and hours of each stage.",
        (
            "SELECT stage, count(*) AS partitions, sum(rows) AS rows, sum(bytes) AS bytes, "
            "sum(seconds) / 3600 AS hours FROM shards GROUP BY ALL ORDER BY stage"
        ),
    ),
    (
        "What the list repeats, or cannot mean, by part and, where part is null, in all of it.",
        "SELECT * EXCLUDE (stage) FROM duplicates ORDER BY part NULLS LAST",
    ),
    (
        "Why pictures are missing.",
        "SELECT outcome, count(*) AS rows FROM images GROUP BY ALL ORDER BY rows DESC",
    ),
    (
        "The shards in which the fewest downloads succeeded.",
        (
            "SELECT shard, avg((status = 'success')::INT) AS success_share FROM images GROUP BY ALL "
            "ORDER BY success_share LIMIT 10"
        ),
    ),
    (
        "The hosts that pictures come from.",
        (
            "SELECT regexp_extract(url, '^[^:]+://([^/?#]+)', 1) AS host, count(*) AS pictures "
            "FROM normalized_images GROUP BY ALL ORDER BY pictures DESC LIMIT 20"
        ),
    ),
    (
        "The pictures that are stored more than once.",
        (
            "SELECT image_xxh3, count(*) AS times, min(url) AS one_url FROM normalized_images "
            "GROUP BY ALL HAVING times > 1 ORDER BY times DESC LIMIT 20"
        ),
    ),
    (
        "Pictures with their vectors.",
        (
            "SELECT shard, key, caption, image_embedding FROM normalized_images "
            "JOIN image_embeddings USING (shard, key)"
        ),
    ),
)


def write_catalog(layout: Layout) -> Manifest:
    """Publish ``catalog.duckdb``: a view for each stage's tables, and ``shards`` over all manifests.

    Its table ``example_queries`` holds questions and the SQL that answers them.

    Raises:
        CorruptManifest: if a manifest cannot be read.
    """
    recipe = Recipe(
        code_version=CODE_VERSION,
        settings=fingerprint(str(layout.root.absolute())),
        inputs={"published": version_of_everything(layout)},
    )

    def write(draft: Draft) -> Tally:
        if layout.store:
            _bring(layout)
        published = {stage: len(partitions_of(layout, stage)) for stage in DATA_STAGES}
        with duckdb.connect(str(draft.only)) as catalog:
            catalog.begin()
            for view in _VIEWS:
                _create(catalog, layout, view)
            _create_shards(catalog, layout, published=any(published.values()))
            _create_queries(catalog)
            catalog.commit()
            # Closing does this too, but says nothing if it fails, and the file is then an empty database.
            catalog.execute("CHECKPOINT")
        counts = {f"partitions:{stage}": count for stage, count in published.items() if count}
        return Tally(rows=sum(published.values()), counts=counts)

    return publish(layout.catalog(), recipe, write)


def _bring(layout: Layout) -> None:
    """Copy every table that the views show: they read what lies in the folders."""
    for view in _VIEWS:
        files = (output_of(layout, view.stage, key) for key in partitions_of(layout, view.stage))
        bring_all(files, file=view.file)


def _create(catalog: duckdb.DuckDBPyConnection, layout: Layout, view: _View) -> None:
    catalog.register("nothing", view.schema.empty_table())
    select = nothing = _nothing({view.partition: "VARCHAR"} | _types(catalog, "nothing"))
    catalog.unregister("nothing")
    if _has_files(layout, view):
        select = _select(layout, view)
    if select != nothing and not view.same_columns:
        # The columns that there are now are named: DuckDB gives up a view whose columns became others.
        select = f"{nothing} UNION ALL BY NAME {select}"
        types = _types(catalog, f"({select})")
        columns = ", ".join(f"{_name(column)}::{type_} AS {_name(column)}" for column, type_ in types.items())
        select = f"SELECT {columns} FROM ({select})"
    catalog.execute(f"CREATE VIEW {_name(view.name)} AS {select}")
    _comment(catalog, view.name, view.description, {view.partition: "partition key"} | describe(view.schema))


def _has_files(layout: Layout, view: _View) -> bool:
    """Whether there is any file for a view to show; shards that img2dataset made have no requests."""
    keys = partitions_of(layout, view.stage)
    files = (output_of(layout, view.stage, key) for key in keys)
    return any((output.folder / output.names[view.file]).exists() for output in files)


def _types(catalog: duckdb.DuckDBPyConnection, rows: str) -> dict[str, str]:
    """Column -> DuckDB's type, of a table or of a query in brackets."""
    described = catalog.execute(f"DESCRIBE SELECT * FROM {rows}").fetchall()
    return {name: type_ for name, type_, *_ in described}


def _nothing(types: Mapping[str, str]) -> str:
    """SQL for no rows of these columns."""
    columns = ", ".join(f"NULL::{type_} AS {_name(column)}" for column, type_ in types.items())
    return f"SELECT {columns} WHERE false"


def _select(layout: Layout, view: _View) -> str:
    """SQL for the rows of the files that have a manifest, whatever else lies in the folder."""
    output = sample_output(layout, view.stage)
    before, after = output.names[view.file].split(output.partition)
    # A part is named as its file was; shards are numbers, which keeps one table of a stage from another.
    keys = "*[0-9]" if view.partition in ("shard", "embedding_shard") else "*"
    files = f"{_folder(output.folder)}/{before}{keys}{after}"
    union = "" if view.same_columns else ", union_by_name = true"
    manifests = " OR ".join(
        f"""{_name(view.partition)} IN (
            SELECT {_key_of("file", suffix)}
            FROM glob({_quote(f"{_folder(output.folder)}/*{suffix}")}))"""
        for suffix in manifest_suffixes(layout, view.stage)
    )
    return f"""
        SELECT * FROM (
            SELECT {_key_of("filename", after)} AS "{view.partition}", * EXCLUDE (filename)
            FROM read_parquet({_quote(files)}, filename = true{union}))
        WHERE {manifests}
    """


def _key_of(column: str, suffix: str) -> str:
    """SQL for the partition key in a path."""
    return f"regexp_extract({column}, '([^/]+){suffix.replace('.', '[.]')}$', 1)"


def _folder(folder: Path) -> str:
    """A folder's path within a pattern."""
    return glob.escape(str(folder.absolute()))


def _create_shards(catalog: duckdb.DuckDBPyConnection, layout: Layout, *, published: bool) -> None:
    types = {name: type_ for name, (type_, _) in _MANIFEST_COLUMNS.items()}
    if published:
        columns = ", ".join(f"{name}: {_quote(type_)}" for name, type_ in types.items())
        # Those of images, too, which end otherwise.
        files = f"{_folder(layout.root)}/*/*{IMAGES_MANIFEST_SUFFIX}*"
        catalog.execute(f"""
            CREATE VIEW shards AS
            SELECT * EXCLUDE (files), list_sum([file.bytes FOR file IN map_values(files)])::BIGINT AS bytes,
                files
            FROM read_json({_quote(files)}, columns = {{{columns}}}, format = 'auto')
        """)
    else:
        catalog.execute(f"CREATE VIEW shards AS {_nothing(types | {'bytes': 'BIGINT'})}")
    comments = {name: text for name, (_, text) in _MANIFEST_COLUMNS.items()} | {"bytes": "size of its files"}
    _comment(catalog, "shards", "Every published partition of every stage, from its manifest.", comments)


def _create_queries(catalog: duckdb.DuckDBPyConnection) -> None:
    catalog.execute("CREATE TABLE example_queries (question VARCHAR, query VARCHAR)")
    catalog.executemany("INSERT INTO example_queries VALUES (?, ?)", list(_QUERIES))
    _comment(
        catalog,
        "example_queries",
        "Questions, and the SQL that answers them.",
        {"question": "the question", "query": "SQL over this catalog"},
        kind="TABLE",
    )


def _comment(
    catalog: duckdb.DuckDBPyConnection,
    name: str,
    description: str,
    columns: Mapping[str, str],
    *,
    kind: str = "VIEW",
) -> None:
    catalog.execute(f"COMMENT ON {kind} {_name(name)} IS {_quote(description)}")
    for column in _types(catalog, _name(name)):
        text = columns.get(column, _FROM_ELSEWHERE)
        catalog.execute(f"COMMENT ON COLUMN {_name(name)}.{_name(column)} IS {_quote(text)}")


def _name(text: str) -> str:
    """An SQL identifier."""
    return '"' + text.replace('"', '""') + '"'


def _quote(text: str) -> str:
    """An SQL string."""
    return "'" + text.replace("'", "''") + "'"
