"""Ways to damage a file: those that storage and transfers have, and those that a format's fields invite.

Knows the formats, to find their fields, and none of who reads them.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Callable, Mapping
from random import Random
from typing import Final, Literal

import pyarrow.parquet as pq

from laion_assets.formats import tfrecord

_TAR_BLOCK: Final = 512
# Offset and length of fields of a tar header (POSIX ustar), and what is written into them.
_TAR_FIELDS: Final = ((0, 12), (124, 12), (156, 1), (257, 6), (345, 8))
_TAR_VALUES: Final = (
    b"\0",
    b"7",
    b"00000000001\0",
    b"77777777777\0",
    b"L",
    b"x",
    b"g",
    b"5",
    b"\x80\x7f",
    b"../",
)


def mutate(kind: str, data: bytes, other: bytes, rng: Random) -> tuple[str, bytes]:
    """Damage a file.

    Args:
        kind: its format.
        data: its bytes.
        other: bytes of another file of the format.
        rng: decides what is done.

    Returns:
        What was done, and bytes of neither.
    """
    while True:
        # One in three is of the format's own fields, which are few bytes of a file.
        way = rng.choice((_OF_FORMAT[kind], rng.choice(_OF_ANY), rng.choice(_OF_ANY)))
        damaged = way(data, other, rng)
        if damaged not in (data, other):
            return way.__name__.strip("_"), damaged


def _range(data: bytes, rng: Random) -> slice:
    """Some bytes, at most a third of the file; blocks of a disk or a tar as often as any others."""
    unit = rng.choice((1, 1, 8, _TAR_BLOCK))
    size = max(1, rng.randint(1, max(1, min(len(data) // 3, 4096) // unit)) * unit)
    start = rng.randrange(max(1, (len(data) - size) // unit + 1)) * unit
    return slice(start, min(start + size, len(data)))


def _flip_bit(data: bytes, _: bytes, rng: Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def _set_byte(data: bytes, _: bytes, rng: Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + bytes([rng.choice((0, 0x7F, 0xFF, rng.randrange(256)))]) + data[at + 1 :]


def _zero(data: bytes, _: bytes, rng: Random) -> bytes:
    where = _range(data, rng)
    return data[: where.start] + bytes(where.stop - where.start) + data[where.stop :]


def _truncate(data: bytes, _: bytes, rng: Random) -> bytes:
    return data[: rng.randrange(len(data))]


def _extend(data: bytes, _: bytes, rng: Random) -> bytes:
    size = rng.randint(1, 2048)
    return data + (bytes(size) if rng.random() < 0.5 else rng.randbytes(size))


def _swap(data: bytes, _: bytes, rng: Random) -> bytes:
    first, second = sorted((_range(data, rng), _range(data, rng)), key=lambda found: found.start)
    size = min(first.stop - first.start, second.stop - second.start, second.start - first.start)
    one, two = data[first.start :][:size], data[second.start :][:size]
    between = data[first.start + size : second.start]
    return data[: first.start] + two + between + one + data[second.start + size :]


def _repeat(data: bytes, _: bytes, rng: Random) -> bytes:
    where = _range(data, rng)
    return data[: where.stop] + data[where.start :]


def _delete(data: bytes, _: bytes, rng: Random) -> bytes:
    where = _range(data, rng)
    return data[: where.start] + data[where.stop :]


def _splice(data: bytes, other: bytes, rng: Random) -> bytes:
    where = _range(data, rng)
    taken = other[where] if rng.random() < 0.5 else other[_range(other, rng)]
    return data[: where.start] + taken + data[where.stop :]


_OF_ANY: Final = (_flip_bit, _set_byte, _zero, _truncate, _extend, _swap, _repeat, _delete, _splice)


# -- fields of the formats --------------------------------------------------------------------------------


def _parquet_field(data: bytes, _: bytes, rng: Random) -> bytes:
    """A byte of the footer, of its length, or of a page's header, where counts and offsets are varints."""
    (footer,) = struct.unpack("<I", data[-8:-4])
    starts = []
    metadata = pq.read_metadata(io.BytesIO(data))
    for group in range(metadata.num_row_groups):
        for column in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(column)
            starts += [chunk.data_page_offset, chunk.dictionary_page_offset or chunk.data_page_offset]
    at = rng.choice(
        (
            len(data) - 8 - rng.randint(1, footer),
            len(data) - 8 - rng.randint(1, footer),
            len(data) - rng.randint(5, 8),
            min(rng.choice(starts) + rng.randrange(32), len(data) - 1) if starts else 0,
        )
    )
    value = rng.choice((data[at] + 1, data[at] - 1, data[at] + 2, data[at] - 2, data[at] ^ 0x80, 0, 0x7F))
    return data[:at] + bytes([value % 256]) + data[at + 1 :]


