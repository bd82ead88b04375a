"""The examples-to-be of one image shard: metadata normalized and joined to its picture by key.

Metadata and pictures are joined on the key and never on position: img2dataset writes its table in
completion order, failures included, so the n-th row is not the n-th picture of the tar.
"""

from __future__ import annotations

import io
import os
from collections import Counter
from pathlib import Path
from typing import Final, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from PIL import Image

from laion_assets.errors import CorruptTar
from laion_assets.formats import parquet
from laion_assets.formats.publish import Draft, Manifest, Recipe, Tally, publish, require
from laion_assets.formats.webdataset import list_members
from laion_assets.image import STORED_EXTENSIONS, TFDS_EXTENSIONS, THREE_CHANNEL_MODES
from laion_assets.image_policy import MAX_PIXELS
from laion_assets.image_table import read_image_table
from laion_assets.keys import check_unique
from laion_assets.layout import Layout, ShardId
from laion_assets.normalization import normalize_metadata, set_aside_reasons
from laion_assets.outcomes import Status
from laion_assets.picture_header import read_header
from laion_assets.placed_images import PLACED
from laion_assets.schema import NORMALIZED_IMAGES, ROWS_SET_ASIDE, SET_ASIDE_PREFIX, SetAside

CODE_VERSION: Final = "3"


class _Picture(NamedTuple):
    """What the bytes of one stored picture say of themselves, and where they lie."""

    width: int
    height: int
    xxh3: str
    offset: int
    size: int


class _Refused(NamedTuple):
    """Why a stored picture cannot become an example."""

    reason: SetAside
    detail: str


def normalize_images(shard: ShardId, layout: Layout, *, decode: bool = False) -> Manifest:
    """Publish the examples-to-be of one shard and, beside them, the rows set aside with their reasons.

    Rows whose download failed are in neither file; they are counted, so that
    ``examples + set_aside + failed`` is the number of rows of the shard.

    Args:
        shard: the shard.
        layout: where its files are.
        decode: whether pictures encoded by this project are decoded in full, and not only their headers read;
            those of a shard made elsewhere always are, so that one that is damaged is set aside by itself.

    Raises:
        MissingInput: if the shard's images are not there yet.
        CorruptParquet, CorruptTar, MisalignedShard: if its files are damaged or do not belong together.
    """
    images = require(layout.images(shard))
    recipe = Recipe(
        code_version=CODE_VERSION,
        settings="decoded" if decode else "",
        inputs={"images": images.data_version},
    )

    def write(draft: Draft) -> Tally:
        examples, set_aside, counts = _normalize(shard, layout, decode=decode or images.recipe == PLACED)
        table, aside = layout.normalized_images(shard).names
        parquet.write_table(draft.path(table), examples, NORMALIZED_IMAGES)
        parquet.write_table(draft.path(aside), set_aside, ROWS_SET_ASIDE)
        return Tally(rows=examples.num_rows, counts=counts)

    return publish(layout.normalized_images(shard), recipe, write, reads=[layout.images(shard)])


def _normalize(shard: ShardId, layout: Layout, *, decode: bool) -> tuple[pa.Table, pa.Table, dict[str, int]]:
    tar = layout.images_tar(shard)
    rows = read_image_table(shard, layout)
    check_unique(rows["key"], layout.images_table(shard))
    succeeded = rows.filter(pc.equal(rows["status"], Status.SUCCESS)).sort_by("key")
    pictures = _look_at_pictures(tar, succeeded["stem"].combine_chunks(), decode=decode)
    verdicts = [
        _unacceptable(reason, similarity) or _contradiction(picture, width, height) or picture
        for reason, similarity, picture, width, height in zip(
            set_aside_reasons(succeeded["url"], succeeded["similarity"]).to_pylist(),
            succeeded["similarity"].to_pylist(),
            pictures,
            succeeded["width"].to_pylist(),
            succeeded["height"].to_pylist(),
            strict=True,
        )
    ]
    accepted = succeeded.filter(pa.array([isinstance(verdict, _Picture) for verdict in verdicts], pa.bool_()))
    examples, counts = _examples(accepted, [found for found in verdicts if isinstance(found, _Picture)])
    set_aside = _set_aside(succeeded["key"].to_pylist(), verdicts)
    counts |= Counter(f"{SET_ASIDE_PREFIX}{reason}" for reason in set_aside["reason"].to_pylist())
    counts["rows"] = rows.num_rows
    counts["failed"] = rows.num_rows - succeeded.num_rows
    counts["set_aside"] = set_aside.num_rows
    counts["examples"] = examples.num_rows
    return examples, set_aside, counts


