"""Rows of metadata as LAION released them, dirt included, over pictures of the demo's web.

The dirt is what was seen in the real files: similarities up to 6016.0, sizes of tens of thousands, captions
of 61,192 characters, nulls in every column, and about 28 dead links in a hundred.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final, TypeVar

import numpy as np

from laion_assets.demo.pictures import Encoding, Picture
from laion_assets.demo.scenes import Scene
from laion_assets.demo.web import OUTCOMES, Fault, url_of
from laion_assets.outcomes import Outcome

_T = TypeVar("_T")

# Share of the rows with each fault; an outcome stands for an address that is not on the demo's web at all.
# Real shards lose 15 % (2023) to 32 % (2024) of their rows, most to 404 and then 403.
_SHARES: Final[Mapping[Fault | Outcome, float]] = {
    Fault.GONE: 0.155,
    Fault.FORBIDDEN: 0.035,
    Fault.HTML: 0.02,
    Fault.BROKEN: 0.017,
    Fault.UNAVAILABLE: 0.013,
    Fault.TRUNCATED: 0.01,
    Fault.OPTED_OUT: 0.01,
    Fault.STALLED: 0.005,
    Fault.LOOP: 0.003,
    Fault.TOO_MANY_PIXELS: 0.003,
    Fault.OVERSIZED: 0.0017,
    Outcome.BAD_URL: 0.003,
    Outcome.REFUSED_ADDRESS: 0.0017,
    Outcome.CONNECT: 0.0017,
    Fault.REDIRECT: 0.04,
    Fault.SLOW: 0.02,
    Fault.FLAKY: 0.02,
    Fault.WRONG_TYPE: 0.015,
}

_ENCODINGS: Final[Mapping[Encoding, float]] = {
    Encoding.JPEG: 0.7,
    Encoding.ROTATED_JPEG: 0.05,
    Encoding.PNG: 0.1,
    Encoding.ALPHA_PNG: 0.03,
    Encoding.WEBP: 0.08,
    Encoding.GIF: 0.04,
}

_LICENSES: Final[Mapping[str | None, float]] = {
    "?": 0.92,
    "": 0.02,
    None: 0.02,
    "https://creativecommons.org/licenses/by/2.0/": 0.02,
    # LAION kept the first 80 characters.
    "https://creativecommons.org/licenses/by-nc-sa/3.0/deed.en?utm_source=example&utm_campaign=x"[:80]: 0.02,
}

_TAGS: Final[Mapping[str | None, float]] = {
    "UNLIKELY": 0.9,
    "UNSURE": 0.04,
    "NSFW": 0.02,
    "": 0.01,
    None: 0.02,
    "OTHER": 0.01,
}

# What stands behind the true phrase in half of the captions. Each begins with what cannot be of a word.
_CAPTION_DIRT: Final = (
    " | Stock Photo #9991553",
    " - Buy Now! 50% off, FREE shipping...",
    "\nsecond line\r\n\tthird line",
    "\x00\x07\x1b[31m after control characters\x7f",
    " 🎉👩‍👩‍👧 ünïcödé 漢字 العربية",
    " <img src=x onerror=alert(1)><script>alert(2)</script>",
    " ![x](javascript:alert(1)) [y](http://192.0.2.1/)",
    " \u202egpj.elif\u202c\u2028\ufeff",
    "'; DROP TABLE samples; --",
    ' "quoted", comma; semicolon\\ {{7*7}} %s $(id) =1+1',
    "   ",
)
_LONGEST_CAPTION: Final = 61_192

# What stands behind some URLs.
_URL_DIRT: Final = ("?w=300&h=200", "?utm_source=a%7Cb", "#top")

# Share of the rows without a similarity.
_NULL_SIMILARITY: Final = 0.09


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of raw metadata, and what is true of it.

    Attributes:
        sample_id: SAMPLE_ID.
        url: URL.
        text: TEXT; begins with the scene's caption unless it is null.
        height: HEIGHT, as the page declared it.
        width: WIDTH, as the page declared it.
        license: LICENSE.
        nsfw: NSFW.
        similarity: similarity, dirty values included.
        cosine: what the similarity was before anything happened to it.
        picture: what is at the URL.
        fault: what goes wrong with the URL, or the outcome of one that is not on the demo's web.
    """

    sample_id: int | None
    url: str | None
    text: str | None
    height: int | None
    width: int | None
    license: str | None
    nsfw: str | None
    similarity: float | None
    cosine: float
    picture: Picture
    fault: Fault | Outcome

    @property
    def is_fetchable(self) -> bool:
        """Whether its picture can be had, whatever else is wrong with the row."""
        return (
            isinstance(self.fault, Fault) and OUTCOMES[self.fault] is Outcome.SUCCESS and self.url is not None
        )

    @property
    def outcome(self) -> Outcome:
        """What the row comes to under the default policies."""
        if self.url is None or (self.similarity is not None and (self.similarity < 0 or self.similarity > 1)):
            return Outcome.SET_ASIDE
        return OUTCOMES[self.fault] if isinstance(self.fault, Fault) else self.fault


