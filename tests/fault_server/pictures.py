"""Bodies that are no pictures, not quite pictures, or pictures to be wary of."""

from __future__ import annotations

import struct
import zlib

from PIL import Image

from fault_server.behaviour import PICTURE, Visit, a_picture, answer, behaviour, head
from laion_assets.outcomes import Outcome as O  # noqa: N817 (there are hundreds below)

PNG = a_picture("PNG")
GIF = a_picture("GIF", mode="P")
WEBP = a_picture("WEBP")
FRAMES = [Image.new("RGB", (64, 48), (red, 0, 0)) for red in range(0, 250, 10)]
HTML = b"<!doctype html><title>kilroy</title><script>alert('kilroy')</script>"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="http://127.0.0.1/"/></svg>'
# A picture of another format than the five, and things that decoders have run: no decoder is to see them.
OTHERS = (
    ("a TIFF", a_picture("TIFF")),
    ("an ICO", a_picture("ICO")),
    ("a PPM", a_picture("PPM")),
    ("a TGA", a_picture("TGA")),
    ("a PCX", a_picture("PCX")),
    ("a PDF", b"%PDF-1.7\nkilroy"),
    ("PostScript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(kilroy) run\n"),
    ("an AVIF", b"\0\0\0\x1cftypavif\0\0\0\0avifmif1kilroy"),
    ("an MP4", b"\0\0\0\x18ftypisom\0\0\0\0kilroy"),
    ("a ZIP", b"PK\x03\x04" + bytes(26) + b"kilroy"),
    ("HTML", HTML),
    ("an SVG", SVG),
    ("JSON", b'{"error": "kilroy"}'),
    ("one byte", b"\xff"),
    ("a blank", b" "),
    ("a blank ahead of a picture", b" " + PICTURE),
)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width: int, height: int) -> bytes:
    return PNG[:8] + png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))


def with_chunk(kind: bytes, data: bytes) -> bytes:
    """A PNG with one chunk more, behind its header."""
    return PNG[:33] + png_chunk(kind, data) + PNG[33:]


def many_scans(count: int) -> bytes:
    start = PICTURE.index(b"\xff\xda")
    return PICTURE[:start] + PICTURE[start:-2] * count + PICTURE[-2:]


def jpeg_of_size(width: int, height: int) -> bytes:
    frame = PICTURE.index(b"\xff\xc0") + 5
    return PICTURE[:frame] + struct.pack(">HH", height, width) + PICTURE[frame + 4 :]


ZEROS = zlib.compress(bytes(100 << 20))


async def camera(visit: Visit) -> None:
    await visit.send(head("Content-Type: multipart/x-mixed-replace; boundary=kilroy"))
    await visit.flood(b"--kilroy\r\nContent-Type: image/jpeg\r\n\r\n" + PICTURE + b"\r\n")


def framed(body: bytes) -> bytes:
    return answer(
        b"--kilroy\r\n\r\n" + body + b"\r\n--kilroy--\r\n", "Content-Type: multipart/mixed; boundary=kilroy"
    )


