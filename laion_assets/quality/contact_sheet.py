"""Draws a shard's pictures with what the data set says of them, for eyes."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import xxhash
from PIL import Image, ImageDraw, ImageFont

from laion_assets.errors import CorruptTar
from laion_assets.formats import parquet
from laion_assets.formats.publish import bring, read_ranges, require
from laion_assets.image_policy import MAX_PIXELS
from laion_assets.layout import Layout, ShardId
from laion_assets.outcomes import Status, count_failures
from laion_assets.quality.plots import font_path
from laion_assets.schema import MISSING_SIMILARITY, NORMALIZED_IMAGES
from laion_assets.text import printable

_SIDE: Final = 200
_PADDING: Final = 10
_LINE: Final = 16
_CAPTION_LINES: Final = 3
_TEXT_LINES: Final = 2 + _CAPTION_LINES
_CELL_WIDTH: Final = _SIDE + _PADDING
_CELL_HEIGHT: Final = _SIDE + _PADDING + _TEXT_LINES * _LINE + _PADDING
_HEADER_HEIGHT: Final = 2 * _LINE + 4 * _PADDING

# Longer captions do not fit three lines of the narrowest letters.
_CAPTION_CHARACTERS: Final = 300
_HEADER_CHARACTERS: Final = 300
_MOST_FAILURES: Final = 4

_PAPER: Final = (255, 255, 255)
_INK: Final = (25, 25, 25)
_PALE_INK: Final = (105, 105, 105)
_PLACEHOLDER: Final = (225, 225, 225)
_EDGE: Final = (205, 205, 205)

# Pictures in memory together, before they are made small.
_AT_A_TIME: Final = 24

_COLUMNS: Final = ("key", "caption", "nsfw", "similarity", "image_xxh3", "tar_offset", "tar_bytes")


def draw_contact_sheet(
    layout: Layout, shard: ShardId, path: Path, *, columns: int = 6, limit: int = 48
) -> int:
    """Draw the first pictures of a shard as a grid, in key order, and save it as a PNG.

    Beneath each picture are its key, tag and similarity, and its caption, wrapped and cut; characters that
    the font lacks are boxes. The header counts the shard's rows, examples and most frequent failures.

    Args:
        layout: where the shard's files are.
        shard: an image shard that is normalized.
        path: where to write the PNG.
        columns: pictures side by side.
        limit: most pictures drawn.

    Returns:
        How many pictures were drawn.

    Raises:
        MissingInput: if the shard is not normalized yet.
        CorruptTar: if a picture in the tar is not the one that its row describes.
    """
    bring(layout.normalized_images(shard), [layout.normalized_table(shard).name])
    table = parquet.read_table(layout.normalized_table(shard), NORMALIZED_IMAGES, columns=_COLUMNS)
    rows = table.slice(0, limit).to_pylist()
    columns = max(1, min(columns, len(rows)))
    # The header needs some width even above a single picture.
    size = (
        max(4, columns) * _CELL_WIDTH + _PADDING,
        _HEADER_HEIGHT + -(-len(rows) // columns) * _CELL_HEIGHT,
    )
    pen = _Pen(Image.new("RGB", size, _PAPER))
    _draw_header(pen, layout, shard, shown=len(rows), examples=table.num_rows)
    for place, (row, picture) in enumerate(zip(rows, pictures_of(layout, shard, rows, _SIDE), strict=True)):
        down, along = divmod(place, columns)
        _draw_cell(pen, _PADDING + along * _CELL_WIDTH, _HEADER_HEIGHT + down * _CELL_HEIGHT, row, picture)
    pen.sheet.save(path, format="PNG", optimize=True)
    return len(rows)


@dataclass
class _Pen:
    """A sheet and what writes on it."""

    sheet: Image.Image

    def __post_init__(self) -> None:
        self.draw = ImageDraw.Draw(self.sheet)
        # Basic layout neither joins nor reorders letters, whatever library Pillow was built with.
        self.font, self.large_font = (
            ImageFont.truetype(str(font_path()), size, layout_engine=ImageFont.Layout.BASIC)
            for size in (12, 15)
        )

    def write(self, x: int, y: int, text: str, *, pale: bool = False, large: bool = False) -> None:
        font = self.large_font if large else self.font
        self.draw.text((x, y), text, fill=_PALE_INK if pale else _INK, font=font)

    def fits(self, text: str, width: int) -> bool:
        return self.font.getlength(text) <= width


def _draw_header(pen: _Pen, layout: Layout, shard: ShardId, *, shown: int, examples: int) -> None:
    manifest = require(layout.images(shard))
    pen.write(_PADDING, _PADDING, f"Shard {shard}: {shown} of {examples:,} examples", large=True)
    failures = Counter(count_failures(manifest.counts))
    told = ", ".join(f"{name} {count:,}" for name, count in failures.most_common(_MOST_FAILURES))
    rest = failures.total() - sum(count for _, count in failures.most_common(_MOST_FAILURES))
    told += f", others {rest:,}" if rest else ""
    # Shards that img2dataset made have no classes of outcomes.
    told = told or f"{manifest.rows - manifest.counts.get(Status.SUCCESS, 0):,}"
    line = printable(f"{manifest.rows:,} rows; without a picture: {told}", _HEADER_CHARACTERS)
    pen.write(_PADDING, _PADDING + _LINE + 6, _fit(pen, line, pen.sheet.width - 2 * _PADDING), pale=True)


def _draw_cell(pen: _Pen, x: int, y: int, row: Mapping[str, Any], picture: Image.Image | str) -> None:
    if isinstance(picture, str):
        pen.draw.rectangle((x, y, x + _SIDE - 1, y + _SIDE - 1), fill=_PLACEHOLDER)
        pen.write(x + _PADDING, y + _SIDE // 2, _fit(pen, picture, _SIDE - 2 * _PADDING))
    else:
        left, top = x + (_SIDE - picture.width) // 2, y + (_SIDE - picture.height) // 2
        pen.sheet.paste(picture, (left, top))
        # A pale picture would have no edge on white paper.
        pen.draw.rectangle((left, top, left + picture.width - 1, top + picture.height - 1), outline=_EDGE)
    similarity = row["similarity"]
    told = "no similarity" if similarity == MISSING_SIMILARITY else f"{similarity:.3f}"
    lines = [printable(row["key"], 40), f"{printable(row['nsfw'], 20)}  {told}"]
    for number, line in enumerate(lines):
        pen.write(x, y + _SIDE + 4 + number * _LINE, _fit(pen, line, _SIDE), pale=True)
    for number, line in enumerate(_wrap(pen, printable(row["caption"], _CAPTION_CHARACTERS))):
        pen.write(x, y + _SIDE + 4 + (len(lines) + number) * _LINE, line)


def _wrap(pen: _Pen, text: str) -> list[str]:
    """Lines of at most a picture's width; words that are too long are broken, and the last line is cut."""
    lines: list[str] = []
    line = ""
    for word in text.split():
        if pen.fits(f"{line} {word}".strip(), _SIDE):
            line = f"{line} {word}".strip()
            continue
        if line:
            lines.append(line)
        while not pen.fits(word, _SIDE):
            lines.append(_first_that_fits(pen, word))
            word = word[len(lines[-1]) :]
        line = word
    lines.append(line)
    kept = lines[:_CAPTION_LINES]
    if len(lines) > _CAPTION_LINES:
        kept[-1] = _fit(pen, f"{kept[-1]}…", _SIDE)
    return kept


