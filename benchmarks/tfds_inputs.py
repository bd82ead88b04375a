"""What the TFDS stages are measured on: embedding files, downloaded pictures, raw files, published shards."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from benchmarks.corpus import PHOTOGRAPHS, make_corpus, source_version
from laion_assets.fetch.policy import FetchPolicy
from laion_assets.fetch.transport import FakeTransport, respond
from laion_assets.formats import parquet
from laion_assets.formats.publish import Recipe, Tally, vouch
from laion_assets.image_policy import ImagePolicy
from laion_assets.layout import Layout, ShardId
from laion_assets.schema import EMBEDDING_WIDTH, RAW, SAMPLES
from laion_assets.stages.images import images
from laion_assets.stages.laion400m import publish_dataset
from laion_assets.stages.normalized_images import normalize_images
from laion_assets.stages.tfds_images import write_tfds_images

_PICTURES: Final = 600
_ROWS_AT_A_TIME: Final = 10_000
_TEXTS: Final = 100_000
_WORDS: Final = ("photo", "of", "the", "old", "house", "by", "a", "river", "in", "summer", "2014", "stock")


def make_embeddings(cache: Path, rows: int, seed: int) -> Path:
    """Files of one embedding shard, number 0, in the release's layout; or find them in the cache.

    Each text vector is its picture's turned away at random, by so much that the cosine is the similarity that
    the metadata records.
    """

    def make(folder: Path) -> None:
        rng = np.random.default_rng(seed)
        files = {name: folder / name / f"{name}_0.npy" for name in ("img_emb", "text_emb")}
        vectors = {}
        for name, path in files.items():
            path.parent.mkdir()
            vectors[name] = np.lib.format.open_memmap(
                path, mode="w+", dtype="<f2", shape=(rows, EMBEDDING_WIDTH)
            )
        (folder / "metadata").mkdir()
        with pq.ParquetWriter(folder / "metadata" / "metadata_0.parquet", _METADATA) as writer:
            for first in range(0, rows, _ROWS_AT_A_TIME):
                count = min(_ROWS_AT_A_TIME, rows - first)
                image = _unit(rng.standard_normal((count, EMBEDDING_WIDTH), np.float32))
                away = rng.standard_normal((count, EMBEDDING_WIDTH), np.float32)
                away = _unit(away - np.einsum("ij,ij->i", away, image)[:, None] * image)
                cosine = rng.uniform(0.3, 0.4, count).astype(np.float32)
                vectors["img_emb"][first : first + count] = image
                vectors["text_emb"][first : first + count] = (
                    cosine[:, None] * image + np.sqrt(1 - cosine**2)[:, None] * away
                )
                writer.write_table(_metadata(rng, first, cosine), row_group_size=100_000)

    return _cached(cache / f"embeddings-{rows}-{seed}", make)


def make_image_shard(cache: Path, rows: int, seed: int, *, photographs: Path = PHOTOGRAPHS) -> Path:
    """A data root with shard 0 downloaded, all of its pictures there; or find it in the cache."""
    corpus = make_corpus(cache / "corpora", "small", count=_PICTURES, seed=seed, photographs=photographs)
    bodies = [(corpus.folder / name).read_bytes() for name in corpus.names]

    def make(folder: Path) -> None:
        _download(Layout(folder), rows, seed, bodies)

    return _cached(cache / f"images-{corpus.folder.name}-{rows}-{seed}", make)


def make_published(cache: Path, shards: int, seed: int) -> Path:
    """A data root with so many shards of one picture, all but the last published; or find it in the cache.

    Of the shards, what publishing looks at is there: each has a file and a manifest of its own.
    """

    def make(folder: Path) -> None:
        layout, body = Layout(folder), io.BytesIO()
        Image.new("RGB", (64, 64), (200, 90, 30)).save(body, "JPEG")
        _download(layout, 1, seed, [body.getvalue()])
        normalize_images(ShardId(0), layout)
        first = write_tfds_images(ShardId(0), layout)

        def repeat(number: int) -> None:
            output = layout.tfds_images(ShardId(number))
            shutil.copyfile(layout.tfds_images(ShardId(0)).only, output.only)
            vouch(output, first.recipe, lambda: Tally(rows=first.rows, counts=first.counts))

        for number in range(1, shards - 1):
            repeat(number)
        publish_dataset("images", layout, shard_count=shards)
        repeat(shards - 1)

    return _cached(cache / f"published-{shards}-{seed}", make)


def _download(layout: Layout, rows: int, seed: int, bodies: list[bytes]) -> None:
    """Shard 0 and its pictures, which are these, over and over."""
    policy, shard = FetchPolicy(per_domain_interval_s=0), ShardId(0)
    web = FakeTransport(lambda url: respond(200, bodies[int(url.rsplit("/", 1)[1]) % len(bodies)]), policy)
    output = layout.samples(shard)
    output.folder.mkdir()
    parquet.write_table(output.only, _samples(np.random.default_rng(seed), rows), SAMPLES)
    vouch(output, Recipe(code_version="benchmark"), lambda: Tally(rows=rows))
    manifest = images(shard, layout, policy, ImagePolicy(), transport=web)
    if manifest.counts["success"] != rows:
        raise RuntimeError(f"{manifest.counts} of {rows} pictures")


def make_part(cache: Path, rows: int, seed: int) -> Path:
    """A folder with one raw file, in the release's columns, no two rows the same; or find it in the cache."""

    def make(folder: Path) -> None:
        _write_part(folder / "part-00000.parquet", np.random.default_rng(seed), lambda numbers: numbers, rows)

    return _cached(cache / f"part-{rows}-{seed}", make)


