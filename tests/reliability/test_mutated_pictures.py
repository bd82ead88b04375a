"""Damaged pictures of every format end in a picture or a recorded reason, and take no other along.

20,000 with ``LAION_LONG=1``, 2,000 without, through real decoding processes.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import struct
import time
import warnings
import zlib
from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pytest
from mutating import mutate
from PIL import Image

from laion_assets.decoding import Decoder
from laion_assets.image import Stored, Undecodable
from laion_assets.image_policy import ImagePolicy
from laion_assets.outcomes import Outcome

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

# Read at import, before the fixture that clears the environment.
PICTURES = 20_000 if os.environ.get("LAION_LONG") == "1" else 2_000
SEED = 20_240_817
LIMITS = {"size": 48, "max_pixels": 4_000_000, "decode_timeout_s": 10.0, "workers": 2}
POLICIES = (
    ImagePolicy(**LIMITS),
    ImagePolicy(mode="no", **LIMITS),
    ImagePolicy(mode="border", format="png", quality=1, only_if_bigger=False, **LIMITS),
    ImagePolicy(mode="center_crop", format="webp", **LIMITS),
)
PILLOW_FORMAT = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}
AT_ONCE = 6


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def interlaced_png(pixels: np.ndarray) -> bytes:
    """By Adam7 (PNG 3rd edition, 8.1), which Pillow reads and does not write."""
    passes = (
        (0, 0, 8, 8),
        (0, 4, 8, 8),
        (4, 0, 8, 4),
        (0, 2, 4, 4),
        (2, 0, 4, 2),
        (0, 1, 2, 2),
        (1, 0, 2, 1),
    )
    rows = b"".join(
        b"\0" + row.tobytes() for y, x, down, along in passes for row in pixels[y::down, x::along] if row.size
    )
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 8, 2, 0, 0, 1)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )


def sources() -> dict[str, tuple[str, bytes]]:
    """Name -> format and bytes of the pictures that are damaged: some noise, so that every table is used."""
    rng = np.random.default_rng(SEED)
    height, width = np.mgrid[0:61, 0:83]
    smooth = np.stack([2 * width, 3 * height, width + height], axis=2)
    pixels = (smooth + rng.integers(0, 24, smooth.shape)).clip(0, 255).astype(np.uint8)
    photo = Image.fromarray(pixels)
    frames = {"save_all": True, "append_images": [photo.rotate(90), photo.rotate(180)]}
    clear = photo.copy()
    clear.putalpha(Image.fromarray(pixels[:, :, 0]))
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Maker"
    exif.get_ifd(0x8769)[0x829A] = 0.5
    deep = Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 257)
    return {
        "JPEG baseline": ("JPEG", encoded(photo, "JPEG", exif=exif)),
        "JPEG progressive": ("JPEG", encoded(photo, "JPEG", progressive=True)),
        "JPEG with restarts": ("JPEG", encoded(photo, "JPEG", restart_marker_rows=1)),
        "JPEG CMYK": ("JPEG", encoded(photo.convert("CMYK"), "JPEG")),
        "JPEG grey": ("JPEG", encoded(photo.convert("L"), "JPEG")),
        "PNG": ("PNG", encoded(photo, "PNG", exif=exif)),
        "PNG transparent": ("PNG", encoded(clear, "PNG")),
        "PNG 16 bits": ("PNG", encoded(deep, "PNG")),
        "PNG palette": ("PNG", encoded(photo.quantize(32), "PNG", transparency=3)),
        "PNG interlaced": ("PNG", interlaced_png(pixels)),
        "PNG animated": ("PNG", encoded(photo, "PNG", **frames)),
        "WebP lossy": ("WEBP", encoded(photo, "WEBP", exif=exif)),
        "WebP lossless": ("WEBP", encoded(clear, "WEBP", lossless=True)),
        "WebP animated": ("WEBP", encoded(photo, "WEBP", **frames)),
        "GIF animated": ("GIF", encoded(photo, "GIF", **frames)),
        "BMP": ("BMP", encoded(photo, "BMP")),
        "BMP palette": ("BMP", encoded(photo.quantize(16), "BMP")),
    }


SOURCES = sources()


def damaged(number: int) -> tuple[str, bytes, list[tuple[float, ...]]]:
    """Which picture was damaged how, its bytes, and boxes to blur, by the case's number."""
    rng = Random(f"{SEED} {number}")
    name = list(SOURCES)[number % len(SOURCES)]
    kind, body = SOURCES[name]
    other = rng.choice(
        [found for one, (of, found) in SOURCES.items() if of == kind and one != name] or [body]
    )
    how, body = mutate(kind, body, other, rng)
    boxes = [tuple(rng.uniform(-0.3, 1.3) for _ in range(4)) for _ in range(rng.choice((0, 0, 1, 3)))]
    return f"case {number} of seed {SEED}, {how} of {name}", body, boxes