TABLE = (
    *(
        behaviour(
            f"{name} as image/jpeg", answer(body, "Content-Type: image/jpeg"), O.NOT_AN_IMAGE, requests=1
        )
        for name, body in OTHERS
    ),
    *(
        behaviour(f"a JPEG as {kind!a}", answer(PICTURE, f"Content-Type: {kind}"), O.SUCCESS)
        for kind in (
            "text/html",
            "application/octet-stream",
            "image/svg+xml",
            "kilroy",
            "",
            "k" * 5000,
            "\x1b[31m<b>kilroy",
        )
    ),
    behaviour("an empty body", answer(b""), O.NOT_AN_IMAGE, O.TRUNCATED),
    behaviour(
        "an empty body, in chunks",
        head("Transfer-Encoding: chunked") + b"0\r\n\r\n",
        O.NOT_AN_IMAGE,
        O.TRUNCATED,
    ),
    behaviour(
        "an empty body that ends with the connection", head("Connection: close"), O.NOT_AN_IMAGE, O.TRUNCATED
    ),
    behaviour("a camera", camera, O.TOO_LARGE, O.NOT_AN_IMAGE),
    behaviour("a picture among parts", framed(PICTURE), O.NOT_AN_IMAGE),
    behaviour("a JPEG cut short", answer(PICTURE[: len(PICTURE) // 2]), O.UNDECODABLE, requests=1),
    behaviour("a JPEG cut within its header", answer(PICTURE[:30]), O.UNDECODABLE),
    behaviour("a JPEG's first three bytes", answer(PICTURE[:3]), O.UNDECODABLE),
    behaviour("a JPEG of zeros", answer(PICTURE[:20] + bytes(5000)), O.UNDECODABLE),
    behaviour("a JPEG with bytes behind it", answer(PICTURE + b"kilroy" * 1000), O.SUCCESS),
    behaviour("a JPEG with HTML behind it", answer(PICTURE + HTML), O.SUCCESS),
    behaviour("a JPEG with PHP in its comment", answer(a_picture(comment=b"<?php kilroy(); ?>")), O.SUCCESS),
    behaviour(
        "a JPEG with spoilt EXIF",
        answer(a_picture(exif=b"Exif\0\0MM\0*kilroy" + b"\xff" * 60_000)),
        O.SUCCESS,
    ),
    behaviour(
        "a JPEG with an ICC profile that is none",
        answer(a_picture(icc_profile=b"kilroy" * 10_000)),
        O.SUCCESS,
    ),
    behaviour("a progressive JPEG", answer(a_picture(progressive=True)), O.SUCCESS),
    behaviour("a grey JPEG", answer(a_picture(mode="L")), O.SUCCESS),
    behaviour("a CMYK JPEG", answer(a_picture(mode="CMYK")), O.SUCCESS),
    behaviour("a JPEG of 65 scans", answer(many_scans(65)), O.UNDECODABLE),
    behaviour("a JPEG of 65,500 x 65,500", answer(jpeg_of_size(65_500, 65_500)), O.TOO_MANY_PIXELS),
    behaviour("a JPEG of 0 x 48", answer(jpeg_of_size(0, 48)), O.UNDECODABLE),
    behaviour("a PNG", answer(PNG), O.SUCCESS),
    behaviour("a PNG without IEND", answer(PNG[:-12]), O.UNDECODABLE),
    behaviour("a PNG cut short", answer(PNG[:-40]), O.UNDECODABLE),
    behaviour("a PNG with a changed byte", answer(PNG[:60] + bytes([PNG[60] ^ 1]) + PNG[61:]), O.UNDECODABLE),
    behaviour("a PNG of 50,000 x 50,000", answer(png_header(50_000, 50_000) + PNG[33:]), O.TOO_MANY_PIXELS),
    behaviour(
        "a PNG of 2^31 - 1 x 1", answer(png_header(2**31 - 1, 1) + PNG[33:]), O.TOO_MANY_PIXELS, O.UNDECODABLE
    ),
    behaviour("a PNG of 0 x 0", answer(png_header(0, 0) + PNG[33:]), O.UNDECODABLE),
    behaviour(
        "a PNG of 4,000 x 4,000 without its pixels", answer(png_header(4000, 4000) + PNG[33:]), O.UNDECODABLE
    ),
    # 100 MB of zeros each, in 100 kB.
    behaviour(
        "a PNG with a text bomb", answer(with_chunk(b"zTXt", b"kilroy\0\0" + ZEROS)), O.SUCCESS, O.UNDECODABLE
    ),
    behaviour(
        "a PNG with a profile bomb",
        answer(with_chunk(b"iCCP", b"kilroy\0\0" + ZEROS)),
        O.SUCCESS,
        O.UNDECODABLE,
    ),
    behaviour(
        "a PNG with a bomb for pixels",
        answer(png_header(64, 48) + png_chunk(b"IDAT", ZEROS) + PNG[-12:]),
        O.SUCCESS,
        O.UNDECODABLE,
    ),
    behaviour(
        "a PNG with a chunk of markup", answer(with_chunk(b"<b>!", b"kilroy")), O.UNDECODABLE, O.SUCCESS
    ),
    behaviour(
        "a PNG with a chunk nobody knows", answer(with_chunk(b"KILR", b"oy")), O.UNDECODABLE, O.SUCCESS
    ),
    behaviour("a 16-bit PNG", answer(a_picture("PNG", mode="I;16")), O.SUCCESS),
    behaviour("a transparent PNG", answer(a_picture("PNG", mode="LA")), O.SUCCESS),
    behaviour("an animated PNG", answer(a_picture("PNG", save_all=True, append_images=FRAMES)), O.SUCCESS),
    behaviour("a GIF", answer(GIF), O.SUCCESS),
    behaviour("an animated GIF", answer(a_picture("GIF", save_all=True, append_images=FRAMES)), O.SUCCESS),
    behaviour("a GIF of one pixel", answer(a_picture("GIF", (1, 1), "P")), O.SUCCESS),
    behaviour(
        "a GIF of 65,535 x 65,535", answer(GIF[:6] + b"\xff\xff\xff\xff" + GIF[10:]), O.TOO_MANY_PIXELS
    ),
    behaviour("a GIF cut short", answer(GIF[: len(GIF) // 2]), O.UNDECODABLE),
    behaviour("a GIF that is HTML", answer(b"GIF89a=" + HTML), O.UNDECODABLE, O.TOO_MANY_PIXELS),
    behaviour("a WebP", answer(WEBP), O.SUCCESS),
    behaviour("an animated WebP", answer(a_picture("WEBP", save_all=True, append_images=FRAMES)), O.SUCCESS),
    behaviour("a WebP cut short", answer(WEBP[: len(WEBP) // 2]), O.UNDECODABLE),
    behaviour(
        "a RIFF that is a sound",
        answer(b"RIFF\x24\0\0\0WAVEfmt kilroy" + bytes(30)),
        O.UNDECODABLE,
        O.NOT_AN_IMAGE,
    ),
    behaviour("a BMP", answer(a_picture("BMP")), O.SUCCESS),
    behaviour(
        "a BMP of a gigapixel",
        answer(
            b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, 40_000, 30_000, 1, 24, 0, 0, 0, 0, 0, 0)
        ),
        O.TOO_MANY_PIXELS,
    ),
    behaviour("a BMP that is text", answer(b"BM" + b"kilroy was here" * 10), O.UNDECODABLE),
)
