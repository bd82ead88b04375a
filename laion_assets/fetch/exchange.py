"""One request to libcurl and what comes back: headers and body within bounds, or why not.

libcurl calls it while :mod:`laion_assets.fetch.curl` drives it, chunk by chunk.
"""

from __future__ import annotations

import asyncio
import errno
import re
import socket
from collections.abc import Sequence
from typing import Any, Final

import pycurl

from laion_assets.errors import TooManyOpenFiles
from laion_assets.fetch.coding import Decompressor, decompressor
from laion_assets.fetch.guard import RefusedAddress, make_socket
from laion_assets.fetch.policy import FetchPolicy
from laion_assets.fetch.transport import ExchangeFailed, Head, Response, WantsBody, too_large
from laion_assets.outcomes import Outcome

# A body that is not wanted but this short is read to its end, and the connection used again.
_DRAINED_BYTES: Final = 8 << 10
_MOST_HEADERS: Final = 200
_MOST_HEADER_BYTES: Final = 64 << 10  # those of answers before the last one included
# HTTP/1.1's (RFC 9112, 4), and what servers make of it: libcurl is laxer still.
_STATUS_LINE: Final = re.compile(rb"HTTP/[0-9](?:\.[0-9])? +([1-9][0-9]{2})[ \r\n]")
_OURS: Final = (errno.EMFILE, errno.ENFILE)
_ABORT: Final = -1


class Exchange:
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
            asyncio.get_running_loop().call_soon(opened.close)
            # libcurl uses a duplicate of it. Where there can be none it would blame the server.
            opened.dup().close()
        except RefusedAddress as refused:
            # Counts unless another address of the host is allowed.
            self._failure = ExchangeFailed(Outcome.REFUSED_ADDRESS, f"refused address: {refused.reason}")
            return int(pycurl.SOCKET_BAD)
        except OSError as error:
            self._failure = _system_failure(error.errno or 0)
            return int(pycurl.SOCKET_BAD)
        self._failure = None
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
        return too_many_open_files()
    outcome, message, passing = _FAILURES.get(code, (Outcome.PROTOCOL, "malformed answer", False))
    return ExchangeFailed(outcome, message or _system_message(system_error), passing=passing)


def _system_failure(number: int) -> ExchangeFailed | TooManyOpenFiles:
    if number in _OURS:
        return too_many_open_files()
    return ExchangeFailed(Outcome.CONNECT, _system_message(number))


def _system_message(number: int) -> str:
    return f"[Errno {number}] {errno.errorcode.get(number, '')}" if number else "connection failed"


def too_many_open_files() -> TooManyOpenFiles:
    """What to raise where this process may not open another file."""
    # Not a failure of the URL's, which would be recorded as such for good.
    return TooManyOpenFiles(
        "too many open files: raise the limit (ulimit -n) or lower fetch.concurrency, and run this again"
    )
