"""Where the stages' work on the shards of a run is done: in its own process, in others, or on a Ray cluster.

What is handed over is a function and a partition's key; what comes back is a manifest, or a named error. Only
the run's process talks to Dagster, which is not known here. A worker that dies leaves what any kill leaves,
so that its shard can be handed out again.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from functools import cache
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from typing import Any, Final, TypeVar, cast

from laion_assets.decoding import cores
from laion_assets.download_progress import DownloadProgress, Follow, every
from laion_assets.errors import LaionAssetsError, SettingsError, WorkerLost
from laion_assets.formats.publish import Manifest
from laion_assets.pipeline import STAGE_BY_NAME, Stage
from laion_assets.quality.checks import Verdict, evaluate, rules_of
from laion_assets.scratch import trim_copies
from laion_assets.settings import RunSettings, Settings

Result = TypeVar("Result")

Refusal = LaionAssetsError | OSError
"""Why a partition is not there: its files are not right, or the disk, the folder or the limits are not."""

SECONDS_PER_LOG_LINE: Final = 30.0
"""How often a stage at work on one partition says how far it is; in Dagster each line is kept for good."""

_DOWNLOAD: Final = "images"


def make(
    stage: str,
    settings: Settings,
    key: str,
    *,
    retry: bool = False,
    follower: Callable[[Stage, str], Follow] | None = None,
) -> Manifest:
    """Run a stage on one partition.

    Args:
        stage: name of the stage.
        settings: what the user set.
        key: the partition.
        retry: do again only what failed and may not fail again, if the stage knows how.
        follower: makes what is told how far it is; by default lines on standard error.

    Raises:
        LaionAssetsError, OSError: if the partition is not there then.
    """
    trim_copies(settings)
    found = STAGE_BY_NAME[stage]
    run = found.retry if retry and found.retry is not None else found.follow
    if run is None:
        return found.run(settings, key)
    return run(settings, key, (follower or _on_standard_error)(found, key))


def check(stage: str, rules: Sequence[str], settings: Settings, key: str) -> dict[str, Verdict]:
    """Evaluate rules of a stage, given by name, on one partition.

    Raises:
        MissingInput: if the partition, or what a rule compares it with, is not published.
    """
    return {
        rule.name: evaluate(rule, settings.layout, settings.quality, key)
        for rule in rules_of(stage)
        if rule.name in rules
    }


def cores_of(stage: Stage, settings: Settings) -> int:
    """Cores that the work on one partition keeps busy."""
    return settings.run.cores_per_download if stage.name == _DOWNLOAD else 1


def settings_of_workers(settings: Settings) -> Settings:
    """The settings where several partitions are worked on at once: a download does not take all cores."""
    if settings.run.workers == "here" or settings.image.workers:
        return settings
    # One process speaks to the web, the others decode.
    workers = max(1, settings.run.cores_per_download - 1)
    return settings.model_copy(update={"image": settings.image.model_copy(update={"workers": workers})})


def map_shards(
    work: Callable[[str], Result], keys: Sequence[str], run: RunSettings, *, cores_each: int = 1
) -> Generator[tuple[str, Result | Refusal]]:
    """What the work on each key returned, or why it did not, as it ends; each key comes once.

    When the generator is closed, or fails, it first ends what it began; of Ray it only asks that.

    Args:
        work: called with a key; elsewhere than here it is pickled, and so is what it returns or raises.
        keys: what to call it with.
        run: where, and how much at once.
        cores_each: cores that one call keeps busy.

    Raises:
        SettingsError: if there is no Ray cluster, or none of its nodes has so many cores.
        Exception: whatever else than a refusal the work raises.
    """
    match run.workers:
        case "here":
            for key in keys:
                yield key, _attempt(work, key)
        case "processes":
            yield from _in_processes(work, keys, run, max(1, (run.cores or cores()) // cores_each))
        case "ray" if keys:
            yield from _on_ray(work, keys, run, cores_each)


def _attempt(work: Callable[[str], Result], key: str) -> Result | Refusal:
    try:
        return work(key)
    except (LaionAssetsError, OSError) as error:
        return error


def _on_standard_error(stage: Stage, key: str) -> Follow:
    def tell(progress: DownloadProgress) -> None:
        print(f"{stage.name} {key}: {progress.describe()}", file=sys.stderr, flush=True)

    return every(SECONDS_PER_LOG_LINE, tell)


# -- processes of this machine ----------------------------------------------------------------------------


@cache
def end_with_parent() -> None:
    """From now on, end this process at once when the one that started it ends, if that was Python's doing.

    Processes that Python starts, Dagster's runs among them, outlive a parent that is killed, and would write
    on beside the one that takes their place. A process that a person started is left alone.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def _in_processes(
    work: Callable[[str], Result], keys: Sequence[str], run: RunSettings, most: int
) -> Generator[tuple[str, Result | Refusal]]:
    # Not concurrent.futures, whose pool breaks as a whole when one of its processes dies.
    left, deaths = deque(keys), Counter[str]()
    idle: list[tuple[Connection, ForkServerProcess]] = []
    busy: dict[Connection, tuple[ForkServerProcess, str]] = {}
    try:
        while left or busy:
            while left and len(busy) < most:
                connection, process = idle.pop() if idle else _start(work)
                key = left.popleft()
                busy[connection] = process, key
                with suppress(BrokenPipeError):  # it died, which is seen below
                    connection.send(key)
            for connection in cast("list[Connection]", wait(list(busy))):
                process, key = busy[connection]
                try:
                    outcome = connection.recv()
                except (EOFError, ConnectionResetError):
                    process.join()
                    del busy[connection]
                    deaths[key] += 1
                    if deaths[key] <= run.retries:
                        left.append(key)
                        continue
                    outcome = _lost(key, deaths[key], f"the last one with exit code {process.exitcode}")
                else:
                    del busy[connection]
                    idle.append((connection, process))
                if isinstance(outcome, _Crash):
                    raise outcome.error
                yield key, outcome
    finally:
        for process in (*(process for _, process in idle), *(process for process, _ in busy.values())):
            process.kill()
            process.join()


