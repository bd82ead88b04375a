"""When pictures were downloaded and what each stage took, from manifests and the downloads' own statistics.

That differs from run to run, so it is no part of the data set's figures.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from laion_assets.layout import Layout, ShardId
from laion_assets.published import Manifests, manifests_of_everything

UNKNOWN_DAY = "unknown"


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one partition took.

    Attributes:
        rows: rows it holds.
        seconds: wall-clock time of the run that made it.
        bytes: size of its files.
    """

    rows: int
    seconds: float
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Runs:
    """What made the data set.

    Attributes:
        costs: stage -> partition -> what it took.
        downloaded: day (UTC, ISO 8601) on which a download ended -> rows of its shards, ascending; those
            of shards that do not say are of :data:`UNKNOWN_DAY`.
    """

    costs: Mapping[str, Mapping[str, Cost]]
    downloaded: Mapping[str, int]


def runs_of(layout: Layout, manifests: Manifests | None = None) -> Runs:
    """What every manifest says, and the statistics of every image shard.

    Args:
        layout: where the data set is.
        manifests: of everything, where they were read already.

    Raises:
        CorruptManifest: if a manifest cannot be read.
    """
    costs = {
        stage: {
            key: Cost(rows=manifest.rows, seconds=manifest.seconds, bytes=manifest.bytes)
            for key, manifest in found.items()
        }
        for stage, found in (manifests or manifests_of_everything(layout)).items()
    }
    downloaded: Counter[str] = Counter()
    for key, cost in costs["images"].items():
        downloaded[_day_of(layout, ShardId.parse(key))] += cost.rows
    return Runs(costs=costs, downloaded=dict(sorted(downloaded.items())))


def _day_of(layout: Layout, shard: ShardId) -> str:
    """When img2dataset, or this project in its words, says that it ended."""
    try:
        ended = float(json.loads(layout.images_stats(shard).read_bytes())["end_time"])
        return datetime.fromtimestamp(ended, UTC).date().isoformat()
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return UNKNOWN_DAY  # others may have written them
