"""Published data sets whose every row is known, for tests that read them back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tfds_inputs import (
    Row,
    picture,
    vectors,
    write_embedding_inputs,
    write_image_inputs,
    write_image_vectors,
)

from laion_assets.layout import EmbeddingShardId, Layout, ShardId
from laion_assets.schema import NsfwTag
from laion_assets.stages.laion400m import publish_dataset
from laion_assets.stages.tfds_embeddings import write_tfds_embeddings
from laion_assets.stages.tfds_image_embeddings import write_tfds_image_embeddings
from laion_assets.stages.tfds_images import write_tfds_images

_CAPTIONS = ("plain", "", "日本語 🙂 e\u0301", "a|b\n\tc\x00d\x1b", "x" * 61_192)
_SIMILARITIES = (-1.0, 0.0, 0.3, 1.0, 0.31234567891234567)
TAGS = tuple(NsfwTag)

# Shards that are there -> their examples; 0, 3 and 6 are missing, 4 has no examples.
SHARDS = {1: 5, 2: 1, 4: 0, 5: 7}
SHARD_COUNT = 7

# Rows of a shard that have vectors; of all rows of shard 2, none has.
WITH_VECTORS = {1: (0, 2, 3), 2: (), 4: (), 5: (1, 2, 5, 6)}


@dataclass(frozen=True)
class Dataset:
    """A published config, and its rows by URL."""

    layout: Layout
    rows: dict[str, Row]
    image: dict[str, np.ndarray]
    text: dict[str, np.ndarray]


def row_of(shard: int, number: int) -> Row:
    """A row unlike its neighbours."""
    return Row(
        key=f"{shard:05d}{number:04d}",
        url=f"http://example.org/{shard}/{number}?ü",
        caption=_CAPTIONS[number % len(_CAPTIONS)],
        nsfw=str(TAGS[(shard + number) % len(TAGS)]),
        similarity=_SIMILARITIES[number % len(_SIMILARITIES)],
        license=("", "?", "https://creativecommons.org/licenses/by/4.0/")[number % 3],
        original_height=(number * 9_999) % 18_850,
        original_width=39_580 - number,
        picture=picture(
            shard * 100 + number,
            size=(7 + number, 5 + number),
            format_=("JPEG", "PNG")[number % 2],
            mode=("RGB", "RGB", "L")[number % 3],
        ),
    )


def publish_images(layout: Layout) -> Dataset:
    """The config ``images`` over ``SHARDS``."""
    rows = {}
    for number, examples in SHARDS.items():
        shard_rows = [row_of(number, row) for row in range(examples)]
        write_image_inputs(layout, ShardId(number), shard_rows)
        write_tfds_images(ShardId(number), layout)
        rows |= {row.url: row for row in shard_rows}
    publish_dataset("images", layout, shard_count=SHARD_COUNT)
    return Dataset(layout, rows, {}, {})


def _vectors(number: int, examples: int, width: int) -> list[npt.NDArray[np.float16]]:
    """Both vectors of a shard's examples."""
    image, text = vectors(examples, width, seed=number), vectors(examples, width, seed=100 + number)
    if examples:
        # The smallest and largest values of a float16, and a negative zero.
        image[0, :6] = np.array([1, 0x8001, 0x03FF, 0x7BFF, 0xFBFF, 0x8000], np.uint16).view(np.float16)
    return [image, text]


def publish_image_embeddings(layout: Layout, width: int) -> Dataset:
    """The config ``image_embeddings`` over ``SHARDS``: of their rows, those ``WITH_VECTORS``."""
    found = Dataset(layout, {}, {}, {})
    for number, examples in SHARDS.items():
        shard, rows = ShardId(number), [row_of(number, row) for row in range(examples)]
        write_image_inputs(layout, shard, rows)
        chosen = [rows[row] for row in WITH_VECTORS[number]]
        image, text = _vectors(number, len(chosen), width)
        write_image_vectors(layout, shard, [row.key for row in chosen], image, text)
        write_tfds_image_embeddings(shard, layout, width)
        found.rows.update({row.url: row for row in chosen})
        found.image.update({row.url: vector for row, vector in zip(chosen, image, strict=True)})
        found.text.update({row.url: vector for row, vector in zip(chosen, text, strict=True)})
    publish_dataset("image_embeddings", layout, shard_count=SHARD_COUNT, width=width)
    return found


def publish_embeddings(layout: Layout, width: int) -> Dataset:
    """The config ``embeddings`` over ``SHARDS``."""
    found = Dataset(layout, {}, {}, {})
    for number, examples in SHARDS.items():
        shard, rows = EmbeddingShardId(number), [row_of(number, row) for row in range(examples)]
        image, text = _vectors(number, examples, width)
        write_embedding_inputs(layout, shard, rows, image, text)
        write_tfds_embeddings(shard, layout, width)
        found.rows.update({row.url: row for row in rows})
        found.image.update({row.url: vector for row, vector in zip(rows, image, strict=True)})
        found.text.update({row.url: vector for row, vector in zip(rows, text, strict=True)})
    publish_dataset("embeddings", layout, shard_count=SHARD_COUNT, width=width)
    return found
