"""Status lines and headers: long, endless, malformed, of other protocols, or just odd."""

from __future__ import annotations

import asyncio

from fault_server.behaviour import PICTURE, Visit, answer, behaviour, head, redirect
from laion_assets.outcomes import Outcome as O  # noqa: N817 (there are hundreds below)

LENGTH = f"Content-Length: {len(PICTURE)}"
# A client may refuse what the standard forbids, or make the best of it as browsers do.
TOLERABLE = (O.SUCCESS, O.PROTOCOL)
# Bounded, that is what counts; whether such a head is malformed or too large is taste.
UNBOUNDED = (O.PROTOCOL, O.TOO_LARGE)


def line(status_line: bytes) -> bytes:
    return status_line + b"\r\n" + head(LENGTH).split(b"\r\n", 1)[1] + PICTURE


def with_line(header: bytes) -> bytes:
    return head(LENGTH)[:-2] + header + b"\r\n\r\n" + PICTURE


async def endless_headers(visit: Visit) -> None:
    await visit.send(b"HTTP/1.1 200 kilroy\r\n")
    await visit.flood(b"X-Kilroy: was here\r\n")


async def one_endless_header(visit: Visit) -> None:
    await visit.send(b"HTTP/1.1 200 kilroy\r\nX-Kilroy: ")
    await visit.flood()


async def endless_header_name(visit: Visit) -> None:
    await visit.send(b"HTTP/1.1 200 kilroy\r\n")
    await visit.flood(b"X")


async def endless_reason(visit: Visit) -> None:
    await visit.send(b"HTTP/1.1 200 ")
    await visit.flood()


async def endless_blank_lines(visit: Visit) -> None:
    await visit.flood(b"\r\n")


async def endless_informational(visit: Visit) -> None:
    await visit.flood(b"HTTP/1.1 103 kilroy\r\nLink: </kilroy.css>; rel=preload\r\n\r\n")


async def informational_now_and_then(visit: Visit) -> None:
    while True:
        await visit.send(b"HTTP/1.1 102 kilroy\r\n\r\n")
        await asyncio.sleep(0.2)


COOKIES = [f"Set-Cookie: id{number}=kilroy; Path=/; Domain={{host}}" for number in range(50)]

