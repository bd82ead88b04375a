"""The transport that goes out to the web: libcurl's multi interface on asyncio's loop.

libcurl, because a fetch with it costs a third to a half of the CPU time of the next best Python client. What
it is used for is one exchange at a time: it follows no redirect, knows no proxy, cookie or password, looks no
name up, and every socket it connects is made by :mod:`laion_assets.fetch.guard`.
"""

from __future__ import annotations

import asyncio
import errno
import re
import selectors
import socket
import ssl
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlsplit

import certifi
import pycurl

from laion_assets.errors import TooManyOpenFiles
from laion_assets.fetch.coding import Decompressor, decompressor
from laion_assets.fetch.guard import RefusedAddress, make_socket
from laion_assets.fetch.policy import FetchPolicy
from laion_assets.fetch.resolver import PASSING, LookUp, Resolver, look_up_host
from laion_assets.fetch.transport import AdmitLarge, ExchangeFailed, Head, Response, WantsBody, too_large
from laion_assets.fetch.urls import is_address
from laion_assets.outcomes import Outcome

# No 'image/webp' and no 'image/avif': servers would recode the picture for us, with loss.
_ACCEPT: Final = "image/jpeg,image/png,image/*;q=0.8,*/*;q=0.5"
# What is read at once; one call into Python for each.
_BUFFER_BYTES: Final = 128 << 10
# Long enough for the next picture of a busy host, short enough that idle sockets stay few.
_KEEPALIVE_S: Final = 5
# A body that is not wanted but this short is read to its end, and the connection used again.
_DRAINED_BYTES: Final = 8 << 10
_MOST_HEADERS: Final = 200
_MOST_HEADER_BYTES: Final = 64 << 10  # those of answers before the last one included
# HTTP/1.1's (RFC 9112, 4), and what servers make of it: libcurl is laxer still.
_STATUS_LINE: Final = re.compile(rb"HTTP/[0-9](?:\.[0-9])? +([1-9][0-9]{2})[ \r\n]")
_OURS: Final = (errno.EMFILE, errno.ENFILE)


class HttpTransport:
    """The real transport; an async context manager, made and used in one event loop.

    Certificates are checked against what OpenSSL trusts on this machine (``SSL_CERT_FILE`` names another
    file), else against Mozilla's list.

    Args:
        policy: what may be asked of the web.
        look_up: asks for a host's addresses; the system's resolver by default.
    """

    def __init__(self, policy: FetchPolicy, *, look_up: LookUp = look_up_host) -> None:
        self._policy = policy
        self._look_up = look_up
        self._idle: list[pycurl.Curl] = []

    async def __aenter__(self) -> Self:
        self._resolver = Resolver(self._look_up, at_once=self._policy.lookups)
        self._multi = _Multi(self._policy.concurrency)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._multi.close()
        for handle in self._idle:
            handle.close()
        await self._resolver.close()

    async def get(self, url: str, *, wants_body: WantsBody, admit_large: AdmitLarge) -> Response:
        """See :class:`~laion_assets.fetch.transport.Transport`.

        libcurl repeats a GET by itself, once, where a connection that was kept open turns out to be closed.

        Raises:
            TooManyOpenFiles: if this process may not open another.
        """
        addresses = await self._resolve(url)
        handle = self._idle.pop() if self._idle else self._make_handle()
        exchange = _Exchange(self._policy, wants_body)
        exchange.prepare(handle, url, addresses)
        # Not libcurl's own limit on slowness, which looks once in a while: 8 s became 13.
        silence = asyncio.get_running_loop().call_later(
            self._policy.response_timeout_s, exchange.give_up_silent
        )
        try:
            self._multi.start(handle, exchange)
            while not await exchange.is_done():
                await admit_large()
                exchange.go_on(handle)
        finally:
            silence.cancel()
            self._multi.end(handle)
            self._idle.append(handle)
        return exchange.conclude()

    async def _resolve(self, url: str) -> str | None:
        """The addresses of a URL's host as libcurl wants to be told of them; None where it is one itself."""
        parts = urlsplit(url)
        host = parts.hostname or ""
        if is_address(host):
            return None
        try:
            addresses = await self._resolver.resolve(host)
        except socket.gaierror as error:
            passing = error.errno in PASSING
            message = f"DNS: {'temporary failure' if passing else 'Name or service not known'}"
            raise ExchangeFailed(Outcome.DNS, message, passing=passing) from error
        except OSError as error:
            raise _too_many_open_files() from error
        except UnicodeError as error:
            raise ExchangeFailed(Outcome.BAD_URL, "malformed host") from error
        port = parts.port or (443 if parts.scheme == "https" else 80)
        listed = ",".join(f"[{address}]" if ":" in address else address for address in addresses)
        # The plus sign lets libcurl forget it in time.
        return f"+{host}:{port}:{listed}"

    def _make_handle(self) -> pycurl.Curl:
        handle = pycurl.Curl()
        policy = self._policy
        for option, value in (
            (pycurl.NOSIGNAL, 1),
            (pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS),
            (pycurl.PROXY, ""),  # none, whatever the environment says
            (pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1),
            (pycurl.PATH_AS_IS, 1),
            (pycurl.HTTP_CONTENT_DECODING, 0),  # undone by us, with a bound
            (pycurl.CONNECTTIMEOUT_MS, int(policy.connect_timeout_s * 1000)),
            (pycurl.LOW_SPEED_LIMIT, policy.min_rate_bytes_s),
            (pycurl.LOW_SPEED_TIME, policy.stall_timeout_s),
            (pycurl.MAXAGE_CONN, _KEEPALIVE_S),
            (pycurl.BUFFERSIZE, _BUFFER_BYTES),
            (
                pycurl.HTTPHEADER,
                [f"User-Agent: {policy.user_agent}", f"Accept: {_ACCEPT}", "Accept-Encoding: identity"],
            ),
            *_trusted().items(),
        ):
            handle.setopt(option, value)
        return handle


