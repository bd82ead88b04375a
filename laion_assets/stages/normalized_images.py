"""The examples-to-be of one image shard: metadata normalized and joined to its picture by key.

Metadata and pictures are joined on the key and never on position: img2dataset writes its table in
completion order, failures included, so the n-th row is not the n-th picture of the tar.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa
from PIL import Image

from laion_assets.errors import CorruptTar
from laion_assets.formats import parquet
from laion_assets.formats.publish import Draft, Manifest, Recipe, Tally, publish, require
from laion_assets.formats.webdataset import Member, index_tar
from laion_assets.image import STORED_EXTENSIONS, TFDS_EXTENSIONS, THREE_CHANNEL_MODES
from laion_assets.image_policy import MAX_PIXELS
from laion_assets.image_table import read_image_table
from laion_assets.keys import check_unique
from laion_assets.layout import Layout, ShardId
from laion_assets.normalization import normalize_metadata, set_aside_reasons
from laion_assets.outcomes import Status
from laion_assets.picture_header import read_header
from laion_assets.placed_images import PLACED
from laion_assets.schema import NORMALIZED_IMAGES, ROWS_SET_ASIDE, SetAside

CODE_VERSION: Final = "2"


@dataclass(frozen=True, kw_only=True)
class _Picture:
    """What the bytes of one stored picture say of themselves, and where they lie."""

    width: int
    height: int
    sha256: str
    member: Member


@dataclass(frozen=True, kw_only=True)
class _Refused:
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
    succeeded = rows.filter(pa.compute.equal(rows["status"], Status.SUCCESS)).sort_by("key")
    pictures = _look_at_pictures(tar, succeeded["stem"].to_pylist(), index_tar(tar), decode=decode)
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
    counts |= Counter(f"set_aside:{reason}" for reason in set_aside["reason"].to_pylist())
    counts["rows"] = rows.num_rows
    counts["failed"] = rows.num_rows - succeeded.num_rows
    counts["set_aside"] = set_aside.num_rows
    counts["examples"] = examples.num_rows
    return examples, set_aside, counts


def _look_at_pictures(
    tar: Path, stems: list[str], index: Mapping[str, Mapping[str, Member]], *, decode: bool
) -> list[_Picture | _Refused]:
    with tar.open("rb") as file:
        return [_look_at_picture(file.fileno(), index.get(stem, {}), tar, decode=decode) for stem in stems]


def _look_at_picture(
    descriptor: int, members: Mapping[str, Member], tar: Path, *, decode: bool
) -> _Picture | _Refused:
    found = [extension for extension in STORED_EXTENSIONS if extension in members]
    if not found:
        return _Refused(reason=SetAside.MISSING_IMAGE, detail=f"the tar has only {sorted(members)}"[:200])
    if len(found) > 1:
        raise CorruptTar(
            tar,
            expected="one picture for each key",
            found=f"{len(found)} for one key",
            remedy="Make or place the shard again.",
        )
    if found[0] not in TFDS_EXTENSIONS:
        detail = f"TFDS decodes {', '.join(TFDS_EXTENSIONS)}, not {found[0]}"
        return _Refused(reason=SetAside.NOT_TFDS_FORMAT, detail=detail)
    member = members[found[0]]
    body = os.pread(descriptor, member.size, member.offset)
    header = None if decode else read_header(body)
    if header is not None and header.becomes_three_channels and header.bits == 8:
        width, height = header.width, header.height
    else:
        try:
            mode, (width, height) = _open(body, decode=decode)
        except Exception as error:  # noqa: BLE001 (Pillow raises many kinds for bytes that are no picture)
            detail = f"{type(error).__name__}: {error}"[:200]
            return _Refused(reason=SetAside.UNREADABLE_IMAGE, detail=detail)
        if mode not in THREE_CHANNEL_MODES:
            return _Refused(reason=SetAside.NOT_THREE_CHANNELS, detail=f"mode {mode}")
    return _Picture(width=width, height=height, sha256=hashlib.sha256(body).hexdigest(), member=member)


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
    return _Refused(reason=SetAside(reason), detail=detail)


def _contradiction(picture: _Picture | _Refused, width: int | None, height: int | None) -> _Refused | None:
    """Why a picture is not the one its row describes; a size left out is not held against it."""
    if isinstance(picture, _Refused) or width is None or height is None:
        return None
    if (width, height) == (picture.width, picture.height):
        return None
    detail = f"row says {width} x {height}, picture is {picture.width} x {picture.height}"
    return _Refused(reason=SetAside.WRONG_SIZE, detail=detail)


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
            "original_height": pa.compute.coalesce(rows["original_height"], heights),
            "original_width": pa.compute.coalesce(rows["original_width"], widths),
            "height": heights,
            "width": widths,
            "image_sha256": pa.array([picture.sha256 for picture in pictures], pa.string()),
            "tar_offset": pa.array([picture.member.offset for picture in pictures], pa.int64()),
            "tar_bytes": pa.array([picture.member.size for picture in pictures], pa.int64()),
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
