"""What one host does to whoever asks it, and what a downloader should make of that.

A behaviour's host has an address of its own, so that a limit, a pause or a circuit breaker that one earns
touches no other. Whatever a host says of itself holds the word ``kilroy``, which no message may repeat.
"""

from __future__ import annotations

import asyncio
import io
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from PIL import Image

from laion_assets.outcomes import Outcome

LIMIT: Final = 1 << 20
"""Longest body, in bytes, that the policy of whoever asks must allow."""
LONGEST_PAUSE_S: Final = 2
"""Longest pause that it may let Retry-After ask for."""
REDIRECTS: Final = 5
"""How many redirects it must follow."""
ATTEMPTS: Final = 2
"""How often it must ask where a failure may pass."""

FLOOD_BYTES: Final = 300 << 20
"""Where a body, or a head, that seems endless does end."""
_CHUNK: Final = b"kilroy! " * (1 << 13)
# Longer than any test waits, and an end all the same.
_LONG_S: Final = 100.0

NO_ANSWER: Final = (2, 3, 4)
"""Requests where the connection ends without an answer: clients may repeat a GET by themselves (RFC 9112)."""


@dataclass(kw_only=True)
class Seen:
    """What a host saw: connections, heads of requests, lookups of its names; bytes it could send."""

    connections: int = 0
    requests: list[bytes] = field(default_factory=list)
    lookups: int = 0
    sent_bytes: int = 0


@dataclass(kw_only=True)
class Visit:
    """One request, or one connection whose host does not wait for a request.

    Attributes:
        number: of the request at this host, from 1.
        places: what stands for ``{host}``, ``{port}`` and ``{canary}`` in what is sent.
    """

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    number: int
    seen: Seen
    places: Mapping[str, str]

    @property
    def path(self) -> str:
        """Path and query that are asked for."""
        return self.seen.requests[-1].split(b" ")[1].decode("latin-1")

    async def send(self, data: bytes) -> None:
        """Send, and wait until the client has taken most of it."""
        for name, value in self.places.items():
            data = data.replace(b"{%s}" % name.encode(), value.encode())
        self.writer.write(data)
        await self.writer.drain()
        self.seen.sent_bytes += len(data)

    async def flood(self, chunk: bytes = _CHUNK) -> None:
        """Send and send."""
        chunk *= max(1, len(_CHUNK) // len(chunk))
        for _ in range(FLOOD_BYTES // len(chunk)):
            await self.send(chunk)

    async def drip(self, data: bytes) -> None:
        """Send a byte every now and then."""
        for byte in data:
            await self.send(bytes([byte]))
            await asyncio.sleep(0.2)
        await self.silence()

    async def silence(self) -> None:
        """Say nothing for longer than anybody waits."""
        await asyncio.sleep(_LONG_S)


# Bytes to send before the connection is closed; one such answer for each request, the last for all that
# follow; or a function that does as it likes before the connection is closed.
Conduct = bytes | Sequence[bytes] | Callable[[Visit], Awaitable[None]]


async def close(visit: Visit) -> None:
    """Close the connection."""


async def reset(visit: Visit) -> None:
    """Reset the connection."""
    visit.writer.get_extra_info("socket").setsockopt(
        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
    )
    visit.writer.transport.abort()


async def refuse(visit: Visit) -> None:
    """Stand for a port that is closed."""
    raise AssertionError("nothing listens there")


async def overflow(visit: Visit) -> None:
    """Stand for a listener whose queue is full, so that the first packet is never answered."""
    raise AssertionError("nobody gets in there")


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """A host and what to expect of whoever asks it.

    Attributes:
        name: says what the host does.
        conduct: what it does.
        expected: the outcomes that are right.
        requests: how many requests it may see; None where that does not matter.
        http_status: the status that must be recorded; None where that does not matter.
        url: what is asked for.
        at_accept: act once connected, without reading a request.
        keeps_alive: read a further request after an answer, where the client sends one.
        certificate: of :mod:`fault_server.certificates`; None to speak plain.
        hurried: ask with short timeouts: it is they that must end this.
        guarded: ask with a policy that allows no loopback address.
        names: host name -> what each lookup gives in turn, the last one for all that follow: addresses,
            or the number of a gaierror. For these there is no other name server.
        lookups: how many lookups of its names it may see; None where that does not matter.
    """

    name: str
    conduct: Conduct
    expected: tuple[Outcome, ...]
    requests: tuple[int, ...] | None = None
    http_status: int | None = None
    url: str = "http://{host}:{port}/kilroy.jpg"
    at_accept: bool = False
    keeps_alive: bool = False
    certificate: str | None = None
    hurried: bool = False
    guarded: bool = False
    names: Mapping[str, Sequence[Sequence[str] | int]] = field(default_factory=dict)
    lookups: tuple[int, ...] | None = None


def behaviour(
    name: str, conduct: Conduct, *expected: Outcome, requests: int | tuple[int, ...] | None = None, **options
) -> Behaviour:
    """A :class:`Behaviour` on one line."""
    if isinstance(requests, int):
        requests = (requests,)
    return Behaviour(name=name, conduct=conduct, expected=expected, requests=requests, **options)


def a_picture(kind: str = "JPEG", size: tuple[int, int] = (64, 48), mode: str = "RGB", **options) -> bytes:
    """A picture in some format."""
    stream = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert(mode).save(stream, kind, **options)
    return stream.getvalue()


PICTURE: Final = a_picture(comment=b"kilroy")


def head(*headers: str, status: str = "200 kilroy", version: str = "HTTP/1.1") -> bytes:
    """Status line and headers, and the empty line."""
    lines = (f"{version} {status}", "Server: kilroy", *headers)
    return "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n"


def answer(body: bytes = PICTURE, *headers: str, status: str = "200 kilroy") -> bytes:
    """A whole answer with its Content-Length."""
    return head(f"Content-Length: {len(body)}", *headers, status=status) + body


def chunked(*chunks: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    """Bodies in chunked coding."""
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + end


def redirect(location: str, *headers: str, status: int = 302) -> bytes:
    """A redirect."""
    return answer(b"kilroy", f"Location: {location}", *headers, status=f"{status} kilroy")