def make_parts(cache: Path, rows: int, seed: int) -> Path:
    """A folder with two raw files of so many rows each, or find it in the cache.

    Each repeats every hundredth of its own rows, and the second, besides, every two hundredth of the first.
    """

    def again(numbers: np.ndarray) -> np.ndarray:
        at = numbers % rows
        own = np.where(at % 100 == 99, numbers - 1, numbers)
        return np.where((numbers >= rows) & (at % 200 == 50), numbers - rows, own)

    def make(folder: Path) -> None:
        for part in range(2):
            rng = np.random.default_rng(seed)  # of both the same texts
            _write_part(folder / f"part-{part:05d}.parquet", rng, again, rows, first_row=part * rows)

    return _cached(cache / f"parts-{rows}-{seed}", make)


def _write_part(
    path: Path,
    rng: np.random.Generator,
    number_of: Callable[[np.ndarray], np.ndarray],
    rows: int,
    *,
    first_row: int = 0,
) -> None:
    """Write a raw file; rows of one number have one URL and one text."""
    texts = {name: pa.array(values) for name, values in _texts(rng, range(_TEXTS)).items()}
    with pq.ParquetWriter(path, RAW) as writer:
        for first in range(first_row, first_row + rows, _TEXTS):
            count = min(_TEXTS, first_row + rows - first)
            numbers = number_of(np.arange(first, first + count))
            chosen = {name: values.take(pa.array(numbers % _TEXTS)) for name, values in texts.items()}
            sizes = rng.integers(100, 2_000, (2, count)).astype(np.int32)
            columns = {
                "SAMPLE_ID": numbers,
                "URL": pc.binary_join_element_wise(chosen["url"], pa.array(numbers).cast(pa.string()), "/"),
                "TEXT": chosen["caption"],
                "HEIGHT": sizes[0],
                "WIDTH": sizes[1],
                "similarity": rng.uniform(0.3, 0.4, count),
                **{name: chosen[name] for name in ("LICENSE", "NSFW")},
            }
            table = pa.table({name: columns[name] for name in RAW.names}, schema=RAW)
            writer.write_table(table, row_group_size=_TEXTS)


_METADATA: Final = pa.schema(
    [
        ("image_path", pa.string()),
        ("caption", pa.string()),
        ("NSFW", pa.string()),
        ("similarity", pa.float64()),
        ("LICENSE", pa.string()),
        ("url", pa.string()),
        ("key", pa.string()),
        ("shard_id", pa.int64()),
        ("original_width", pa.int64()),
        ("original_height", pa.int64()),
    ]
)


def _metadata(rng: np.random.Generator, first: int, cosine: np.ndarray) -> pa.Table:
    numbers = range(first, first + len(cosine))
    keys = [f"{number:09d}" for number in numbers]
    columns = _texts(rng, numbers) | {
        "image_path": keys,
        "key": keys,
        "similarity": cosine.astype(np.float64),
        "shard_id": np.zeros(len(cosine), np.int64),
        "original_width": rng.integers(100, 2_000, len(cosine)),
        "original_height": rng.integers(100, 2_000, len(cosine)),
    }
    return pa.table({name: columns[name] for name in _METADATA.names}, schema=_METADATA)


def _samples(rng: np.random.Generator, rows: int) -> pa.Table:
    columns = _texts(rng, range(rows)) | {
        "key": [f"{number:09d}" for number in range(rows)],
        "sample_id": list(range(rows)),
        "declared_height": rng.integers(100, 2_000, rows).astype(np.int32),
        "declared_width": rng.integers(100, 2_000, rows).astype(np.int32),
        "similarity": rng.uniform(0.3, 0.4, rows),
        "set_aside": pa.nulls(rows, pa.string()),
    }
    return pa.table({name: columns[name] for name in SAMPLES.names}, schema=SAMPLES)


def _texts(rng: np.random.Generator, numbers: range) -> dict[str, list[str]]:
    count = len(numbers)
    words = rng.integers(0, len(_WORDS), (count, 20))
    lengths = rng.integers(3, 20, count)
    return {
        "caption": [
            " ".join(_WORDS[word] for word in line[:length])
            for line, length in zip(words.tolist(), lengths.tolist(), strict=True)
        ],
        "url": [f"http://pictures-{number % 977}.example/media/2014/{number}" for number in numbers],
        "NSFW": rng.choice(["UNLIKELY", "UNSURE", "NSFW"], count, p=[0.93, 0.05, 0.02]).tolist(),
        "LICENSE": rng.choice(
            ["?", "https://creativecommons.org/licenses/by/4.0/"], count, p=[0.99, 0.01]
        ).tolist(),
    }


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _cached(folder: Path, make: Callable[[Path], None]) -> Path:
    folder = folder.with_name(f"{folder.name}-{source_version(__file__)}")
    done = folder / "done"
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        make(folder)
        done.touch()
    return folder
