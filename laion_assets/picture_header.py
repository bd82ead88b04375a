"""What the header of a JPEG or PNG file says, without decoding it; Pillow takes fifty times as long.

TFDS stores any bytes as an image, and its reader without TensorFlow (features/image_feature.py,
decode_example_np) then hands out as many channels as the picture has: so the header is read before a picture
is stored. Whether the rest can be decoded is not known from it.
"""

from __future__ import annotations

from functools import lru_cache
from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
# Colour types of a PNG (its specification, 11.2.2) -> channels; a palette may hold transparent colours.
_PNG_CHANNELS: Final = {0: 1, 2: 3, 3: 4, 4: 2, 6: 4}
# Width, height, bit depth, colour type, after the chunk's length and name.
_IHDR: Final = Struct(">IIBB")
_IHDR_AT: Final = 16

# JPEG markers (ITU-T T.81, table B.1): frame headers are C0 to CF but for three, and the first scan ends
# the search.
_JPEG_SIGNATURE: Final = b"\xff\xd8"
_JPEG_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_SCAN: Final = 0xDA
# Those reserved for extensions have a length, but Pillow passes over the two bytes of the marker alone.
_JPEG_PASSED_OVER: Final = frozenset({0x00, 0x01, 0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)})
# Bits, height, width, components, after the marker and the segment's length.
_FRAME: Final = Struct(">BHHB")
_FRAME_AT: Final = 4
# A baseline frame of three channels of eight bits each, and how far from the beginning most files have it.
_USUAL_FRAME: Final = b"\xff\xc0\x00\x11\x08"
_SIDES_BYTES: Final = _FRAME_AT + _FRAME.size - len(_USUAL_FRAME)  # and the channels
_USUAL_BYTES: Final = 1024


class Header(NamedTuple):
    """What a picture declares.

    Attributes:
        width: pixels.
        height: pixels.
        channels: 1 (grey), 2 (grey and alpha), 3 or 4; a palette counts as 4.
        bits: of each channel.
    """

    width: int
    height: int
    channels: int
    bits: int

    @property
    def becomes_three_channels(self) -> bool:
        """Whether TFDS decodes the picture to three channels: grey, it repeats the one."""
        return self.channels in (1, 3)


def read_header(picture: bytes | memoryview) -> Header | None:
    """The header of a JPEG or PNG file; None where it is neither, or is cut short."""
    beginning = bytes(picture[:_USUAL_BYTES])
    if usual := _usual_beginning(beginning):
        return _frame(beginning, len(usual) - len(_USUAL_FRAME))
    if beginning.startswith(_JPEG_SIGNATURE):
        whole = bytes(picture)
        at = _find_frame(whole)
        return None if at < 0 else _frame(whole, at)
    return _png_header(beginning) if beginning.startswith(PNG_SIGNATURE) else None


def read_headers(
    body: memoryview, begins: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """As :func:`read_header`, of many files at once; those that begin as the first one does, in no time.

    Args:
        body: where all of them lie.
        begins: where each begins, int64 (files,).
        sizes: in bytes, int64 (files,).

    Returns:
        Width, height, channels and bits of each, int64 (files, 4); zeros where there is no header.
    """
    import numpy as np  # not above, for the processes that decode, which do without

    headers = np.zeros((len(begins), len(Header._fields)), np.int64)
    is_alike = np.zeros(len(begins), bool)
    first = body[begins[0] :][: min(sizes[0], _USUAL_BYTES)] if len(begins) else b""
    if usual := _usual_beginning(bytes(first)):
        length = len(usual) + _SIDES_BYTES
        fits = np.flatnonzero(sizes >= length)
        # All that is of this length in the body, of which only what is taken is copied.
        beginnings = np.ndarray(len(body) - length + 1, f"V{length}", body, strides=(1,))[begins[fits]]
        is_usual = np.array([beginning.startswith(usual) for beginning in beginnings.tolist()])
        sides = beginnings[is_usual].view(np.uint8).reshape(-1, length)[:, len(usual) :].astype(np.int64)
        alike = fits[is_usual]
        is_alike[alike] = True
        headers[alike, 0] = sides[:, 2] << 8 | sides[:, 3]
        headers[alike, 1] = sides[:, 0] << 8 | sides[:, 1]
        headers[alike, 2] = sides[:, 4]
        headers[alike, 3] = usual[-1]
    for file in np.flatnonzero(~is_alike).tolist():
        headers[file] = read_header(body[begins[file] : begins[file] + sizes[file]]) or 0
    return headers


def _usual_beginning(beginning: bytes) -> bytes:
    """What of a JPEG's first bytes comes before its sides, which follow soon; nothing where they may not."""
    at = beginning.find(_USUAL_FRAME) if beginning.startswith(_JPEG_SIGNATURE) else -1
    # What one encoder makes begins alike: the pictures of a shard in a few ways.
    if 0 <= at <= len(beginning) - _FRAME_AT - _FRAME.size and _leads_to_frame(beginning[:at]):
        return beginning[: at + len(_USUAL_FRAME)]
    return b""


def _png_header(picture: bytes) -> Header | None:
    if len(picture) < _IHDR_AT + _IHDR.size or picture[12:16] != b"IHDR":
        return None
    width, height, bits, colour_type = _IHDR.unpack_from(picture, _IHDR_AT)
    channels = _PNG_CHANNELS.get(colour_type)
    return None if channels is None else Header(width, height, channels, bits)


def _frame(picture: bytes, at: int) -> Header:
    bits, height, width, channels = _FRAME.unpack_from(picture, at + _FRAME_AT)
    return Header(width, height, channels, bits)


@lru_cache(maxsize=4096)
def _leads_to_frame(beginning: bytes) -> bool:
    """Whether a frame header behind these bytes would be the picture's."""
    return _find_frame(beginning + _USUAL_FRAME + bytes(_FRAME.size)) == len(beginning)


def _find_frame(picture: bytes) -> int:
    """Where the marker of the frame header is; -1 if there is none before the first scan."""
    at = len(_JPEG_SIGNATURE)
    # Decoders pass over bytes between segments that belong to none, so they are no reason to refuse.
    while (at := picture.find(b"\xff", at)) >= 0 and at + _FRAME_AT + _FRAME.size <= len(picture):
        marker = picture[at + 1]
        if marker in _JPEG_FRAMES:
            return at
        if marker == _JPEG_SCAN:
            break
        if marker == 0xFF:  # a marker may be preceded by any number of fill bytes
            at += 1
        elif marker in _JPEG_PASSED_OVER:
            at += 2
        else:
            at += 2 + int.from_bytes(picture[at + 2 : at + 4])
    return -1
