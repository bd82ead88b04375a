"""Shards that can be exported, and what an export of them holds."""

from __future__ import annotations

import json

from tfds_inputs import Row, picture, vectors, write_embedding_inputs, write_image_inputs, write_image_vectors

from laion_assets.layout import EmbeddingShardId, Layout, ShardId
from laion_assets.stages.tfds_embeddings import write_tfds_embeddings
from laion_assets.stages.tfds_image_embeddings import write_tfds_image_embeddings
from laion_assets.stages.tfds_images import write_tfds_images

WIDTH = 16
"""Elements of a vector."""


def write_images(layout: Layout, number: int, examples: int = 2, caption: str = "c") -> list[Row]:
    """One shard of images; its rows."""
    rows = [
        Row(key=f"{number:05d}{row:04d}", caption=f"{caption} {number} {row}", picture=picture(row + number))
        for row in range(examples)
    ]
    write_image_inputs(layout, ShardId(number), rows)
    write_tfds_images(ShardId(number), layout)
    return rows


def write_all(layout: Layout) -> None:
    """One shard of each config, three rows each but of image_embeddings, which lacks the second."""
    rows = write_images(layout, 0, 3)
    image, text = vectors(3, WIDTH, seed=1), vectors(3, WIDTH, seed=2)
    write_embedding_inputs(layout, EmbeddingShardId(0), rows, image, text)
    write_tfds_embeddings(EmbeddingShardId(0), layout, WIDTH)
    write_image_vectors(layout, ShardId(0), [rows[0].key, rows[2].key], image[:2], text[:2])
    write_tfds_image_embeddings(ShardId(0), layout, WIDTH)


def files_of(layout: Layout) -> dict[str, bytes]:
    """Every file of an export, by its name in it."""
    folder = layout.export_folder
    return {f"{path.relative_to(folder)}": path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def inodes_of(layout: Layout) -> dict[str, int]:
    """Which file each Parquet file of an export is."""
    folder = layout.export_folder
    return {f"{path.relative_to(folder)}": path.stat().st_ino for path in folder.rglob("*.parquet")}


def described_in(layout: Layout) -> set[str]:
    """Names of the files that an export's croissant.json describes."""
    document = json.loads((layout.export_folder / "croissant.json").read_bytes())
    return {entry["@id"] for entry in document["distribution"] if entry["@type"] == "cr:FileObject"}
