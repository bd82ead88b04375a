"""The life of a shard, stage by stage, from sources to data sets, over a web that a function answers for.

What the tests beside this disturb. Everything is small and follows from nothing but this file, so that two
lives, one of them disturbed, must come to the same bytes.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import one_host
import pyarrow as pa
import pyarrow.parquet as pq
from embedding_inputs import cosines_of, metadata, pairs, place
from PIL import Image

from laion_assets.fetch.policy import FetchPolicy
from laion_assets.fetch.transport import FakeTransport, Response, respond
from laion_assets.formats.publish import FileRecord, Manifest
from laion_assets.image_policy import ImagePolicy
from laion_assets.layout import EmbeddingShardId, Layout, Output, ShardId
from laion_assets.published import output_of
from laion_assets.quality.thresholds import Thresholds
from laion_assets.schema import RAW
from laion_assets.stages.catalog import write_catalog
from laion_assets.stages.dataset_report import write_dataset_report
from laion_assets.stages.duplicates import search_duplicates
from laion_assets.stages.embedding_index import index_embeddings
from laion_assets.stages.embedding_join import join_embeddings
from laion_assets.stages.embeddings import check_embeddings
from laion_assets.stages.image_embeddings import join_image_embeddings
from laion_assets.stages.images import download_images
from laion_assets.stages.laion400m import publish_dataset
from laion_assets.stages.normalized_embeddings import normalize_embeddings
from laion_assets.stages.normalized_images import normalize_images
from laion_assets.stages.raw_metadata import check_part
from laion_assets.stages.samples import write_samples
from laion_assets.stages.shard_plan import plan_shards
from laion_assets.stages.tfds_embeddings import write_tfds_embeddings
from laion_assets.stages.tfds_image_embeddings import write_tfds_image_embeddings
from laion_assets.stages.tfds_images import write_tfds_images

PART: Final = "part-a"
ROWS: Final = 24
WIDTH: Final = 16
SHARD: Final = ShardId(0)
VECTORS: Final = EmbeddingShardId(0)

# Of 24 rows a few odd ones are a large share.
LENIENT: Final = Thresholds(cosine_far_share=0.5)
FETCH: Final = FetchPolicy(
    attempts=1,
    backoff_s=0,
    concurrency=8,
    per_domain_concurrency=8,
    **one_host.MANNERS,
)
IMAGE: Final = ImagePolicy(size=48, workers=1)


def lay_sources(folder: Path) -> None:
    """Write the raw part and the vectors that a life begins with."""
    rows = [
        {
            "SAMPLE_ID": row,
            "URL": f"http://host{row % 3}.example.org/{row}.jpg" if row != 4 else None,
            "TEXT": f"caption {row} é 日本" if row % 5 else None,
            "HEIGHT": 30,
            "WIDTH": 40,
            "LICENSE": "?" if row % 3 else None,
            "NSFW": ["UNLIKELY", "UNSURE", "NSFW", None][row % 4],
            "similarity": 0.3 + row / 200 if row != 7 else None,
        }
        for row in range(ROWS)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=RAW), folder / f"{PART}.parquet")
    cosines = cosines_of(ROWS)
    images, texts = pairs(cosines, width=WIDTH)
    urls = pa.array([f"http://host{row % 3}.example.org/{row}.jpg" for row in range(ROWS)])
    place(folder / "vectors", 0, images, texts, metadata(cosines, url=urls))


def answer(url: str) -> Response:
    """What the web says to a URL: one in six is gone, one in eleven is no picture."""
    number = int(url.rsplit("/", 1)[1].removesuffix(".jpg"))
    if number % 6 == 5:
        return respond(404)
    if number % 11 == 10:
        return respond(200, b"<html>moved</html>")
    noise = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    body = io.BytesIO()
    Image.fromarray(noise).resize((80, 60)).save(body, "JPEG", quality=90)
    return respond(200, body.getvalue())


STORES: Final[dict[Path, str]] = {}
"""Folder -> object storage that a life's partitions are in; by default the folder has them."""