def invent_rows(count: int, base_url: str, *, seed: int) -> list[Row]:
    """Rows over a demo web; equal arguments give equal rows.

    Args:
        count: how many.
        base_url: where the web is, as :attr:`~laion_assets.demo.web.DemoWeb.base_url` says.
        seed: settles everything else.
    """
    rng = np.random.default_rng(seed)
    scenes = list(Scene.every())
    faults = _spread(_SHARES, count, Fault.OK, rng)
    rows = [_clean_row(number, faults[number], base_url, scenes, rng) for number in range(count)]
    _make_dirty(rows, rng)
    return rows


def _spread(
    shares: Mapping[Fault | Outcome, float], count: int, rest: Fault, rng: np.random.Generator
) -> list[Fault | Outcome]:
    """Values in their shares of ``count``, the rest filled up, in random order."""
    values = [value for value, share in shares.items() for _ in range(round(share * count))]
    values += [rest] * (count - len(values))
    return [values[index] for index in rng.permutation(count).tolist()]


def _choose(weights: Mapping[_T, float], rng: np.random.Generator) -> _T:
    return list(weights)[int(rng.choice(len(weights), p=list(weights.values())))]


def _clean_row(
    number: int, fault: Fault | Outcome, base_url: str, scenes: Sequence[Scene], rng: np.random.Generator
) -> Row:
    picture = _invent_picture(number, fault, scenes, rng)
    # The real similarities are float32 values of at least 0.3, most of them little above.
    cosine = float(np.float32(0.3 + min(0.2, rng.exponential(0.035))))
    dirt = _CAPTION_DIRT[int(rng.integers(len(_CAPTION_DIRT)))] if rng.random() < 0.5 else ""
    return Row(
        sample_id=int(rng.integers(1, 43 * 10**9)),
        url=_invent_url(number, fault, base_url, picture, rng),
        text=picture.scene.caption + dirt,
        height=picture.height,
        width=picture.width,
        license=_choose(_LICENSES, rng),
        nsfw=_choose(_TAGS, rng),
        similarity=None if rng.random() < _NULL_SIMILARITY else cosine,
        cosine=cosine,
        picture=picture,
        fault=fault,
    )


def _invent_picture(
    number: int, fault: Fault | Outcome, scenes: Sequence[Scene], rng: np.random.Generator
) -> Picture:
    long = round(120 * (700 / 120) ** rng.random())
    short = round(long * rng.choice([1.0, 3 / 4, 2 / 3, 9 / 16]))
    width, height = (long, short) if rng.random() < 0.6 else (short, long)
    scene = scenes[int(rng.integers(len(scenes)))]
    encoding = _choose(_ENCODINGS, rng)
    if fault is Fault.BROKEN:
        encoding = Encoding.JPEG  # half a GIF may still be a picture
    if encoding is Encoding.ALPHA_PNG:
        scene = replace(scene, colour="blue" if scene.colour == "white" else scene.colour, background="white")
    return Picture(scene=scene, seed=number, width=width, height=height, encoding=encoding)


def _invent_url(
    number: int, fault: Fault | Outcome, base_url: str, picture: Picture, rng: np.random.Generator
) -> str:
    dirt = _URL_DIRT[int(rng.integers(len(_URL_DIRT)))] if rng.random() < 0.1 else ""
    match fault:
        case Fault():
            return url_of(base_url, fault, picture) + dirt
        case Outcome.BAD_URL:
            return f"file:///etc/passwd?{number}" if number % 2 else f"http://[::1/{picture.path}"
        case Outcome.REFUSED_ADDRESS:
            return f"http://192.0.2.1/{picture.path}"  # set apart for documentation (RFC 5737)
        case _:
            return f"http://127.0.0.1:1/{picture.path}"  # tcpmux, which nobody runs


def _make_dirty(rows: list[Row], rng: np.random.Generator) -> None:
    """Do to single rows, each of them once, what was done to real ones. The counts are for 600 rows."""
    untouched = iter(rng.permutation(len(rows)).tolist())

    def some(of_600: int) -> Iterator[int]:
        return islice(untouched, round(of_600 * len(rows) / 600))

    def change(of_600: int, **fields: object) -> None:
        for number in some(of_600):
            rows[number] = replace(rows[number], **fields)  # type: ignore[arg-type]

    for similarity, of_600 in ((6016.0, 1), (1.7, 1), (-0.125, 1), (-3e-05, 1), (float("nan"), 3)):
        change(of_600, similarity=similarity)
    change(2, similarity=0.0, cosine=0.0)
    change(3, url=None, text=None)
    change(1, url=None)
    change(4, text=None)
    change(8, sample_id=None)
    change(8, height=None, width=None)
    change(1, height=18_849, width=39_580)
    change(2, height=0, width=-1)
    for number in some(1):
        text = rows[number].picture.scene.caption + " and so on 🟦" * _LONGEST_CAPTION
        rows[number] = replace(rows[number], text=text[:_LONGEST_CAPTION])
    for number in some(1):
        # (URL, TEXT) was the release's key, and yet.
        other = next(untouched)
        rows[other] = replace(rows[number], sample_id=rows[other].sample_id)
