"""Processes in which hostile pictures are decoded, so that one that kills its decoder takes no other along.

Each process holds one picture at a time and speaks over its own pipe, so its death concerns one picture,
and there is nothing to pickle: an answer is JSON and the bytes of a JPEG. Processes are fresh
interpreters, not forks, and end with their parent, whose death closes their pipe.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import struct
import sys
from asyncio.subprocess import PIPE, Process
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Self

from PIL import Image

from laion_assets.errors import LaionAssetsError
from laion_assets.image import ImagePolicy, Stored, Undecodable, check_and_resize
from laion_assets.schema import Outcome

_REQUEST: Final = struct.Struct("<I")  # length of the body
_ANSWER: Final = struct.Struct("<II")  # lengths of the JSON and of the JPEG
_READY: Final = b"READY"
_MAX_JSON_BYTES: Final = 1 << 20
_MAX_JPEG_BYTES: Final = 1 << 28
# A process that neither answers nor uses up its CPU time (it was stopped, the machine is swamped).
_WALL_S_PER_CPU_S: Final = 20
_START_S: Final = 120
_PIPE_BYTES: Final = 1 << 20


class Decoder:
    """As many decoding processes as the policy says, each started when first needed; a context manager.

    It is made and used in one event loop, in any thread.
    """

    def __init__(self, policy: ImagePolicy) -> None:
        self._policy = policy
        self._turns = asyncio.Semaphore(policy.workers or _cores())
        self._idle: list[_Worker] = []
        self._all: set[_Worker] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.gather(*(worker.end() for worker in self._all))

    @property
    def process_ids(self) -> list[int]:
        """Ids of the processes that have started and run now."""
        return [worker.process.pid for worker in self._all if worker.is_ready]

    async def start_one(self) -> None:
        """Have a process ready before there is anything to decode.

        Raises:
            LaionAssetsError: if it cannot be started.
        """
        async with self._turns:
            self._idle.append(await self._start())

    async def decode(self, body: bytes) -> Stored | Undecodable:
        """Run :func:`laion_assets.image.check_and_resize` in one of the processes.

        Returns:
            Its answer; DECODER_DIED where the process died of this body, or of its limits.

        Raises:
            LaionAssetsError: if no process can be started.
        """
        async with self._turns:
            found = await self._decode_once(body)
            if isinstance(found, int) and found == -signal.SIGKILL:
                # The kernel, short of memory, may have killed it for another's need.
                found = await self._decode_once(body)
        if isinstance(found, int):
            return Undecodable(outcome=Outcome.DECODER_DIED, message=f"decoder died: {_cause(found)}")
        return found

    async def _decode_once(self, body: bytes) -> Stored | Undecodable | int:
        """The answer, or the exit code of the process that died."""
        worker = self._idle.pop() if self._idle else await self._start()
        try:
            async with asyncio.timeout(self._policy.decode_timeout_s * _WALL_S_PER_CPU_S):
                answer = await worker.ask(body)
        except (TimeoutError, EOFError, ConnectionError, ValueError):
            return await self._bury(worker)
        except BaseException:
            # Cancelled half-way: half an answer is in its pipe.
            await self._bury(worker)
            raise
        self._idle.append(worker)
        return answer

    async def _start(self) -> _Worker:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # nothing from the working folder, unless this process has it in its path too
            "-m",
            "laion_assets.decoding",
            self._policy.model_dump_json(),
            stdin=PIPE,
            stdout=PIPE,
            limit=_PIPE_BYTES,
            # The child finds what this process finds, however its path came about.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)},
        )
        worker = _Worker(process)
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
        self._all.discard(worker)
        return await worker.end()


class _Worker:
    """The parent's side of one process."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.is_ready = False

    async def greet(self) -> None:
        if await self._read(len(_READY)) != _READY:
            raise EOFError
        self.is_ready = True

    async def ask(self, body: bytes) -> Stored | Undecodable:
        assert self.process.stdin is not None
        self.process.stdin.write(_REQUEST.pack(len(body)))
        self.process.stdin.write(body)
        await self.process.stdin.drain()
        json_bytes, jpeg_bytes = _ANSWER.unpack(await self._read(_ANSWER.size))
        # The process may be in a picture's hands, so its answer is bounded like any other.
        if json_bytes > _MAX_JSON_BYTES or jpeg_bytes > _MAX_JPEG_BYTES:
            raise ValueError("answer too long")
        fields = json.loads(await self._read(json_bytes))
        if "outcome" in fields:
            return Undecodable(outcome=Outcome(fields["outcome"]), message=str(fields["message"]))
        return Stored(jpeg=await self._read(jpeg_bytes), **fields)

    async def end(self) -> int:
        """Kill the process if it still runs, and wait for it; its exit code."""
        exited = asyncio.ensure_future(self.process.wait())
        if self._reached_end():
            # One that closed its pipe is about to end by itself, and its own code says why it did. (Not
            # asyncio.timeout, which raises CancelledError in a cancelled task before Python 3.11.3.)
            await asyncio.wait([exited], timeout=0.5)
        with suppress(ProcessLookupError):
            self.process.kill()
        return await exited

    def _reached_end(self) -> bool:
        return self.process.stdout is not None and self.process.stdout.at_eof()

    async def _read(self, length: int) -> bytes:
        assert self.process.stdout is not None
        return await self.process.stdout.readexactly(length)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cause(code: int) -> str:
    if code == -signal.SIGPROF:
        return "it used up its CPU time"
    return f"signal {-code}" if code < 0 else f"exit code {code}"


# -- the child's side -----------------------------------------------------------------------------


def main() -> None:
    """Answer requests until the pipe is closed."""
    policy = ImagePolicy.model_validate_json(sys.argv[1])
    # Ctrl-C is for the parent, which then closes the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Whatever a library prints must not land among the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    Image.MAX_IMAGE_PIXELS = None  # the policy's own limit counts, above Pillow's too
    _limit_memory(policy.worker_memory_bytes)
    answers.write(_READY)
    answers.flush()
    requests = sys.stdin.buffer
    while len(head := requests.read(_REQUEST.size)) == _REQUEST.size:
        (length,) = _REQUEST.unpack(head)
        body = requests.read(length)
        if len(body) < length:
            return
        _answer(answers, _decode_within(body, policy))


def _decode_within(body: bytes, policy: ImagePolicy) -> Stored | Undecodable:
    # SIGPROF ends the process when the timer, which counts its CPU time, runs out.
    signal.setitimer(signal.ITIMER_PROF, policy.decode_timeout_s)
    try:
        return check_and_resize(body, policy)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _answer(answers: BinaryIO, found: Stored | Undecodable) -> None:
    fields = asdict(found)
    jpeg = fields.pop("jpeg", b"")
    text = json.dumps(fields).encode()
    answers.write(_ANSWER.pack(len(text), len(jpeg)) + text)
    answers.write(jpeg)
    answers.flush()


def _limit_memory(room: int) -> None:
    """Bound the address space to what is in use now and ``room`` bytes; where it can be known (Linux)."""
    import resource  # not on every platform

    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        limit = pages * os.sysconf("SC_PAGE_SIZE") + room
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        soft = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    except (OSError, ValueError):
        return  # macOS knows no such limit; the CPU limit and the pixel cap stay


if __name__ == "__main__":
    main()
