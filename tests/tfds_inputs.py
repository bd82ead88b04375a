"""Inputs of the TFDS stages, written without the stages that make them in earnest."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash
from PIL import Image

from laion_assets.formats import parquet
from laion_assets.formats.publish import Draft, Manifest, Recipe, Tally, publish, require
from laion_assets.formats.tfrecord import Payloads
from laion_assets.layout import EmbeddingShardId, Layout, ShardId
from laion_assets.schema import (
    NORMALIZED_EMBEDDINGS,
    NORMALIZED_IMAGES,
    ROWS_SET_ASIDE,
    embedding_join,
    image_embeddings,
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one example is made of; an embedding row has no picture."""

    key: str = "000000000"
    url: str = "http://example.org/a.jpg"
    caption: str = "a caption"
    nsfw: str = "UNLIKELY"
    similarity: float = 0.3125
    license: str = ""
    original_height: int = 40
    original_width: int = 60
    picture: bytes = b""

    def columns(self) -> dict[str, Any]:
        """The columns that both normalized tables have."""
        names = [
            "key",
            "url",
            "caption",
            "nsfw",
            "similarity",
            "license",
            "original_height",
            "original_width",
        ]
        return {name: getattr(self, name) for name in names}


def payloads_of(payloads: Sequence[bytes]) -> Payloads:
    """Whole payloads, as those who write records take them."""
    return (pa.array(payloads, pa.large_binary()),)


def picture(
    seed: int = 0, *, mode: str = "RGB", format_: str = "JPEG", size: tuple[int, int] = (8, 6)
) -> bytes:
    """A small picture of noise; pictures of different seeds differ."""
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    body = io.BytesIO()
    Image.fromarray(noise, "RGBA").convert(mode).save(body, format_)
    return body.getvalue()


def write_image_inputs(layout: Layout, shard: ShardId, rows: Sequence[Row], **changes: Any) -> None:
    """Publish the tar and the normalized table of a shard.

    Args:
        layout: where to.
        shard: which shard.
        rows: its rows, in key order.
        changes: columns of the normalized table to replace with these values.
    """
    offsets: list[int] = []

    def write_images(draft: Draft) -> Tally:
        tar, table, stats, requests = layout.images(shard).names
        offsets.extend(_write_tar(draft, tar, rows))
        draft.path(table).write_bytes(b"not read by the stage")
        draft.path(stats).write_bytes(b"{}")
        draft.path(requests).write_bytes(b"nor this")
        return Tally(rows=len(rows))

    images = _publish_anew(layout.images(shard), write_images)
    table = [
        row.columns()
        | {
            "height": 6,
            "width": 8,
            "image_xxh3": xxhash.xxh3_128_hexdigest(row.picture),
            "tar_offset": offset,
            "tar_bytes": len(row.picture),
        }
        for row, offset in zip(rows, offsets, strict=True)
    ]
    _write_normalized(
        layout.normalized_images(shard),
        _changed(table, NORMALIZED_IMAGES, changes),
        inputs={"images": images.data_version},
    )


def write_embedding_inputs(
    layout: Layout,
    shard: EmbeddingShardId,
    rows: Sequence[Row],
    image: npt.NDArray[np.float16],
    text: npt.NDArray[np.float16],
    *,
    positions: Sequence[int] | None = None,
    joined_keys: Sequence[str] | None = None,
    row_group_rows: int = 100_000,
    **changes: Any,
) -> None:
    """Publish the joined vectors and the normalized table of an embedding shard.

    Args:
        layout: where to.
        shard: which shard.
        rows: rows of the normalized table.
        image: vectors of the joined table, (joined rows, width).
        text: likewise.
        positions: joined row of each of ``rows``; by default they are the joined rows.
        joined_keys: key of each joined row; by default those of ``rows``.
        row_group_rows: of the joined table.
        changes: columns of the normalized table to replace with these values.
    """
    positions = range(len(rows)) if positions is None else positions
    keys = [row.key for row in rows] if joined_keys is None else list(joined_keys)
    width = image.shape[1]
    joined = pa.table(
        {
            "key": keys,
            "cosine": pa.array(np.zeros(len(keys), np.float32)),
            "image_embedding": _fixed(image),
            "text_embedding": _fixed(text),
        }
    )
    schema = embedding_join(width)
    for field in schema:
        if field.name not in joined.column_names:
            joined = joined.append_column(field, pa.nulls(len(keys), field.type))

    def write_joined(draft: Draft) -> Tally:
        parquet.write_table(draft.only, joined.select(schema.names), schema, row_group_rows=row_group_rows)
        return Tally(rows=len(keys))

    _publish_anew(layout.embedding_join(shard), write_joined)
    table = [row.columns() | {"row": position} for row, position in zip(rows, positions, strict=True)]
    _write_normalized(layout.normalized_embeddings(shard), _changed(table, NORMALIZED_EMBEDDINGS, changes))


