"""A web server on the loopback address that behaves as the open web does: mostly well.

Its answers follow from the path alone, ``/<fault>/<picture>``, so nothing needs to be stored; the one
thing it remembers is how often each path was asked for.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import struct
import zlib
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from enum import StrEnum
from types import MappingProxyType, TracebackType
from typing import Any, Final, Self

from aiohttp import web

from laion_assets.demo.pictures import Encoding, Picture
from laion_assets.fetch.policy import MIB
from laion_assets.outcomes import Outcome

SLOW_S: Final = 0.3
_STALL_S: Final = 20.0
_BACKLOG: Final = 256
_STOP_S: Final = 1.0
_OVERSIZED_BYTES: Final = 24 * MIB


class Fault(StrEnum):
    """What goes wrong with a URL; the first segment of its path."""

    OK = "ok"
    SLOW = "slow"
    """Answers after SLOW_S seconds."""
    REDIRECT = "redirect"
    """302 to the same picture without a fault."""
    FLAKY = "flaky"
    """503 to the first request, the picture to every later one."""
    WRONG_TYPE = "wrong-type"
    """PNG bytes under whatever the path ends in, labelled text/plain; still a picture."""
    GONE = "gone"
    FORBIDDEN = "forbidden"
    UNAVAILABLE = "unavailable"
    """503 always."""
    STALLED = "stalled"
    """Begins to answer and never ends."""
    TRUNCATED = "truncated"
    """Promises more bytes than it sends."""
    OVERSIZED = "oversized"
    """24 MiB of nothing, more than the default policy takes."""
    LOOP = "loop"
    """302 to itself."""
    OPTED_OUT = "opted-out"
    """The picture, with an X-Robots-Tag against its use."""
    HTML = "html"
    """200 and a page where a picture was."""
    BROKEN = "broken"
    """The first half of a picture's file, sent as if it were whole."""
    TOO_MANY_PIXELS = "too-many-pixels"
    """A PNG of a few bytes that claims 80 million pixels."""


OUTCOMES: Final[Mapping[Fault, Outcome]] = MappingProxyType(
    {
        Fault.OK: Outcome.SUCCESS,
        Fault.SLOW: Outcome.SUCCESS,
        Fault.REDIRECT: Outcome.SUCCESS,
        Fault.FLAKY: Outcome.SUCCESS,
        Fault.WRONG_TYPE: Outcome.SUCCESS,
        Fault.GONE: Outcome.HTTP_4XX,
        Fault.FORBIDDEN: Outcome.HTTP_4XX,
        Fault.UNAVAILABLE: Outcome.HTTP_5XX,
        Fault.STALLED: Outcome.TIMEOUT,
        Fault.TRUNCATED: Outcome.TRUNCATED,
        Fault.OVERSIZED: Outcome.TOO_LARGE,
        Fault.LOOP: Outcome.TOO_MANY_REDIRECTS,
        Fault.OPTED_OUT: Outcome.OPTED_OUT,
        Fault.HTML: Outcome.NOT_AN_IMAGE,
        Fault.BROKEN: Outcome.UNDECODABLE,
        Fault.TOO_MANY_PIXELS: Outcome.TOO_MANY_PIXELS,
    }
)
"""What a URL of each fault comes to under the default policies."""

_REFUSALS: Final = {Fault.GONE: 404, Fault.FORBIDDEN: 403, Fault.UNAVAILABLE: 503}

_PAGE: Final = """<!doctype html>
<title>Photo not found</title>
<p>The photo you are looking for has moved. <a href="/">Browse similar photos</a></p>
"""


def url_of(base_url: str, fault: Fault, picture: Picture) -> str:
    """Address of a picture on a demo web."""
    return f"{base_url}/{fault}/{picture.path}"