class _Exchange:
    """One request and what comes back; libcurl calls it, and an exception must not leave it then."""

    def __init__(self, policy: FetchPolicy, wants_body: WantsBody) -> None:
        self._policy = policy
        self._wants_body = wants_body
        self._lines: list[bytes] = []
        self._header_bytes = 0
        self._head: Head | None = None
        self._is_wanted = False
        self._decompress: Decompressor | None = None
        self._chunks: list[bytes] = []
        self._size = 0
        self._is_admitted = False
        self._failure: Exception | None = None
        self._ending: tuple[int, int] | None = None
        self._wake: asyncio.Future[None] | None = None

    def prepare(self, handle: pycurl.Curl, url: str, addresses: str | None) -> None:
        """Tell libcurl what to ask for, and whom to call."""
        handle.setopt(pycurl.URL, url)
        if addresses is None:
            handle.unsetopt(pycurl.RESOLVE)
        else:
            handle.setopt(pycurl.RESOLVE, [addresses])
        handle.setopt(pycurl.OPENSOCKETFUNCTION, self._open_socket)
        handle.setopt(pycurl.HEADERFUNCTION, self._take_header)
        handle.setopt(pycurl.WRITEFUNCTION, self._take_body)

    async def is_done(self) -> bool:
        """Wait until the exchange is done, or (False) wants to hold a long body."""
        if self._ending is None:
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake
        return self._ending is not None

    def go_on(self, handle: pycurl.Curl) -> None:
        """Take the rest of a long body."""
        self._is_admitted = True
        if self._ending is None:
            try:
                handle.pause(pycurl.PAUSE_CONT)  # calls _take_body, from here
            except pycurl.error as error:
                self.end(error.args[0], 0)

    def end(self, code: int, system_error: int) -> None:
        """Be told that libcurl is done."""
        self._ending = code, system_error
        self._go_to_waiter()

    def give_up_silent(self) -> None:
        """End an exchange whose answer has not begun."""
        if self._head is None and self._ending is None:
            self.end(pycurl.E_OPERATION_TIMEDOUT, 0)

    def conclude(self) -> Response:
        """What came of it.

        Raises:
            ExchangeFailed: if no whole answer came.
            TooManyOpenFiles: if it was for us, and not for the server.
        """
        try:
            return self._conclude()
        except ExchangeFailed as failure:
            failure.head = self._head
            raise

    def _conclude(self) -> Response:
        assert self._ending is not None
        chunks, self._chunks = self._chunks, []
        if self._failure is not None:
            raise self._failure
        if self._head is not None and not self._is_wanted:
            return Response(head=self._head, body=None)
        code, system_error = self._ending
        if code != pycurl.E_OK or self._head is None:
            raise _explain(code, system_error, has_begun=self._head is not None)
        if self._decompress is not None and not self._decompress.is_whole:
            raise ExchangeFailed(Outcome.TRUNCATED, "compressed body is cut short", passing=True)
        return Response(head=self._head, body=chunks[0] if len(chunks) == 1 else b"".join(chunks))

    def _go_to_waiter(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def _open_socket(self, purpose: int, address: Any) -> socket.socket | int:  # noqa: ANN401 (a tuple of 4)
        del purpose  # there is but one
        family, kind, protocol, endpoint = address
        try:
            opened = make_socket(family, kind, protocol, endpoint, self._policy)
        except RefusedAddress as refused:
            # Counts unless another address of the host is allowed.
            self._failure = ExchangeFailed(Outcome.REFUSED_ADDRESS, f"refused address: {refused.reason}")
            return int(pycurl.SOCKET_BAD)
        except OSError as error:
            self._failure = _system_failure(error.errno or 0)
            return int(pycurl.SOCKET_BAD)
        self._failure = None
        asyncio.get_running_loop().call_soon(opened.close)  # libcurl uses a duplicate of it
        return opened

    def _take_header(self, line: bytes) -> int | None:
        if self._head is not None:
            return None  # a trailer
        self._lines.append(line)
        self._header_bytes += len(line)
        try:
            if len(self._lines) > _MOST_HEADERS or self._header_bytes > _MOST_HEADER_BYTES:
                raise ExchangeFailed(Outcome.PROTOCOL, "headers too many or too long")
            return self._take_head(self._lines) if line in (b"\r\n", b"\n") else None
        except Exception as error:  # noqa: BLE001 (raised again by conclude)
            self._failure = error
            return _ABORT

    def _take_head(self, lines: Sequence[bytes]) -> int | None:
        head = _parse_head(lines)
        if head.status < 200:
            self._lines = []  # something is still to come
            return None
        lengths = set(head.values("content-length"))
        if len(lengths) > 1:
            raise ExchangeFailed(Outcome.PROTOCOL, "malformed answer")
        text = next(iter(lengths), "")
        length = int(text) if text.isascii() and text.isdigit() else 0
        self._head = head
        self._is_wanted = self._wants_body(head)
        if not self._is_wanted:
            return None if length <= _DRAINED_BYTES else _ABORT
        if length > self._policy.max_body_bytes:
            raise too_large(self._policy)
        self._decompress = decompressor(head)
        return None

    def _take_body(self, chunk: bytes) -> int | None:
        try:
            return self._take_chunk(chunk)
        except Exception as error:  # noqa: BLE001 (raised again by conclude)
            self._failure = error
            return _ABORT

    def _take_chunk(self, chunk: bytes) -> int | None:
        policy = self._policy
        if self._decompress is None:
            self._size += len(chunk)
            return None if self._size <= _DRAINED_BYTES else _ABORT
        if self._size > policy.large_body_bytes and not self._is_admitted:
            self._go_to_waiter()
            return int(pycurl.WRITEFUNC_PAUSE)  # the chunk comes again
        data = self._decompress(chunk, policy.max_body_bytes - self._size + 1)
        self._chunks.append(data)
        self._size += len(data)
        if self._size > policy.max_body_bytes:
            raise too_large(policy)
        return None


def _parse_head(lines: Sequence[bytes]) -> Head:
    status = _STATUS_LINE.match(lines[0])
    if status is None:
        raise ExchangeFailed(Outcome.PROTOCOL, "malformed answer")
    fields = [line.decode("utf-8", "surrogateescape").partition(":") for line in lines[1:-1]]
    return Head(
        status=int(status[1]),
        headers=tuple((name.strip().lower(), value.strip()) for name, _, value in fields),
    )


class _Multi:
    """libcurl's multi interface, driven by asyncio's loop: one place that watches all sockets.

    The sockets are in a selector of their own, and the loop watches that one (an epoll or a kqueue): all that
    are ready are worked off in one go, which costs less than a callback of the loop's for each.
    """

    def __init__(self, connections: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._exchanges: dict[pycurl.Curl, _Exchange] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._selector = selectors.DefaultSelector()
        self._multi = pycurl.CurlMulti()
        self._multi.setopt(pycurl.M_SOCKETFUNCTION, self._watch)
        self._multi.setopt(pycurl.M_TIMERFUNCTION, self._set_timer)
        self._multi.setopt(pycurl.M_MAXCONNECTS, connections)
        self._loop.add_reader(self._selector.fileno(), self._work_off)

    def start(self, handle: pycurl.Curl, exchange: _Exchange) -> None:
        """Begin an exchange; its ``end`` is called when it is done."""
        self._exchanges[handle] = exchange
        self._multi.add_handle(handle)

    def end(self, handle: pycurl.Curl) -> None:
        """Give an exchange up, if it is not done."""
        if self._exchanges.pop(handle, None) is not None:
            self._multi.remove_handle(handle)

    def close(self) -> None:
        """Give everything up."""
        for handle in list(self._exchanges):
            self.end(handle)
        self._loop.remove_reader(self._selector.fileno())
        self._multi.close()  # closes the idle connections, of which it tells _watch
        self._selector.close()
        if self._timer is not None:
            self._timer.cancel()

    def _watch(self, what: int, descriptor: int, multi: object, data: object) -> None:
        del multi, data
        is_watched = descriptor in self._selector.get_map()
        if what == pycurl.POLL_REMOVE:
            if is_watched:
                self._selector.unregister(descriptor)
            return
        events = _EVENTS[what]
        if is_watched:
            self._selector.modify(descriptor, events)
        else:
            self._selector.register(descriptor, events)

    def _set_timer(self, milliseconds: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if milliseconds < 0 else self._loop.call_later(milliseconds / 1000, self._time_out)

    def _time_out(self) -> None:
        self._timer = None
        self._multi.socket_action(pycurl.SOCKET_TIMEOUT, 0)
        self._tell()

    def _work_off(self) -> None:
        for key, events in self._selector.select(0):
            self._multi.socket_action(key.fd, _SELECTED[events])
        self._tell()

    def _tell(self) -> None:
        waiting = 1
        while waiting:
            waiting, succeeded, failed = self._multi.info_read()
            for handle, code in (
                *((handle, pycurl.E_OK) for handle in succeeded),
                *((handle, code) for handle, code, _ in failed),
            ):
                self._multi.remove_handle(handle)
                self._exchanges.pop(handle).end(code, handle.getinfo(pycurl.OS_ERRNO))


_ABORT: Final = -1
_READ_WRITE: Final = selectors.EVENT_READ | selectors.EVENT_WRITE
_EVENTS: Final = {
    pycurl.POLL_IN: selectors.EVENT_READ,
    pycurl.POLL_OUT: selectors.EVENT_WRITE,
    pycurl.POLL_INOUT: _READ_WRITE,
}
_SELECTED: Final = {
    selectors.EVENT_READ: pycurl.CSELECT_IN,
    selectors.EVENT_WRITE: pycurl.CSELECT_OUT,
    _READ_WRITE: pycurl.CSELECT_IN | pycurl.CSELECT_OUT,
}


def _trusted() -> dict[int, str]:
    """Where the certificates of trusted authorities lie, as libcurl's options."""
    paths = ssl.get_default_verify_paths()
    if paths.cafile is not None:
        return {pycurl.CAINFO: paths.cafile}
    if paths.capath is not None and any(Path(paths.capath).iterdir()):
        return {pycurl.CAPATH: paths.capath}
    return {pycurl.CAINFO: certifi.where()}


# libcurl's code -> class, message, whether it may pass. An empty message is the operating system's.
_FAILURES: Final = {
    pycurl.E_COULDNT_CONNECT: (Outcome.CONNECT, "", False),
    pycurl.E_OPERATION_TIMEDOUT: (Outcome.TIMEOUT, "timed out", True),
    pycurl.E_PEER_FAILED_VERIFICATION: (Outcome.TLS, "certificate verify failed", False),
    pycurl.E_SSL_CONNECT_ERROR: (Outcome.TLS, "TLS handshake failed", False),
    pycurl.E_GOT_NOTHING: (Outcome.CONNECT, "Remote end closed connection without response", True),
    pycurl.E_PARTIAL_FILE: (Outcome.TRUNCATED, "body is cut short", True),
    pycurl.E_SEND_ERROR: (Outcome.CONNECT, "", True),
    pycurl.E_RECV_ERROR: (Outcome.CONNECT, "", True),
    pycurl.E_URL_MALFORMAT: (Outcome.BAD_URL, "malformed URL", False),
}


def _explain(code: int, system_error: int, *, has_begun: bool) -> ExchangeFailed | TooManyOpenFiles:
    """What libcurl's code means, in words that hold nothing a server sent."""
    if code == pycurl.E_RECV_ERROR and has_begun:
        return ExchangeFailed(Outcome.TRUNCATED, "body is cut short", passing=True)
    if system_error in _OURS:
        return _too_many_open_files()
    outcome, message, passing = _FAILURES.get(code, (Outcome.PROTOCOL, "malformed answer", False))
    return ExchangeFailed(outcome, message or _system_message(system_error), passing=passing)


def _system_failure(number: int) -> ExchangeFailed | TooManyOpenFiles:
    if number in _OURS:
        return _too_many_open_files()
    return ExchangeFailed(Outcome.CONNECT, _system_message(number))


def _system_message(number: int) -> str:
    return f"[Errno {number}] {errno.errorcode.get(number, '')}" if number else "connection failed"


def _too_many_open_files() -> TooManyOpenFiles:
    # Not a failure of the URL's, which would be recorded as such for good.
    return TooManyOpenFiles(
        "too many open files: raise the limit (ulimit -n) or lower fetch.concurrency, and run this again"
    )
