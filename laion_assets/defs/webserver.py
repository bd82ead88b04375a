"""What makes Dagster's webserver slow where assets have tens of thousands of partitions, made quick.

With 41,455 shards and the checks of a shard, the asset graph is a million partition keys. Dagster 1.13.27
with graphql-core 3.2 goes through them one by one to find out that each is a string, and makes and validates
a partitions definition anew wherever it needs one. That is replaced in the process of a webserver, which
Dagster names to its storages; the answers are the same.
"""

from collections.abc import Awaitable, Iterable
from functools import cached_property, lru_cache
from typing import Any, Final

import dagster as dg
from dagster._core.definitions.partitions.snap import StaticPartitionsSnap
from graphql import FieldNode, GraphQLList, GraphQLNonNull, GraphQLResolveInfo, GraphQLString
from graphql.execution import ExecutionContext
from graphql.pyutils import Path

# More than a code location has assets and checks with partitions, and sets of partitions.
_SNAPSHOTS: Final = 256
_DEFINITIONS: Final = 16

_complete_list_value = ExecutionContext.complete_list_value


class _Same:
    """A snapshot as the key of a cache: found again by what it is, since its keys take long to compare."""

    __slots__ = ("snapshot",)

    def __init__(self, snapshot: StaticPartitionsSnap) -> None:
        self.snapshot = snapshot

    def __hash__(self) -> int:
        return id(self.snapshot)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.snapshot is other.snapshot


def quicken() -> None:
    """Replace them in this process."""
    ExecutionContext.complete_list_value = complete_list_value  # type: ignore[assignment, method-assign]
    StaticPartitionsSnap.get_partitions_definition = partitions_definition  # type: ignore[method-assign]


class Definition(dg.StaticPartitionsDefinition):
    """A definition of Dagster's that works out once what it is asked for with every answer."""

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        # That of an equal definition of Dagster's own, which has its class's name in it.
        return hash(dg.StaticPartitionsDefinition(self.get_partition_keys()))

    def __str__(self) -> str:
        return self._text

    @cached_property
    def _text(self) -> str:
        return super().__str__()


def complete_list_value(
    self: ExecutionContext,
    return_type: GraphQLList[Any],
    field_nodes: list[FieldNode],
    info: GraphQLResolveInfo,
    path: Path,
    result: Iterable[object],
) -> Awaitable[list[object]] | list[object]:
    """As graphql-core's; a list that holds strings and nothing else is the answer already."""
    item = return_type.of_type
    if isinstance(item, GraphQLNonNull):
        item = item.of_type
    if item is GraphQLString and isinstance(result, list) and set(map(type, result)) == {str}:
        return result
    return _complete_list_value(self, return_type, field_nodes, info, path, result)


def partitions_definition(self: StaticPartitionsSnap) -> dg.StaticPartitionsDefinition:
    """As Dagster's; neither the snapshot nor its definition ever changes, so one is made of each."""
    return _of_snapshot(_Same(self))


@lru_cache(maxsize=_SNAPSHOTS)
def _of_snapshot(same: _Same) -> dg.StaticPartitionsDefinition:
    return _of_keys(tuple(same.snapshot.partition_keys))


@lru_cache(maxsize=_DEFINITIONS)
def _of_keys(keys: tuple[str, ...]) -> dg.StaticPartitionsDefinition:
    # Without those that are there twice, as Dagster does.
    return Definition(list(dict.fromkeys(keys)))
