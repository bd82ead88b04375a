"""Pictures to be downloaded: crops of photographs, in the sizes of LAION-400M's pictures and in large ones.

Equal settings give the same files, with the same version of Pillow.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

PHOTOGRAPHS: Final = Path(__file__).resolve().parents[2] / "shared" / "data" / "photos"

# Long sides of LAION-400M's pictures, by its WIDTH and HEIGHT: 65, 27 and 6 % reach 256, 512 and 1024.
_SMALL_SIDES: Final = ((96, 256, 0.35), (256, 512, 0.38), (512, 1024, 0.21), (1024, 1800, 0.06))
_LARGE_SIDES: Final = ((1500, 3000, 1.0),)
_SMALL_FORMATS: Final = (("jpg", 0.82), ("png", 0.1), ("webp", 0.05), ("gif", 0.03))
_LARGE_FORMATS: Final = (("jpg", 1.0),)
_QUALITIES: Final = (85, 90, 92, 95)
_PROGRESSIVE: Final = 0.2
# Longer ones are photographs and hence JPEG or WebP, and would make up half of all bytes here.
_LONGEST_LOSSLESS: Final = 512
# Enlarged photographs are too smooth; this much noise (of 255) gives back the bytes a camera's have.
_GRAIN: Final = 2.0
_GENERATED: Final = 12
# About 1 in photographs; with this, the files are about as long as theirs.
_FALL_OFF: Final = 1.5
_GENERATED_SIZE: Final = (1280, 960)


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Pictures in a folder.

    Attributes:
        folder: where they lie.
        names: their file names.
        source: what they are crops of, for people to read.
        mean_bytes: mean length of a file.
        formats: file extension -> how many files.
        reaching: long side -> share of the files that reach it.
    """

    folder: Path
    names: tuple[str, ...]
    source: str
    mean_bytes: float
    formats: dict[str, int]
    reaching: dict[int, float]


def make_corpus(cache: Path, kind: str, *, count: int, seed: int, photographs: Path = PHOTOGRAPHS) -> Corpus:
    """Make pictures, or find them in the cache.

    Args:
        cache: folder of all corpora.
        kind: "small" (LAION-400M's own sizes) or "large" (1,500 to 3,000 pixels, JPEG).
        count: how many.
        seed: of every choice.
        photographs: folder of what they are cut from; without any, pictures are generated.
    """
    found = sorted(path for path in photographs.rglob("*") if path.suffix in (".jpg", ".png"))
    origin = "photographs" if found else "generated"
    folder = cache / f"{kind}-{origin}-{count}-{seed}-{source_version(__file__)}"
    index = folder / "index.json"
    if not index.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        index.write_text(json.dumps(_make(folder, kind, found, count, seed)))
    sides: list[tuple[str, int, int]] = [tuple(entry) for entry in json.loads(index.read_text())]
    return Corpus(
        folder=folder,
        names=tuple(name for name, _, _ in sides),
        source=f"crops of {len(found)} photographs" if found else "generated pictures",
        mean_bytes=sum(size for _, _, size in sides) / len(sides),
        formats=dict(Counter(name.rsplit(".", 1)[1] for name, _, _ in sides)),
        reaching={side: sum(long >= side for _, long, _ in sides) / len(sides) for side in (256, 512, 1024)},
    )


def source_version(module: str) -> str:
    """For a cache's names: what another version of a module made is not taken for what this one makes."""
    return hashlib.sha256(Path(module).read_bytes()).hexdigest()[:8]


def _make(
    folder: Path, kind: str, photographs: Sequence[Path], count: int, seed: int
) -> list[tuple[str, int, int]]:
    """Write the pictures; name, long side and length of each."""
    rng = np.random.default_rng(seed)
    originals = [Image.open(path).convert("RGB") for path in photographs] or list(_generate(rng))
    is_small = kind == "small"
    bands = _share_out(_SMALL_SIDES if is_small else _LARGE_SIDES, count)
    formats = _share_out(_SMALL_FORMATS if is_small else _LARGE_FORMATS, count)
    made = []
    for number, format_number in enumerate(rng.permutation(count)):
        low, high, _ = bands[number]
        extension, _ = formats[format_number]
        long = int(math.exp(rng.uniform(math.log(low), math.log(high))))
        if extension in ("png", "gif") and long > _LONGEST_LOSSLESS:
            # One whose turn was a long picture gives its format's place to JPEG.
            extension = "jpg"
        picture = _crop(originals[rng.integers(len(originals))], long, rng)
        if not is_small:
            noise = rng.normal(0, _GRAIN, (picture.height, picture.width, 1))
            noisy = np.asarray(picture, np.float32) + noise.astype(np.float32)
            picture = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
        path = folder / f"{number:04d}.{extension}"
        _save(picture, path, rng)
        made.append((path.name, max(picture.size), path.stat().st_size))
    return made


def _share_out(shares: Sequence[Any], count: int) -> list[Any]:
    """Entries repeated so that each has its share (its last element) of the count."""
    bounds = np.cumsum([entry[-1] for entry in shares]) * count
    return [shares[int(np.searchsorted(bounds[:-1], number, side="right"))] for number in range(count)]


def _crop(original: Image.Image, long: int, rng: np.random.Generator) -> Image.Image:
    """A part of a photograph in some aspect ratio, scaled to a long side."""
    ratio = float(rng.choice((1.0, 4 / 3, 1.5, 1.5, 16 / 9)))
    width, height = (long, round(long / ratio)) if rng.random() < 0.6 else (round(long / ratio), long)
    largest = min(original.width / width, original.height / height)
    # A crop that need not be enlarged, where the photograph is large enough for one.
    scale = min(largest, max(1.0, largest * rng.uniform(0.5, 1.0)))
    box_width, box_height = width * scale, height * scale
    left = rng.uniform(0, max(0.0, original.width - box_width))
    top = rng.uniform(0, max(0.0, original.height - box_height))
    box = (left, top, left + box_width, top + box_height)
    return original.resize((width, height), Image.Resampling.LANCZOS, box=box)


def _save(picture: Image.Image, path: Path, rng: np.random.Generator) -> None:
    quality = int(rng.choice(_QUALITIES))
    options: dict[str, Any] = {}
    if path.suffix == ".jpg":
        options = {"quality": quality, "progressive": bool(rng.random() < _PROGRESSIVE)}
    elif path.suffix == ".webp":
        options = {"quality": quality}
    picture.save(path, **options)


def _generate(rng: np.random.Generator) -> Iterator[Image.Image]:
    """Noise whose amplitude falls off with its frequency as it does in photographs."""
    width, height = _GENERATED_SIZE
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = 1
    for _ in range(_GENERATED):
        channels = []
        for _ in range(3):
            noise = np.fft.rfft2(rng.normal(size=(height, width))) / frequency**_FALL_OFF
            values = np.fft.irfft2(noise, (height, width))
            channels.append(128 + 60 * (values - values.mean()) / values.std())
        yield Image.fromarray(np.stack(channels, -1).clip(0, 255).astype(np.uint8))
