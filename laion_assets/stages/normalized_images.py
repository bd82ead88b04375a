"""The examples-to-be of one image shard: metadata normalized and joined to its picture by key.

Metadata and pictures are joined on the key and never on position: img2dataset writes its table in
completion order, failures included, so the n-th row is not the n-th picture of the tar.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from PIL import Image

from laion_assets.errors import CorruptTar
from laion_assets.formats import parquet
from laion_assets.formats.publish import Draft, Manifest, Recipe, Tally, publish, require
from laion_assets.formats.webdataset import Stretch, TarReader
from laion_assets.image import STORED_EXTENSIONS, TFDS_EXTENSIONS, THREE_CHANNEL_MODES
from laion_assets.image_policy import MAX_PIXELS
from laion_assets.image_table import read_image_table
from laion_assets.keys import check_unique
from laion_assets.layout import Layout, ShardId
from laion_assets.normalization import normalize_metadata, set_aside_reasons
from laion_assets.outcomes import Status
from laion_assets.picture_header import read_headers
from laion_assets.placed_images import PLACED
from laion_assets.schema import NORMALIZED_IMAGES, ROWS_SET_ASIDE, SET_ASIDE_PREFIX, SetAside

CODE_VERSION: Final = "3"

# Of the table of images.
_COLUMNS: Final = (
    *("key", "status", "url", "caption", "NSFW", "similarity", "LICENSE"),
    *("width", "height", "original_width", "original_height"),
)


class _Pictures(NamedTuple):
    """What the bytes of stored pictures say of themselves, and where they lie; a value for each stem.

    Attributes:
        width: pixels, int64 (stems,).
        height: pixels, int64 (stems,).
        xxh3: XXH3-128, hexadecimal, string with nulls.
        offset: of the first byte in the tar, int64 with nulls.
        size: bytes, int64 with nulls.
        refused: place of a stem -> why its picture can be no example, and the other values mean nothing.
    """

    width: npt.NDArray[np.int64]
    height: npt.NDArray[np.int64]
    xxh3: pa.ChunkedArray
    offset: pa.ChunkedArray
    size: pa.ChunkedArray
    refused: dict[int, _Refused]


class _Refused(NamedTuple):
    """Why a stored picture cannot become an example."""

    reason: SetAside
    detail: str


# What was seen of pictures, by the number of their member in the tar.
_LOOK: Final = pa.schema(
    [("member", pa.int64()), ("width", pa.int64()), ("height", pa.int64()), ("xxh3", pa.string())]
)


def normalize_images(shard: ShardId, layout: Layout, *, decode: bool = False) -> Manifest:
    """Publish the examples-to-be of one shard and, beside them, the rows set aside with their reasons.

    Rows whose download failed are in neither file; they are counted, so that
    ``examples + set_aside + failed`` is the number of rows of the shard.

    The tar is read once, a few megabytes at a time: what is in memory is digested, searched for headers of
    members and looked at as pictures. So it is held against its manifest's checksum when all of it was seen,
    and not before; until then nothing of it is published. That is no less safe: pictures come from anywhere,
    and whoever looks at them expects the worst, whole tar or not. And no byte of a plain tar can change
    between the two.

    Args:
        shard: the shard.
        layout: where its files are.
        decode: whether pictures encoded by this project are decoded in full, and not only their headers read;
            those of a shard made elsewhere always are, so that one that is damaged is set aside by itself.

    Raises:
        MissingInput: if the shard's images are not there yet.
        CorruptInput: if a file is not the one that its manifest vouches for.
        CorruptParquet, CorruptTar, MisalignedShard: if its files do not belong together.
    """
    images, tar = require(layout.images(shard)), layout.images_tar(shard)
    recipe = Recipe(
        code_version=CODE_VERSION,
        settings="decoded" if decode else "",
        inputs={"images": images.data_version},
    )

    def write(draft: Draft) -> Tally:
        reader = TarReader(tar, extensions=TFDS_EXTENSIONS)
        decoded = decode or images.recipe == PLACED
        examples, set_aside, counts = _normalize(shard, layout, reader, decode=decoded)
        draft.note_read(tar, reader.xxh3_128)
        table, aside = layout.normalized_images(shard).names
        parquet.write_table(draft.path(table), examples, NORMALIZED_IMAGES)
        parquet.write_table(draft.path(aside), set_aside, ROWS_SET_ASIDE)
        return Tally(rows=examples.num_rows, counts=counts)

    return publish(
        layout.normalized_images(shard), recipe, write, reads=[layout.images(shard)], digested=[tar]
    )


def _normalize(
    shard: ShardId, layout: Layout, reader: TarReader, *, decode: bool
) -> tuple[pa.Table, pa.Table, dict[str, int]]:
    rows = read_image_table(shard, layout, columns=_COLUMNS)
    check_unique(rows["key"], layout.images_table(shard))
    succeeded = rows.filter(pc.equal(rows["status"], Status.SUCCESS)).sort_by("key")
    pictures = _look_at_pictures(reader, succeeded["stem"].combine_chunks(), decode=decode)
    # Why the row itself is unacceptable comes first, then what is wrong with its picture.
    refused = _contradictions(succeeded, pictures) | pictures.refused | _unacceptable(succeeded)
    accepted = np.ones(len(succeeded), bool)
    accepted[list(refused)] = False
    examples, counts = _examples(succeeded, pictures, accepted)
    set_aside = _set_aside(succeeded["key"], refused)
    counts |= Counter(f"{SET_ASIDE_PREFIX}{reason}" for reason in set_aside["reason"].to_pylist())
    counts["rows"] = rows.num_rows
    counts["failed"] = rows.num_rows - succeeded.num_rows
    counts["set_aside"] = set_aside.num_rows
    counts["examples"] = examples.num_rows
    return examples, set_aside, counts


def _look_at_pictures(reader: TarReader, stems: pa.Array, *, decode: bool) -> _Pictures:
    """What becomes of the picture of each stem."""
    looks = [_LOOK.empty_table()]
    refusals: dict[int, _Refused] = {}
    for stretch in reader.stretches():
        look, refused = _look(stretch, decode=decode)
        looks.append(look)
        refusals |= refused
    seen = pa.concat_tables(looks)
    members = reader.members.append_column("member", pa.array(np.arange(len(reader.members))))
    pictures = members.filter(pc.is_in(members["extension"], value_set=pa.array(STORED_EXTENSIONS)))
    pictures = pictures.filter(pc.is_in(pictures["stem"], value_set=stems))
    if pc.count_distinct(pictures["stem"]).as_py() < len(pictures):
        raise CorruptTar(
            reader.path,
            expected="one picture for each key",
            found="several for one key",
            remedy="Make or place the shard again.",
        )
    places = pictures.take(pc.index_in(stems, value_set=pictures["stem"].combine_chunks()))
    seen = seen.take(pc.index_in(places["member"], value_set=seen["member"].combine_chunks()))
    return _Pictures(
        pc.fill_null(seen["width"], 0).to_numpy(),
        pc.fill_null(seen["height"], 0).to_numpy(),
        seen["xxh3"],
        places["offset"],
        places["size"],
        _refused(places, stems, members, refusals),
    )


def _look(stretch: Stretch, *, decode: bool) -> tuple[pa.Table, dict[int, _Refused]]:
    """Sides and checksums of pictures, by the numbers of their members, and why some can be no example."""
    members, begins, sizes, body = stretch
    headers = np.zeros((len(members), 4), np.int64) if decode else read_headers(body, begins, sizes)
    width, height, channels, bits = headers.T
    is_known = ((channels == 1) | (channels == 3)) & (bits == 8)
    ends = begins + sizes
    refused = {}
    for at in np.flatnonzero(~is_known).tolist():
        found = _look_at_picture(body[begins[at] : ends[at]], decode=decode)
        if isinstance(found, _Refused):
            refused[int(members[at])] = found
        else:
            width[at], height[at] = found
    places = zip(begins.tolist(), ends.tolist(), strict=True)
    xxh3 = [xxhash.xxh3_128_hexdigest(body[begin:end]) for begin, end in places]
    return pa.table([members, width, height, xxh3], schema=_LOOK), refused


def _refused(
    places: pa.Table, stems: pa.Array, members: pa.Table, refusals: Mapping[int, _Refused]
) -> dict[int, _Refused]:
    """Place of a stem -> why its picture can be no example."""
    refused = {}
    found = zip(places["extension"].to_pylist(), places["member"].to_pylist(), strict=True)
    for at, (extension, member) in enumerate(found):
        if extension is None:
            refused[at] = _Refused(SetAside.MISSING_IMAGE, _what_else(members, stems[at]))
        elif extension not in TFDS_EXTENSIONS:
            detail = f"TFDS decodes {', '.join(TFDS_EXTENSIONS)}, not {extension}"
            refused[at] = _Refused(SetAside.NOT_TFDS_FORMAT, detail)
        elif member in refusals:
            refused[at] = refusals[member]
    return refused


def _what_else(members: pa.Table, stem: pa.Scalar) -> str:
    found = members.filter(pc.equal(members["stem"], stem))["extension"].to_pylist()
    return f"the tar has only {sorted(found)}"[:200]


def _look_at_picture(body: memoryview, *, decode: bool) -> tuple[int, int] | _Refused:
    """Width and height of a picture that can become an example, as Pillow finds them."""
    try:
        mode, size = _open(body, decode=decode)
    except Exception as error:  # noqa: BLE001 (Pillow raises many kinds for bytes that are no picture)
        return _Refused(SetAside.UNREADABLE_IMAGE, f"{type(error).__name__}: {error}"[:200])
    if mode not in THREE_CHANNEL_MODES:
        return _Refused(SetAside.NOT_THREE_CHANNELS, f"mode {mode}")
    return size


def _open(body: memoryview, *, decode: bool) -> tuple[str, tuple[int, int]]:
    """Pillow's mode and size of a picture, once its header, or all of it, was read."""
    with Image.open(io.BytesIO(body), formats=("JPEG", "PNG")) as picture:
        if decode:
            if picture.width * picture.height > MAX_PIXELS:
                raise ValueError(f"{picture.width} x {picture.height} pixels are too many to decode")
            picture.load()
        return picture.mode, picture.size