def _npy_field(data: bytes, _: bytes, rng: Random) -> bytes:
    """The version, the header's length, or a number or name within it, whose length is kept."""
    if rng.random() < 0.3:
        at = rng.randrange(6, 10)
        return data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
    header, vectors = data[:128], data[128:]
    words = list(re.finditer(rb"[0-9]+|<f[248]|False|True|[a-z_]+", header[10:]))
    word = rng.choice(words)
    put = rng.choice((b"0", b"1", b"99999999999999", b"<f8", b"|O", b"True", b"-1", b"25"))
    start, stop = word.start() + 10, word.end() + 10
    return (header[:start] + put + header[stop:]).rstrip(b" \n").ljust(127)[:127] + b"\n" + vectors


def _tar_field(data: bytes, _: bytes, rng: Random) -> bytes:
    """A field of a member's header, whose checksum is made right for it."""
    headers = [at for at in range(0, len(data), _TAR_BLOCK) if data[at + 257 : at + 262] == b"ustar"]
    at = rng.choice(headers)
    block = bytearray(data[at : at + _TAR_BLOCK])
    start, size = rng.choice(_TAR_FIELDS)
    if rng.random() < 0.5:
        block[start + rng.randrange(size)] = rng.choice((0, *b"0123456789abz./", 0xFF))
    else:
        block[start : start + size] = rng.choice(_TAR_VALUES)[:size].ljust(size, b"\0")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return data[:at] + bytes(block) + data[at + _TAR_BLOCK :]


def _tfrecord_field(data: bytes, _: bytes, rng: Random) -> bytes:
    """A record's length, whose checksum is made right for it in half of the cases."""
    starts, at = [], 0
    while at < len(data):
        starts.append(at)
        at += int.from_bytes(data[at : at + 8], "little") + tfrecord.FRAMING_BYTES
    at = rng.choice(starts)
    length = int.from_bytes(data[at : at + 8], "little")
    made_up = rng.choice((0, length - 1, length + 1, length + rng.randrange(4096), len(data), 2**31, 2**63))
    header = struct.pack("<Q", made_up)
    if rng.random() < 0.5:
        # Of any payload, a frame begins with the length and its checksum.
        header += tfrecord._checksum(header)
    return data[:at] + header + data[at + len(header) :]


def _json_field(data: bytes, other: bytes, rng: Random) -> bytes:
    """A number, a letter of a text or a whole line, which mostly leaves it JSON; or all, by another whole."""
    if rng.random() < 0.2:
        return other
    if rng.random() < 0.2:
        lines = data.splitlines(keepends=True)
        del lines[rng.randrange(len(lines))]
        return b"".join(lines)
    where = rng.choice(list(re.finditer(rb"[0-9]|[a-f]", data)))
    return data[: where.start()] + rng.choice([b"%d" % digit for digit in range(10)]) + data[where.end() :]


# -- fields of pictures -----------------------------------------------------------------------------------

