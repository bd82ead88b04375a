"""Releases of generated rows: what goes in, and, without a word of the stages' code, what must come out."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from embedding_inputs import pairs
from PIL import Image

from laion_assets.fetch.transport import Response, respond
from laion_assets.layout import FileFormat

WIDTH = 16
TAGS = ("UNLIKELY", "UNSURE", "NSFW", "UNTAGGED")

# Colours of pictures, so far apart that JPEG does not make one of another.
_LEVELS = 23
_APART = 11


# -- what goes in -----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What rows are made of; equal recipes, equal rows.

    Attributes:
        rows: rows of each raw part.
        vectors: rows of each embedding shard.
        rows_per_shard: of image shards.
        captions, tags, licenses, similarities, queries: values that are taken at random.
        gone: share of the pictures that are not there.
        seed: what decides which row has which.
        file_format: of the data sets.
    """

    rows: tuple[int, ...]
    vectors: tuple[int, ...]
    rows_per_shard: int
    captions: Sequence[str | None]
    tags: Sequence[str | None]
    licenses: Sequence[str | None]
    similarities: Sequence[float | None]
    queries: Sequence[str]
    gone: float
    seed: int
    file_format: FileFormat = "tfrecord"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the raw parts, or of the vectors' metadata; of these, with both vectors."""

    number: int
    url: str | None
    caption: str | None
    tag: str | None
    license: str | None
    similarity: float | None
    key: str = ""
    shard: int | None = None
    height: int | None = None
    width: int | None = None
    image: np.ndarray | None = None
    text: np.ndarray | None = None


def _metadata_of(recipe: Recipe, rng: np.random.Generator) -> dict[str, Any]:
    def pick(values: Sequence[Any]) -> Any:
        return values[rng.integers(len(values))]

    return {
        "caption": pick(recipe.captions),
        "tag": pick(recipe.tags),
        "license": pick(recipe.licenses),
        "similarity": pick(recipe.similarities),
    }


def raw_rows(recipe: Recipe) -> list[Row]:
    """The rows of all parts; some have no URL, or that of a row before them."""
    rng = np.random.default_rng(recipe.seed)
    found: list[Row] = []
    for number in range(sum(recipe.rows)):
        chance = rng.random()
        query = recipe.queries[rng.integers(len(recipe.queries))]
        url: str | None = f"http://example.org/{number}?{query}"
        if chance < 0.1:
            url = (None, "", " \u2003")[number % 3]
        elif chance < 0.2 and found:
            url = found[rng.integers(len(found))].url
        found.append(Row(number=number, url=url, **_metadata_of(recipe, rng)))
    return found


def vector_rows(recipe: Recipe, rows: Sequence[Row]) -> list[list[Row]]:
    """The rows of each embedding shard: of pictures, each URL once, of others, and of no URL."""
    rng = np.random.default_rng(recipe.seed + 1)
    urls = [url for url in {row.url: row for row in rows} if not _blank(url)]
    places = {row.url: _place_of(recipe, row.number) for row in rows}
    rng.shuffle(urls)
    shards: list[list[Row]] = []
    number = 0
    for count in recipe.vectors:
        image, text = pairs(rng.uniform(-1, 1, count), width=WIDTH, seed=recipe.seed + number)
        shard = []
        for at in range(count):
            url = urls.pop() if urls and rng.random() < 0.7 else f"http://example.org/other/{number}"
            shard_id, key = places.get(url, (None, f"{number:09d}"))
            if rng.random() < 0.2:
                shard_id = 999  # the release's own number, which need not be ours
            if url not in places and rng.random() < 0.2:
                url, shard_id = None, None
            _spoil(rng, image[at], text[at])
            height, width = (None if rng.random() < 0.1 else int(rng.integers(0, 20_000)) for _ in "hw")
            shard.append(
                Row(
                    number=number,
                    url=url,
                    key=key,
                    shard=shard_id,
                    height=height,
                    width=width,
                    image=image[at],
                    text=text[at],
                    **_metadata_of(recipe, rng),
                )
            )
            number += 1
        shards.append(shard)
    return shards


