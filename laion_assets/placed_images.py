"""Shards that img2dataset itself wrote, placed in the images folder: are they whole, do they belong together?

Such a shard is taken as it is and never written to. Columns that it lacks beside url, key and status
(not all are always saved) count as missing values when its rows are normalized.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from laion_assets.errors import CorruptManifest, CorruptParquet, MisalignedShard, MissingInput
from laion_assets.formats import parquet
from laion_assets.formats.publish import Recipe, Tally, bring, read_manifest
from laion_assets.formats.tar_headers import Member
from laion_assets.formats.webdataset import index_tar
from laion_assets.formats.webdataset import is_ours as is_our_tar
from laion_assets.image import STORED_EXTENSIONS
from laion_assets.keys import check_unique, global_keys, spelled_keys
from laion_assets.layout import Layout, ShardId
from laion_assets.outcomes import OUTCOME_PREFIX, Outcome, Status
from laion_assets.schema import IMAGES_IMG2DATASET, SAMPLES

# A placed shard stays what it is, whatever becomes of our settings and code.
PLACED: Final = Recipe(code_version="placed", settings="img2dataset")

# In the statistics of the shards we download.
WRITER: Final = "laion_assets"

_OURS: Final = (*IMAGES_IMG2DATASET.names, "outcome", "http_status")
_REQUIRED: Final = ("url", "key", "status")
_REMEDY: Final = (
    "Place the three files that img2dataset wrote for this shard again, or remove them to have the shard "
    "downloaded."
)


def is_placed(shard: ShardId, layout: Layout) -> bool:
    """Whether the files under the shard's names are img2dataset's.

    Files that a killed run of ours left, or that we published and that were damaged since, are not.
    """
    try:
        manifest = read_manifest(layout.images(shard))
    except CorruptManifest:
        manifest = None
    if manifest is not None:
        # Over what we published, three files of img2dataset's may have been laid down.
        return manifest.recipe == PLACED or _is_foreign_stats(layout.images_stats(shard))
    checks = {
        layout.images_tar(shard): is_our_tar,
        layout.images_table(shard): _is_our_table,
        layout.images_stats(shard): _is_our_stats,
    }
    return any(path.is_file() and not is_ours(path) for path, is_ours in checks.items())


def check_placed(shard: ShardId, layout: Layout) -> Tally:
    """Prove that a placed shard is whole.

    Its table must be readable and have url, key and status; each success must have one picture in the
    tar, and each picture a success; keys may be local to the shard or global, rows in any order. Where the
    shard's samples are published, its rows must have their URLs.

    Raises:
        MissingInput: if one of the three files is not there.
        CorruptParquet, CorruptTar: if one is damaged or cut short.
        MisalignedShard: if they do not belong together.
    """
    _check_presence(shard, layout)
    path = layout.images_table(shard)
    rows = _read_rows(path)
    index = index_tar(layout.images_tar(shard))
    stems = spelled_keys(rows["key"], index)
    keys = global_keys(stems, shard, path)
    check_unique(keys, path)
    statuses = _count_statuses(path, rows["status"])
    _check_stats(layout.images_stats(shard), rows.num_rows, statuses)
    successes = stems.filter(pc.equal(rows["status"], Status.SUCCESS).combine_chunks()).to_pylist()
    _check_pictures(layout.images_tar(shard), set(successes), index)
    _check_urls(shard, layout, pa.table({"key": keys, "url": rows["url"]}))
    outcomes = {
        f"{OUTCOME_PREFIX}{Outcome.SUCCESS}": statuses[Status.SUCCESS],
        f"{OUTCOME_PREFIX}{Outcome.OTHER}": rows.num_rows - statuses[Status.SUCCESS],
    }
    counts = {str(status): statuses[status] for status in Status}
    return Tally(
        rows=rows.num_rows, counts=counts | {name: count for name, count in outcomes.items() if count}
    )


def _check_presence(shard: ShardId, layout: Layout) -> None:
    output = layout.placed_images(shard)
    missing = [name for name in output.names if not output.path(name).is_file()]
    if missing:
        raise MissingInput(
            f"{output.folder} has img2dataset's files of shard {shard}, but not {', '.join(missing)}. "
            f"{_REMEDY} img2dataset writes {layout.images_stats(shard).name} last: without it the shard was "
            "never finished."
        )


def _read_rows(path: Path) -> pa.Table:
    with parquet.open_reader(path) as reader:
        names = reader.schema_arrow.names
        missing = [name for name in _REQUIRED if names.count(name) != 1]
        if missing:
            raise CorruptParquet(
                path,
                expected=f"img2dataset's columns {', '.join(_REQUIRED)}, each once",
                found=", ".join(names)[:300],
                remedy=_REMEDY,
            )
        # Every column is decoded, so that damage shows here and not in a later stage.
        rows = reader.read()
        key_type = pa.int64() if pa.types.is_integer(rows["key"].type) else pa.string()
        columns = {
            "url": rows["url"].cast(pa.string()).combine_chunks(),
            "key": rows["key"].cast(key_type).combine_chunks(),
            "status": rows["status"].cast(pa.string()).combine_chunks(),
        }
        return pa.table(columns)


def _count_statuses(path: Path, statuses: pa.ChunkedArray) -> Counter[str]:
    counts = Counter(statuses.to_pylist())
    unknown = [status for status in counts if status not in set(Status)]
    if unknown:
        raise _misaligned(path, f"statuses {', '.join(Status)}", repr(unknown[0])[:60])
    return counts


def _check_stats(path: Path, rows: int, statuses: Counter[str]) -> None:
    stats = _read_json(path)
    if not isinstance(stats, dict):
        raise _misaligned(path, "img2dataset's statistics, a JSON object", "something else")
    for name, count in (("count", rows), ("successes", statuses[Status.SUCCESS])):
        if stats.get(name, count) != count:
            raise _misaligned(path, f"{name} {count}, as in the table", repr(stats[name])[:60])


def _check_pictures(tar: Path, successes: set[str], index: dict[str, dict[str, Member]]) -> None:
    for stem, members in index.items():
        pictures = [extension for extension in STORED_EXTENSIONS if extension in members]
        if stem not in successes:
            raise _misaligned(tar, "pictures of the table's successes only", f"members of {stem}")
        if len(pictures) != 1:
            raise _misaligned(tar, f"one picture for {stem}", f"{len(pictures)}: {sorted(members)}"[:200])
    if len(index) < len(successes):
        missing = min(successes - index.keys())
        count = len(successes) - len(index)
        raise _misaligned(
            tar, "a picture for each success", f"none for {missing}, and {count} missing in all"
        )


def _check_urls(shard: ShardId, layout: Layout, placed: pa.Table) -> None:
    """Compare with the shard's samples, if they are published, row by row in the order of the keys."""
    output = layout.samples(shard)
    if read_manifest(output) is None:
        return
    bring(output)
    samples = parquet.read_table(output.only, SAMPLES, columns=["key", "url"], and_more=True).sort_by("key")
    path = layout.images_table(shard)
    if samples.num_rows != placed.num_rows:
        raise _misaligned(path, f"{samples.num_rows} rows, as in {output.only}", str(placed.num_rows))
    found = placed.sort_by("key")["url"]
    same = pc.or_(
        pc.fill_null(pc.equal(found, samples["url"]), False),
        pc.and_(pc.is_null(found), pc.is_null(samples["url"])),
    )
    if not pc.all(same, min_count=0).as_py():
        different = len(same) - pc.sum(same).as_py()
        raise _misaligned(path, f"the URLs of {output.only}", f"{different} rows with other ones")


def _is_our_table(path: Path) -> bool:
    try:
        with parquet.open_reader(path) as reader:
            # As every version of ours begins; img2dataset's order is another.
            return tuple(reader.schema_arrow.names[: len(_OURS)]) == _OURS
    except CorruptParquet:
        return False


def _is_our_stats(path: Path) -> bool:
    stats = _read_json(path)
    return isinstance(stats, dict) and stats.get("writer") == WRITER


def _is_foreign_stats(path: Path) -> bool:
    return isinstance(_read_json(path), dict) and not _is_our_stats(path)


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return None


def _misaligned(path: Path, expected: str, found: str) -> MisalignedShard:
    return MisalignedShard(path, expected=expected, found=found, remedy=_REMEDY)
