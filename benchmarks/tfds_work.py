"""Takes steps on a shard, as a program of its own on one core, and says as JSON what they took together.

``python -m benchmarks.tfds_work INPUT FOLDER STEP...``: INPUT is what benchmarks/tfds_inputs.py made, FOLDER
is where the steps before these worked.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import duckdb
import google_crc32c
import pandas as pd  # noqa: F401 (pyarrow imports it with the first list; imports are not measured)
import pyarrow.parquet as pq
import xxhash
from blake3 import blake3

from laion_assets.formats.publish import Manifest, withdraw
from laion_assets.layout import EmbeddingShardId, Layout, ShardId
from laion_assets.plan import ShardPlan
from laion_assets.quality.thresholds import Thresholds
from laion_assets.schema import EMBEDDING_WIDTH
from laion_assets.stages.duplicates import search_duplicates
from laion_assets.stages.embedding_join import join_embeddings
from laion_assets.stages.embeddings import check_embeddings
from laion_assets.stages.laion400m import publish_dataset
from laion_assets.stages.normalized_embeddings import normalize_embeddings
from laion_assets.stages.normalized_images import normalize_images
from laion_assets.stages.raw_metadata import check_part
from laion_assets.stages.samples import write_samples
from laion_assets.stages.shard_plan import plan_shards
from laion_assets.stages.tfds_embeddings import write_tfds_embeddings
from laion_assets.stages.tfds_images import write_tfds_images

_VECTORS: Final = EmbeddingShardId(0)
_PICTURES: Final = ShardId(0)
_PART: Final = "part-00000"
_ROWS_PER_SHARD: Final = 10_000
_PIECE_BYTES: Final = 1 << 20


def main() -> None:
    source, layout = sys.argv[1], Layout(Path(sys.argv[2]))
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    start_cpu, start_wall, start_written = time.process_time(), time.perf_counter(), _written()
    for step in sys.argv[3:]:
        examples, size = STEPS[step](layout, source)
    taken = {"cpu_s": time.process_time() - start_cpu, "wall_s": time.perf_counter() - start_wall}
    taken["written_bytes"] = _written() - start_written
    # Not getrusage(2)'s, in which the memory of the process that started this one counts.
    (peak,) = re.findall(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    print(json.dumps({**taken, "examples": examples, "bytes": size, "peak_mb": int(peak) / 1024}))


def _written() -> int:
    """Bytes that this process has handed to write(2), whatever became of the file."""
    (written,) = re.findall(r"^wchar: (\d+)$", Path("/proc/self/io").read_text(), re.MULTILINE)
    return int(written)


def _step(run: Callable[[Layout, str], Manifest]) -> Callable[[Layout, str], tuple[int, int]]:
    def made(layout: Layout, source: str) -> tuple[int, int]:
        manifest = run(layout, source)
        return manifest.rows, manifest.bytes

    return made


def _link(layout: Layout, source: str) -> tuple[int, int]:
    for name in ("samples", "images"):
        shutil.copytree(Path(source) / name, layout.root / name, copy_function=os.link)
    return 0, 0


def _link_published(layout: Layout, source: str) -> tuple[int, int]:
    shutil.copytree(source, layout.root, copy_function=os.link, symlinks=True, dirs_exist_ok=True)
    return 0, 0


def _withdraw(layout: Layout, _: str) -> tuple[int, int]:
    withdraw(layout.tfds_images(_PICTURES))
    return 0, 0


def _publish(layout: Layout, _: str) -> tuple[int, int]:
    folder = layout.tfds_images(_PICTURES).folder
    # Names, since making paths of all shards takes a quarter of a second, which is not what is measured.
    last = max(name for name in os.listdir(folder) if name.endswith(".tfrecord"))  # noqa: PTH208
    manifest = publish_dataset("images", layout, shard_count=int(Path(last).stem) + 1)
    return manifest.counts["shards_present"], manifest.bytes


def _write(layout: Layout, _: str) -> tuple[int, int]:
    """The shard's bytes in another file, as plainly as can be; they are read in pieces for it."""
    return _copy(layout.tfds_embeddings(_VECTORS).only, layout.root / "plain")


def _copy_tar(layout: Layout, _: str) -> tuple[int, int]:
    return _copy(layout.images_tar(_PICTURES), layout.root / "plain")


def _copy(path: Path, to: Path) -> tuple[int, int]:
    with path.open("rb", buffering=0) as read, to.open("wb", buffering=0) as written:
        # Not shutil.copyfile, which has the kernel copy, so that no byte of it is ever looked at.
        shutil.copyfileobj(read, written, _PIECE_BYTES)
        os.fsync(written.fileno())
    return 0, path.stat().st_size


