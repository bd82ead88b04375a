"""Connections that fail, stall, drip, or carry more than one answer."""

from __future__ import annotations

import asyncio

from fault_server.behaviour import (
    LIMIT,
    NO_ANSWER,
    PICTURE,
    Visit,
    answer,
    behaviour,
    close,
    head,
    overflow,
    redirect,
    refuse,
    reset,
)
from laion_assets.outcomes import Outcome as O  # noqa: N817 (there are hundreds below)

LONG = head("Content-Length: 500000")


async def say_goodbye(visit: Visit) -> None:
    visit.writer.write_eof()
    await visit.silence()


async def wait_in_silence(visit: Visit) -> None:
    await visit.silence()


async def stop_after_head(visit: Visit) -> None:
    await visit.send(LONG)
    await visit.silence()


async def stop_within_head(visit: Visit) -> None:
    await visit.send(LONG[:-10])
    await visit.silence()


async def stop_within_body(visit: Visit) -> None:
    await visit.send(LONG + PICTURE[:200])
    await visit.silence()


async def stop_within_chunks(visit: Visit) -> None:
    await visit.send(head("Transfer-Encoding: chunked") + b"4\r\n\xff\xd8\xff\xe0\r\n")
    await visit.silence()


async def stop_where_the_end_is_unknown(visit: Visit) -> None:
    await visit.send(head("Connection: close") + PICTURE)
    await visit.silence()


async def stop_after_body(visit: Visit) -> None:
    await visit.send(answer())
    await visit.silence()


async def drip_all(visit: Visit) -> None:
    await visit.drip(answer())


async def drip_body(visit: Visit) -> None:
    await visit.send(head(f"Content-Length: {len(PICTURE)}"))
    await visit.drip(PICTURE)


async def drip_chunks(visit: Visit) -> None:
    await visit.send(head("Transfer-Encoding: chunked"))
    for _ in range(100):
        await visit.send(b"1\r\nk\r\n")
        await asyncio.sleep(0.2)


async def drip_headers(visit: Visit) -> None:
    await visit.send(b"HTTP/1.1 200 kilroy\r\n")
    for number in range(100):
        await visit.send(b"X-%d: kilroy\r\n" % number)
        await asyncio.sleep(0.2)


async def reset_within_head(visit: Visit) -> None:
    await visit.send(LONG[:-10])
    await reset(visit)


async def reset_within_body(visit: Visit) -> None:
    await visit.send(LONG + bytes(100_000))
    await reset(visit)


async def flood_promised(visit: Visit) -> None:
    await visit.send(head("Content-Length: 314572800"))
    await visit.flood()


async def flood_unpromised(visit: Visit) -> None:
    await visit.send(head("Connection: close"))
    await visit.flood()


async def flood_old(visit: Visit) -> None:
    await visit.send(head(version="HTTP/1.0"))
    await visit.flood()


async def flood_before_the_request(visit: Visit) -> None:
    await visit.flood()


async def flood_after_the_body(visit: Visit) -> None:
    await visit.send(answer())
    await visit.flood()


async def flood_an_error_page(visit: Visit) -> None:
    await visit.send(head("Connection: close", status="404 kilroy"))
    await visit.flood()


async def flood_a_redirect(visit: Visit) -> None:
    if visit.path == "/2":
        await visit.send(answer())
        return
    await visit.send(head("Location: /2", "Connection: close", status="302 kilroy"))
    await visit.flood()


POISON = answer(b"", status="410 kilroy")


async def poison(visit: Visit) -> None:
    """Let a forged answer follow the first one; a real one is there for the second request."""
    if visit.path == "/2":
        await visit.send(answer())
    else:
        await visit.send(redirect("/2") + POISON)
        # So that it is there before the client asks again.
        await asyncio.sleep(0.05)


async def poison_later(visit: Visit) -> None:
    """As above, when the connection is idle."""
    if visit.path == "/2":
        await visit.send(answer())
    else:
        await visit.send(redirect("/2"))
        await visit.send(POISON)


async def drop_when_idle(visit: Visit) -> None:
    """End a connection that was to be kept, as the second request comes in on it."""
    if visit.path == "/2" and visit.number == 2:
        await reset(visit)
    else:
        await visit.send(answer() if visit.path == "/2" else redirect("/2"))


