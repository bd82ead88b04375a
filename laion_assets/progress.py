"""Progress bars over the partitions of a build, and over the download that is going on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column

from laion_assets.defs.recording import Watcher
from laion_assets.download_progress import DownloadProgress
from laion_assets.formats.publish import Manifest
from laion_assets.pipeline import Stage
from laion_assets.shard_work import Refusal

_SECONDS_PER_DRAWING: Final = 0.5


class ProgressBar(Watcher):
    """Moves a bar by one for each partition that ends; draws another one while a shard is downloaded.

    Args:
        progress: what draws the bar.
        count: says how many partitions are still to come, as far as is known.
    """

    def __init__(self, progress: Progress, count: Callable[[], int]) -> None:
        self._progress = progress
        self._count = count
        self._task = progress.add_task("starting", total=count(), told="")
        self._download: TaskID | None = None
        self._drawn_s = 0.0

    def partition_goes_on(self, stage: Stage, key: str, progress: DownloadProgress) -> None:
        """Draw how far a download is."""
        now = time.monotonic()
        if now - self._drawn_s < _SECONDS_PER_DRAWING:
            return
        self._drawn_s = now
        if self._download is None:
            self._download = self._progress.add_task(f"{stage.name} {key}", told="")
        self._progress.update(
            self._download, completed=progress.done, total=progress.total, told=progress.describe_rates()
        )

    def partition_ended(self, stage: Stage, key: str, outcome: Manifest | Refusal) -> None:
        """Move the bar and name the partition."""
        if self._download is not None:
            self._progress.remove_task(self._download)
            self._download = None
        name = stage.name if key == stage.name else f"{stage.name} {key}"
        failed = "" if isinstance(outcome, Manifest) else " failed"
        self._progress.update(self._task, advance=1, description=f"{name}{failed}")
        if stage.name == "shard_plan":
            # Only now is it known how many shards there are.
            done = self._progress.tasks[self._task].completed
            self._progress.update(self._task, total=done + self._count())


@contextmanager
def showing_progress(count: Callable[[], int], console: Console) -> Iterator[ProgressBar]:
    """A watcher whose bar is drawn while the block runs; on no terminal, only its end is printed."""
    columns = (
        TextColumn("{task.description:<32}", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        # What room is left; the rest of it is cut.
        TextColumn("{task.fields[told]}", markup=False, table_column=Column(ratio=1, no_wrap=True)),
    )
    with Progress(*columns, console=console, expand=console.is_terminal) as progress:
        yield ProgressBar(progress, count)