TABLE = (
    behaviour("HTTP/0.9", PICTURE, O.PROTOCOL),
    behaviour("HTTP/1.0", head(version="HTTP/1.0") + PICTURE, O.SUCCESS, requests=1),
    behaviour("HTTP/1.0 with a length", head(LENGTH, version="HTTP/1.0") + PICTURE, O.SUCCESS, requests=1),
    behaviour("HTTP/2 without being asked", b"\0\0\x12\x04\0\0\0\0\0" + bytes(18), O.PROTOCOL),
    behaviour("HTTP/2.0 in a status line", line(b"HTTP/2.0 200 kilroy"), *TOLERABLE),
    behaviour("HTTP/9.9", line(b"HTTP/9.9 200 kilroy"), *TOLERABLE),
    behaviour("SSH", b"SSH-2.0-kilroy\r\n", O.PROTOCOL),
    behaviour("SMTP", b"220 kilroy ESMTP\r\n500 kilroy\r\n", O.PROTOCOL),
    behaviour("Shoutcast", line(b"ICY 200 kilroy"), O.PROTOCOL),
    behaviour("noise", bytes(range(256)) * 20, O.PROTOCOL),
    behaviour("NULs", bytes(5000), O.PROTOCOL),
    behaviour("a status line in lower case", line(b"http/1.1 200 kilroy"), *TOLERABLE),
    behaviour("no reason", line(b"HTTP/1.1 200"), O.SUCCESS),
    behaviour("two spaces before the status", line(b"HTTP/1.1  200 kilroy"), *TOLERABLE),
    behaviour("a reason beyond ASCII", line("HTTP/1.1 200 Kilroy wäs hier".encode()), O.SUCCESS),
    behaviour("a reason in no encoding", line(b"HTTP/1.1 200 kilroy \xff\xfe"), O.SUCCESS),
    behaviour(
        "a reason of 60 kB", line(b"HTTP/1.1 404 " + b"kilroy" * 10_000), O.HTTP_4XX, O.PROTOCOL, O.TOO_LARGE
    ),
    behaviour(
        "a reason with markup and escapes",
        line(b"HTTP/1.1 404 <b>kilroy</b>\x1b[31m\x07"),
        O.HTTP_4XX,
        O.PROTOCOL,
    ),
    *(
        behaviour(f"status {status}", line(f"HTTP/1.1 {status} kilroy".encode()), O.PROTOCOL)
        for status in ("000", "099", "99", "600", "999", "1000", "-200", "+200", "2xx", "2 00", "0xC8")
    ),
    # Of which a client may read three digits and no more.
    behaviour("status 2000", line(b"HTTP/1.1 2000 kilroy"), *TOLERABLE),
    behaviour("status 200.5", line(b"HTTP/1.1 200.5 kilroy"), *TOLERABLE),
    behaviour("100 and then 200", b"HTTP/1.1 100 kilroy\r\n\r\n" + answer(), O.SUCCESS, requests=1),
    behaviour(
        "103 with headers and then 200",
        b"HTTP/1.1 103 kilroy\r\nLink: </kilroy.css>; rel=preload\r\nLocation: /2\r\n\r\n" + answer(),
        O.SUCCESS,
        requests=1,
    ),
    behaviour(
        "1,000 times 102 and then 200",
        b"HTTP/1.1 102 kilroy\r\n\r\n" * 1000 + answer(),
        *TOLERABLE,
        O.TOO_LARGE,
    ),
    behaviour("102 without end", endless_informational, *UNBOUNDED, O.TIMEOUT, hurried=True),
    behaviour("102 now and then", informational_now_and_then, O.TIMEOUT, O.PROTOCOL, hurried=True),
    behaviour("100 and then nothing", b"HTTP/1.1 100 kilroy\r\n\r\n", O.CONNECT, O.PROTOCOL, O.TRUNCATED),
    behaviour(
        "101 to another protocol",
        head("Upgrade: kilroy", "Connection: Upgrade", status="101 kilroy"),
        O.PROTOCOL,
        O.CONNECT,
    ),
    behaviour(
        "an upgrade offered with 200",
        answer(PICTURE, "Upgrade: h2c, kilroy", "Connection: Upgrade"),
        O.SUCCESS,
    ),
    behaviour("endless headers", endless_headers, *UNBOUNDED),
    behaviour("one endless header", one_endless_header, *UNBOUNDED),
    behaviour("an endless header name", endless_header_name, *UNBOUNDED),
    behaviour("an endless reason", endless_reason, *UNBOUNDED),
    behaviour("endless blank lines", endless_blank_lines, *UNBOUNDED, O.TIMEOUT, hurried=True),
    behaviour("a header of 10 MB", with_line(b"X-Kilroy: " + b"k" * 10_000_000), *UNBOUNDED),
    behaviour(
        "100,000 headers",
        with_line(b"\r\n".join(b"X-%d: k" % number for number in range(100_000))),
        *UNBOUNDED,
    ),
    behaviour(
        "30 headers of 500 bytes",
        answer(PICTURE, *(f"X-{number}: {'k' * 500}" for number in range(30))),
        O.SUCCESS,
    ),
    behaviour("50 cookies", answer(PICTURE, *COOKIES), O.SUCCESS),
    behaviour("50 cookies and a redirect", [redirect("/2", *COOKIES), answer()], O.SUCCESS, requests=2),
    behaviour("5,000 cookies", answer(PICTURE, *(COOKIES * 100)), *TOLERABLE, O.TOO_LARGE),
    # RFC 9112, 2.2: a recipient may take a lone LF for the end of a line.
    behaviour("lines that end in LF", head(LENGTH).replace(b"\r\n", b"\n") + PICTURE, *TOLERABLE),
    behaviour(
        "lines that end in CR",
        head(LENGTH).replace(b"\r\n", b"\r") + PICTURE,
        O.PROTOCOL,
        O.CONNECT,
        O.TRUNCATED,
    ),
    behaviour("an empty line ahead of the status line", b"\r\n" + answer(), *TOLERABLE),
    behaviour("NUL in a header", with_line(b"X-Kilroy: was\0here"), *TOLERABLE),
    behaviour("NUL in a header's name", with_line(b"X-Kil\0roy: here"), *TOLERABLE),
    behaviour("control characters in a header", with_line(b"X-Kilroy: \x01\x1b[31m\x7f"), *TOLERABLE),
    behaviour("a header beyond ASCII", with_line("X-Kilroy: wäs \u200b hier".encode()), O.SUCCESS),
    behaviour("a header in no encoding", with_line(b"X-Kilroy: \xff\xfe"), O.SUCCESS),
    behaviour("a line without a colon", with_line(b"kilroy was here"), *TOLERABLE),
    behaviour("a header without a name", with_line(b": kilroy"), *TOLERABLE),
    behaviour("a header without a value", with_line(b"X-Kilroy:"), O.SUCCESS),
    behaviour("a blank before the colon", with_line(b"X-Kilroy : here"), *TOLERABLE),
    behaviour("a header folded over two lines", with_line(b"X-Kilroy: was\r\n here"), *TOLERABLE),
    behaviour(
        "a fold right behind the status line", line(b"HTTP/1.1 200 kilroy\r\n  folded: kilroy"), *TOLERABLE
    ),
    behaviour("a bare CR in a header", with_line(b"X-Kilroy: was\rX-Here: 1"), *TOLERABLE),
    behaviour("Refresh", answer(PICTURE, "Refresh: 0; url=http://0.0.0.0:{canary}/"), O.SUCCESS, requests=1),
    behaviour(
        "Location with 200", answer(PICTURE, "Location: http://0.0.0.0:{canary}/"), O.SUCCESS, requests=1
    ),
    behaviour(
        "Link, Alt-Svc and other invitations",
        answer(
            PICTURE,
            "Link: <http://0.0.0.0:{canary}/>; rel=preload",
            'Alt-Svc: http/1.1="0.0.0.0:{canary}"; ma=86400',
            "Content-Location: http://0.0.0.0:{canary}/",
            'Report-To: {"endpoints": [{"url": "http://0.0.0.0:{canary}/"}]}',
            "Strict-Transport-Security: max-age=31536000",
        ),
        O.SUCCESS,
        requests=1,
    ),
)
