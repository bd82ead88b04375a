"""Partition keys: what the plan and the sources have now, along each axis. Dagster is not known here."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from laion_assets.errors import MissingInput
from laion_assets.layout import shard_key
from laion_assets.plan import ShardPlan
from laion_assets.settings import Settings
from laion_assets.stages.embeddings import find_embedding_shards


class Axis(StrEnum):
    """What a stage's partitions are."""

    PART = "part"
    SHARD = "shard"
    EMBEDDING_SHARD = "embedding shard"
    NONE = "none"


@dataclass(frozen=True)
class Partitions:
    """Partition keys of each axis, ascending, as the files on disk have them now.

    Attributes:
        parts: the raw source's parts, and those planned earlier.
        shards: the plan's shards.
        embedding_shards: embedding shards found in their source.
        part_of: shard -> the part that holds its rows; shards made elsewhere have none.
    """

    parts: tuple[str, ...]
    shards: tuple[str, ...]
    embedding_shards: tuple[str, ...]
    part_of: Mapping[str, str]

    def keys(self, axis: Axis) -> tuple[str, ...]:
        """Keys of one axis; none where it has no partitions."""
        return {
            Axis.PART: self.parts,
            Axis.SHARD: self.shards,
            Axis.EMBEDDING_SHARD: self.embedding_shards,
            Axis.NONE: (),
        }[axis]


def find_partitions(settings: Settings) -> Partitions:
    """Read the plan, and look at the sources.

    Raises:
        SettingsError: if a source is named that is not there.
    """
    plan = read_plan(settings)
    part_of = {key: entry.part for entry in plan.entries for key in map(shard_key, entry.shard_numbers)}
    parts = dict.fromkeys([*(entry.part for entry in plan.entries), *settings.raw_files()])
    found = find_embedding_shards(settings.embeddings.source)
    return Partitions(
        parts=tuple(parts),
        shards=tuple(map(shard_key, plan.shard_numbers)),
        embedding_shards=tuple(str(shard) for shard in sorted(found)),
        part_of=MappingProxyType(part_of),
    )


def read_plan(settings: Settings) -> ShardPlan:
    """The plan of the data root; an empty one where there is none yet."""
    try:
        return ShardPlan.load(settings.layout)
    except MissingInput:
        return ShardPlan(rows_per_shard=settings.rows_per_shard)


def batches(every: Iterable[str], wanted: Collection[str], size: int) -> Iterator[list[str]]:
    """Wanted keys in runs of at most ``size`` that follow each other without a gap in ``every``."""
    batch: list[str] = []
    for key in every:
        if key not in wanted or len(batch) == size:
            if batch:
                yield batch
            batch = []
        if key in wanted:
            batch.append(key)
    if batch:
        yield batch