TABLE = (
    behaviour("a picture", answer(), O.SUCCESS, requests=1, http_status=200),
    behaviour("port closed", refuse, O.CONNECT),
    behaviour("first packet never answered", overflow, O.TIMEOUT, hurried=True),
    behaviour("close at accept", close, O.CONNECT, at_accept=True),
    behaviour("reset at accept", reset, O.CONNECT, at_accept=True),
    behaviour("silence after accept", wait_in_silence, O.TIMEOUT, at_accept=True, hurried=True),
    behaviour("close after the request", b"", O.CONNECT, requests=NO_ANSWER),
    behaviour("reset after the request", reset, O.CONNECT, requests=NO_ANSWER),
    behaviour("half-close after the request", say_goodbye, O.CONNECT, requests=NO_ANSWER),
    # What is left of a head is no answer; whether that is a lost connection or a malformed answer is taste.
    behaviour("close within the status line", b"HTTP/1.", O.CONNECT, O.PROTOCOL, O.TRUNCATED),
    behaviour("close within the head", LONG[:-10], O.CONNECT, O.PROTOCOL, O.TRUNCATED),
    behaviour("reset within the head", reset_within_head, O.CONNECT, O.PROTOCOL, O.TRUNCATED),
    behaviour("close within the body", LONG + PICTURE, O.TRUNCATED, requests=2, http_status=200),
    behaviour("close before the body", LONG, O.TRUNCATED, requests=2),
    # A reset may be told before the bytes that came ahead of it.
    behaviour("reset within the body", reset_within_body, O.TRUNCATED, O.CONNECT, requests=NO_ANSWER),
    behaviour("silence after the request", wait_in_silence, O.TIMEOUT, requests=2, hurried=True),
    behaviour("silence within the head", stop_within_head, O.TIMEOUT, requests=2, hurried=True),
    behaviour("silence after the head", stop_after_head, O.TIMEOUT, requests=2, hurried=True),
    behaviour("silence within the body", stop_within_body, O.TIMEOUT, requests=2, hurried=True),
    behaviour("silence within chunks", stop_within_chunks, O.TIMEOUT, requests=2, hurried=True),
    behaviour(
        "silence instead of the close that ends a body",
        stop_where_the_end_is_unknown,
        O.TIMEOUT,
        requests=2,
        hurried=True,
    ),
    behaviour("silence after a whole body", stop_after_body, O.SUCCESS, requests=1),
    behaviour("an answer byte by byte", drip_all, O.TIMEOUT, requests=2, hurried=True),
    behaviour("a body byte by byte", drip_body, O.TIMEOUT, requests=2, hurried=True),
    behaviour("a chunk now and then", drip_chunks, O.TIMEOUT, requests=2, hurried=True),
    behaviour("a header now and then", drip_headers, O.TIMEOUT, requests=2, hurried=True),
    behaviour("300 MB, announced", flood_promised, O.TOO_LARGE, requests=1, http_status=200),
    behaviour("300 MB, unannounced", flood_unpromised, O.TOO_LARGE, requests=1, http_status=200),
    behaviour("300 MB by HTTP/1.0", flood_old, O.TOO_LARGE, requests=1),
    # Neither is HTTP; what a client sees first, its own request failing or the noise, is chance.
    behaviour(
        "300 MB of noise before the request", flood_before_the_request, O.PROTOCOL, O.CONNECT, at_accept=True
    ),
    behaviour("300 MB after the body", flood_after_the_body, O.SUCCESS, requests=1),
    behaviour("300 MB of error page", flood_an_error_page, O.HTTP_4XX, requests=1, http_status=404),
    behaviour("300 MB with a redirect", flood_a_redirect, O.SUCCESS, requests=2),
    behaviour("a body of exactly the limit", answer(PICTURE.ljust(LIMIT, b"k")), O.SUCCESS, requests=1),
    behaviour(
        "a body one byte over the limit", answer(PICTURE.ljust(LIMIT + 1, b"k")), O.TOO_LARGE, requests=1
    ),
    behaviour(
        "an unannounced body of exactly the limit",
        head("Connection: close") + PICTURE.ljust(LIMIT, b"k"),
        O.SUCCESS,
        requests=1,
    ),
    behaviour(
        "an unannounced body one byte over the limit",
        head("Connection: close") + PICTURE.ljust(LIMIT + 1, b"k"),
        O.TOO_LARGE,
        requests=1,
    ),
    behaviour(
        "an over-long body promised and kept back",
        head(f"Content-Length: {LIMIT + 1}"),
        O.TOO_LARGE,
        requests=1,
    ),
    behaviour("connection: close", answer(PICTURE, "Connection: close"), O.SUCCESS, requests=1),
    behaviour(
        "connection: keep-alive, then closed",
        answer(PICTURE, "Connection: keep-alive"),
        O.SUCCESS,
        requests=1,
    ),
    behaviour("a forged answer behind the first", poison, O.SUCCESS, requests=2, keeps_alive=True),
    behaviour(
        "a forged answer on the idle connection", poison_later, O.SUCCESS, requests=2, keeps_alive=True
    ),
    # Asked again on a connection that is new, by the client or by the retry.
    behaviour("the kept connection is reset", drop_when_idle, O.SUCCESS, keeps_alive=True),
    # As some servers do with idle connections.
    behaviour(
        "408 before the request",
        answer(b"", status="408 kilroy"),
        O.HTTP_4XX,
        O.CONNECT,
        O.PROTOCOL,
        at_accept=True,
    ),
    behaviour("first nothing, then a picture", [b"", answer()], O.SUCCESS, requests=(2, 3)),
    behaviour("first half, then whole", [LONG + PICTURE, answer()], O.SUCCESS, requests=2),
)
