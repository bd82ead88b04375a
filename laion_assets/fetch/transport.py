"""One HTTP GET, without redirects and retries: what was sent, within bounds, or why not.

:class:`HttpTransport` is the real one; :class:`FakeTransport` answers from a function, for tests.
"""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import socket
import ssl
import time
import zlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from laion_assets.errors import TooManyOpenFiles
from laion_assets.fetch.guard import RefusedAddress, guarded_socket_factory
from laion_assets.fetch.policy import FetchPolicy
from laion_assets.schema import Outcome

# A name server answers in one round trip, so more lookups at once than cores is what counts.
_RESOLVER_THREADS: Final = 64
# What the system's resolver may open for one name: its settings, a database or two, sockets.
_FEW_FILES: Final = 32
# How long a name that does not exist is taken not to; a shard takes about a minute.
_NEGATIVE_DNS_S: Final = 300.0
_NEGATIVE_DNS_NAMES: Final = 100_000
# aiohttp tries each address of a dead host in turn, and again after each failure.
_ADDRESSES_PER_FAMILY: Final = 2
# Long enough for the next picture of a busy host, short enough that idle sockets stay few.
_KEEPALIVE_S: Final = 1.0
# No 'image/webp' and no 'image/avif': servers would recode the picture for us, with loss.
_ACCEPT: Final = "image/jpeg,image/png,image/*;q=0.8,*/*;q=0.5"

_RESOLVER_PASSING: Final = (socket.EAI_AGAIN,)
_OURS: Final = (errno.EMFILE, errno.ENFILE)


@dataclass(frozen=True, kw_only=True)
class Head:
    """Status and headers of an answer, before its body is read.

    Attributes:
        status: HTTP status.
        headers: (name, value) in order of arrival, names in lower case.
    """

    status: int
    headers: Sequence[tuple[str, str]] = ()

    def values(self, name: str) -> list[str]:
        """Every value of a header."""
        return [value for found, value in self.headers if found == name]

    def value(self, name: str) -> str | None:
        """First value of a header."""
        return next(iter(self.values(name)), None)


@dataclass(frozen=True, kw_only=True)
class Response:
    """An answer; ``body`` is None where the caller did not want it."""

    head: Head
    body: bytes | None


class ExchangeFailed(Exception):
    """No answer came, or not a whole one.

    Args:
        outcome: class of the failure.
        message: what went wrong, in our words.
        passing: whether it may go better another time.
    """

    def __init__(self, outcome: Outcome, message: str, *, passing: bool = False) -> None:
        super().__init__(message)
        self.outcome = outcome
        self.message = message
        self.passing = passing


WantsBody = Callable[[Head], bool]
AdmitLarge = Callable[[], Awaitable[None]]
LookUp = Callable[[str], list[tuple[int, str]]]


class Transport(Protocol):
    """Performs one GET."""

    async def get(self, url: str, *, wants_body: WantsBody, admit_large: AdmitLarge) -> Response:
        """Ask for a URL and read its body if it is wanted.

        Args:
            url: an http or https URL in ASCII.
            wants_body: asked once the headers are there.
            admit_large: awaited once a body outgrows ``large_body_bytes``, before more is read.

        Raises:
            ExchangeFailed: if no whole answer within the policy's bounds came.
        """


