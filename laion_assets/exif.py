"""What a picture says of itself in EXIF: which way up it is held, and the rest as text."""

from __future__ import annotations

import json
from typing import Final

from PIL import ExifTags, Image

# EXIF orientation -> what makes the picture upright (JEITA CP-3451, 4.6.4; as Pillow's exif_transpose).
UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
LYING: Final = (5, 6, 7, 8)  # width and height change places

# Bounds of the EXIF text kept for a picture: a hostile one could be as long as the file.
_TAGS: Final = 100
_VALUE_CHARACTERS: Final = 200
_POINTERS: Final = frozenset({ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo, ExifTags.IFD.Interop})
# What img2dataset's extractor (exifread with details=False) leaves out: long, and nobody's caption.
_LEFT_OUT: Final = frozenset({ExifTags.IFD.MakerNote, ExifTags.Base.UserComment})


def read_exif(picture: Image.Image) -> Image.Exif | None:
    """A picture's EXIF; None where there is none, or it is damaged."""
    try:
        return picture.getexif() or None
    except Exception:  # noqa: BLE001 (damaged EXIF, in whatever way, does not spoil the picture)
        return None


def orientation(exif: Image.Exif | None) -> int:
    """EXIF orientation, 1 where none is told."""
    tag = exif.get(ExifTags.Base.Orientation) if exif is not None else None
    return tag if isinstance(tag, int) else 1


def describe_exif(exif: Image.Exif | None) -> str:
    """EXIF as a JSON object of strings, named as exifread names them, at most 100 of 200 characters."""
    found: dict[str, str] = {}
    if exif is not None:
        try:
            for prefix, names, tags in (
                ("Image", ExifTags.TAGS, dict(exif)),
                ("EXIF", ExifTags.TAGS, exif.get_ifd(ExifTags.IFD.Exif)),
                ("GPS", ExifTags.GPSTAGS, exif.get_ifd(ExifTags.IFD.GPSInfo)),
            ):
                for tag, value in tags.items():
                    if tag not in _POINTERS | _LEFT_OUT and len(found) < _TAGS:
                        found[f"{prefix} {names.get(tag, f'Tag 0x{tag:04X}')}"] = _text(value)
        except Exception:  # noqa: BLE001, S110 (as above: what was read until then is kept)
            pass
    return json.dumps(found)


def _text(value: object) -> str:
    if isinstance(value, bytes):
        value = value[:_VALUE_CHARACTERS].decode("ascii", "replace")
    return str(value).replace("\0", "")[:_VALUE_CHARACTERS].strip()
