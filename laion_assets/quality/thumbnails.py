"""A few of a shard's pictures, small and in few colours, for Dagster's records."""

from __future__ import annotations

import io
from itertools import islice
from typing import Final

import pyarrow.compute as pc
from PIL import Image

from laion_assets.formats import parquet
from laion_assets.formats.publish import bring
from laion_assets.layout import Layout, ShardId
from laion_assets.quality.contact_sheet import pictures_of
from laion_assets.schema import NORMALIZED_IMAGES, NsfwTag

MOST_BYTES_EACH: Final = 2_100
"""Most bytes that a picture takes, of noise too."""

_SIDE: Final = 64
_GAP: Final = 4
_COLOURS: Final = 16
_PAPER: Final = (255, 255, 255)
_COLUMNS: Final = ("key", "nsfw", "image_xxh3", "tar_offset", "tar_bytes")


def draw_thumbnails(layout: Layout, shard: ShardId, count: int) -> bytes:
    """The first so many pictures of a shard that are tagged UNLIKELY, side by side, as a PNG.

    Raises:
        CorruptTar: if a picture in the tar is not the one that its row describes.
    """
    bring(layout.normalized_images(shard), [layout.normalized_table(shard).name])
    table = parquet.read_table(layout.normalized_table(shard), NORMALIZED_IMAGES, columns=_COLUMNS)
    shown = table.filter(pc.equal(table["nsfw"], NsfwTag.UNLIKELY)).slice(0, count).to_pylist()
    sheet = Image.new("RGB", (max(1, len(shown)) * (_SIDE + _GAP) - _GAP, _SIDE), _PAPER)
    for place, picture in enumerate(islice(pictures_of(layout, shard, shown, _SIDE), count)):
        if not isinstance(picture, str):
            left = place * (_SIDE + _GAP) + (_SIDE - picture.width) // 2
            sheet.paste(picture, (left, (_SIDE - picture.height) // 2))
    body = io.BytesIO()
    # Not dithered: what looks like noise is not compressed.
    sheet.quantize(_COLOURS, dither=Image.Dither.NONE).save(body, "PNG", optimize=True)
    return body.getvalue()
