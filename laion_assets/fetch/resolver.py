"""From a host's name to its addresses: the system's resolver, asked once for each name. Judges no address."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

# What the system's resolver may open for one name: its settings, a database or two, sockets.
_FEW_FILES: Final = 32
# How long an answer counts, "no such name" too; a shard takes about a minute.
_LIFETIME_S: Final = 300.0
_MOST_NAMES: Final = 100_000
# A dead host's addresses are tried one after the other.
_ADDRESSES_PER_FAMILY: Final = 2

PASSING: Final = (socket.EAI_AGAIN,)
"""What the resolver may answer otherwise another time."""

LookUp = Callable[[str], list[tuple[int, str]]]


def look_up_host(host: str) -> list[tuple[int, str]]:
    """Family and address of each of a host's addresses, as the system's resolver has them.

    Raises:
        socket.gaierror: if there is none, or no resolver answers.
    """
    infos = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    return [(int(family), str(address[0])) for family, _, _, _, address in infos]


class Resolver:
    """Looks names up in threads of its own, each once for all that ask meanwhile and soon after.

    Args:
        look_up: asks for a host's addresses.
        at_once: lookups at once; a name server answers in a round trip, so more than cores is what counts.
    """

    def __init__(self, look_up: LookUp, *, at_once: int) -> None:
        self._look_up = look_up
        # Not the loop's executor: closing that one waits for a name server that does not answer.
        self._threads = ThreadPoolExecutor(at_once, thread_name_prefix="resolver")
        # Host -> until when it counts, and its addresses or the resolver's error number.
        self._answers: dict[str, tuple[float, Sequence[str] | int]] = {}
        self._asking: dict[str, asyncio.Task[Sequence[str] | int]] = {}

    async def resolve(self, host: str) -> Sequence[str]:
        """Addresses of a host, IPv6 first, two of each family at most.

        Raises:
            socket.gaierror: if there is none, or no resolver answers.
            OSError: EMFILE where this process has too few files left to ask.
        """
        expiry, answer = self._answers.get(host, (0.0, 0))
        if expiry < time.monotonic():
            if host not in self._asking:
                self._asking[host] = asyncio.create_task(self._ask(host))
            # One who gives up must not end it for the others.
            answer = await asyncio.shield(self._asking[host])
        if isinstance(answer, int):
            raise socket.gaierror(answer, "no address")
        return answer

    async def _ask(self, host: str) -> Sequence[str] | int:
        loop = asyncio.get_running_loop()
        try:
            answer = await loop.run_in_executor(self._threads, _addresses, self._look_up, host)
        finally:
            del self._asking[host]
        if isinstance(answer, int) and _few_files_are_left():
            # The resolver needs files, and says that there is no such name where it gets none.
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        if answer not in PASSING:
            if len(self._answers) >= _MOST_NAMES:
                del self._answers[next(iter(self._answers))]
            self._answers[host] = time.monotonic() + _LIFETIME_S, answer
        return answer

    async def close(self) -> None:
        """End; lookups that still wait for a name server are not waited for."""
        asking = list(self._asking.values())
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        self._threads.shutdown(wait=False, cancel_futures=True)


def _addresses(look_up: LookUp, host: str) -> Sequence[str] | int:
    try:
        found = look_up(host)
    except socket.gaierror as error:
        return error.errno or socket.EAI_FAIL
    return [
        address
        for family in (socket.AF_INET6, socket.AF_INET)
        for address in [address for kind, address in found if kind == family][:_ADDRESSES_PER_FAMILY]
    ] or int(socket.EAI_NONAME)


def _few_files_are_left() -> bool:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return False
    try:
        # The lowest number that is free.
        descriptor = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return True
    os.close(descriptor)
    return descriptor + _FEW_FILES > soft