# What counts, sizes and offsets are made, as big-endian bytes.
_NUMBERS: Final = (0, 1, 2, 7, 16, 255, 256, 4095, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def _number(data: bytes, start: int, stop: int, order: Literal["big", "little"], rng: Random) -> bytes:
    """Another number of one, two or four bytes somewhere within."""
    size = rng.choice((1, 1, 2, 4))
    at = rng.randrange(start, max(start + 1, min(stop, len(data)) - size + 1))
    value = rng.choice((*_NUMBERS, rng.randrange(1 << 32))) % (1 << 8 * size)
    return data[:at] + value.to_bytes(size, order) + data[at + size :]


def _jpeg_field(data: bytes, other: bytes, rng: Random) -> bytes:
    """A field of a segment before the first scan, or the segment itself: dropped, doubled, or another's."""
    segments = _jpeg_segments(data)
    start, stop = rng.choice(segments)
    what = rng.random()
    if what < 0.6:
        # Its length and what follows first matter most.
        return _number(data, start + 1, min(stop, start + 24), "big", rng)
    taken = {0: b"", 1: data[start:stop] * 2}.get(int(10 * what) - 6)
    if taken is None:
        taken = other[slice(*rng.choice(_jpeg_segments(other)))]
    return data[:start] + taken + data[stop:]


def _jpeg_segments(data: bytes) -> list[tuple[int, int]]:
    segments, at = [], 2
    while not segments or data[segments[-1][0] + 1] != 0xDA:
        stop = at + 2 + int.from_bytes(data[at + 2 : at + 4])
        segments.append((at, stop))
        at = stop
    return segments


def _png_field(data: bytes, other: bytes, rng: Random) -> bytes:
    """A chunk's contents or name, or the chunk itself, as with a JPEG's segment; its checksum is right."""
    chunks = _png_chunks(data)
    index = rng.randrange(len(chunks))
    name, body = chunks[index]
    what = rng.random()
    if what < 0.25 and name == b"IDAT":
        rows = _number(
            zlib.decompress(b"".join(body for name, body in chunks if name == b"IDAT")), 0, 99, "big", rng
        )
        taken = [(b"IDAT", zlib.compress(rows[: rng.choice((len(rows), rng.randrange(len(rows))))]))]
    elif what < 0.6:
        taken = [(name, _number(body, 0, min(len(body), 24), "big", rng) if body else b"\0")]
    elif what < 0.8:
        taken = [] if what < 0.7 else chunks[index : index + 1] * 2
    elif what < 0.9:
        taken = [(rng.choice((b"PLTE", b"tRNS", b"acTL", b"fcTL", b"fdAT", b"eXIf", b"iCCP", b"zTXt")), body)]
    else:
        taken = [rng.choice(_png_chunks(other))]
    made = b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in (*chunks[:index], *taken, *chunks[index + 1 :])
    )
    return data[:8] + made


def _png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    chunks, at = [], 8
    while at < len(data):
        size = int.from_bytes(data[at : at + 4])
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += size + 12
    return chunks


def _webp_field(data: bytes, _: bytes, rng: Random) -> bytes:
    """A chunk's name, length or first bytes, which hold its sizes."""
    starts, at = [], 12
    while at < len(data):
        starts.append(at)
        at += 8 + (int.from_bytes(data[at + 4 : at + 8], "little") + 1) // 2 * 2
    at = rng.choice((0, *starts))
    if at and rng.random() < 0.2:
        name = rng.choice((b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF", b"EXIF", b"JUNK"))
        return data[:at] + name + data[at + 4 :]
    return _number(data, at + 4, at + 32, "little", rng)


def _gif_field(data: bytes, _: bytes, rng: Random) -> bytes:
    """A number of the screen's, or of a frame's or an extension's beginning."""
    begins = [found.start() for found in re.finditer(rb"[\x2c\x21]", data)]
    start = rng.choice((6, rng.choice(begins)))
    return _number(data, start, start + 11, "little", rng)


def _bmp_field(data: bytes, _: bytes, rng: Random) -> bytes:
    """A number of the headers."""
    return _number(data, 2, 54, "little", rng)


_OF_FORMAT: Final[Mapping[str, Callable[[bytes, bytes, Random], bytes]]] = {
    "Parquet": _parquet_field,
    "npy": _npy_field,
    "tar": _tar_field,
    "TFRecord": _tfrecord_field,
    "JSON": _json_field,
    "JPEG": _jpeg_field,
    "PNG": _png_field,
    "WEBP": _webp_field,
    "GIF": _gif_field,
    "BMP": _bmp_field,
}