def _look_at_pictures(tar: Path, stems: pa.Array, *, decode: bool) -> list[_Picture | _Refused]:
    """What becomes of the picture of each stem."""
    members = list_members(tar)
    pictures = members.filter(pc.is_in(members["extension"], value_set=pa.array(STORED_EXTENSIONS)))
    pictures = pictures.filter(pc.is_in(pictures["stem"], value_set=stems))
    if pc.count_distinct(pictures["stem"]).as_py() < len(pictures):
        raise CorruptTar(
            tar,
            expected="one picture for each key",
            found="several for one key",
            remedy="Make or place the shard again.",
        )
    places = pictures.take(pc.index_in(stems, value_set=pictures["stem"].combine_chunks()))
    columns = (places[name].to_pylist() for name in ("extension", "offset", "size"))
    with tar.open("rb", buffering=0) as file:
        descriptor = file.fileno()
        return [
            _Refused(SetAside.MISSING_IMAGE, _what_else(members, stem))
            if extension is None
            else _look_at_picture(descriptor, extension, offset, size, decode=decode)
            for stem, extension, offset, size in zip(stems.to_pylist(), *columns, strict=True)
        ]


def _what_else(members: pa.Table, stem: str) -> str:
    found = members.filter(pc.equal(members["stem"], stem))["extension"].to_pylist()
    return f"the tar has only {sorted(found)}"[:200]


def _look_at_picture(
    descriptor: int, extension: str, offset: int, size: int, *, decode: bool
) -> _Picture | _Refused:
    if extension not in TFDS_EXTENSIONS:
        detail = f"TFDS decodes {', '.join(TFDS_EXTENSIONS)}, not {extension}"
        return _Refused(SetAside.NOT_TFDS_FORMAT, detail)
    body = os.pread(descriptor, size, offset)
    header = None if decode else read_header(body)
    if header is not None and header.becomes_three_channels and header.bits == 8:
        width, height = header.width, header.height
    else:
        try:
            mode, (width, height) = _open(body, decode=decode)
        except Exception as error:  # noqa: BLE001 (Pillow raises many kinds for bytes that are no picture)
            return _Refused(SetAside.UNREADABLE_IMAGE, f"{type(error).__name__}: {error}"[:200])
        if mode not in THREE_CHANNEL_MODES:
            return _Refused(SetAside.NOT_THREE_CHANNELS, f"mode {mode}")
    return _Picture(width, height, xxhash.xxh3_128_hexdigest(body), offset, size)


def _open(body: bytes, *, decode: bool) -> tuple[str, tuple[int, int]]:
    """Pillow's mode and size of a picture, once its header, or all of it, was read."""
    with Image.open(io.BytesIO(body), formats=("JPEG", "PNG")) as picture:
        if decode:
            if picture.width * picture.height > MAX_PIXELS:
                raise ValueError(f"{picture.width} x {picture.height} pixels are too many to decode")
            picture.load()
        return picture.mode, picture.size


def _unacceptable(reason: str | None, similarity: float | None) -> _Refused | None:
    """Why the row itself can be no example, whatever its picture is."""
    if reason is None:
        return None
    detail = "no URL" if reason == SetAside.MISSING_URL else f"similarity {similarity}"
    return _Refused(SetAside(reason), detail)


def _contradiction(picture: _Picture | _Refused, width: int | None, height: int | None) -> _Refused | None:
    """Why a picture is not the one its row describes; a size left out is not held against it."""
    if isinstance(picture, _Refused) or width is None or height is None:
        return None
    if (width, height) == (picture.width, picture.height):
        return None
    detail = f"row says {width} x {height}, picture is {picture.width} x {picture.height}"
    return _Refused(SetAside.WRONG_SIZE, detail)


def _examples(rows: pa.Table, pictures: list[_Picture]) -> tuple[pa.Table, dict[str, int]]:
    normalized, counts = normalize_metadata(rows)
    widths = pa.array([picture.width for picture in pictures], pa.int32())
    heights = pa.array([picture.height for picture in pictures], pa.int32())
    examples = pa.table(
        {
            "key": rows["key"],
            "url": rows["url"],
            **normalized,
            # A table that saved no original sizes leaves those of the stored picture as the best known.
            "original_height": pc.coalesce(rows["original_height"], heights),
            "original_width": pc.coalesce(rows["original_width"], widths),
            "height": heights,
            "width": widths,
            "image_xxh3": pa.array([picture.xxh3 for picture in pictures], pa.string()),
            "tar_offset": pa.array([picture.offset for picture in pictures], pa.int64()),
            "tar_bytes": pa.array([picture.size for picture in pictures], pa.int64()),
        }
    )
    return examples, counts


def _set_aside(keys: list[str], verdicts: list[_Picture | _Refused]) -> pa.Table:
    refused = [(key, found) for key, found in zip(keys, verdicts, strict=True) if isinstance(found, _Refused)]
    return pa.table(
        {
            "key": [key for key, _ in refused],
            "reason": [str(found.reason) for _, found in refused],
            "detail": [found.detail for _, found in refused],
        },
        schema=ROWS_SET_ASIDE,
    )
