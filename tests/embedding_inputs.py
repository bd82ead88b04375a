"""Embedding releases for tests: vectors with known cosines, and metadata as LAION's files have it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

WIDTH = 16

# Columns and types of the release's metadata_0.parquet.
METADATA = pa.schema(
    {
        "image_path": pa.string(),
        "caption": pa.string(),
        "NSFW": pa.string(),
        "similarity": pa.float64(),
        "LICENSE": pa.string(),
        "url": pa.string(),
        "key": pa.int64(),
        "shard_id": pa.int64(),
        "status": pa.string(),
        "error_message": pa.null(),
        "width": pa.int64(),
        "height": pa.int64(),
        "exif": pa.string(),
        "original_width": pa.int64(),
        "original_height": pa.int64(),
    }
)


def pairs(cosines: np.ndarray, *, width: int = WIDTH, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors of pictures and texts, float16 of shape (n, width), whose cosines are those given."""
    rng = np.random.default_rng(seed)
    images = rng.standard_normal((len(cosines), width))
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    across = rng.standard_normal(images.shape)
    across -= (across * images).sum(axis=1, keepdims=True) * images
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    column = np.asarray(cosines, float)[:, None]
    texts = column * images + np.sqrt(1 - column**2) * across
    return images.astype(np.float16), texts.astype(np.float16)


def cosines_of(rows: int, *, seed: int = 0) -> np.ndarray:
    """Similarities as far apart as the release's: most between 0.3 and 0.5."""
    return np.random.default_rng(seed).uniform(0.28, 0.6, rows)


def metadata(similarities: Any, **columns: Any) -> pa.Table:
    """Metadata of rows 0, 1, ... of image shard 12, with ``columns`` in place of the usual values."""
    rows = len(similarities)
    values: dict[str, Any] = {
        "image_path": [f"{row:09d}" for row in range(rows)],
        "caption": [f"caption {row}" for row in range(rows)],
        "NSFW": ["UNLIKELY"] * rows,
        "similarity": similarities,
        "LICENSE": ["?"] * rows,
        "url": [f"http://example.org/{row}.jpg" for row in range(rows)],
        "key": list(range(rows)),
        "shard_id": [12] * rows,
        "status": ["success"] * rows,
        "error_message": [None] * rows,
        "width": [256] * rows,
        "height": [256] * rows,
        "exif": ["{}"] * rows,
        "original_width": [640] * rows,
        "original_height": [480] * rows,
    }
    table = pa.table({name: pa.array(values[name], METADATA.field(name).type) for name in METADATA.names})
    for name, replaced in columns.items():
        index = table.schema.get_field_index(name)
        if replaced is None:
            table = table.remove_column(index)
        else:
            table = table.set_column(index, name, replaced if isinstance(replaced, pa.Array) else [replaced])
    return table


def place(
    folder: Path,
    number: int | str,
    images: np.ndarray,
    texts: np.ndarray,
    rows: pa.Table,
    *,
    names: tuple[str, str] = ("img_emb", "text_emb"),
) -> Path:
    """Write the three files of one embedding shard below ``folder``."""
    for name in (*names, "metadata"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    np.save(folder / names[0] / f"img_emb_{number}.npy", images, allow_pickle=False)
    np.save(folder / names[1] / f"text_emb_{number}.npy", texts, allow_pickle=False)
    pq.write_table(rows, folder / "metadata" / f"metadata_{number}.parquet")
    return folder
