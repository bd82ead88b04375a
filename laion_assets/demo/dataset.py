"""The demo's data set: raw parts, an embeddings release and settings over the demo's web, and the truth."""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from laion_assets.demo.rows import Row, invent_rows
from laion_assets.demo.scenes import Scene, read_scene
from laion_assets.formats.durable import write_durably
from laion_assets.keys import sample_keys
from laion_assets.layout import ShardId
from laion_assets.outcomes import Outcome
from laion_assets.schema import EMBEDDING_WIDTH, RAW
from laion_assets.settings import SETTINGS_FILE

TRUTH_FILE: Final = "truth.json"

# LAION-400M's own names.
_PART_FILE: Final = "part-{:05d}-5b54c5d5-bbcf-484d-a2ce-0d6f73df1a36-c000.snappy.parquet"

# Shares of the rows in each embedding shard.
_EMBEDDING_SHARES: Final = (0.4, 0.35, 0.25)

# One in so many rows names no image shard, so only its URL tells which picture its vectors are of.
_WITHOUT_SHARD: Final = 12

# How far the vectors of two pictures of one scene lie apart, and what makes up a scene's direction.
_NOISE: Final = 0.3

# Sizes in the 2021 release, whose pictures were padded to a square.
_RELEASE_SIDE: Final = 256

# Columns of the embeddings release's metadata files, with their types (metadata_0.parquet).
_EMBEDDING_METADATA: Final = pa.schema(
    {
        "image_path": pa.string(),
        "caption": pa.string(),
        "NSFW": pa.string(),
        "similarity": pa.float64(),
        "LICENSE": pa.string(),
        "url": pa.string(),
        "key": pa.int64(),
        "shard_id": pa.int64(),
        "status": pa.string(),
        "error_message": pa.null(),
        "width": pa.int64(),
        "height": pa.int64(),
        "exif": pa.string(),
        "original_width": pa.int64(),
        "original_height": pa.int64(),
    }
)

_SETTINGS: Final = """\
# Settings of the demo, as a user would write them; paths are relative to this file.
data_root = "data"
dagster_home = "dagster_home"
rows_per_shard = {rows_per_shard}

[raw]
source = "raw"

[embeddings]
source = "embeddings"

[fetch]
allow_loopback = true  # the demo's web is on this machine...
per_domain_concurrency = 64  # ...and all of it is one host,
per_domain_interval_s = 0
host_failures = 1000
retry_silent_hosts = true  # some of whose pictures never come
total_timeout_s = 4.0  # long for a loaded machine, short for pictures that never end
backoff_s = 0.05

[tfds]
image_embeddings = true  # off by default, since pictures are stored once more

[records]
thumbnails = 8  # off by default, since what Dagster recorded cannot be taken back
"""


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What is true of one URL.

    Attributes:
        scene: what its picture shows.
        outcome: what a row with it comes to under the demo's settings.
        width: of the picture in pixels, as shown.
        height: of the picture in pixels, as shown.
    """

    scene: Scene
    outcome: Outcome
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class DemoDataset:
    """A demo that was made.

    Attributes:
        folder: where it is.
        base_url: the web that its URLs are on.
        rows: rows of raw metadata.
        outcomes: how many rows come to what, those without a URL included.
        truth: URL -> what is true of it.
    """

    folder: Path
    base_url: str
    rows: int
    outcomes: Mapping[Outcome, int]
    truth: Mapping[str, Truth]

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what :func:`make_demo` recorded in a folder."""
        document = json.loads((folder / TRUTH_FILE).read_text())
        truth: dict[str, Truth] = {}
        for url, fields in document["urls"].items():
            scene = Scene.parse(fields["scene"])
            assert scene is not None
            truth[url] = Truth(
                scene=scene,
                outcome=Outcome(fields["outcome"]),
                width=fields["width"],
                height=fields["height"],
            )
        return cls(
            folder=folder,
            base_url=document["base_url"],
            rows=document["rows"],
            outcomes={Outcome(name): count for name, count in document["outcomes"].items()},
            truth=truth,
        )


