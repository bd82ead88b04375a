"""A progress bar over the partitions of a build."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from laion_assets.defs.build import Request, pending
from laion_assets.defs.recording import Watcher
from laion_assets.errors import LaionAssetsError
from laion_assets.formats.publish import Manifest
from laion_assets.pipeline import Stage
from laion_assets.settings import Settings


class ProgressBar(Watcher):
    """Moves a bar by one for each partition that ends."""

    def __init__(self, progress: Progress, settings: Settings, request: Request) -> None:
        self._progress = progress
        self._settings = settings
        self._request = request
        self._task = progress.add_task("starting", total=pending(settings, request))

    def partition_ended(self, stage: Stage, key: str, outcome: Manifest | LaionAssetsError) -> None:
        """Move the bar and name the partition."""
        name = stage.name if key == stage.name else f"{stage.name} {key}"
        failed = "" if isinstance(outcome, Manifest) else " failed"
        self._progress.update(self._task, advance=1, description=f"{name}{failed}")
        if stage.name == "shard_plan":
            # Only now is it known how many shards there are.
            done = self._progress.tasks[self._task].completed
            self._progress.update(self._task, total=done + pending(self._settings, self._request))


@contextmanager
def showing_progress(settings: Settings, request: Request, console: Console) -> Iterator[ProgressBar]:
    """A watcher whose bar is drawn while the block runs; on no terminal, only its end is printed."""
    columns = (
        TextColumn("{task.description:<32}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        yield ProgressBar(progress, settings, request)
