"""From many URLs to pictures: fetched side by side, decoded in other processes, within bounded memory.

What becomes of each URL, and its picture, goes to a journal as it comes in: so no more pictures than those
in flight are in memory, and a run that is killed is gone on with. Knows nothing of keys, tars and tables.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import resource
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final, TypeVar

from laion_assets.blur import Box
from laion_assets.decoding import Decoder
from laion_assets.download_progress import DownloadProgress, Follow
from laion_assets.errors import TooManyOpenFiles
from laion_assets.fetch.policy import FetchPolicy
from laion_assets.flow import Flow
from laion_assets.formats.journal import Entry, Journal
from laion_assets.image import Stored, Undecodable
from laion_assets.image_policy import ImagePolicy
from laion_assets.outcomes import Outcome, Status
from laion_assets.schema import Digest

if TYPE_CHECKING:
    from laion_assets.fetch.fetcher import Fetcher
    from laion_assets.fetch.transport import Transport

_Result = TypeVar("_Result")

# What a power cut costs at most. Synced after every 64, the journal took 3,700 to 5,000 pictures of 25 kB a
# second, synced after each 600 to 800 (one virtual disk); two cores download some 300.
_MOST_UNSYNCED: Final = 64

# After how many new objects garbage is looked for; a URL makes some hundred that go by themselves.
_NEW_OBJECTS: Final = 20_000

# For each connection in flight: its socket, others idle for a moment, and the rest of the process. With less
# than the bare sockets and the process's own, downloads would fail for our limits and look like the web's.
_FILES_PER_CONNECTION: Final = 4
_FILES_BESIDES: Final = 256
_FEWEST_FILES_BESIDES: Final = 64

# img2dataset's words.
_HASH_MISMATCH: Final = "hash mismatch"
# Of what the fetcher says, what is recorded of a row.
_ANSWER_FIELDS: Final = ("http_status", "final_url", "content_type", "attempts", "milliseconds")


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What to ask for, and what its answer must be like.

    Attributes:
        url: as the source has it.
        digest: hexadecimal digest that the body must have, in any case; None where none is known.
        boxes: what to blur, as :func:`laion_assets.columns.read_boxes` gives it.
    """

    url: str | None
    digest: str | None = None
    boxes: Sequence[Box] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A picture in the journal: where its bytes lie, and what :class:`laion_assets.image.Stored` says."""

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
        final_url: URL of the last answer; None where none came.
        content_type: what the last answer calls its body; None where none came.
        attempts: how often it was asked for.
        milliseconds: how long that took, the wait for the domain's turn included.
        body_bytes: length of the body; None where none came whole.
        sha256: of the body, hexadecimal; None where none came whole.
        digest: as ``sha256``, the digest that ``compute_hash`` asks for.
        picture: the picture, if there is one.
    """

    status: Status
    outcome: Outcome
    message: str | None = None
    http_status: int | None = None
    final_url: str | None = None
    content_type: str | None = None
    attempts: int = 0
    milliseconds: int = 0
    body_bytes: int | None = None
    sha256: str | None = None
    digest: str | None = None
    picture: Picture | None = None


def download(
    wanted: Sequence[Wanted],
    journal: Journal,
    fetch_policy: FetchPolicy,
    image_policy: ImagePolicy,
    *,
    digest_kind: Digest = "sha256",
    transport: Transport | None = None,
    follow: Follow | None = None,
) -> list[Download]:
    """Fetch, check and resize what some URLs lead to, those aside that the journal has already.

    At most ``concurrency`` bodies of up to ``large_body_bytes`` and ``large_bodies`` longer ones are in
    memory at once.

    Args:
        wanted: what to ask for.
        journal: keeps what is finished, pictures included; of an earlier run over the same URLs, or empty.
        fetch_policy: what may be asked of the web.
        image_policy: what is accepted, and how it is stored.
        digest_kind: what the digests in ``wanted`` are.
        transport: what performs a GET; the real one by default.
        follow: told after each URL how far the download is.

    Returns:
        What became of each URL, in the order of ``wanted``.

    Raises:
        TooManyOpenFiles: if the limit on open files is too low for ``concurrency``.
        LaionAssetsError: if decoding processes cannot be had on this machine.
        OSError: if the journal cannot be written.
    """
    found = dict(_restore(entry) for entry in journal.entries)
    remaining = [(index, one) for index, one in enumerate(wanted) if index not in found]
    progress = DownloadProgress(total=len(wanted))
    for done in found.values():
        progress.resume(done.outcome, done.body_bytes or 0)
    if follow is not None and found:
        follow(progress)

    def note(done: Download) -> None:
        progress.add(done.outcome, done.body_bytes or 0)
        if follow is not None:
            follow(progress)

    if remaining:
        if transport is None:
            _allow_open_files(min(fetch_policy.concurrency, len(remaining)))
        _run_in_thread(
            _download_all(remaining, found, journal, fetch_policy, image_policy, digest_kind, transport, note)
        )
    return [found[index] for index in range(len(wanted))]