class DemoWeb:
    """The server, in a thread of its own, for the length of a ``with`` block.

    Args:
        host: a loopback address.
        port: the port to listen at; 0 takes any free one.

    Attributes:
        requests: path -> how often it was asked for.

    Raises:
        ValueError: if the host is not a loopback address.
        OSError: on entry, if the port is taken.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        if not ipaddress.ip_address(host).is_loopback:
            raise ValueError(f"{host} is no loopback address, and the demo is for this machine only")
        self.requests: Counter[str] = Counter()
        self._host = host
        self._port = port
        self._threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="demo-web")
        self._closing = asyncio.Event()

    def __enter__(self) -> Self:
        listener = _listen(self._host, self._port)
        self._port = listener.getsockname()[1]
        started: Future[asyncio.AbstractEventLoop] = Future()
        self._finished = self._threads.submit(lambda: asyncio.run(self._serve(listener, started)))
        events: list[Future[Any]] = [started, self._finished]
        wait(events, return_when=FIRST_COMPLETED)
        if self._finished.done():
            self._finished.result()  # raises what kept the server from starting
        self._loop = started.result()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._closing.set)
        self._finished.result()
        self._threads.shutdown()

    @property
    def port(self) -> int:
        """Where it listens, known once the server runs."""
        return self._port

    @property
    def base_url(self) -> str:
        """``http://127.0.0.1:<port>``, known once the server runs."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}"

    def url_for(self, fault: Fault, picture: Picture) -> str:
        """Address of a picture that misbehaves in the given way."""
        return url_of(self.base_url, fault, picture)

    async def _serve(self, listener: socket.socket, started: Future[asyncio.AbstractEventLoop]) -> None:
        application = web.Application()
        application.router.add_get("/{path:.*}", self._answer, allow_head=False)
        runner = web.AppRunner(
            application, access_log=None, handler_cancellation=True, shutdown_timeout=_STOP_S
        )
        try:
            await runner.setup()
            await web.SockSite(runner, listener).start()
            started.set_result(asyncio.get_running_loop())
            await self._closing.wait()
        finally:
            await runner.cleanup()
            listener.close()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.requests[request.path] += 1
        fault, picture = _parse(request.path)
        if fault in _REFUSALS:
            return web.Response(status=_REFUSALS[fault], text=f"{_REFUSALS[fault]}\n")
        if fault is Fault.FLAKY and self.requests[request.path] == 1:
            return web.Response(status=503, text="busy, come back\n")
        if fault is Fault.HTML:
            return web.Response(text=_PAGE, content_type="text/html")
        if fault is Fault.LOOP:
            raise web.HTTPFound(request.path)
        if fault is Fault.REDIRECT:
            raise web.HTTPFound(f"/{Fault.OK}/{picture.path}")
        if fault in (Fault.STALLED, Fault.TRUNCATED, Fault.OVERSIZED):
            return await self._misbehave(request, fault, picture)
        if fault is Fault.SLOW:
            await self._pause(SLOW_S)
        return _picture(fault, picture)

    async def _misbehave(self, request: web.Request, fault: Fault, picture: Picture) -> web.StreamResponse:
        """Answers whose body is not the length it was said to be, or never ends."""
        body = bytes(_OVERSIZED_BYTES) if fault is Fault.OVERSIZED else picture.encode()
        response = web.StreamResponse()
        response.content_type = picture.encoding.content_type
        response.content_length = len(body)
        with suppress(ConnectionError):  # the client has seen enough, as it should
            await response.prepare(request)
            await response.write(body if fault is Fault.OVERSIZED else body[: len(body) // 2])
            if fault is Fault.STALLED:
                await self._pause(_STALL_S)
        if fault is not Fault.OVERSIZED and request.transport is not None:
            request.transport.close()
        return response

    async def _pause(self, seconds: float) -> None:
        """Sleep, unless the server stops."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._closing.wait(), seconds)


def _listen(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        # A port that the demo itself had a moment ago may be had again.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _parse(path: str) -> tuple[Fault, Picture]:
    name, _, rest = path.removeprefix("/").partition("/")
    picture = Picture.parse(rest)
    if name not in set(Fault) or picture is None:
        raise web.HTTPNotFound(text="no such picture\n")
    return Fault(name), picture


def _picture(fault: Fault, picture: Picture) -> web.Response:
    """Answers that are whole, whatever is in them."""
    body, content_type = picture.encode(), picture.encoding.content_type
    headers = {}
    if fault is Fault.WRONG_TYPE:
        body, content_type = picture.encode(Encoding.PNG), "text/plain"
    elif fault is Fault.BROKEN:
        body = body[: len(body) // 2]
    elif fault is Fault.TOO_MANY_PIXELS:
        body, content_type = _huge_png(10_000, 8_000), "image/png"
    elif fault is Fault.OPTED_OUT:
        headers["X-Robots-Tag"] = "noai, noimageai"
    return web.Response(body=body, content_type=content_type, headers=headers)


def _huge_png(width: int, height: int) -> bytes:
    """A PNG whose header is in order and whose pixels are missing (PNG specification, 5.3 and 11.2.1)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks
