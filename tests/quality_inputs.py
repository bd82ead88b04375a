"""A small data root with something in every stage, and ways to spoil its files behind right manifests."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from embedding_inputs import cosines_of, metadata, pairs, place
from PIL import Image

from laion_assets.formats import parquet
from laion_assets.formats.publish import Draft, Recipe, Tally, publish, read_manifest
from laion_assets.formats.sealed import seal, unseal
from laion_assets.formats.webdataset import open_tar
from laion_assets.layout import EmbeddingShardId, Layout, Output, ShardId
from laion_assets.quality.thresholds import Thresholds
from laion_assets.schema import IMAGES, RAW, REQUESTS, SAMPLES
from laion_assets.stages.catalog import write_catalog
from laion_assets.stages.dataset_report import write_dataset_report
from laion_assets.stages.duplicates import search_duplicates
from laion_assets.stages.embedding_index import index_embeddings
from laion_assets.stages.embedding_join import join_embeddings
from laion_assets.stages.embeddings import check_embeddings
from laion_assets.stages.image_embeddings import join_image_embeddings
from laion_assets.stages.laion400m import publish_dataset
from laion_assets.stages.normalized_embeddings import normalize_embeddings
from laion_assets.stages.normalized_images import normalize_images
from laion_assets.stages.raw_metadata import check_part
from laion_assets.stages.samples import write_samples
from laion_assets.stages.shard_plan import plan_shards
from laion_assets.stages.tfds_embeddings import write_tfds_embeddings
from laion_assets.stages.tfds_image_embeddings import write_tfds_image_embeddings
from laion_assets.stages.tfds_images import write_tfds_images

PART = "part-a"
ROWS_PER_SHARD = 20
ROWS = 50
WIDTH = 16
SHARDS = (ShardId(0), ShardId(1))  # of three: the third is planned and has its samples only
VECTORS = EmbeddingShardId(0)
VECTOR_ROWS = 30

# Of all rows; the first so many have vectors with these cosines.
SIMILARITIES = np.maximum(cosines_of(ROWS), 0.3)

# The root is far smaller than a real one, so that one odd row is a large share.
LENIENT = Thresholds(
    similarity_outside_share=0.1,
    similarity_null_share=0.1,
    similarity_impossible_share=0.05,
    duplicate_share=0.05,
    null_url_share=0.05,
    null_text_share=0.05,
    set_aside_share=0.1,
    bad_vector_share=0.05,
    # And there is only one other shard to compare one with.
    drift_least_shards=1,
    sampled_images=5,
    sampled_shards=1,
)

HOSTILE = "<script>alert(1)</script> $x^2$ \u202egnp.exe\x00\x1b[31m 日本 | " + "long" * 100


def raw_rows() -> list[dict[str, Any]]:
    rows = [
        {
            "SAMPLE_ID": row,
            "URL": f"http://host{row % 3}.example.org/{row}.jpg",
            "TEXT": f"caption {row}",
            "HEIGHT": 30,
            "WIDTH": 40,
            "LICENSE": "?" if row % 5 else f"http://creativecommons.org/$a$/{row % 2}",
            "NSFW": ["UNLIKELY", "UNSURE", "NSFW", None, "odd"][row % 5],
            "similarity": float(SIMILARITIES[row]),
        }
        for row in range(ROWS)
    ]
    rows[1]["TEXT"] = HOSTILE
    rows[2]["similarity"] = None
    rows[3]["similarity"] = 6016.0
    rows[4]["URL"] = None
    return rows


def jpeg(seed: int) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    body = io.BytesIO()
    Image.fromarray(noise).save(body, "JPEG")
    return body.getvalue()


def write_images(layout: Layout, shard: ShardId) -> None:
    """Publish pictures for the samples of a shard, as if downloaded; every seventh row failed."""
    samples = parquet.read_table(layout.samples(shard).only, SAMPLES).to_pylist()
    rows = []
    for index, sample in enumerate(samples):
        ok = sample["set_aside"] is None and index % 7 != 6
        outcome = "success" if ok else "set_aside" if sample["set_aside"] else "http_4xx"
        rows.append(
            {name: sample[name] for name in ("caption", "url", "NSFW", "similarity", "LICENSE", "key")}
            | {"status": "success" if ok else "failed_to_download", "outcome": outcome}
            | ({"width": 32, "height": 24, "original_width": 320, "original_height": 240} if ok else {})
        )

    def write(draft: Draft) -> Tally:
        parquet.write_table(draft.path(f"{shard}.parquet"), pa.Table.from_pylist(rows, schema=IMAGES), IMAGES)
        with open_tar(draft.path(f"{shard}.tar")) as tar:
            for row in rows:
                if row["status"] == "success":
                    tar.add(f"{row['key']}.jpg", jpeg(int(row["key"])))
                    tar.add(f"{row['key']}.txt", row["caption"].encode())
        successes = sum(row["status"] == "success" for row in rows)
        stats = {
            "count": len(rows),
            "successes": successes,
            "failed_to_download": len(rows) - successes,
            "failed_to_resize": 0,
        }
        draft.path(f"{shard}_stats.json").write_text(json.dumps(stats))
        requests = [{"key": row["key"], "attempts": 1, "milliseconds": 20} for row in rows]
        parquet.write_table(
            draft.path(layout.images_requests(shard).name),
            pa.Table.from_pylist(requests, schema=REQUESTS),
            REQUESTS,
        )
        outcomes = [row["outcome"] for row in rows]
        counts = {f"outcome:{name}": outcomes.count(name) for name in set(outcomes)}
        return Tally(rows=len(rows), counts=counts | {"success": successes})

    publish(layout.images(shard), Recipe(code_version="test"), write)


def build_root(folder: Path) -> Layout:
    """Something in every stage, made by the stages themselves but for the download."""
    layout = Layout(folder / "data")
    source = folder / f"{PART}.parquet"
    source.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(raw_rows(), schema=RAW), source)
    check_part(PART, layout, location=str(source), source_schema="laion400m", rows_per_shard=ROWS_PER_SHARD)
    plan_shards(layout, [PART], rows_per_shard=ROWS_PER_SHARD)
    search_duplicates(layout, LENIENT)
    for number in range(3):
        write_samples(ShardId(number), layout)
    for shard in SHARDS:
        write_images(layout, shard)
        normalize_images(shard, layout)
        write_tfds_images(shard, layout)
    publish_dataset("images", layout, shard_count=3)
    _build_embeddings(layout, folder / "embeddings")
    write_catalog(layout)
    write_dataset_report(layout)
    return layout


def _build_embeddings(layout: Layout, source: Path) -> None:
    cosines = SIMILARITIES[:VECTOR_ROWS]
    images, texts = pairs(cosines, width=WIDTH)
    urls = pa.array([f"http://host{row % 3}.example.org/{row}.jpg" for row in range(VECTOR_ROWS)])
    place(source, 0, images, texts, metadata(cosines, url=urls))
    check_embeddings(VECTORS, layout, str(source), WIDTH, LENIENT)
    join_embeddings(VECTORS, layout, LENIENT)
    index_embeddings(VECTORS, layout)
    normalize_embeddings(VECTORS, layout)
    write_tfds_embeddings(VECTORS, layout, WIDTH)
    publish_dataset("embeddings", layout, shard_count=1, width=WIDTH)
    for shard in SHARDS:
        join_image_embeddings(shard, layout, [VECTORS], WIDTH)
        write_tfds_image_embeddings(shard, layout, WIDTH)
    publish_dataset("image_embeddings", layout, shard_count=3, width=WIDTH)


@dataclass(frozen=True)
class Root:
    """A copy of a data root that may be spoilt."""

    layout: Layout

    def rewrite(self, output: Output, name: str, change: Callable[[Path], None], **counts: int) -> None:
        """Change one file and publish it, so that only its content is wrong and its manifest is right."""
        manifest = read_manifest(output)
        assert manifest is not None

        def write(draft: Draft) -> Tally:
            for file in output.names:
                shutil.copyfile(output.path(file), draft.path(file))
            change(draft.path(name))
            rows = counts.pop("rows", manifest.rows)
            return Tally(rows=rows, counts={**manifest.counts, **counts})

        # Of another recipe each time, or publishing would find that there is nothing to do.
        publish(output, Recipe(code_version="spoilt", settings=f"{manifest.recipe}"), write)

    def rewrite_table(
        self, output: Output, name: str, change: Callable[[list[dict[str, Any]]], Any], **counts: int
    ) -> None:
        """As :meth:`rewrite`, of a table's rows, changed in place or returned anew."""

        def changed(path: Path) -> None:
            table = pq.read_table(path)
            rows = table.to_pylist()
            rows = change(rows) or rows
            parquet.write_table(path, pa.Table.from_pylist(rows, schema=table.schema), table.schema)

        self.rewrite(output, name, changed, **counts)

    def rewrite_json(self, output: Output, name: str, change: Callable[[Any], None]) -> None:
        """As :meth:`rewrite`, of a JSON document, changed in place."""

        def changed(path: Path) -> None:
            data = path.read_bytes()
            try:
                document, write = unseal(data), seal
            except ValueError:
                document, write = json.loads(data), lambda changed: json.dumps(changed).encode()
            change(document)
            path.write_bytes(write(document))

        self.rewrite(output, name, changed)


_BUILT: list[Layout] = []


def shared_root(tmp_path_factory: Any) -> Layout:
    """The root of :func:`build_root`, made once for all tests, which must leave it as it is."""
    if not _BUILT:
        _BUILT.append(build_root(tmp_path_factory.mktemp("root")))
    return _BUILT[0]


def copy_root(layout: Layout, folder: Path) -> Root:
    """A copy of a data root; links stay links, and point into the copy."""
    shutil.copytree(layout.root, folder / "data", symlinks=True)
    return Root(Layout(folder / "data"))
