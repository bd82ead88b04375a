"""A progress bar over the partitions of a build."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from laion_assets.defs.recording import Refusal, Watcher
from laion_assets.formats.publish import Manifest
from laion_assets.pipeline import Stage


class ProgressBar(Watcher):
    """Moves a bar by one for each partition that ends.

    Args:
        progress: what draws the bar.
        count: says how many partitions are still to come, as far as is known.
    """

    def __init__(self, progress: Progress, count: Callable[[], int]) -> None:
        self._progress = progress
        self._count = count
        self._task = progress.add_task("starting", total=count())

    def partition_ended(self, stage: Stage, key: str, outcome: Manifest | Refusal) -> None:
        """Move the bar and name the partition."""
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
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        yield ProgressBar(progress, count)
