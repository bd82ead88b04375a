"""Shards in Parquet as Hugging Face's ``datasets`` reads them.

Columns are TFDS's features by the same names with the same values, and ``key``. What they are is told twice,
as ``datasets`` does it (5.2, features/features.py): by the columns' types, and by JSON under ``huggingface``
in the file's metadata, without which pictures would be bytes and tags numbers. Of a column that may not be
null it does not heed the second. Knows nothing of stages.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from laion_assets.formats import parquet
from laion_assets.formats.tfds import NSFW_TAGS, SPLIT, Config
from laion_assets.formats.tfds_examples import labels
from laion_assets.formats.vector_rows import Pair
from laion_assets.schema import EMBEDDING_WIDTH, MISSING_SIMILARITY, VECTOR_COLUMNS

_IMAGE: Final = "image"
# Of pictures, which are compressed, and of vectors, which hardly can be; other columns are of one leaf each.
_NESTED_COMPRESSION: Final = {
    f"{_IMAGE}.bytes": "none",
    f"{_IMAGE}.path": "zstd",
    **{f"{name}.list.element": "none" for name in VECTOR_COLUMNS},
}
_PNG_SIGNATURE: Final = b"\x89PNG"


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of an exported table.

    Attributes:
        name: as TFDS names the feature.
        type: in Arrow.
        feature: what ``datasets`` makes of it, in its own JSON.
        description: for people.
    """

    name: str
    type: pa.DataType
    feature: Mapping[str, Any]
    description: str


class Batch(NamedTuple):
    """Rows of a normalized table with what belongs to each; None where the config has none."""

    rows: pa.RecordBatch
    pictures: pa.Array | None = None
    vectors: Pair | None = None


def _value(name: str, type_: pa.DataType, dtype: str, description: str) -> Column:
    return Column(name=name, type=type_, feature={"dtype": dtype, "_type": "Value"}, description=description)


def _vector(name: str, width: int, description: str) -> Column:
    # float16 as in the release: datasets, Arrow, pandas and DuckDB read it, in half of float32's room, and
    # nothing has to be rounded back. "Sequence" is what datasets before 4 know, and later ones take for List.
    feature = {"feature": {"dtype": "float16", "_type": "Value"}, "length": width, "_type": "Sequence"}
    return Column(name=name, type=pa.list_(pa.float16(), width), feature=feature, description=description)


def columns(config: Config, width: int = EMBEDDING_WIDTH) -> tuple[Column, ...]:
    """Columns of a config's tables.

    Args:
        config: which of the configs.
        width: elements of a vector; of no meaning to ``images``.
    """
    picture = Column(
        name=_IMAGE,
        type=pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        feature={"_type": "Image"},
        description="the picture: bytes of the JPEG or PNG file as it was stored, and its name",
    )
    tags = ", ".join(f"{number} {tag}" for number, tag in enumerate(NSFW_TAGS))
    described = [
        _value("caption", pa.string(), "string", "HTML alt-text attribute; '' where there was none"),
        Column(
            name="nsfw",
            type=pa.int64(),
            feature={"names": list(NSFW_TAGS), "_type": "ClassLabel"},
            description=f"LAION's NSFW tag: {tags}",
        ),
        _value(
            "similarity",
            pa.float64(),
            "float64",
            f"CLIP ViT-B/32 cosine of picture and caption; {MISSING_SIMILARITY} where it is missing",
        ),
        _value("license", pa.string(), "string", "what LAION found of a licence; unverified"),
        _value("url", pa.string(), "string", "address of the picture"),
        _value("original_width", pa.int32(), "int32", "width in pixels of the picture as it was served"),
        _value("original_height", pa.int32(), "int32", "height in pixels of the picture as it was served"),
        _value(
            "key",
            pa.string(),
            "string",
            "key in the release's metadata, unique in its shard"
            if config == "embeddings"
            else "shard number and row; unique",
        ),
    ]
    vectors = (
        _vector("image_embedding", width, "CLIP vector of the picture, float16"),
        _vector("text_embedding", width, "CLIP vector of the caption, float16"),
    )
    return (
        *((picture,) if config != "embeddings" else ()),
        *described,
        *(vectors if config != "images" else ()),
    )


def schema(config: Config, width: int = EMBEDDING_WIDTH) -> pa.Schema:
    """Arrow schema of a config's tables, features included."""
    found = columns(config, width)
    features = {column.name: column.feature for column in found}
    return pa.schema(
        [pa.field(column.name, column.type) for column in found],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )


def write_shard(
    path: Path, config: Config, batches: Iterable[Batch], *, width: int = EMBEDDING_WIDTH, table: Path
) -> int:
    """Write a shard, a row group for each batch.

    Args:
        path: the file to write.
        config: which of the configs.
        batches: its rows, in order.
        width: elements of a vector; of no meaning to ``images``.
        table: the file that the rows come from, for the error.

    Returns:
        How many rows it has.

    Raises:
        CorruptParquet: if a tag is none of the four.
    """
    declared = schema(config, width)
    count = 0
    with parquet.open_writer(path, declared, nested=_NESTED_COMPRESSION) as writer:
        for batch in batches:
            writer.write_batch(_encode(batch, declared, width, table))
            count += len(batch.rows)
    return count


def _encode(batch: Batch, declared: pa.Schema, width: int, table: Path) -> pa.RecordBatch:
    made = {"nsfw": labels(batch.rows["nsfw"], table).cast(pa.int64())}
    if batch.pictures is not None:
        pictures = batch.pictures.cast(pa.binary())
        is_png = pc.starts_with(pictures, _PNG_SIGNATURE)
        names = pc.binary_join_element_wise(batch.rows["key"], pc.if_else(is_png, ".png", ".jpg"), "")
        made[_IMAGE] = pa.StructArray.from_arrays([pictures, names], ["bytes", "path"])
    if batch.vectors is not None:
        for name, values in zip(VECTOR_COLUMNS, batch.vectors, strict=True):
            made[name] = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), width)
    arrays = [made[name] if name in made else batch.rows[name] for name in declared.names]
    return pa.RecordBatch.from_arrays(arrays, schema=declared)


# -- which files ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Part:
    """One config of an export.

    Attributes:
        config: which of the configs.
        width: elements of a vector.
        rows: in all files.
        files: name within the export, ascending -> size in bytes and sha256.
    """

    config: Config
    width: int
    rows: int
    files: Mapping[str, tuple[int, str]]

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(size for size, _ in self.files.values())

    @property
    def pattern(self) -> str:
        """Glob pattern of its files, and of no others."""
        return shard_name(self.config, "*")


def shard_name(config: Config, shard: str) -> str:
    """Name of a shard's file within an export; ``datasets`` sees its split in it."""
    return f"{config}/{SPLIT}-{shard}.parquet"