async def _download_all(
    remaining: Sequence[tuple[int, Wanted]],
    found: dict[int, Download],
    journal: Journal,
    fetch_policy: FetchPolicy,
    image_policy: ImagePolicy,
    digest_kind: Digest,
    transport: Transport | None,
    note: Callable[[Download], None],
) -> None:
    """Add what becomes of the remaining URLs to what is found."""
    async with AsyncExitStack() as stack:
        decoder = await stack.enter_async_context(Decoder(image_policy))
        starting = asyncio.create_task(decoder.start(len(remaining)))
        stack.callback(starting.cancel)
        await asyncio.sleep(0)  # they start while more is loaded here
        # libcurl is for those who download, and not for whoever imports the stages.
        from laion_assets.fetch.curl import HttpTransport
        from laion_assets.fetch.fetcher import Fetcher
        from laion_assets.fetch.manners import spread

        order = spread([_domain(one.url) for _, one in remaining])
        # Before anything is asked for: a kill would cost all that waits for the processes to start.
        await starting
        if transport is None:
            transport = await stack.enter_async_context(HttpTransport(fetch_policy))
        flow = Flow(fetch_policy.concurrency, decoder.processes)
        downloader = _Downloader(
            Fetcher(fetch_policy, transport),
            decoder,
            flow,
            asyncio.Semaphore(fetch_policy.large_bodies),
            expected=digest_kind,
            recorded=fetch_policy.compute_hash,
        )
        keeper = _Keeper(journal)
        growing = asyncio.create_task(flow.grow())
        stack.callback(growing.cancel)

        async def take_turns(turns: Iterable[tuple[int, Wanted]]) -> None:
            for index, one in turns:
                found[index] = await keeper.keep(index, *await downloader.download(one))
                note(found[index])

        turns = iter([remaining[place] for place in order])
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(fetch_policy.concurrency, len(remaining))):
                    group.create_task(take_turns(turns))
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None


def _domain(url: str | None) -> str:
    from laion_assets.fetch.urls import BadUrl, parse_url

    try:
        return parse_url(url or "").domain
    except BadUrl:
        return ""  # it will not be asked for


class _Downloader:
    """Takes one URL from text to a picture."""

    def __init__(
        self,
        fetcher: Fetcher,
        decoder: Decoder,
        flow: Flow,
        large_bodies: asyncio.Semaphore,
        *,
        expected: Digest,
        recorded: Digest,
    ) -> None:
        self._fetcher = fetcher
        self._decoder = decoder
        self._flow = flow
        self._large_bodies = large_bodies
        self._expected = expected
        self._recorded = recorded

    async def download(self, wanted: Wanted) -> tuple[Download, Stored | None]:
        """What became of a URL, and its picture if there is one."""
        from laion_assets.fetch.fetcher import FetchFailed

        async with AsyncExitStack() as held:

            async def admit_large() -> None:
                await held.enter_async_context(self._large_bodies)

            async with self._flow.fetching():
                fetched = await self._fetcher.fetch(wanted.url, admit_large=admit_large)
            answer: dict[str, Any] = {name: getattr(fetched, name) for name in _ANSWER_FIELDS}
            if isinstance(fetched, FetchFailed):
                return _failed(fetched.outcome, fetched.message, answer), None
            expected = (self._expected,) if wanted.digest else ()
            digests = {kind: _digest(kind, fetched.body) for kind in {"sha256", self._recorded, *expected}}
            answer |= {
                "body_bytes": len(fetched.body),
                "sha256": digests["sha256"],
                "digest": digests[self._recorded],
            }
            if wanted.digest and wanted.digest.lower() != digests[self._expected]:
                return _failed(Outcome.DIGEST_MISMATCH, _HASH_MISMATCH, answer), None
            async with self._flow.decoding():
                decoded = await self._decoder.decode(fetched.body, wanted.boxes)
        if isinstance(decoded, Undecodable):
            status, outcome = Status.FAILED_TO_RESIZE, decoded.outcome
            return Download(status=status, outcome=outcome, message=decoded.message, **answer), None
        return Download(status=Status.SUCCESS, outcome=Outcome.SUCCESS, **answer), decoded


