"""From the bytes a server sent to the bytes a shard keeps. Knows nothing of URLs or shards."""

from __future__ import annotations

import io
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

# The plugins of the formats below, so that no other is ever loaded.
from PIL import (  # noqa: F401 (importing registers them)
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from laion_assets.blur import Box, blur, bound_boxes
from laion_assets.exif import LYING, UPRIGHT, describe_exif, orientation, read_exif
from laion_assets.outcomes import Outcome
from laion_assets.picture_header import PNG_SIGNATURE

if TYPE_CHECKING:  # pydantic, beneath it, takes longer to load than all that a decoding process needs
    from laion_assets.image_policy import ImagePolicy, StoredFormat

# What web pages of 2014 to 2021 showed; each further format is a further decoder to attack.
FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
_MAGIC: Final = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"GIF8", b"BM")

TFDS_EXTENSIONS: Final = ("jpg", "jpeg", "png")
"""Of stored pictures that TFDS's Image feature decodes."""

STORED_EXTENSIONS: Final = (*TFDS_EXTENSIONS, "webp")
"""Of the pictures that shards hold, ours or img2dataset's."""

THREE_CHANNEL_MODES: Final = ("RGB", "L")
"""Pillow's modes of files that TFDS decodes to three channels; RGBA files it decodes to four."""

_PILLOW_FORMAT: Final = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}
# libjpeg's JPEG_MAX_DIMENSION, PNG's four bytes (PNG 3rd edition, 7.1), libwebp's WEBP_MAX_DIMENSION.
_MAX_SIDE: Final = {"jpg": 65_500, "png": 2**31 - 1, "webp": 16_383}

# How much larger than the target a picture is at least decoded, or averaged down to, before it is resized
# carefully. SSIM against a full Lanczos, mean over 256 photographs and sizes from 1/2 to 1/12: 0.9859, where
# img2dataset's INTER_AREA has 0.9823 and a full BICUBIC 0.9891. 1.125 has 0.9847; 1.5 has 0.9870, and takes
# 7 % longer with LAION-400M's own sizes, 14 % with large photographs.
_CAREFULLY: Final = 1.25

_WHITE: Final = (255, 255, 255)
_START_OF_SCAN: Final = b"\xff\xda"


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A picture as a shard keeps it.

    Attributes:
        encoded: three-channel picture in the policy's format.
        width: width of ``encoded`` in pixels.
        height: height of ``encoded`` in pixels.
        original_width: width in pixels of what was sent, held upright.
        original_height: height in pixels of what was sent, held upright.
        exif: EXIF of what was sent, a JSON object of strings named as exifread names them.
    """

    encoded: bytes
    width: int
    height: int
    original_width: int
    original_height: int
    exif: str


@dataclass(frozen=True, kw_only=True)
class Undecodable:
    """Why there is no picture; ``message`` is short and printable."""

    outcome: Outcome
    message: str


class _Refused(Exception):
    def __init__(self, outcome: Outcome, message: str) -> None:
        super().__init__(message)
        self.outcome = outcome


def check_and_resize(
    body: bytes, policy: ImagePolicy, boxes: Sequence[Sequence[float]] = ()
) -> Stored | Undecodable:
    """Decode what a server sent, hold it upright, resize it, and encode it with three channels.

    The first frame counts; transparency is laid on white; 16-bit grey keeps its high bytes; colour
    profiles are passed over, as img2dataset does. A truncated picture is refused. It cannot be seen, in
    a JPEG, whether bytes in its middle were changed. Bytes may make this allocate up to some 8 bytes for
    each of ``max_pixels`` and take seconds, so call it where that does no harm.

    Args:
        body: what was sent.
        policy: what is accepted, and how it is stored.
        boxes: what to blur, each as left, upper, right and lower edge, relative to the picture's width and
            height before EXIF's orientation is applied (img2dataset's ``blurring_bbox_col``).
            :func:`laion_assets.blur.bound_boxes` says what becomes of odd ones.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow tells of broken EXIF and of many pixels this way
            return _check_and_resize(body, policy, _bound(boxes))
    except _Refused as refused:
        return Undecodable(outcome=refused.outcome, message=str(refused))
    except Image.DecompressionBombError:
        return Undecodable(outcome=Outcome.TOO_MANY_PIXELS, message="image area too large")
    except UnidentifiedImageError:
        # Its own text holds where in memory the bytes were.
        return Undecodable(
            outcome=Outcome.UNDECODABLE, message="Image decoding error: cannot identify image file"
        )
    except Exception as error:  # noqa: BLE001 (decoders raise anything for bytes that are no picture)
        text = "".join(letter for letter in str(error)[:120] if letter.isascii() and letter.isprintable())
        message = f"Image decoding error: {type(error).__name__}: {text}"
        return Undecodable(outcome=Outcome.UNDECODABLE, message=message)