def _unacceptable(rows: pa.Table) -> dict[int, _Refused]:
    """Rows that can be no example, whatever their picture is."""
    reasons = set_aside_reasons(rows["url"], rows["similarity"])
    found = {}
    for at in np.flatnonzero(reasons.is_valid()).tolist():
        reason = SetAside(reasons[at].as_py())
        detail = "no URL" if reason == SetAside.MISSING_URL else f"similarity {rows['similarity'][at]}"
        found[at] = _Refused(reason, detail)
    return found


def _contradictions(rows: pa.Table, pictures: _Pictures) -> dict[int, _Refused]:
    """Rows whose picture is not the one that they describe; a size left out is not held against it."""
    width, height = rows["width"], rows["height"]
    differs = pc.or_(pc.not_equal(width, pictures.width), pc.not_equal(height, pictures.height))
    found = {}
    for at in np.flatnonzero(pc.fill_null(differs, fill_value=False)).tolist():
        detail = (
            f"row says {width[at]} x {height[at]}, picture is {pictures.width[at]} x {pictures.height[at]}"
        )
        found[at] = _Refused(SetAside.WRONG_SIZE, detail)
    return found


def _examples(
    rows: pa.Table, pictures: _Pictures, accepted: npt.NDArray[np.bool_]
) -> tuple[pa.Table, dict[str, int]]:
    """The accepted rows as examples, and what became of their values."""
    is_accepted = pa.array(accepted)
    rows = rows.filter(is_accepted)
    normalized, counts = normalize_metadata(rows)
    widths, heights = (pa.array(sides[accepted], pa.int32()) for sides in (pictures.width, pictures.height))
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
            "image_xxh3": pictures.xxh3.filter(is_accepted),
            "tar_offset": pictures.offset.filter(is_accepted),
            "tar_bytes": pictures.size.filter(is_accepted),
        }
    )
    return examples, counts


def _set_aside(keys: pa.ChunkedArray, refused: Mapping[int, _Refused]) -> pa.Table:
    places = sorted(refused)
    return pa.table(
        {
            "key": keys.take(pa.array(places, pa.int64())),
            "reason": [str(refused[at].reason) for at in places],
            "detail": [refused[at].detail for at in places],
        },
        schema=ROWS_SET_ASIDE,
    )
