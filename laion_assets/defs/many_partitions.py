"""Partitions definitions of tens of thousands of keys, made once.

Dagster 1.13.27 makes and validates a partitions definition anew for each asset and each check wherever it
needs one, and spells out all its keys whenever it is hashed. A daemon that launches a run over 25 of 41,455
shards spends 3.5 CPU seconds on that, of 5 that the launch takes.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, lru_cache
from typing import Final, Self

import dagster as dg
from dagster._core.definitions.partitions.snap import StaticPartitionsSnap
from dagster._core.definitions.partitions.subset import DefaultPartitionsSubset, PartitionsSubset

# More than a code location has assets and checks with partitions, and sets of partitions.
_SNAPSHOTS: Final = 256
_DEFINITIONS: Final = 16
# Of 41,455 partitions, one takes 5 MB; most assets have the same, for everything is there.
_SUBSETS: Final = 16


class StaticPartitionsDefinition(dg.StaticPartitionsDefinition):
    """Dagster's, which works out once what it is asked for again and again.

    Of the same name, since that is a part of the text that is hashed, and of what Dagster writes down.
    """

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash(repr(self))  # as Dagster's own

    def __str__(self) -> str:
        return self._text

    @cached_property
    def _text(self) -> str:
        return super().__str__()

    def get_serializable_unique_identifier(self) -> str:
        """A digest of all keys."""
        return self._identifier

    @cached_property
    def _identifier(self) -> str:
        return super().get_serializable_unique_identifier()

    def deserialize_subset(self, serialized: str) -> PartitionsSubset:
        """Partitions that were written down; those of the same text are the same."""
        return _subset(serialized)


class OrderedKeys(frozenset[str]):
    """Keys that come in order: they are sorted for every answer, which is then quick."""

    _order: Sequence[str]

    def __new__(cls, keys: Iterable[str]) -> Self:
        """Of keys in any order, none of them twice."""
        ordered = super().__new__(cls, keys)
        ordered._order = sorted(keys)
        return ordered

    def __iter__(self) -> Iterator[str]:
        return iter(self._order)


@lru_cache(maxsize=_SUBSETS)
def _subset(serialized: str) -> PartitionsSubset:
    # Dagster's own looks at nothing of the definition.
    read = DefaultPartitionsSubset.from_serialized(dg.StaticPartitionsDefinition([]), serialized)
    return DefaultPartitionsSubset(OrderedKeys(read.get_partition_keys()))


class _Same:
    """A snapshot as the key of a cache: found again by what it is, since its keys take long to compare."""

    __slots__ = ("snapshot",)

    def __init__(self, snapshot: StaticPartitionsSnap) -> None:
        self.snapshot = snapshot

    def __hash__(self) -> int:
        return id(self.snapshot)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.snapshot is other.snapshot


def remember_definitions() -> None:
    """In this process, have each snapshot's definition made once."""
    StaticPartitionsSnap.get_partitions_definition = partitions_definition  # type: ignore[method-assign]


def partitions_definition(self: StaticPartitionsSnap) -> dg.StaticPartitionsDefinition:
    """As Dagster's; neither the snapshot nor its definition ever changes, so one is made of each."""
    return _of_snapshot(_Same(self))


@lru_cache(maxsize=_SNAPSHOTS)
def _of_snapshot(same: _Same) -> dg.StaticPartitionsDefinition:
    return _of_keys(tuple(same.snapshot.partition_keys))


@lru_cache(maxsize=_DEFINITIONS)
def _of_keys(keys: tuple[str, ...]) -> dg.StaticPartitionsDefinition:
    # Without those that are there twice, as Dagster does.
    return StaticPartitionsDefinition(list(dict.fromkeys(keys)))