def _digest(kind: Digest, body: bytes) -> str:
    # Data are told from others by it here, and nothing is kept secret (md5, in FIPS builds of OpenSSL).
    return hashlib.new(kind, body, usedforsecurity=False).hexdigest()


def _failed(outcome: Outcome, message: str, answer: dict[str, Any]) -> Download:
    return Download(status=Status.FAILED_TO_DOWNLOAD, outcome=outcome, message=message, **answer)


class _Keeper:
    """Writes what is finished to the journal, one after the other."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._turn = asyncio.Lock()

    async def keep(self, index: int, finished: Download, stored: Stored | None) -> Download:
        """Keep what became of the URL with this index, and say where its picture lies."""
        async with self._turn:
            entry = enter(self._journal, index, finished, stored)
            if self._journal.unsynced >= _MOST_UNSYNCED:
                # In another thread: a disk takes milliseconds, in which hundreds of answers come in.
                await asyncio.to_thread(self._journal.sync)
        return _restore(entry)[1]


def enter(journal: Journal, index: int, finished: Download, stored: Stored | None) -> Entry:
    """Write to a journal what became of the URL with this index, and its picture if there is one.

    Raises:
        OSError: if it cannot be written.
    """
    kept: dict[str, Any] = {"index": index}
    kept |= {name: getattr(finished, name) for name in _KEPT_FIELDS}  # asdict copies deeply, at a price
    if stored is not None:
        kept["picture"] = {name: getattr(stored, name) for name in _STORED_FIELDS}
    return journal.append(kept, b"" if stored is None else stored.encoded)


_KEPT_FIELDS: Final = tuple(field.name for field in fields(Download))
_STORED_FIELDS: Final = ("width", "height", "original_width", "original_height", "exif")


def _restore(entry: Entry) -> tuple[int, Download]:
    """Index and fate of a URL, from the journal."""
    kept = dict(entry.fields)
    index, picture = kept.pop("index"), kept.pop("picture")
    download = Download(
        **{**kept, "status": Status(kept["status"]), "outcome": Outcome(kept["outcome"])},
        picture=None if picture is None else Picture(offset=entry.offset, size=entry.size, **picture),
    )
    return index, download


def _run_in_thread(work: Coroutine[Any, Any, _Result]) -> _Result:
    """Run a coroutine in a loop of its own.

    The caller's thread may have a loop, and in the main thread a signal handler may raise anywhere, such
    as Dagster's when a run is cancelled: there it interrupts the wait, and the coroutine is cancelled.
    """
    running: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any] | None]] = Future()

    async def track() -> _Result:
        running.set_result((asyncio.get_running_loop(), asyncio.current_task()))
        return await work

    def run() -> _Result:
        # What is there already outlives the download, and need not be looked through for garbage again and
        # again, which takes 70 ms each time with Dagster loaded. Nor need thousands of tasks that wait, after
        # every 700 new objects.
        thresholds = gc.get_threshold()
        gc.freeze()
        gc.set_threshold(_NEW_OBJECTS, *thresholds[1:])
        try:
            return asyncio.run(track())
        finally:
            gc.set_threshold(*thresholds)
            gc.unfreeze()

    with ThreadPoolExecutor(1, thread_name_prefix="download") as thread:
        outcome = thread.submit(run)
        try:
            return outcome.result()
        except BaseException:
            if not outcome.done():
                loop, task = running.result()
                assert task is not None
                with suppress(RuntimeError):  # the loop ended in the meantime
                    loop.call_soon_threadsafe(task.cancel)
            raise


def _allow_open_files(connections: int) -> None:
    """Raise the process's own limit, which is 256 on macOS and 1,024 elsewhere, as far as it may.

    Raises:
        TooManyOpenFiles: if it stays too low.
    """
    wanted = connections * _FILES_PER_CONNECTION + _FILES_BESIDES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        raised = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, raised), hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections + _FEWEST_FILES_BESIDES
    if soft != resource.RLIM_INFINITY and soft < needed:
        raise TooManyOpenFiles(
            f"{connections} connections at once need {needed} open files, and the limit is {soft}: raise it "
            f"(ulimit -n {wanted}) or lower fetch.concurrency, and run this again"
        )
