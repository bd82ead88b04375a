"""From many URLs to pictures: fetched side by side, decoded in other processes, within bounded memory.

Pictures go to a file in the order they come in, with their places remembered, so no more than those in
flight are in memory. Knows nothing of keys, tars and tables.
"""

from __future__ import annotations

import asyncio
import hashlib
import resource
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, TypeVar

from laion_assets.decoding import Decoder
from laion_assets.fetch.policy import FetchPolicy
from laion_assets.image import ImagePolicy, Stored, Undecodable
from laion_assets.schema import Outcome, Status

if TYPE_CHECKING:
    from laion_assets.fetch.fetcher import Fetcher
    from laion_assets.fetch.transport import Transport

_Result = TypeVar("_Result")

# Called with how many of how many URLs are done; from another thread than the caller's.
Progress = Callable[[int, int], None]

# For each connection in flight: its socket, others idle for a moment, and the rest of the process.
_FILES_PER_CONNECTION: Final = 4
_FILES_BESIDES: Final = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A picture in the file: where its JPEG lies, and what :class:`laion_assets.image.Stored` says."""

    offset: int
    size: int
    width: int
    height: int
    original_width: int
    original_height: int
    exif: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Download:
    """What became of one URL.

    Attributes:
        status: img2dataset's word for it.
        outcome: class of the outcome.
        message: what went wrong; None for a success.
        http_status: HTTP status of the last answer; None where none came.
        body_bytes: length of the body; 0 where none came whole.
        sha256: of the body, hexadecimal; None where none came whole.
        picture: the picture, if there is one.
    """

    status: Status
    outcome: Outcome
    message: str | None = None
    http_status: int | None = None
    body_bytes: int = 0
    sha256: str | None = None
    picture: Picture | None = None


def download(
    urls: Sequence[str | None],
    pictures: Path,
    fetch_policy: FetchPolicy,
    image_policy: ImagePolicy,
    *,
    transport: Transport | None = None,
    progress: Progress | None = None,
) -> list[Download]:
    """Fetch, check and resize what some URLs lead to.

    At most ``concurrency`` bodies of up to ``large_body_bytes`` and ``large_bodies`` longer ones are in
    memory at once.

    Args:
        urls: what to ask for.
        pictures: file to write the JPEGs to.
        fetch_policy: what may be asked of the web.
        image_policy: what is accepted, and how it is stored.
        transport: what performs a GET; the real one by default.
        progress: called after each URL.

    Returns:
        What became of each URL, in the order of ``urls``.

    Raises:
        LaionAssetsError: if decoding processes or sockets cannot be had on this machine.
        OSError: if the file cannot be written.
    """
    if transport is None:
        _allow_open_files(fetch_policy.concurrency * _FILES_PER_CONNECTION + _FILES_BESIDES)
    with pictures.open("wb") as file:
        work = _download_all(urls, file, fetch_policy, image_policy, transport, progress)
        return _run_in_thread(work)


async def _download_all(
    urls: Sequence[str | None],
    file: BinaryIO,
    fetch_policy: FetchPolicy,
    image_policy: ImagePolicy,
    transport: Transport | None,
    progress: Progress | None,
) -> list[Download]:
    # aiohttp is for those who download, and not for whoever imports the stages.
    from laion_assets.fetch.fetcher import Fetcher
    from laion_assets.fetch.transport import HttpTransport

    found: dict[int, Download] = {}
    async with AsyncExitStack() as stack:
        decoder = await stack.enter_async_context(Decoder(image_policy))
        if transport is None:
            transport = await stack.enter_async_context(HttpTransport(fetch_policy))
        downloader = _Downloader(
            Fetcher(fetch_policy, transport), decoder, file, asyncio.Semaphore(fetch_policy.large_bodies)
        )
        remaining = iter(enumerate(urls))

        async def take_turns() -> None:
            for index, url in remaining:
                found[index] = await downloader.download(url)
                if progress is not None:
                    progress(len(found), len(urls))

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(fetch_policy.concurrency, len(urls))):
                    group.create_task(take_turns())
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
    return [found[index] for index in range(len(urls))]


class _Downloader:
    """Takes one URL from text to a picture in the file."""

    def __init__(
        self, fetcher: Fetcher, decoder: Decoder, file: BinaryIO, large_bodies: asyncio.Semaphore
    ) -> None:
        self._fetcher = fetcher
        self._decoder = decoder
        self._file = file
        self._large_bodies = large_bodies

    async def download(self, url: str | None) -> Download:
        from laion_assets.fetch.fetcher import FetchFailed

        async with AsyncExitStack() as held:

            async def admit_large() -> None:
                await held.enter_async_context(self._large_bodies)

            fetched = await self._fetcher.fetch(url, admit_large=admit_large)
            if isinstance(fetched, FetchFailed):
                return Download(
                    status=Status.FAILED_TO_DOWNLOAD,
                    outcome=fetched.outcome,
                    message=fetched.message,
                    http_status=fetched.http_status,
                )
            decoded = await self._decoder.decode(fetched.body)
            sha256 = hashlib.sha256(fetched.body).hexdigest()
        if isinstance(decoded, Undecodable):
            return Download(
                status=Status.FAILED_TO_RESIZE,
                outcome=decoded.outcome,
                message=decoded.message,
                http_status=fetched.http_status,
                body_bytes=len(fetched.body),
                sha256=sha256,
            )
        return Download(
            status=Status.SUCCESS,
            outcome=Outcome.SUCCESS,
            http_status=fetched.http_status,
            body_bytes=len(fetched.body),
            sha256=sha256,
            picture=self._keep(decoded),
        )

    def _keep(self, stored: Stored) -> Picture:
        offset = self._file.tell()
        self._file.write(stored.jpeg)
        return Picture(
            offset=offset,
            size=len(stored.jpeg),
            width=stored.width,
            height=stored.height,
            original_width=stored.original_width,
            original_height=stored.original_height,
            exif=stored.exif,
        )


def _run_in_thread(work: Coroutine[Any, Any, _Result]) -> _Result:
    """Run a coroutine in a loop of its own.

    The caller's thread may have a loop, and in the main thread a signal handler may raise anywhere, such
    as Dagster's when a run is cancelled: there it interrupts the wait, and the coroutine is cancelled.
    """
    running: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any] | None]] = Future()

    async def track() -> _Result:
        running.set_result((asyncio.get_running_loop(), asyncio.current_task()))
        return await work

    with ThreadPoolExecutor(1, thread_name_prefix="download") as thread:
        outcome = thread.submit(asyncio.run, track())
        try:
            return outcome.result()
        except BaseException:
            if not outcome.done():
                loop, task = running.result()
                assert task is not None
                with suppress(RuntimeError):  # the loop ended in the meantime
                    loop.call_soon_threadsafe(task.cancel)
            raise


def _allow_open_files(needed: int) -> None:
    """Raise the process's own limit, which is 256 on macOS and 1,024 elsewhere, as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        wanted = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