def check(found: Stored | Undecodable, policy: ImagePolicy) -> str:
    """What became of a picture, having seen that it is what it says."""
    if isinstance(found, Undecodable):
        assert found.outcome is not Outcome.SUCCESS
        assert found.message.isascii()
        assert found.message.isprintable()
        assert 0 < len(found.message) <= 200
        return str(found.outcome)
    # Mode `no` keeps the EXIF that was sent, damaged as it may be.
    with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(found.encoded)) as picture:
        assert picture.format == PILLOW_FORMAT[policy.format]
        assert (picture.mode, picture.size) == ("RGB", (found.width, found.height))
        picture.load()
        assert len(picture.getbands()) == 3
    assert min(found.original_width, found.original_height) > 0
    assert isinstance(json.loads(found.exif), dict)
    return "stored"


def peak_memory(pid: int) -> int:
    """Most memory that a process that runs has had, in KiB."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:  # it ended, or this is no Linux
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)


async def decode_all(policy: ImagePolicy, numbers: list[int]) -> dict[str, object]:
    outcomes: dict[str, Counter[str]] = {}
    wrong: list[str] = []
    seen: set[int] = set()
    longest, peak = (0.0, ""), 0
    async with Decoder(policy) as decoder:
        # Both processes are there before anything is timed.
        await asyncio.gather(*(decoder.decode(SOURCES["BMP"][1]) for _ in range(AT_ONCE)))

        async def take_turns(turns: list[int]) -> None:
            nonlocal longest, peak
            for number in turns:
                case, body, boxes = damaged(number)
                start = time.monotonic()
                found = await decoder.decode(body, boxes)
                longest = max(longest, (time.monotonic() - start, case))
                seen.update(decoder.process_ids)
                if number % 50 == 0:
                    peak = max(peak, *map(peak_memory, decoder.process_ids), 0)
                name = list(SOURCES)[number % len(SOURCES)]
                try:
                    outcomes.setdefault(name, Counter())[check(found, policy)] += 1
                except Exception as error:  # noqa: BLE001 (told below, with the case that brought it about)
                    wrong.append(f"{case}: {type(error).__name__}: {error}: {body.hex()}")
                if isinstance(found, Undecodable) and found.outcome is Outcome.DECODER_DIED:
                    print(f"{case}: {found.message}: {body.hex()}")

        await asyncio.gather(*(take_turns(numbers[first::AT_ONCE]) for first in range(AT_ONCE)))
        peak = max(peak, *map(peak_memory, decoder.process_ids), 0)
        deaths = len(seen - set(decoder.process_ids))
    return {"outcomes": outcomes, "wrong": wrong, "deaths": deaths, "longest": longest, "peak": peak}


def test_every_damaged_picture_is_accounted_for():
    for name, (kind, body) in SOURCES.items():
        with Image.open(io.BytesIO(body)) as picture:
            assert picture.format == kind, name
            picture.load()
    found = [
        asyncio.run(decode_all(policy, list(range(number, PICTURES, len(POLICIES)))))
        for number, policy in enumerate(POLICIES)
    ]
    counts = {
        name: sum((one["outcomes"].get(name, Counter()) for one in found), Counter()) for name in SOURCES
    }
    totals = sum(counts.values(), Counter())
    print("\n" + table(counts, totals))
    seconds, case = max(one["longest"] for one in found)
    deaths = sum(one["deaths"] for one in found)
    peak = max(one["peak"] for one in found) >> 10
    print(f"deaths {deaths}; longest, waiting included: {seconds:.2f} s, {case}; peak memory {peak} MiB")
    wrong = [line for one in found for line in one["wrong"]]
    assert not wrong, f"{len(wrong)} wrong\n" + "\n".join(wrong[:20])
    assert totals.total() == PICTURES
    assert deaths == totals[Outcome.DECODER_DIED], "a process died and no picture is recorded for it"
    # No picture of so few bytes may take its CPU time, or bring a process down.
    assert deaths == 0
    assert min(counts[name]["stored"] for name in SOURCES) > 0
    assert totals[Outcome.UNDECODABLE] > PICTURES // 10


def table(counts: dict[str, Counter[str]], totals: Counter[str]) -> str:
    columns = [outcome for outcome, _ in totals.most_common()]
    lines = [f"{'picture':20}{'all':>8}" + "".join(f"{name:>17}" for name in columns)]
    for name, of_name in (*counts.items(), ("all", totals)):
        numbers = "".join(f"{of_name[column]:17,}" for column in columns)
        lines.append(f"{name:20}{of_name.total():8,}{numbers}")
    return "\n".join(lines)
