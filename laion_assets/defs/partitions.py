"""The three sets of partitions and how they map onto each other. No asset bodies here."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import dagster as dg

from laion_assets.defs.many_partitions import StaticPartitionsDefinition
from laion_assets.partitions import Axis, Partitions
from laion_assets.pipeline import STAGE_BY_NAME, Stage


@dataclass(frozen=True)
class PartitionSets:
    """Dagster's view of :class:`~laion_assets.partitions.Partitions`.

    Static sets, read when the code location loads: with tens of thousands of keys they load and answer far
    faster than dynamic ones. A plan that grew therefore needs a reload.
    """

    found: Partitions

    def definition(self, axis: Axis) -> dg.StaticPartitionsDefinition | None:
        """The partitions of one axis; None where it has none."""
        return self._definitions.get(axis)

    @cached_property
    def _definitions(self) -> dict[Axis, dg.StaticPartitionsDefinition]:
        # Made once: every asset and check of an axis shares its tens of thousands of keys.
        return {
            axis: StaticPartitionsDefinition(list(self.found.keys(axis)))
            for axis in Axis
            if axis is not Axis.NONE
        }

    def deps(self, stage: Stage) -> list[dg.AssetDep]:
        """Every input of a stage, each with its mapping: left out, identity would be assumed silently."""
        return [
            dg.AssetDep(name, partition_mapping=self._mapping(STAGE_BY_NAME[name], stage))
            for name in stage.inputs
        ]

    def _mapping(self, upstream: Stage, stage: Stage) -> dg.PartitionMapping | None:
        if upstream.axis is Axis.NONE:
            return None
        if upstream.axis is stage.axis:
            return dg.IdentityPartitionMapping()
        if (upstream.axis, stage.axis) == (Axis.PART, Axis.SHARD):
            shards = defaultdict[str, list[str]](list)
            for shard, part in self.found.part_of.items():
                shards[part].append(shard)
            return dg.StaticPartitionMapping(shards)
        return dg.AllPartitionMapping()


def range_tags(keys: Iterable[str]) -> dict[str, str]:
    """Tags of a run over partitions that follow each other."""
    first, *rest = keys
    if not rest:
        return {"dagster/partition": first}
    return {
        "dagster/asset_partition_range_start": first,
        "dagster/asset_partition_range_end": rest[-1],
    }


def keys_of_run(tags: dict[str, str], definition: dg.PartitionsDefinition | None) -> list[str] | None:
    """Partition keys that a run was asked for; None where the asset has no partitions.

    Raises:
        dagster.Failure: if it was asked for none.
    """
    if definition is None:
        return None
    if (key := tags.get("dagster/partition")) is not None:
        return [key]
    if "dagster/asset_partition_range_start" not in tags:
        raise dg.Failure(
            "no partition was chosen, and 'Execute all' of an asset's checks lets nobody choose one: launch "
            "check_parts, check_shards or check_embedding_shards from the jobs",
            allow_retries=False,
        )
    bounds = dg.PartitionKeyRange(
        tags["dagster/asset_partition_range_start"], tags["dagster/asset_partition_range_end"]
    )
    return list(definition.get_partition_keys_in_range(bounds))