def _start(work: Callable[[str], Any]) -> tuple[Connection, ForkServerProcess]:
    """A process that waits for keys, forked off one that has imported the stages and done nothing else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, work), name="shard-worker")
    process.start()
    theirs.close()
    return ours, process


def _serve(connection: Connection, work: Callable[[str], Any]) -> None:
    end_with_parent()
    # Ctrl+C reaches all processes of a terminal, and it is the run's that decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        key = connection.recv()
        try:
            outcome = _attempt(work, key)
        except Exception as error:  # noqa: BLE001 (raised by the run's process)
            error.add_note(traceback.format_exc())
            outcome = _Crash(error)
        connection.send(outcome)


class _Crash:
    """An error that nobody foresaw."""

    def __init__(self, error: Exception) -> None:
        self.error = error


# -- a Ray cluster ----------------------------------------------------------------------------------------


def _on_ray(
    work: Callable[[str], Result], keys: Sequence[str], run: RunSettings, cores_each: int
) -> Generator[tuple[str, Result | Refusal]]:
    _join_cluster(cores_each)
    import ray
    from ray.exceptions import RayError, RayTaskError

    attempt: Any = ray.remote(num_cpus=cores_each, max_retries=run.retries)(_attempt)
    left = deque(keys)
    most = max(1, run.cores // cores_each) if run.cores else len(left)
    busy: dict[Any, str] = {}
    try:
        while left or busy:
            while left and len(busy) < most:
                key = left.popleft()
                busy[attempt.remote(work, key)] = key
            (ended,), _ = ray.wait(list(busy))
            key = busy.pop(ended)
            try:
                outcome = ray.get(ended)
            except RayTaskError:
                raise  # the work's own, which nobody foresaw
            except RayError as error:
                outcome = _lost(key, run.retries + 1, f"Ray says {type(error).__name__}: {error}")
            yield key, outcome
    finally:
        for task in busy:
            ray.cancel(task, force=True)


def _join_cluster(cores_each: int) -> None:
    """Connect to the cluster that this process runs in, or that RAY_ADDRESS names."""
    try:
        import ray
    except ModuleNotFoundError as error:
        raise SettingsError('run.workers is "ray", and the package ray is not installed') from error
    if not ray.is_initialized():
        try:
            ray.init(address="auto", logging_level=logging.WARNING)
        except ConnectionError as error:
            raise SettingsError(
                'run.workers is "ray", and no Ray cluster is found: run this within one, or name its head\'s '
                f"address by RAY_ADDRESS ({error})"
            ) from error
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    largest = max(node["Resources"].get("CPU", 0) for node in nodes if node["Alive"])
    if largest < cores_each:
        # Ray would wait for such a node for ever.
        raise SettingsError(
            f"run.cores_per_download is {cores_each}, and the Ray cluster's largest node has {largest:.0f} "
            "cores for tasks: lower it"
        )


def _lost(key: str, deaths: int, how: str) -> WorkerLost:
    return WorkerLost(
        f"{key}: {deaths} workers died of it one after the other, {how}. Look for what killed them (memory "
        "above all) in the machine's log, then run this again: what was downloaded is kept"
    )