def _spoil(rng: np.random.Generator, *pair: np.ndarray) -> None:
    """Make one in ten pairs of vectors one without a direction, in one of its two."""
    if rng.random() < 0.1:
        pair[rng.integers(2)][: rng.integers(1, WIDTH + 1)] = rng.choice([np.nan, np.inf])


def _place_of(recipe: Recipe, number: int) -> tuple[int, str]:
    """Shard and key of a raw row: a part's rows begin a shard."""
    first_shard = 0
    for count in recipe.rows:
        if number < count:
            shard, row = divmod(number, recipe.rows_per_shard)
            digits = len(str(recipe.rows_per_shard - 1))
            return first_shard + shard, f"{first_shard + shard:05d}{row:0{digits}d}"
        number -= count
        first_shard += -(-count // recipe.rows_per_shard)
    raise ValueError(number)


def _colour(number: int) -> tuple[int, int, int]:
    return tuple(number // _LEVELS**place % _LEVELS * _APART for place in range(3))


def _size_of(number: int) -> tuple[int, int]:
    """Width and height of a picture, which nobody resizes."""
    return 8 + number % 5, 8 + number % 7


def _number_in(url: str) -> int:
    return int(re.match(r"http://example\.org/(\d+)\?", url)[1])


def _is_gone(recipe: Recipe, number: int) -> bool:
    return np.random.default_rng([recipe.seed, number]).random() < recipe.gone


def answer(recipe: Recipe, url: str) -> Response:
    number = int(re.match(r"http://example\.org/(\d+)", url)[1])
    if _is_gone(recipe, number):
        return respond(404)
    body = io.BytesIO()
    Image.new("RGB", _size_of(number), _colour(number)).save(body, "PNG")
    return respond(200, body.getvalue())


# -- what must come out -----------------------------------------------------------------------------------


def _blank(url: str | None) -> bool:
    return url is None or not url.strip()


def _is_missing(similarity: float | None) -> bool:
    return similarity is None or math.isnan(similarity) or similarity == -1.0


def acceptable(row: Row) -> bool:
    return not _blank(row.url) and (_is_missing(row.similarity) or 0 <= row.similarity <= 1.001)


def has_direction(row: Row) -> bool:
    return all(np.isfinite(vector).all() and vector.any() for vector in (row.image, row.text))


def pictures(recipe: Recipe, rows: Sequence[Row]) -> list[Row]:
    found = [row for row in rows if acceptable(row) and not _is_gone(recipe, _number_in(row.url))]
    sizes = [_size_of(_number_in(row.url)) for row in found]
    return [
        replace(row, width=width, height=height) for row, (width, height) in zip(found, sizes, strict=True)
    ]


def check(found: list[dict[str, Any]], expected: Sequence[Row], *, picture: bool, vectors: bool) -> None:
    assert [example["url"] for example in found] == [row.url.encode() for row in expected]
    for example, row in zip(found, expected, strict=True):
        similarity = -1.0 if _is_missing(row.similarity) else row.similarity
        assert example["caption"] == (row.caption or "").encode()
        assert example["license"] == (row.license or "").encode()
        assert TAGS[example["nsfw"]] == (row.tag if row.tag in TAGS else "UNTAGGED")
        assert example["similarity"] == np.float64(np.float32(similarity))
        assert (example["original_height"], example["original_width"]) == (row.height or 0, row.width or 0)
        if picture:
            assert example["image"].shape == (row.height, row.width, 3)
            off = np.abs(example["image"].astype(int) - _colour(_number_in(row.url)))
            assert off.max() < _APART // 2
        if vectors:
            assert example["image_embedding"].tobytes() == row.image.tobytes()
            assert example["text_embedding"].tobytes() == row.text.tobytes()