def write_image_vectors(
    layout: Layout,
    shard: ShardId,
    keys: Sequence[str],
    image: npt.NDArray[np.float16],
    text: npt.NDArray[np.float16],
    *,
    row_group_rows: int = 100_000,
) -> None:
    """Publish the vectors of an image shard whose normalized table is there.

    Args:
        layout: where to.
        shard: which shard.
        keys: key of each row.
        image: vectors of the pictures, (rows, width).
        text: likewise of the captions.
        row_group_rows: of the table.
    """
    schema = image_embeddings(image.shape[1])
    columns = [keys, ["url"] * len(keys), ["00000"] * len(keys), _fixed(image), _fixed(text)]
    table = pa.table(dict(zip(schema.names, columns, strict=True)), schema=schema)

    def write(draft: Draft) -> Tally:
        parquet.write_table(draft.only, table, schema, row_group_rows=row_group_rows)
        return Tally(rows=len(keys))

    normalized = require(layout.normalized_images(shard)).data_version
    _publish_anew(layout.image_embeddings(shard), write, {"normalized_images": normalized})


def vectors(rows: int, width: int = 512, seed: int = 0) -> npt.NDArray[np.float16]:
    """Vectors of length one."""
    found = np.random.default_rng(seed).standard_normal((rows, width))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float16)


def _fixed(array: npt.NDArray[np.float16]) -> pa.Array:
    return pa.array([row.astype("<f2").tobytes() for row in array], pa.binary(2 * array.shape[1]))


def _changed(rows: list[dict[str, Any]], schema: pa.Schema, changes: Mapping[str, Any]) -> pa.Table:
    table = pa.Table.from_pylist(rows, schema)
    for name, values in changes.items():
        field = schema.field(name)
        table = table.set_column(table.column_names.index(name), field, pa.array(values, field.type))
    return table


def _write_normalized(output: Any, table: pa.Table, inputs: Mapping[str, str] = MappingProxyType({})) -> None:
    def write(draft: Draft) -> Tally:
        examples, aside = output.names
        parquet.write_table(draft.path(examples), table, table.schema)
        parquet.write_table(draft.path(aside), ROWS_SET_ASIDE.empty_table(), ROWS_SET_ASIDE)
        return Tally(rows=table.num_rows)

    _publish_anew(output, write, inputs)


def _publish_anew(
    output: Any, write: Callable[[Draft], Tally], inputs: Mapping[str, str] = MappingProxyType({})
) -> Manifest:
    return publish(output, Recipe(code_version="test", inputs=dict(inputs)), write, again=True)


def _write_tar(draft: Draft, name: str, rows: Sequence[Row]) -> list[int]:
    with tarfile.open(draft.path(name), "w", format=tarfile.USTAR_FORMAT) as tar:
        for row in rows:
            for extension, body in (("jpg", row.picture), ("txt", row.caption.encode())):
                member = tarfile.TarInfo(f"{row.key}.{extension}")
                member.size = len(body)
                tar.addfile(member, io.BytesIO(body))
    with tarfile.open(draft.path(name)) as tar:
        return [member.offset_data for member in tar if member.name.endswith(".jpg")]