def make_demo(
    folder: Path,
    base_url: str,
    *,
    rows_per_part: Sequence[int] = (330, 270),
    rows_per_shard: int = 100,
    seed: int = 400,
) -> DemoDataset:
    """Write the demo's data set; equal arguments give equal bytes, and equal files are left untouched.

    Below ``folder`` come ``raw/`` (LAION-400M's parts), ``embeddings/`` (img_emb, text_emb and metadata,
    float16 of shape (n, 512)), ``laion.toml`` and ``truth.json``.

    Args:
        folder: where to; made if it is not there.
        base_url: of the demo's web, which need not run yet.
        rows_per_part: rows of each raw part.
        rows_per_shard: rows of each shard but the last of each part.
        seed: settles everything else.
    """
    rows = invent_rows(sum(rows_per_part), base_url, seed=seed)
    parts: list[list[Row]] = []
    for count in rows_per_part:
        first = sum(map(len, parts))
        parts.append(rows[first : first + count])

    files = {f"raw/{_PART_FILE.format(number)}": _raw_part(part) for number, part in enumerate(parts)}
    files |= _embeddings(parts, rows_per_shard, np.random.default_rng([seed, 1]))
    files[SETTINGS_FILE] = _SETTINGS.format(rows_per_shard=rows_per_shard).encode()
    files[TRUTH_FILE] = _truth(rows, base_url)
    for stale in (folder / "raw").glob(_PART_FILE.replace("{:05d}", "*")):
        if f"raw/{stale.name}" not in files:
            stale.unlink()
    for name, data in files.items():
        _write_if_changed(folder / name, data)
    return DemoDataset.load(folder)


def captions_true(examples: Iterable[tuple[str, npt.NDArray[np.uint8]]]) -> tuple[int, list[str]]:
    """Look at pictures and count the captions that tell the truth.

    Args:
        examples: caption and pixels (uint8 of shape (height, width, 3)) of each example.

    Returns:
        How many captions say what their picture shows, and the captions that do not. An empty caption
        claims nothing and is in neither.
    """
    true = 0
    false: list[str] = []
    for caption, pixels in examples:
        if not caption:
            continue
        try:
            seen = read_scene(pixels)
        except ValueError:  # the picture shows no scene at all
            false.append(caption)
            continue
        if Scene.parse(caption) == seen:
            true += 1
        else:
            false.append(caption)
    return true, false


def _write_if_changed(path: Path, data: bytes) -> None:
    if path.is_file() and path.read_bytes() == data:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, data)


def _raw_part(rows: Sequence[Row]) -> bytes:
    columns = {
        "SAMPLE_ID": [row.sample_id for row in rows],
        "URL": [row.url for row in rows],
        "TEXT": [row.text for row in rows],
        "HEIGHT": [row.height for row in rows],
        "WIDTH": [row.width for row in rows],
        "LICENSE": [row.license for row in rows],
        "NSFW": [row.nsfw for row in rows],
        "similarity": [row.similarity for row in rows],
    }
    return _parquet(pa.table(columns, schema=pa.schema({field.name: field.type for field in RAW})))


def _parquet(table: pa.Table) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file, compression="snappy")
    return file.getvalue()


def _truth(rows: Sequence[Row], base_url: str) -> bytes:
    document = {
        "base_url": base_url,
        "rows": len(rows),
        "outcomes": dict(sorted(Counter(row.outcome for row in rows).items())),
        "urls": {
            row.url: {
                "scene": row.picture.scene.caption,
                "outcome": row.outcome,
                "width": row.picture.width,
                "height": row.picture.height,
            }
            for row in rows
            if row.url is not None
        },
    }
    return json.dumps(document, indent=1).encode() + b"\n"


# -- the embeddings release ---------------------------------------------------------------------------