class HttpTransport:
    """The real transport; an async context manager, made and used in one event loop.

    aiohttp repeats a GET by itself, once, where the connection closes without an answer (RFC 9112, 9.3.1).

    Args:
        policy: what may be asked of the web.
        look_up: asks for a host's addresses; the system's resolver by default.
    """

    def __init__(self, policy: FetchPolicy, *, look_up: LookUp | None = None) -> None:
        self._policy = policy
        self._look_up = look_up or look_up_host

    async def __aenter__(self) -> Self:
        self._resolver = _Resolver(self._look_up)
        connector = aiohttp.TCPConnector(
            limit=0,  # whoever calls limits; aiohttp would count queueing as connecting
            keepalive_timeout=_KEEPALIVE_S,
            resolver=self._resolver,
            ttl_dns_cache=300,
            dns_cache_max_size=100_000,
            socket_factory=guarded_socket_factory(self._policy),
            # One context for all: building it costs 25 to 30 ms with OpenSSL 3.0.
            ssl=ssl.create_default_context(),
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            auto_decompress=False,  # decompressed below, with a bound
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._policy.connect_timeout_s),
            headers={
                "User-Agent": self._policy.user_agent,
                "Accept": _ACCEPT,
                "Accept-Encoding": "identity",
            },
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()
        await self._resolver.close()

    async def get(self, url: str, *, wants_body: WantsBody, admit_large: AdmitLarge) -> Response:
        """See :class:`Transport`."""
        try:
            async with self._session.get(URL(url, encoded=True), allow_redirects=False) as received:
                headers = tuple((name.lower(), value) for name, value in received.headers.items())
                head = Head(status=received.status, headers=headers)
                if not wants_body(head):
                    return Response(head=head, body=None)
                return Response(head=head, body=await self._read_body(head, received, admit_large))
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            # ValueError: what yarl and the codecs raise for names that slipped through the URL check.
            raise _explain(error) from error

    async def _read_body(
        self, head: Head, received: aiohttp.ClientResponse, admit_large: AdmitLarge
    ) -> bytes:
        policy = self._policy
        if (received.content_length or 0) > policy.max_body_bytes:
            raise _too_large(policy)
        decompress = _decompressor(head)
        chunks: list[bytes] = []
        size, admitted = 0, False
        async for chunk in received.content.iter_any():
            data = decompress(chunk, policy.max_body_bytes - size + 1)
            chunks.append(data)
            size += len(data)
            if size > policy.max_body_bytes:
                raise _too_large(policy)
            if size > policy.large_body_bytes and not admitted:
                await admit_large()
                admitted = True
        if not decompress.is_whole:
            raise ExchangeFailed(Outcome.TRUNCATED, "compressed body is cut short", passing=True)
        return b"".join(chunks)


class FakeTransport:
    """Answers from a function of the URL, within the policy's bounds, as :class:`HttpTransport` would.

    Args:
        handler: URL -> answer; may be a coroutine function, and may raise :class:`ExchangeFailed`.
        policy: whose bounds hold.

    Attributes:
        asked: URLs asked for, in order.
    """

    def __init__(
        self,
        handler: Callable[[str], Response | Awaitable[Response]],
        policy: FetchPolicy | None = None,
    ) -> None:
        self._handler = handler
        self._policy = policy or FetchPolicy()
        self.asked: list[str] = []

    async def get(self, url: str, *, wants_body: WantsBody, admit_large: AdmitLarge) -> Response:
        """See :class:`Transport`."""
        self.asked.append(url)
        answered = self._handler(url)
        response = answered if isinstance(answered, Response) else await answered
        if response.body is None or not wants_body(response.head):
            return Response(head=response.head, body=None)
        if len(response.body) > self._policy.max_body_bytes:
            raise _too_large(self._policy)
        if len(response.body) > self._policy.large_body_bytes:
            await admit_large()
        return response


def respond(status: int = 200, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Response:
    """A response, for handlers of :class:`FakeTransport`."""
    pairs = tuple((name.lower(), value) for name, value in (headers or {}).items())
    return Response(head=Head(status=status, headers=pairs), body=body)


class _Resolver(AbstractResolver):
    """The system's resolver in threads of its own; names that do not exist are remembered."""

    def __init__(self, look_up: LookUp) -> None:
        self._look_up = look_up
        # Not the loop's executor: closing that one waits for a name server that does not answer.
        self._threads = ThreadPoolExecutor(_RESOLVER_THREADS, thread_name_prefix="resolver")
        self._missing: dict[str, float] = {}

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        del family  # both are looked up at once
        if self._missing.get(host, 0.0) > time.monotonic():
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._threads, self._look_up, host)
            if not found:
                raise socket.gaierror(socket.EAI_NONAME, "no addresses")  # aiohttp fails on an empty list
        except socket.gaierror as error:
            if _few_files_are_left():
                # The resolver needs files, and says that there is no such name where it gets none.
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE)) from error
            if error.errno not in _RESOLVER_PASSING and len(self._missing) < _NEGATIVE_DNS_NAMES:
                self._missing[host] = time.monotonic() + _NEGATIVE_DNS_S
            raise
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=kind,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST,
            )
            for kind in (socket.AF_INET6, socket.AF_INET)
            for address in [address for found_kind, address in found if found_kind == kind][
                :_ADDRESSES_PER_FAMILY
            ]
        ]

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


def _few_files_are_left() -> bool:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        return soft != resource.RLIM_INFINITY and len(list(Path("/dev/fd").iterdir())) + _FEW_FILES > soft
    except OSError:
        return True


