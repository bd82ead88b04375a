"""Which rows of which part make which shard. Only ever appended to: a shard keeps its number and rows."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from itertools import chain
from pathlib import Path
from typing import Final

import pyarrow as pa

from laion_assets.errors import CorruptManifest, MissingInput, PlanError
from laion_assets.formats.publish import bring
from laion_assets.formats.sealed import fingerprint, seal, unseal
from laion_assets.keys import sample_keys
from laion_assets.layout import Layout, ShardId

_PLAN_FORMAT: Final = 2
_READ_FORMATS: Final = (1, _PLAN_FORMAT)
_IMAGE_TABLE: Final = re.compile(r"([0-9]{5,9})\.parquet")


@dataclass(frozen=True, kw_only=True)
class PlanEntry:
    """One part and the shards it makes: ``shards`` numbers from ``first_shard``, the last one short.

    Attributes:
        part: name of the part.
        sha256: of the part's raw file, hexadecimal.
        rows: rows of the part.
        first_shard: number of its first shard.
        shards: how many shards it makes.
    """

    part: str
    sha256: str
    rows: int
    first_shard: int
    shards: int

    @property
    def shard_numbers(self) -> range:
        """Numbers of its shards."""
        return range(self.first_shard, self.first_shard + self.shards)


@dataclass(frozen=True, kw_only=True)
class RowRange:
    """Rows ``first`` to ``first + rows`` of one part."""

    part: str
    first: int
    rows: int


@dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """The plan of one data root.

    Attributes:
        rows_per_shard: rows of every shard but the last of each part.
        entries: the parts, in the order in which they were added.
        placed: numbers of shards that img2dataset made and that no part accounts for, ascending.
    """

    rows_per_shard: int
    entries: tuple[PlanEntry, ...] = ()
    placed: tuple[int, ...] = ()

    @property
    def shards(self) -> tuple[ShardId, ...]:
        """Every shard, ascending."""
        return tuple(map(ShardId, self.shard_numbers))

    @property
    def shard_numbers(self) -> list[int]:
        """Number of every shard, ascending."""
        return sorted([*chain.from_iterable(entry.shard_numbers for entry in self.entries), *self.placed])

    @property
    def shard_count(self) -> int:
        """Total that the datasets' file names carry: one more than the highest shard number."""
        return max(self.shard_numbers, default=-1) + 1

    @property
    def key_digits(self) -> int:
        """Digits of a row within a key: img2dataset's ``ceil(log10(rows per shard))``."""
        return len(str(self.rows_per_shard - 1))

    @cached_property
    def stable_version(self) -> str:
        """Data version that stays the same while the plan is only appended to."""
        return fingerprint({"rows_per_shard": self.rows_per_shard})

    def keys(self, shard: ShardId, rows: int) -> pa.Array:
        """Keys of a shard's first rows, as img2dataset writes them (``000120034`` is row 34 of shard 12)."""
        return sample_keys(shard, rows, row_digits=self.key_digits)

    def rows_of(self, shard: ShardId) -> RowRange | None:
        """Where a shard's rows lie; None for a shard that img2dataset made.

        Raises:
            PlanError: if the plan has no such shard.
        """
        for entry in self.entries:
            index = shard.number - entry.first_shard
            if 0 <= index < entry.shards:
                first = index * self.rows_per_shard
                return RowRange(
                    part=entry.part, first=first, rows=min(self.rows_per_shard, entry.rows - first)
                )
        if shard.number in self.placed:
            return None
        raise PlanError(f"the plan has no shard {shard}; it has {len(self.shards)}")

    def shards_of(self, part: str) -> tuple[ShardId, ...]:
        """The shards that a part makes; none for a part not planned yet."""
        return tuple(
            ShardId(number) for entry in self.entries if entry.part == part for number in entry.shard_numbers
        )

    def with_part(self, part: str, *, sha256: str, rows: int) -> ShardPlan:
        """This plan with one part more; the same plan if it is already there.

        Raises:
            PlanError: if the part is there with other content.
        """
        for entry in self.entries:
            if entry.part == part:
                if (entry.sha256, entry.rows) == (sha256, rows):
                    return self
                raise PlanError(
                    f"part {part} changed after it was planned: its shards hold {entry.rows} rows of a file "
                    f"with sha256 {entry.sha256}, now it is {rows} rows and {sha256}. Restore the file, or "
                    f"give the new one another name."
                )
        count = -(-rows // self.rows_per_shard)
        entry = PlanEntry(part=part, sha256=sha256, rows=rows, first_shard=self.shard_count, shards=count)
        return replace(self, entries=(*self.entries, entry))

    def with_placed(self, numbers: Iterable[int]) -> ShardPlan:
        """This plan with shards that img2dataset made, those of a part left out."""
        known = {shard.number for shard in self.shards}
        return replace(self, placed=tuple(sorted({*self.placed, *(set(numbers) - known)})))

    def to_json(self) -> bytes:
        """The plan's file; equal plans, equal bytes."""
        return seal({"format": _PLAN_FORMAT, **asdict(self)})

    @classmethod
    def load(cls, layout: Layout) -> ShardPlan:
        """Read the plan of a data root.

        Raises:
            MissingInput: if there is none yet.
            CorruptManifest: if the file is no plan.
        """
        output = layout.shard_plan()
        path = output.only
        try:
            if output.store:
                bring(output)
            data = path.read_bytes()
        except FileNotFoundError:
            raise MissingInput(f"there is no shard plan yet ({path}): materialize shard_plan first") from None
        try:
            return _parse(data)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise _corrupt(layout, error) from error


# The plan is read for each shard.
@lru_cache(maxsize=2)
def _parse(data: bytes) -> ShardPlan:
    document = unseal(data)
    if document.pop("format") not in _READ_FORMATS:
        raise ValueError("another format")
    return ShardPlan(
        rows_per_shard=int(document["rows_per_shard"]),
        entries=tuple(PlanEntry(**entry) for entry in document["entries"]),
        placed=tuple(map(int, document["placed"])),
    )


def find_placed(layout: Layout) -> list[int]:
    """Numbers of the shards whose table is in the images folder, whoever wrote it, ascending."""
    return placed_among(names_in(layout.images_folder))


def names_in(folder: Path) -> Iterator[str]:
    """Names of what a folder holds, if it is there; paths of a hundred thousand files would take seconds."""
    if folder.is_dir():
        with os.scandir(folder) as entries:
            yield from (entry.name for entry in entries)


def placed_among(names: Iterable[str]) -> list[int]:
    """Numbers of the shards whose tables are among file names of the images folder, ascending."""
    matches = map(_IMAGE_TABLE.fullmatch, names)
    return sorted(int(match[1]) for match in matches if match)


def _corrupt(layout: Layout, error: Exception) -> CorruptManifest:
    return CorruptManifest(
        layout.shard_plan().only,
        expected=f"a shard plan of format {_PLAN_FORMAT}",
        found=f"{type(error).__name__}: {error}",
        remedy="Restore it from a copy: shard numbers cannot be told from the data alone.",
    )
