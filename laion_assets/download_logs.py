"""The logs of a shard's download, which differ from run to run: the requests and img2dataset's stats."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pyarrow as pa

from laion_assets.download import Download
from laion_assets.formats import arrow, parquet
from laion_assets.formats.publish import Tally
from laion_assets.outcomes import Status
from laion_assets.placed_images import WRITER
from laion_assets.schema import REQUESTS

# img2dataset's status_dict has an entry for each message, without end.
_MOST_MESSAGES: Final = 100
_OTHER_MESSAGES: Final = "other messages"
_MOST_MILLISECONDS: Final = 2**31 - 1


def write_requests(path: Path, keys: pa.ChunkedArray, outcomes: Sequence[Download]) -> None:
    """What differs from run to run of a row, which is why it is not in its table."""
    attempts = [outcome.attempts for outcome in outcomes]
    milliseconds = [min(outcome.milliseconds, _MOST_MILLISECONDS) for outcome in outcomes]
    columns = [
        keys,
        arrow.column(attempts, REQUESTS.field("attempts").type),
        arrow.column(milliseconds, REQUESTS.field("milliseconds").type),
    ]
    parquet.write_table(path, pa.table(columns, schema=REQUESTS), REQUESTS)


def write_stats(
    path: Path, tally: Tally, outcomes: Sequence[Download], start_time: float, duration: float
) -> None:
    """Counts and times in img2dataset's words; its own readers pass over a file that lacks one of them.

    The times are those of the run that published the shard: of one that went on with a journal, what was
    left to do.
    """
    messages = Counter(outcome.message or str(outcome.status) for outcome in outcomes)
    ranked = sorted(messages.items(), key=lambda entry: (-entry[1], entry[0]))
    status_dict = dict(ranked[:_MOST_MESSAGES])
    if len(ranked) > _MOST_MESSAGES:
        status_dict[_OTHER_MESSAGES] = sum(count for _, count in ranked[_MOST_MESSAGES:])
    stats = {
        "count": tally.rows,
        "successes": tally.counts[Status.SUCCESS],
        "failed_to_download": tally.counts[Status.FAILED_TO_DOWNLOAD],
        "failed_to_resize": tally.counts[Status.FAILED_TO_RESIZE],
        "duration": duration,
        "start_time": start_time,
        "end_time": start_time + duration,
        "status_dict": status_dict,
        "bytes_downloaded": tally.counts["bytes_downloaded"],
        "writer": WRITER,
    }
    path.write_text(json.dumps(stats, indent=4) + "\n", encoding="utf-8")