def _first_that_fits(pen: _Pen, word: str) -> str:
    length = len(word)
    while length > 1 and not pen.fits(word[:length], _SIDE):
        length -= 1
    return word[:length]


def _fit(pen: _Pen, text: str, width: int) -> str:
    """The text, cut to a width; a cut is shown."""
    if pen.fits(text, width):
        return text
    while text and not pen.fits(f"{text}…", width):
        text = text[:-1]
    return f"{text}…"


def pictures_of(
    layout: Layout, shard: ShardId, rows: list[dict[str, Any]], side: int
) -> Iterator[Image.Image | str]:
    """The picture of each row, no side longer than is said, or why it cannot be shown; read from the tar.

    Args:
        layout: where the shard's files are.
        shard: an image shard that is normalized.
        rows: of its table, with the columns ``key``, ``image_xxh3``, ``tar_offset`` and ``tar_bytes``.
        side: in pixels.

    Raises:
        CorruptTar: if a picture in the tar is not the one that its row describes.
    """
    output, tar = layout.images(shard), layout.images_tar(shard)
    manifest = require(output)
    size = manifest.files[tar.name].bytes
    for start in range(0, len(rows), _AT_A_TIME):
        some = rows[start : start + _AT_A_TIME]
        offsets, lengths = ([row[name] for row in some] for name in ("tar_offset", "tar_bytes"))
        for row, offset, length in zip(some, offsets, lengths, strict=True):
            if not 0 <= offset <= offset + length <= size:
                raise _another(tar, row, shard)
        for row, body in zip(some, read_ranges(output, manifest, tar.name, offsets, lengths), strict=True):
            if xxhash.xxh3_128_hexdigest(body) != row["image_xxh3"]:
                raise _another(tar, row, shard)
            yield _thumbnail(body, side)


def _another(tar: Path, row: Mapping[str, Any], shard: ShardId) -> CorruptTar:
    return CorruptTar(
        tar,
        expected=f"the picture of key {row['key']} at byte {row['tar_offset']}",
        found="other bytes",
        remedy=f"Materialize normalized_images {shard} again.",
    )


def _thumbnail(body: bytes, side: int) -> Image.Image | str:
    try:
        with Image.open(io.BytesIO(body), formats=("JPEG", "PNG")) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                return "too many pixels"
            picture.draft("RGB", (side, side))
            small = picture.convert("RGB")
            small.thumbnail((side, side), Image.Resampling.LANCZOS)
            return small
    except Exception:  # noqa: BLE001 (Pillow raises many kinds for bytes that are no picture)
        return "cannot be decoded"