def _embeddings(
    parts: Sequence[Sequence[Row]], rows_per_shard: int, rng: np.random.Generator
) -> dict[str, bytes]:
    """The release's files: those rows whose picture can be had, in an order of their own."""
    placed: list[tuple[int, int, Row]] = []
    first_shard = 0
    for part in parts:
        for number, row in enumerate(part):
            placed.append((first_shard + number // rows_per_shard, number % rows_per_shard, row))
        first_shard += -(-len(part) // rows_per_shard)
    fetchable = [place for place in placed if place[2].is_fetchable]
    shuffled = [fetchable[index] for index in rng.permutation(len(fetchable)).tolist()]
    bounds = [round(len(shuffled) * sum(_EMBEDDING_SHARES[:n])) for n in range(len(_EMBEDDING_SHARES) + 1)]

    files: dict[str, bytes] = {}
    for number, (start, stop) in enumerate(pairwise(bounds)):
        rows = shuffled[start:stop]
        images, texts = _vectors([row for _, _, row in rows], rng)
        files[f"embeddings/img_emb/img_emb_{number}.npy"] = _npy(images)
        files[f"embeddings/text_emb/text_emb_{number}.npy"] = _npy(texts)
        files[f"embeddings/metadata/metadata_{number}.parquet"] = _parquet(_metadata(rows, rows_per_shard))
    return files


def _metadata(rows: Sequence[tuple[int, int, Row]], rows_per_shard: int) -> pa.Table:
    # Keys of the release are local to a shard.
    keys = sample_keys(ShardId(0), rows_per_shard, row_digits=len(str(rows_per_shard - 1))).to_pylist()

    def describe(index: int, shard: int, number: int, row: Row) -> dict[str, Any]:
        is_placed = index % _WITHOUT_SHARD != _WITHOUT_SHARD - 1
        return {
            "image_path": keys[number],
            "caption": row.text,
            "NSFW": row.nsfw,
            "similarity": row.similarity,
            "LICENSE": row.license,
            "url": row.url,
            "key": number if is_placed else None,
            "shard_id": shard if is_placed else None,
            "status": "success",
            "width": _RELEASE_SIDE,
            "height": _RELEASE_SIDE,
            "exif": "{}",
            "original_width": row.picture.width,
            "original_height": row.picture.height,
        }

    described = [describe(index, *row) for index, row in enumerate(rows)]
    return pa.Table.from_pylist(described, schema=_EMBEDDING_METADATA)


def _vectors(
    rows: Sequence[Row], rng: np.random.Generator
) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.float16]]:
    """Vectors of pictures and captions, of length 1 and with each row's cosine: float16 of shape (n, 512).

    Scenes that have much in common lie near each other, pictures of one scene nearest.
    """
    images = _unit(np.array([_direction("image", row.picture.scene) for row in rows]), rng)
    across = _unit(np.array([_direction("text", row.picture.scene) for row in rows]), rng)
    across -= (across * images).sum(axis=1, keepdims=True) * images
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    cosines = np.array([[row.cosine] for row in rows])
    texts = cosines * images + np.sqrt(1 - cosines**2) * across
    return images.astype(np.float16), texts.astype(np.float16)


def _unit(directions: npt.NDArray[np.float64], rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Directions of shape (n, 512), each a little off its own, and of length 1."""
    noise = rng.standard_normal(directions.shape) * _NOISE
    noisy = directions / np.linalg.norm(directions, axis=1, keepdims=True) * np.sqrt(EMBEDDING_WIDTH) + noise
    scaled: npt.NDArray[np.float64] = noisy / np.linalg.norm(noisy, axis=1, keepdims=True)
    return scaled


def _direction(kind: str, scene: Scene) -> npt.NDArray[np.float64]:
    """A direction for each thing that can be said of a scene, summed."""
    said = (f"{scene.count} shapes", scene.shape, f"{scene.colour} shapes", f"{scene.background} ground")
    total = np.zeros(EMBEDDING_WIDTH)
    for words in said:
        digest = hashlib.sha256(f"{kind}: {words}".encode()).digest()
        total += np.random.default_rng(int.from_bytes(digest)).standard_normal(EMBEDDING_WIDTH)
    return total


def _npy(vectors: npt.NDArray[np.float16]) -> bytes:
    file = io.BytesIO()
    np.save(file, vectors, allow_pickle=False)
    return file.getvalue()
