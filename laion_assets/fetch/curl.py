"""The transport that goes out to the web: libcurl's multi interface on asyncio's loop.

libcurl, because a fetch with it costs a third to a half of the CPU time of the next best Python client. What
it is used for is one exchange at a time: it follows no redirect, knows no proxy, cookie or password, looks no
name up, and every socket it connects is made by :mod:`laion_assets.fetch.guard`.
"""

from __future__ import annotations

import asyncio
import selectors
import socket
import ssl
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlsplit

import certifi
import pycurl

from laion_assets.fetch.exchange import Exchange, too_many_open_files
from laion_assets.fetch.policy import FetchPolicy
from laion_assets.fetch.resolver import PASSING, LookUp, Resolver, look_up_host
from laion_assets.fetch.transport import AdmitLarge, ExchangeFailed, Response, WantsBody
from laion_assets.fetch.urls import is_address
from laion_assets.outcomes import Outcome

# No 'image/webp' and no 'image/avif': servers would recode the picture for us, with loss.
_ACCEPT: Final = "image/jpeg,image/png,image/*;q=0.8,*/*;q=0.5"
# What is read at once; one call into Python for each.
_BUFFER_BYTES: Final = 128 << 10
# Without OpenSSL's first choice, a post-quantum one that takes 8 % more time: pictures of public pages are no
# secret that has to last.
_KEY_EXCHANGE: Final = "X25519:P-256:P-384"
# Long enough for the next picture of a busy host, short enough that idle sockets stay few.
_KEEPALIVE_S: Final = 5
# How long libcurl remembers addresses that it was told, with every fetch: it looks through all of them with
# every fetch, too.
_TOLD_ADDRESSES_S: Final = 5


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
        self._options = _options(policy)
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
        exchange = Exchange(self._policy, wants_body)
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
            raise too_many_open_files() from error
        except UnicodeError as error:
            raise ExchangeFailed(Outcome.BAD_URL, "malformed host") from error
        port = parts.port or (443 if parts.scheme == "https" else 80)
        listed = ",".join(f"[{address}]" if ":" in address else address for address in addresses)
        # The plus sign lets libcurl forget it in time.
        return f"+{host}:{port}:{listed}"

    def _make_handle(self) -> pycurl.Curl:
        handle = pycurl.Curl()
        for option, value in self._options.items():
            handle.setopt(option, value)
        return handle


class _Multi:
    """libcurl's multi interface, driven by asyncio's loop: one place that watches all sockets.

    The sockets are in a selector of their own, and the loop watches that one (an epoll or a kqueue): all that
    are ready are worked off in one go, which costs less than a callback of the loop's for each.
    """

    def __init__(self, connections: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._exchanges: dict[pycurl.Curl, Exchange] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._selector = selectors.DefaultSelector()
        self._multi = pycurl.CurlMulti()
        self._multi.setopt(pycurl.M_SOCKETFUNCTION, self._watch)
        self._multi.setopt(pycurl.M_TIMERFUNCTION, self._set_timer)
        self._multi.setopt(pycurl.M_MAXCONNECTS, connections)
        self._loop.add_reader(self._selector.fileno(), self._work_off)

    def start(self, handle: pycurl.Curl, exchange: Exchange) -> None:
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


def _options(policy: FetchPolicy) -> dict[int, Any]:
    """What libcurl is told once for each handle."""
    return {
        pycurl.NOSIGNAL: 1,
        pycurl.PROTOCOLS: pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS,
        pycurl.PROXY: "",  # none, whatever the environment says
        pycurl.HTTP_VERSION: pycurl.CURL_HTTP_VERSION_1_1,
        pycurl.PATH_AS_IS: 1,
        pycurl.SSL_EC_CURVES: _KEY_EXCHANGE,
        pycurl.HTTP_CONTENT_DECODING: 0,  # undone by us, with a bound
        pycurl.CONNECTTIMEOUT_MS: int(policy.connect_timeout_s * 1000),
        pycurl.LOW_SPEED_LIMIT: policy.min_rate_bytes_s,
        pycurl.LOW_SPEED_TIME: policy.stall_timeout_s,
        pycurl.MAXAGE_CONN: _KEEPALIVE_S,
        pycurl.DNS_CACHE_TIMEOUT: _TOLD_ADDRESSES_S,
        pycurl.BUFFERSIZE: _BUFFER_BYTES,
        pycurl.HTTPHEADER: [
            f"User-Agent: {policy.user_agent}",
            f"Accept: {_ACCEPT}",
            "Accept-Encoding: identity",
        ],
        **_trusted(),
    }


def _trusted() -> dict[int, str]:
    """Where the certificates of trusted authorities lie, as libcurl's options."""
    paths = ssl.get_default_verify_paths()
    if paths.cafile is not None:
        return {pycurl.CAINFO: paths.cafile}
    if paths.capath is not None and any(Path(paths.capath).iterdir()):
        return {pycurl.CAPATH: paths.capath}
    return {pycurl.CAINFO: certifi.where()}