def _bound(boxes: Sequence[Sequence[float]]) -> list[Box]:
    try:
        return bound_boxes(boxes)
    except ValueError as error:
        raise _Refused(Outcome.UNDECODABLE, str(error)) from None


def _check_and_resize(body: bytes, policy: ImagePolicy, boxes: Sequence[Box]) -> Stored:
    picture = _open(body, policy)
    width, height = picture.size
    target = _target_size(width, height, policy)
    keeps_body = policy.mode == "no" and not boxes and _is_of_format(picture, body, policy.format)
    rgb = _load_rgb(picture, target)
    exif = read_exif(picture)
    turned = orientation(exif)
    if boxes:
        rgb = blur(rgb, boxes)
    if turned in UPRIGHT:
        rgb = rgb.transpose(UPRIGHT[turned])
    if turned in LYING:
        width, height = height, width
    if target is not None and policy.mode == "center_crop":
        rgb = _crop(rgb, policy.size)
    if target is not None and policy.mode == "border":
        rgb = _pad(rgb, policy.size)
    return Stored(
        encoded=body if keeps_body and turned not in UPRIGHT else _encode(rgb, policy),
        width=rgb.width,
        height=rgb.height,
        original_width=width,
        original_height=height,
        exif=describe_exif(exif),
    )


def _open(body: bytes, policy: ImagePolicy) -> ImageFile.ImageFile:
    """Open a picture without decoding it, having refused what must not be decoded."""
    if not body.startswith(_MAGIC):
        raise _Refused(Outcome.NOT_AN_IMAGE, f"not a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} picture")
    if body.startswith(b"\xff\xd8") and body.count(_START_OF_SCAN) > policy.max_jpeg_scans:
        # Entropy-coded data never holds this marker, so there are at most as many scans.
        raise _Refused(Outcome.UNDECODABLE, f"JPEG of more than {policy.max_jpeg_scans} scans")
    if body.startswith(b"\x89PNG"):
        _check_png(body)
    picture = Image.open(io.BytesIO(body), formats=FORMATS)
    short, long = sorted(picture.size)
    # In img2dataset's order and words.
    if short < policy.min_size:
        raise _Refused(Outcome.TOO_SMALL, "image too small")
    if short * long > policy.max_pixels:
        raise _Refused(Outcome.TOO_MANY_PIXELS, "image area too large")
    if policy.max_aspect_ratio is not None and long / short > policy.max_aspect_ratio:
        raise _Refused(Outcome.ASPECT_RATIO, "aspect ratio too large")
    return picture


def _check_png(body: bytes) -> None:
    """Refuse a PNG that does not reach its IEND, or has a damaged chunk, which Pillow would decode.

    Raises:
        _Refused: if it is so.
    """
    offset = len(PNG_SIGNATURE)
    view = memoryview(body)
    while offset + 12 <= len(body):
        length = int.from_bytes(view[offset : offset + 4])
        kind, end = bytes(view[offset + 4 : offset + 8]), offset + 8 + length
        # Chunks whose name begins with a capital are needed to decode (PNG 3rd edition, 5.4).
        if kind[:1].isupper() and end + 4 <= len(body):
            if zlib.crc32(view[offset + 4 : end]) != int.from_bytes(view[end : end + 4]):
                raise _Refused(Outcome.UNDECODABLE, "PNG with a damaged chunk")
            if kind == b"IEND":
                return
        offset = end + 4
    raise _Refused(Outcome.UNDECODABLE, "PNG is cut short")


