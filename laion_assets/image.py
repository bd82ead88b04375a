"""From the bytes a server sent to the bytes a shard keeps. Knows nothing of URLs or shards."""

from __future__ import annotations

import io
import json
import warnings
import zlib
from dataclasses import dataclass
from typing import Final, Literal

# The plugins of the formats below, so that no other is ever loaded.
from PIL import (  # noqa: F401 (importing registers them)
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    WebPImagePlugin,
)
from pydantic import Field

from laion_assets.policy import Policy
from laion_assets.schema import Outcome

# What web pages of 2014 to 2021 showed; each further format is a further decoder to attack.
FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
_MAGIC: Final = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"GIF8", b"BM")

STORED_EXTENSIONS: Final = ("jpg", "jpeg", "png")
"""Of the pictures that shards hold: what img2dataset writes and TFDS's Image feature decodes."""

THREE_CHANNEL_MODES: Final = ("RGB", "L")
"""Pillow's modes of files that TFDS decodes to three channels; RGBA files it decodes to four."""

MAX_PIXELS: Final = 50_000_000
"""Largest width x height decoded unless a user says otherwise; it takes about 400 MB."""

# libjpeg's JPEG_MAX_DIMENSION.
_MAX_JPEG_SIDE: Final = 65_500
_WHITE: Final = (255, 255, 255)
_START_OF_SCAN: Final = b"\xff\xda"
_PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"

# EXIF orientation -> what makes the picture upright (JEITA CP-3451, 4.6.4; as Pillow's exif_transpose).
_UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_LYING: Final = (5, 6, 7, 8)  # width and height change places

# Bounds of the EXIF text kept for a picture: a hostile one could be as long as the file.
_EXIF_TAGS: Final = 100
_EXIF_VALUE_CHARACTERS: Final = 200
_EXIF_POINTERS: Final = frozenset({ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo, ExifTags.IFD.Interop})
# What img2dataset's extractor (exifread with details=False) leaves out: long, and nobody's caption.
_EXIF_LEFT_OUT: Final = frozenset({ExifTags.IFD.MakerNote, ExifTags.Base.UserComment})


class ImagePolicy(Policy):
    """What is accepted as a picture and how it is stored."""

    size: int = Field(default=256, ge=1, le=8192)
    """Target side in pixels."""
    mode: Literal["no", "border", "keep_ratio", "center_crop"] = "keep_ratio"
    """img2dataset's resize modes: keep the original, pad to a square, shorter side to ``size``, or crop."""
    only_if_bigger: bool = True
    """Leave pictures alone whose shorter side is at most ``size``; else they are enlarged."""
    quality: int = Field(default=95, ge=1, le=100)
    """JPEG quality of the stored picture."""
    max_pixels: int = Field(default=MAX_PIXELS, ge=1)
    """Largest width x height decoded (50 million pixels take about 400 MB)."""
    max_jpeg_scans: int = Field(default=64, ge=1)
    """Most scans of a progressive JPEG (a 47 kB file of many took 12 s to decode)."""
    worker_memory_bytes: int = Field(default=2 << 30, ge=1 << 28)
    """Address space that a decoding process may use on top of what it starts with."""
    decode_timeout_s: float = Field(default=20.0, gt=0)
    """CPU seconds one picture may take."""
    workers: int = Field(default=0, ge=0)
    """Decoding processes; 0 takes one for each core."""


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A picture as a shard keeps it.

    Attributes:
        jpeg: three-channel JPEG.
        width: width of ``jpeg`` in pixels.
        height: height of ``jpeg`` in pixels.
        original_width: width in pixels of what was sent, held upright.
        original_height: height in pixels of what was sent, held upright.
        exif: EXIF of what was sent, a JSON object of strings named as exifread names them.
    """

    jpeg: bytes
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


def check_and_resize(body: bytes, policy: ImagePolicy) -> Stored | Undecodable:
    """Decode what a server sent, hold it upright, resize it, and encode it as a three-channel JPEG.

    The first frame counts; transparency is laid on white; 16-bit grey keeps its high bytes; colour
    profiles are passed over, as img2dataset does. A truncated picture is refused. It cannot be seen, in
    a JPEG, whether bytes in its middle were changed. Bytes may make this allocate up to some 8 bytes for
    each of ``max_pixels`` and take seconds, so call it where that does no harm.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow tells of broken EXIF and of many pixels this way
            return _check_and_resize(body, policy)
    except _Refused as refused:
        return Undecodable(outcome=refused.outcome, message=str(refused))
    except Image.DecompressionBombError:
        return Undecodable(outcome=Outcome.TOO_MANY_PIXELS, message="too many pixels")
    except Exception as error:  # noqa: BLE001 (decoders raise anything for bytes that are no picture)
        text = "".join(letter for letter in str(error)[:120] if letter.isascii() and letter.isprintable())
        message = f"Image decoding error: {type(error).__name__}: {text}"
        return Undecodable(outcome=Outcome.UNDECODABLE, message=message)


