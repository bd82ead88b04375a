"""How much room a build will need: judged by what is built already, else by what the formats take.

An estimate, for a person to see and for a build to refuse by before it starts. Knows nothing of Dagster.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final

from laion_assets.errors import DiskFull
from laion_assets.formats import tfds
from laion_assets.formats.durable import free_bytes
from laion_assets.formats.publish import done
from laion_assets.layout import ShardId
from laion_assets.partitions import Axis
from laion_assets.pipeline import STAGE_BY_NAME, Stage
from laion_assets.published import some_partitions
from laion_assets.settings import Settings
from laion_assets.stages.embeddings import find_embedding_shards

# Finished partitions that are enough to judge the others by.
_SAMPLE: Final = 20

# A row of a stage of which nothing is built yet. JPEGs of 256 pixels on the shorter side at quality 95 take
# about 30 kB, and two of three URLs still lead to one; TFDS writes float16 vectors as float32.
_TEXT_BYTES: Final = 250
_PICTURE_BYTES: Final = 20_000
_BYTES_PER_ELEMENT: Final[Mapping[str, int]] = MappingProxyType(
    {
        "embedding_join": 2 * 2,
        "tfds_embeddings": 2 * 4,
        "image_embeddings": 2 * 2,
        "tfds_image_embeddings": 2 * 4,
    }
)
_WITH_PICTURES: Final = ("images", "tfds_images", "tfds_image_embeddings")
# LAION-400M's largest raw file; a local one is looked at.
_PART_BYTES: Final = 1_700_000_000


def estimate(settings: Settings, missing: Mapping[str, int]) -> int:
    """Bytes that partitions still to be made will take below the data root.

    Args:
        settings: what the user set.
        missing: stage -> how many of its partitions.
    """
    return sum(
        int(count * _partition_bytes(settings, STAGE_BY_NAME[name]))
        for name, count in missing.items()
        if count
    )


def check_room(settings: Settings, missing: Mapping[str, int]) -> None:
    """Refuse what will not fit.

    Raises:
        DiskFull: if the data root's disk has less room than :func:`estimate` says, and ``check_space`` is on.
    """
    _check(settings, estimate(settings, missing))


def check_room_for_export(settings: Settings, shards: Mapping[tfds.Config, Sequence[ShardId]]) -> None:
    """Refuse an export that will not fit: a shard takes about as much room in Parquet as it does for TFDS.

    Raises:
        DiskFull: if the data root's disk has less room than that, and ``check_space`` is on.
    """
    layout = settings.layout
    missing = [
        done(layout.tfds_shard(config, shard))
        for config, found in shards.items()
        for shard in found
        if not layout.parquet_shard(config, shard).manifest.exists()
    ]
    _check(settings, sum(manifest.bytes for manifest in missing if manifest is not None))


def _check(settings: Settings, needed: int) -> None:
    if settings.store and settings.scratch_bytes:
        needed = min(needed, settings.scratch_bytes)
    free = free_bytes(settings.data_root)
    if settings.check_space and needed > free:
        raise DiskFull(
            f"about {needed:,} bytes will be written to {settings.data_root}, and {free:,} are free: make "
            "room, build fewer shards, or set check_space = false if you know better"
        )


def _partition_bytes(settings: Settings, stage: Stage) -> float:
    """What one partition of a stage takes, on average."""
    keys = some_partitions(settings.layout, stage.name, _SAMPLE)
    built = [manifest for key in keys if (manifest := done(stage.output(settings.layout, key)))]
    if built:
        return sum(manifest.bytes for manifest in built) / len(built)
    if stage.axis is Axis.PART:
        files = [Path(location) for location in settings.raw_files().values()]
        sizes = [file.stat().st_size if file.exists() else _PART_BYTES for file in files]
        return sum(sizes) / max(1, len(sizes))
    if stage.axis is Axis.NONE:
        return 0  # hard links, and a few small files
    pictures = _PICTURE_BYTES if stage.name in _WITH_PICTURES else 0
    vectors = _BYTES_PER_ELEMENT.get(stage.name, 0) * settings.embeddings.width
    return _rows(settings, stage.axis) * (_TEXT_BYTES + pictures + vectors)


def _rows(settings: Settings, axis: Axis) -> float:
    """Rows of a partition."""
    if axis is Axis.SHARD:
        return settings.rows_per_shard
    # Of float16; a release in float32 is taken to have twice its rows, which errs on the safe side.
    row_bytes = 2 * settings.embeddings.width
    sources = find_embedding_shards(settings.embeddings.source).values()
    sizes = [source.image_vectors.stat().st_size for source in sources if source.image_vectors.exists()]
    return sum(sizes) / row_bytes / max(1, len(sizes))