def layout_of(folder: Path) -> Layout:
    """Where a life's files are."""
    return Layout(folder / "data", store=STORES.get(folder, ""))


def _raw_metadata(folder: Path) -> Manifest:
    location = str(folder / f"{PART}.parquet")
    return check_part(
        PART, layout_of(folder), location=location, source_schema="laion400m", rows_per_shard=ROWS
    )


def _images(folder: Path, transport: Any = None) -> Manifest:
    web = transport or FakeTransport(answer, FETCH)
    return download_images(SHARD, layout_of(folder), FETCH, IMAGE, transport=web)


STAGES: Final[Mapping[str, Callable[[Path], Manifest]]] = MappingProxyType(
    {
        "raw_metadata": _raw_metadata,
        "shard_plan": lambda folder: plan_shards(layout_of(folder), [PART], rows_per_shard=ROWS),
        "duplicates": lambda folder: search_duplicates(layout_of(folder), LENIENT),
        "samples": lambda folder: write_samples(SHARD, layout_of(folder)),
        "images": _images,
        "normalized_images": lambda folder: normalize_images(SHARD, layout_of(folder)),
        "tfds_images": lambda folder: write_tfds_images(SHARD, layout_of(folder)),
        "laion400m_images": lambda folder: publish_dataset("images", layout_of(folder), shard_count=1),
        "embeddings": lambda folder: check_embeddings(
            VECTORS, layout_of(folder), str(folder / "vectors"), WIDTH, LENIENT
        ),
        "embedding_join": lambda folder: join_embeddings(VECTORS, layout_of(folder), LENIENT),
        "embedding_index": lambda folder: index_embeddings(VECTORS, layout_of(folder)),
        "normalized_embeddings": lambda folder: normalize_embeddings(VECTORS, layout_of(folder)),
        "tfds_embeddings": lambda folder: write_tfds_embeddings(VECTORS, layout_of(folder), WIDTH),
        "laion400m_embeddings": lambda folder: publish_dataset(
            "embeddings", layout_of(folder), shard_count=1, width=WIDTH
        ),
        "image_embeddings": lambda folder: join_image_embeddings(SHARD, layout_of(folder), [VECTORS], WIDTH),
        "tfds_image_embeddings": lambda folder: write_tfds_image_embeddings(SHARD, layout_of(folder), WIDTH),
        "laion400m_image_embeddings": lambda folder: publish_dataset(
            "image_embeddings", layout_of(folder), shard_count=1, width=WIDTH
        ),
        "catalog": lambda folder: write_catalog(layout_of(folder)),
        "dataset_report": lambda folder: write_dataset_report(layout_of(folder)),
    }
)
"""Stage -> makes its one partition below a folder that :func:`lay_sources` began, in order of flow."""


def output(stage: str, folder: Path) -> Output:
    """The files of a stage's one partition."""
    partition = {"raw_metadata": PART}.get(stage, str(SHARD))
    is_whole = stage.startswith("laion400m_") or stage in (
        *("shard_plan", "duplicates"),
        *("catalog", "dataset_report"),
    )
    return output_of(layout_of(folder), stage, stage if is_whole else partition)


def live(folder: Path, *, until: str | None = None) -> None:
    """Lay sources and run every stage, up to but without ``until``."""
    lay_sources(folder)
    for stage, run in STAGES.items():
        if stage == until:
            return
        run(folder)


def data_files(manifest: Manifest) -> dict[str, FileRecord]:
    """The files of a partition that equal inputs give equal bytes of."""
    return {name: record for name, record in manifest.files.items() if not record.is_log}


def digests(folder: Path) -> dict[str, str]:
    """Path below the folder -> sha256 of every file that a life leaves, manifests and leases aside.

    The catalog is left out: DuckDB writes other bytes each time; and so are logs, which hold times.
    """
    logs = ("_stats.json", ".requests", "runs.html", "runs.png")
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and not path.name.endswith((".manifest.json", ".manifest", ".duckdb", *logs))
        # Leases, and what a publication remembers of manifests: inodes and times.
        and not {".leases", ".known"} & set(path.parts)
    }