def _copy_tar_with_checksums(layout: Layout, _: str) -> tuple[int, int]:
    """As :func:`_copy_tar`, with what a shard's checksums cost, and nothing else of it.

    They are the XXH3 that the tar is held against, the crc32c of each record, and the BLAKE3 by which the
    shard is named.
    """
    path = layout.images_tar(_PICTURES)
    each = path.stat().st_size // _ROWS_PER_SHARD
    held, named = xxhash.xxh3_128(), blake3()
    with (
        path.open("rb", buffering=0) as read,
        (layout.root / "plain").open("wb", buffering=0) as written,
    ):
        while piece := read.read(_PIECE_BYTES):
            held.update(piece)
            for first in range(0, len(piece), each):
                google_crc32c.value(piece[first : first + each])
            named.update(piece)
            written.write(piece)
        os.fsync(written.fileno())
    return 0, path.stat().st_size


def _part(layout: Layout, source: str) -> Manifest:
    part = check_part(
        _PART,
        layout,
        location=f"{source}/{_PART}.parquet",
        source_schema="laion400m",
        rows_per_shard=_ROWS_PER_SHARD,
    )
    plan_shards(layout, (_PART,), rows_per_shard=_ROWS_PER_SHARD)
    return part


def _parts(layout: Layout, source: str) -> tuple[int, int]:
    """Every raw file as a part."""
    made = [
        check_part(
            path.stem,
            layout,
            location=str(path),
            source_schema="laion400m",
            rows_per_shard=_ROWS_PER_SHARD,
        )
        for path in sorted(Path(source).glob("part-*.parquet"))
    ]
    return sum(manifest.rows for manifest in made), sum(manifest.bytes for manifest in made)


def _search_duplicates(layout: Layout, _: str) -> tuple[int, int]:
    """What is repeated in all parts; the counts have to be those that make_parts made."""
    manifest = search_duplicates(layout, Thresholds())
    counts, each = manifest.counts, manifest.rows // 2
    expected = {"url_repeated_across_parts": each // 200, "pair_repeated": 2 * (each // 100) + each // 200}
    if any(counts[name] != count for name, count in expected.items()):
        raise RuntimeError(f"{counts}, not {expected}")
    return manifest.rows, manifest.bytes


def _split(layout: Layout, _: str) -> tuple[int, int]:
    """Every shard of the part, in one pass over it."""
    shards = ShardPlan.load(layout).shards
    made = [write_samples(shard, layout) for shard in shards]
    return sum(manifest.rows for manifest in made), sum(manifest.bytes for manifest in made)


def _split_by_pyarrow(layout: Layout, _: str) -> tuple[int, int]:
    """The part's row groups in a file each, written as our samples are; no keys, no checksums, no syncing."""
    (layout.root / "plain").mkdir()
    rows = size = 0
    with pq.ParquetFile(layout.raw_table(_PART), page_checksum_verification=True) as part:
        for group in range(part.num_row_groups):
            path = layout.root / "plain" / f"{group:05d}.parquet"
            table = part.read_row_group(group)
            pq.write_table(
                table,
                path,
                compression="zstd",
                use_dictionary=["LICENSE", "NSFW"],
                write_statistics=False,
                write_page_checksum=True,
            )
            rows, size = rows + table.num_rows, size + path.stat().st_size
    return rows, size


def _copy_by_duckdb(layout: Layout, source: str) -> tuple[int, int]:
    """The part's rows in another Parquet file, in row groups of a shard's rows and compressed alike."""
    to = layout.root / "copy.parquet"
    with duckdb.connect(config={"threads": 1}) as connection:
        connection.execute(
            f"COPY (SELECT * FROM '{source}/{_PART}.parquet') TO '{to}' "
            f"(FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {_ROWS_PER_SHARD})"
        )
    return pq.ParquetFile(to).metadata.num_rows, to.stat().st_size


STEPS: Final = {
    "check": _step(
        lambda layout, source: check_embeddings(_VECTORS, layout, source, EMBEDDING_WIDTH, Thresholds())
    ),
    "join": _step(lambda layout, _: join_embeddings(_VECTORS, layout, Thresholds())),
    "normalize_embeddings": _step(lambda layout, _: normalize_embeddings(_VECTORS, layout)),
    "tfds_embeddings": _step(lambda layout, _: write_tfds_embeddings(_VECTORS, layout)),
    "write": _write,
    "link": _link,
    "normalize_images": _step(lambda layout, _: normalize_images(_PICTURES, layout)),
    "normalize_and_decode": _step(lambda layout, _: normalize_images(_PICTURES, layout, decode=True)),
    "tfds_images": _step(lambda layout, _: write_tfds_images(_PICTURES, layout)),
    "copy": _copy_tar,
    "copy_with_checksums": _copy_tar_with_checksums,
    "link_published": _link_published,
    "withdraw": _withdraw,
    "publish": _publish,
    "part": _step(_part),
    "parts": _parts,
    "duplicates": _search_duplicates,
    "split": _split,
    "pyarrow": _split_by_pyarrow,
    "duckdb": _copy_by_duckdb,
}

if __name__ == "__main__":
    main()