def _target_size(width: int, height: int, policy: ImagePolicy) -> tuple[int, int] | None:
    """Size to resize to, before cropping and padding; None to leave the picture as it is.

    Raises:
        _Refused: if the picture that results cannot be stored.
    """
    target = None
    if policy.mode != "no":
        by_longer = policy.mode in ("border", "keep_ratio_largest")
        side = max(width, height) if by_longer else min(width, height)
        if side > policy.size or not policy.only_if_bigger:
            scale = policy.size / side
            target = (max(1, round(width * scale)), max(1, round(height * scale)))
    stored = target or (width, height)
    if max(stored) > _MAX_SIDE[policy.format]:
        raise _Refused(Outcome.UNDECODABLE, f"a side longer than {_MAX_SIDE[policy.format]} pixels")
    if stored[0] * stored[1] > max(policy.max_pixels, policy.size**2):
        raise _Refused(Outcome.TOO_MANY_PIXELS, "image area too large when enlarged")
    return target


def _is_of_format(picture: ImageFile.ImageFile, body: bytes, format_: StoredFormat) -> bool:
    """Whether a picture's own bytes are what a shard keeps: three channels of 8 bits, and one frame."""
    if picture.format != _PILLOW_FORMAT[format_] or picture.mode != "RGB":
        return False
    if getattr(picture, "is_animated", False) or picture.has_transparency_data:
        return False
    # The depth in a PNG's IHDR (its specification, 11.2.1): Pillow's mode does not tell 16 bits from 8.
    return format_ != "png" or body[24] == 8


def _load_rgb(picture: ImageFile.ImageFile, target: tuple[int, int] | None) -> Image.Image:
    """Decode to RGB and resize."""
    if target is None:
        picture.load()
        return _to_rgb(picture)
    # libjpeg decodes at 1/2, 1/4 or 1/8 for a fraction of the time.
    drafted = picture.draft(None, (int(_CAREFULLY * target[0]), int(_CAREFULLY * target[1])))
    box = drafted[1] if drafted is not None else None
    picture.load()
    rgb = _to_rgb(picture)
    if rgb.size == target:
        return rgb
    return rgb.resize(target, Image.Resampling.BICUBIC, box=box, reducing_gap=_CAREFULLY)


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "I;16":
        # Pillow's own conversion clips at 255 instead, and the picture comes out white.
        high_bytes = Image.frombytes("L", picture.size, picture.tobytes(), "raw", "L;16")
        return high_bytes.convert("RGB")
    if not picture.has_transparency_data:
        # Converting from RGB to RGB would copy.
        return picture if picture.mode == "RGB" else picture.convert("RGB")
    seen = picture.convert("RGBA")
    canvas = Image.new("RGB", picture.size, _WHITE)
    canvas.paste(seen, mask=seen.getchannel("A"))
    return canvas


def _crop(rgb: Image.Image, size: int) -> Image.Image:
    left, top = (rgb.width - size) // 2, (rgb.height - size) // 2
    return rgb.crop((left, top, left + size, top + size))


def _pad(rgb: Image.Image, size: int) -> Image.Image:
    canvas = Image.new("RGB", (size, size), _WHITE)
    canvas.paste(rgb, ((size - rgb.width) // 2, (size - rgb.height) // 2))
    return canvas


def _encode(rgb: Image.Image, policy: ImagePolicy) -> bytes:
    stream = io.BytesIO()
    # Pillow would copy the comment and the colour profile that the picture came with.
    rgb.info = {}
    level = "compress_level" if policy.format == "png" else "quality"
    options: dict[str, Any] = {level: policy.quality}
    rgb.save(stream, _PILLOW_FORMAT[policy.format], **options)
    return stream.getvalue()
