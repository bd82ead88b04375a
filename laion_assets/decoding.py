"""Processes in which hostile pictures are decoded, so that one that kills its decoder takes no other along.

Each process decodes one picture at a time and speaks over its own pipes, in which the next ones wait, so
that it need not idle. Its death concerns the picture it had begun; those that waited go to another.
There is nothing to pickle: an answer is numbers and bytes. Processes are fresh interpreters, not forks, and
end with their parent, whose death closes their pipe.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Self

from laion_assets.blur import Box, bound_boxes
from laion_assets.decoder_process import ANSWER, BOX, READY, REQUEST
from laion_assets.errors import LaionAssetsError
from laion_assets.image import Stored, Undecodable
from laion_assets.image_policy import ImagePolicy
from laion_assets.outcomes import Outcome

_MAX_TEXT_BYTES: Final = 1 << 20
_MAX_PICTURE_BYTES: Final = 1 << 28
_MAX_SIDE: Final = 2**31 - 1
# A process that neither answers nor uses up its CPU time (it was stopped, the machine is swamped).
_WALL_S_PER_CPU_S: Final = 20
_START_S: Final = 120
_ANSWER_BYTES: Final = 1 << 20
# One that is decoded, and those that wait: this process is busy for tens of milliseconds at a time while
# answers come in, in which a decoder is done with ten small pictures.
_ASKED_AT_ONCE: Final = 16
# Ten pictures of the usual size. A user's pipes may have 64 MB together (pipe(7), pipe-user-pages-soft).
_PIPE_BYTES: Final = 1 << 19


class Decoder:
    """As many decoding processes as the policy says, each started when first needed; a context manager.

    It is made and used in one event loop, in any thread.
    """

    def __init__(self, policy: ImagePolicy) -> None:
        self._policy = policy
        self._seats = [_Seat(policy) for _ in range(policy.workers or cores())]
        self._turns = asyncio.Semaphore(len(self._seats) * _ASKED_AT_ONCE)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.gather(*(seat.clear() for seat in self._seats))

    @property
    def processes(self) -> int:
        """How many there may be."""
        return len(self._seats)

    @property
    def process_ids(self) -> list[int]:
        """Ids of the processes that have started and run now."""
        return [seat.worker.process.pid for seat in self._seats if seat.worker is not None]

    async def start(self, most: int) -> None:
        """Have all processes ready before there is anything to decode, or as many as there is work for.

        Raises:
            LaionAssetsError: if one cannot be started.
        """
        await asyncio.gather(*(seat.filled() for seat in self._seats[:most]))

    async def decode(self, body: bytes, boxes: Sequence[Sequence[float]] = ()) -> Stored | Undecodable:
        """Run :func:`laion_assets.image.check_and_resize` in one of the processes.

        Returns:
            Its answer; DECODER_DIED where the process died of this body, or of its limits.

        Raises:
            LaionAssetsError: if no process can be started.
        """
        try:
            bounded = bound_boxes(boxes)
        except ValueError as error:
            return Undecodable(outcome=Outcome.UNDECODABLE, message=str(error))
        async with self._turns:
            found = await self._decode_once(body, bounded)
            if isinstance(found, int) and found == -signal.SIGKILL:
                # The kernel, short of memory, may have killed it for another's need.
                found = await self._decode_once(body, bounded)
        if isinstance(found, int):
            return Undecodable(outcome=Outcome.DECODER_DIED, message=f"decoder died: {_cause(found)}")
        return found

    async def _decode_once(self, body: bytes, boxes: Sequence[Box]) -> Stored | Undecodable | int:
        """The answer, or the exit code of the process that died of it."""
        while True:
            seat = min(self._seats, key=lambda seat: seat.asked)
            with suppress(_NotBegun):
                return await seat.ask(body, boxes)


class _NotBegun(Exception):
    """The process died of the picture before."""


class _Seat:
    """A place for one process, taken by another when it dies."""

    def __init__(self, policy: ImagePolicy) -> None:
        self._policy = policy
        self._starting = asyncio.Lock()
        self._all: set[_Worker] = set()
        self.worker: _Worker | None = None
        self.asked = 0
        """Pictures that wait for an answer from here."""

    async def ask(self, body: bytes, boxes: Sequence[Box]) -> Stored | Undecodable | int:
        """The answer, or the exit code of the process that died of it.

        Raises:
            _NotBegun: if it died of another picture, before it began this one.
        """
        self.asked += 1
        try:
            worker = await self.filled()
            try:
                return await worker.ask(body, boxes, self._policy.decode_timeout_s * _WALL_S_PER_CPU_S)
            except _NotBegun:
                raise
            except (TimeoutError, EOFError, ConnectionError, ValueError):
                return await self._bury(worker)
            except BaseException:
                # Cancelled half-way: half an answer is in its pipe, or one that nobody waits for will be.
                await self._bury(worker)
                raise
        finally:
            self.asked -= 1

    async def filled(self) -> _Worker:
        """The process here, started if there is none.

        Raises:
            LaionAssetsError: if it cannot be started.
        """
        async with self._starting:
            if self.worker is None:
                self.worker = await self._start()
            return self.worker

    async def clear(self) -> None:
        """End the process here, also one that was about to start."""
        await asyncio.gather(*(worker.end() for worker in self._all))
        # A start that was cancelled holds this until its process is gone: cut short once more, as by the end
        # of the event loop, it would leave the process to nobody.
        async with self._starting:
            self.worker = None
            await asyncio.gather(*(worker.end() for worker in self._all))

    async def _start(self) -> _Worker:
        reading, writing = _open_pipe()
        requests, _ = await asyncio.get_running_loop().connect_write_pipe(asyncio.BaseProtocol, writing)
        try:
            with reading:
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-P",  # nothing from the working folder, unless this process has it in its path too
                    "-m",
                    "laion_assets.decoder_process",
                    self._policy.model_dump_json(),
                    stdin=reading,
                    stdout=PIPE,
                    limit=_ANSWER_BYTES,
                    # The child finds what this process finds, however its path came about.
                    env={**os.environ, "PYTHONPATH": _python_path()},
                )
        except BaseException:
            requests.abort()
            raise
        worker = _Worker(process, requests)
        self._all.add(worker)
        try:
            async with asyncio.timeout(_START_S):
                await worker.greet()
        except (TimeoutError, EOFError, ConnectionError):
            code = await self._bury(worker)
            raise LaionAssetsError(
                f"a decoding process did not start ({_cause(code)}): its own message is above; raise "
                "image.worker_memory_bytes or lower image.workers if it is about memory"
            ) from None
        return worker

    async def _bury(self, worker: _Worker) -> int:
        if self.worker is worker:
            self.worker = None
        self._all.discard(worker)
        return await worker.end()


class _Worker:
    """The parent's side of one process."""

    def __init__(self, process: Process, requests: asyncio.WriteTransport) -> None:
        self.process = process
        self._requests = requests
        self._turn = asyncio.Lock()
        self._is_over = False

    async def greet(self) -> None:
        if await self._read(len(READY)) != READY:
            raise EOFError

    async def ask(self, body: bytes, boxes: Sequence[Box], seconds: float) -> Stored | Undecodable:
        """The answer for one picture; answers come in the order of the requests.

        Raises:
            _NotBegun: if the process died before it began this one.
            TimeoutError: if it began this one and does not answer for so long.
            EOFError, ConnectionError, ValueError: if it died of this one, or its answer makes no sense.
        """
        if not self._is_over:
            # So few are asked at once that what the pipe does not take need not be waited for.
            request = REQUEST.pack(len(body), len(boxes))
            self._requests.writelines([request, *(BOX.pack(*box) for box in boxes), body])
        # The lock is taken in the order of asking: nothing is awaited between writing and waiting for it.
        async with self._turn:
            if self._is_over:
                raise _NotBegun
            try:
                async with asyncio.timeout(seconds):
                    return await self._answer()
            except BaseException:
                self._is_over = True
                raise

    async def _answer(self) -> Stored | Undecodable:
        text_bytes, picture_bytes, *sizes = ANSWER.unpack(await self._read(ANSWER.size))
        # The process may be in a picture's hands, so its answer is bounded like any other.
        if text_bytes > _MAX_TEXT_BYTES or picture_bytes > _MAX_PICTURE_BYTES or max(sizes) > _MAX_SIDE:
            raise ValueError("answer out of bounds")
        rest = await self._read(text_bytes + picture_bytes)
        text, encoded = rest[:text_bytes].decode(), rest[text_bytes:]
        if not encoded:
            outcome, _, message = text.partition(" ")
            return Undecodable(outcome=Outcome(outcome), message=message)
        width, height, original_width, original_height = sizes
        return Stored(
            encoded=encoded,
            width=width,
            height=height,
            original_width=original_width,
            original_height=original_height,
            exif=text,
        )

    async def end(self) -> int:
        """Kill the process if it still runs, and wait for it; its exit code."""
        self._is_over = True
        exited = asyncio.ensure_future(self.process.wait())
        if self._reached_end():
            # One that closed its pipe is about to end by itself, and its own code says why it did. (Not
            # asyncio.timeout, which raises CancelledError in a cancelled task before Python 3.11.3.)
            await asyncio.wait([exited], timeout=0.5)
        with suppress(ProcessLookupError):
            self.process.kill()
        if not self._requests.is_closing():  # Python 3.11 cannot abort twice
            self._requests.abort()
        return await exited

    def _reached_end(self) -> bool:
        return self.process.stdout is not None and self.process.stdout.at_eof()

    async def _read(self, length: int) -> bytes:
        assert self.process.stdout is not None
        return await self.process.stdout.readexactly(length)


def _open_pipe() -> tuple[BinaryIO, BinaryIO]:
    """Both ends of a pipe that holds more than most do, where it may."""
    reading, writing = os.pipe()
    with suppress(AttributeError, OSError):  # not Linux, or too much in this user's pipes
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    return os.fdopen(reading, "rb", buffering=0), os.fdopen(writing, "wb", buffering=0)


def _python_path() -> str:
    return os.pathsep.join(path or str(Path.cwd()) for path in sys.path)


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cause(code: int) -> str:
    if code == -signal.SIGPROF:
        return "it used up its CPU time"
    return f"signal {-code}" if code < 0 else f"exit code {code}"