def look_up_host(host: str) -> list[tuple[int, str]]:
    """Family and address of each of a host's addresses, as the system's resolver has them.

    Raises:
        socket.gaierror: if there is none, or no resolver answers.
    """
    infos = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    return [(int(family), str(address[0])) for family, _, _, _, address in infos]


class _Decompressor:
    """Undoes a Content-Encoding that was not asked for, never giving more bytes than wanted."""

    def __init__(self, coding: str) -> None:
        self._coding = coding
        # 47: zlib or gzip, whichever header is there.
        self._stream = None if coding == "identity" else zlib.decompressobj(47)

    def __call__(self, data: bytes, limit: int) -> bytes:
        if self._stream is None:
            return data
        try:
            return self._stream.decompress(data, limit)
        except zlib.error:
            raise ExchangeFailed(Outcome.PROTOCOL, f"body is not {self._coding}") from None

    @property
    def is_whole(self) -> bool:
        return self._stream is None or self._stream.eof


def _decompressor(head: Head) -> _Decompressor:
    coding = (head.value("content-encoding") or "identity").strip().lower()
    if coding in ("", "identity", "none"):
        return _Decompressor("identity")
    if coding in ("gzip", "x-gzip", "deflate"):
        return _Decompressor(coding)
    raise ExchangeFailed(Outcome.PROTOCOL, "body in a Content-Encoding that was not asked for")


def _too_large(policy: FetchPolicy) -> ExchangeFailed:
    return ExchangeFailed(Outcome.TOO_LARGE, f"body longer than {policy.max_body_bytes} bytes")


def _explain(error: Exception) -> ExchangeFailed:
    """What an exception of aiohttp means, in words that hold nothing a server sent."""
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(cause, OSError) and cause.errno in _OURS and not isinstance(cause, socket.gaierror):
        # Not a failure of the URL's, which would be recorded as such for good.
        raise TooManyOpenFiles(
            "too many open files: raise the limit (ulimit -n) or lower fetch.concurrency, and run this again"
        ) from error
    if isinstance(cause, RefusedAddress):
        return ExchangeFailed(Outcome.REFUSED_ADDRESS, f"refused address: {cause.reason}")
    if isinstance(cause, TimeoutError):
        return ExchangeFailed(Outcome.TIMEOUT, "timed out", passing=True)
    for kinds, outcome, message, passing in _FAILURES:
        if isinstance(error, kinds):
            return ExchangeFailed(outcome, message or _system_message(cause), passing=_passes(cause, passing))
    return ExchangeFailed(Outcome.PROTOCOL, "malformed answer")


# In order: a class before its bases. An empty message is the operating system's.
_FAILURES: Final[tuple[tuple[tuple[type[Exception], ...], Outcome, str, bool], ...]] = (
    ((aiohttp.ClientConnectorDNSError,), Outcome.DNS, "", False),
    ((aiohttp.ClientConnectorCertificateError,), Outcome.TLS, "certificate verify failed", False),
    ((aiohttp.ClientSSLError, ssl.SSLError), Outcome.TLS, "TLS handshake failed", False),
    (
        (aiohttp.ServerDisconnectedError,),
        Outcome.CONNECT,
        "Remote end closed connection without response",
        True,
    ),
    ((aiohttp.ClientPayloadError,), Outcome.TRUNCATED, "body is cut short", True),
    ((aiohttp.InvalidURL,), Outcome.BAD_URL, "malformed URL", False),
    ((aiohttp.ClientOSError, OSError), Outcome.CONNECT, "", False),
    ((UnicodeError,), Outcome.BAD_URL, "malformed host", False),
)
_PASSING_ERRNOS: Final = (errno.ECONNRESET, errno.EPIPE, errno.ECONNABORTED)


def _passes(cause: BaseException, passing: bool) -> bool:
    if isinstance(cause, socket.gaierror):
        return cause.errno in _RESOLVER_PASSING
    return passing or (isinstance(cause, OSError) and cause.errno in _PASSING_ERRNOS)


def _system_message(cause: BaseException) -> str:
    if isinstance(cause, socket.gaierror):
        known = "Name or service not known"
        return f"DNS: {'temporary failure' if cause.errno in _RESOLVER_PASSING else known}"
    number = cause.errno if isinstance(cause, OSError) else None
    # Not the exception's own text: it holds the address.
    return f"[Errno {number}] {errno.errorcode.get(number, '')}" if number else "connection failed"