def _check_and_resize(body: bytes, policy: ImagePolicy) -> Stored:
    picture = _open(body, policy)
    exif = _read_exif(picture)
    tag = exif.get(ExifTags.Base.Orientation) if exif is not None else None
    orientation = tag if isinstance(tag, int) else 1
    width, height = picture.size
    target = _target_size(width, height, policy)
    rgb, is_clean = _load_rgb(picture, target)
    rgb = rgb.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else rgb
    if target is not None and policy.mode == "center_crop":
        rgb = _crop(rgb, policy.size)
    if target is not None and policy.mode == "border":
        rgb = _pad(rgb, policy.size)
    keeps_body = policy.mode == "no" and is_clean and orientation not in _UPRIGHT
    if orientation in _LYING:
        width, height = height, width
    return Stored(
        jpeg=body if keeps_body else _encode(rgb, policy),
        width=rgb.width,
        height=rgb.height,
        original_width=width,
        original_height=height,
        exif=_describe_exif(exif),
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
    if picture.width * picture.height > policy.max_pixels:
        raise _Refused(Outcome.TOO_MANY_PIXELS, f"more than {policy.max_pixels} pixels")
    return picture


def _check_png(body: bytes) -> None:
    """Refuse a PNG that does not reach its IEND, or has a damaged chunk, which Pillow would decode.

    Raises:
        _Refused: if it is so.
    """
    offset = len(_PNG_SIGNATURE)
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
        side = max(width, height) if policy.mode == "border" else min(width, height)
        if side > policy.size or not policy.only_if_bigger:
            scale = policy.size / side
            target = (max(1, round(width * scale)), max(1, round(height * scale)))
    stored = target or (width, height)
    if max(stored) > _MAX_JPEG_SIDE:
        raise _Refused(Outcome.UNDECODABLE, f"a side longer than {_MAX_JPEG_SIDE} pixels")
    if stored[0] * stored[1] > max(policy.max_pixels, policy.size**2):
        raise _Refused(Outcome.TOO_MANY_PIXELS, f"more than {policy.max_pixels} pixels when enlarged")
    return target


def _load_rgb(picture: ImageFile.ImageFile, target: tuple[int, int] | None) -> tuple[Image.Image, bool]:
    """Decode to RGB and resize.

    Returns:
        The picture, and whether the bytes were a three-channel JPEG already.
    """
    box: tuple[float, float, float, float] | None = None
    if target is not None:
        # libjpeg decodes at 1/2, 1/4 or 1/8; twice the target keeps the quality (SSIM 0.990 against
        # 0.976 at the target itself) at 3/4 of the time.
        drafted = picture.draft(None, (2 * target[0], 2 * target[1]))
        box = drafted[1] if drafted is not None else None
    is_clean = picture.format == "JPEG" and picture.mode == "RGB"
    picture.load()
    rgb = _to_rgb(picture)
    if target is not None and rgb.size != target:
        rgb = rgb.resize(target, Image.Resampling.BICUBIC, box=box)
    return rgb, is_clean


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "I;16":
        # Pillow's own conversion clips at 255 instead, and the picture comes out white.
        high_bytes = Image.frombytes("L", picture.size, picture.tobytes(), "raw", "L;16")
        return high_bytes.convert("RGB")
    if not picture.has_transparency_data:
        return picture.convert("RGB")
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
    # Pillow would copy the comment that the picture came with.
    rgb.save(stream, "JPEG", quality=policy.quality, comment=b"")
    return stream.getvalue()


def _read_exif(picture: Image.Image) -> Image.Exif | None:
    try:
        return picture.getexif()
    except Exception:  # noqa: BLE001 (damaged EXIF, in whatever way, does not spoil the picture)
        return None


def _describe_exif(exif: Image.Exif | None) -> str:
    found: dict[str, str] = {}
    if exif is not None:
        try:
            for prefix, names, tags in (
                ("Image", ExifTags.TAGS, dict(exif)),
                ("EXIF", ExifTags.TAGS, exif.get_ifd(ExifTags.IFD.Exif)),
                ("GPS", ExifTags.GPSTAGS, exif.get_ifd(ExifTags.IFD.GPSInfo)),
            ):
                for tag, value in tags.items():
                    if tag not in _EXIF_POINTERS | _EXIF_LEFT_OUT and len(found) < _EXIF_TAGS:
                        found[f"{prefix} {names.get(tag, f'Tag 0x{tag:04X}')}"] = _exif_text(value)
        except Exception:  # noqa: BLE001, S110 (as above: what was read until then is kept)
            pass
    return json.dumps(found)


def _exif_text(value: object) -> str:
    if isinstance(value, bytes):
        value = value[:_EXIF_VALUE_CHARACTERS].decode("ascii", "replace")
    return str(value).replace("\0", "")[:_EXIF_VALUE_CHARACTERS].strip()
