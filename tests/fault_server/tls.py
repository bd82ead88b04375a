"""TLS: certificates that vouch for nobody, handshakes that fail, stall or lie, and streams cut off."""

from __future__ import annotations

import asyncio

from fault_server.behaviour import PICTURE, Visit, answer, behaviour, close, head, redirect, reset
from laion_assets.outcomes import Outcome as O  # noqa: N817 (there are hundreds below)

BAD_CERTIFICATES = (
    "self-signed",
    "of an authority nobody knows",
    "of another host",
    "of another address",
    "expired",
    "not yet valid",
    "by an expired authority",
    "by an authority that is none",
    "without its intermediate",
    "for clients only",
)
BAD_SERVERS = ("TLS 1.0 only", "TLS 1.1 only", "anonymous ciphers only", "unencrypted ciphers only")
HELLO = b"\x16\x03\x03"


def tls(name: str, conduct, *expected: O, **options):
    return behaviour(
        f"TLS: {name}", conduct, *expected, **{"url": "https://{host}:{port}/kilroy.jpg", **options}
    )


def raw(name: str, conduct, *expected: O, **options):
    """A host that reads what the client says first, and has something else in mind than TLS."""
    return tls(name, conduct, *expected, at_accept=True, **options)


def after_hello(sent: bytes):
    async def answer_hello(visit: Visit) -> None:
        await visit.reader.read(1)
        await visit.send(sent)
        await asyncio.sleep(0.1)

    return answer_hello


async def wait_after_hello(visit: Visit) -> None:
    await visit.reader.read(1)
    await visit.silence()


async def wait_within_record(visit: Visit) -> None:
    await visit.reader.read(1)
    await visit.send(HELLO + b"\x40\x00\x02\x00\x3f\xfc")
    await visit.silence()


async def drip_records(visit: Visit) -> None:
    await visit.reader.read(1)
    await visit.drip(HELLO + b"\x10\x00\x02\x00\x0f\xfc" + bytes(4092))


async def close_after_hello(visit: Visit) -> None:
    await visit.reader.read(1)


async def reset_after_hello(visit: Visit) -> None:
    await visit.reader.read(1)
    await reset(visit)


async def flood_after_hello(visit: Visit) -> None:
    await visit.reader.read(1)
    await visit.flood()


async def cut_off(visit: Visit) -> None:
    """End the connection beneath TLS, without saying so within it."""
    await visit.send(head("Content-Length: 500000") + PICTURE)
    visit.writer.transport.abort()


async def cut_off_where_the_end_is_unknown(visit: Visit) -> None:
    await visit.send(head("Connection: close") + PICTURE)
    await asyncio.sleep(0.1)
    visit.writer.transport.abort()


async def stop_within_body(visit: Visit) -> None:
    await visit.send(head("Content-Length: 500000") + PICTURE)
    await visit.silence()


TABLE = (
    tls("a picture", answer(), O.SUCCESS, requests=1, certificate="good"),
    tls("TLS 1.2", answer(), O.SUCCESS, requests=1, certificate="TLS 1.2 only"),
    tls(
        "a client certificate wished for",
        answer(),
        O.SUCCESS,
        requests=1,
        certificate="asks for the client's",
    ),
    # Whether the client learns of it within the handshake or after depends on TLS 1.3's order of messages.
    tls(
        "a client certificate required",
        answer(),
        O.TLS,
        O.CONNECT,
        O.PROTOCOL,
        requests=0,
        certificate="requires the client's",
    ),
    # What a client gets that offers HTTP/2, which this host then does not speak.
    tls("HTTP/2 or nothing", answer(), O.SUCCESS, O.PROTOCOL, certificate="knows h2 only"),
    tls("a certificate of 300 kB", answer(), O.TLS, O.CONNECT, requests=0, certificate="of 300 kB"),
    # A name alone is out of use (RFC 6125, 6.4.4), and vouched for all the same.
    tls(
        "certificate with the address as its name only",
        answer(),
        O.TLS,
        O.SUCCESS,
        certificate="with the address as its name only",
    ),
    *(tls(f"certificate {name}", answer(), O.TLS, requests=0, certificate=name) for name in BAD_CERTIFICATES),
    *(tls(name, answer(), O.TLS, O.CONNECT, requests=0, certificate=name) for name in BAD_SERVERS),
    raw("plain HTTP on its port", after_hello(answer(b"", status="400 kilroy")), O.TLS),
    raw("SSH on its port", after_hello(b"SSH-2.0-kilroy\r\n"), O.TLS),
    raw("noise", after_hello(bytes(range(256)) * 20), O.TLS),
    raw("300 MB of noise", flood_after_hello, O.TLS, O.CONNECT),
    raw("an alert: no such host here", after_hello(b"\x15\x03\x03\0\x02\x02\x70"), O.TLS),
    raw("an alert: handshake failure", after_hello(b"\x15\x03\x03\0\x02\x02\x28"), O.TLS),
    raw("an alert: close notify", after_hello(b"\x15\x03\x03\0\x02\x01\0"), O.TLS, O.CONNECT),
    raw("a record of 64 kB", after_hello(HELLO + b"\xff\xff\x02" + bytes(65_534)), O.TLS),
    raw("a renegotiation first", after_hello(HELLO + b"\0\x04\0\0\0\0" * 2), O.TLS, O.CONNECT),
    raw("half a record", after_hello(HELLO + b"\x40\0\x02"), O.TLS, O.CONNECT),
    raw("close at accept", close, O.TLS, O.CONNECT),
    raw("reset at accept", reset, O.TLS, O.CONNECT),
    raw("close in the handshake", close_after_hello, O.TLS, O.CONNECT),
    raw("reset in the handshake", reset_after_hello, O.TLS, O.CONNECT),
    raw("silence in the handshake", wait_after_hello, O.TIMEOUT, hurried=True),
    raw("silence within a record", wait_within_record, O.TIMEOUT, hurried=True),
    raw("a handshake byte by byte", drip_records, O.TIMEOUT, hurried=True),
    tls("cut off within the body", cut_off, O.TRUNCATED, O.CONNECT, O.TLS, certificate="good"),
    # It looks whole; only TLS's own farewell would tell it from one that an attacker cut.
    tls(
        "cut off where the end is unknown",
        cut_off_where_the_end_is_unknown,
        O.SUCCESS,
        O.TRUNCATED,
        O.CONNECT,
        O.TLS,
        certificate="good",
    ),
    tls("silence within the body", stop_within_body, O.TIMEOUT, hurried=True, requests=2, certificate="good"),
    tls(
        "redirect to the canary",
        redirect("http://0.0.0.0:{canary}/"),
        O.REFUSED_ADDRESS,
        requests=1,
        certificate="good",
    ),
    tls(
        "redirect to plain HTTP on its own port",
        redirect("http://{host}:{port}/2"),
        O.PROTOCOL,
        O.CONNECT,
        certificate="good",
    ),
    # A client that keeps connections per host alone would ask on the one that is there already.
    behaviour(
        "HTTPS where plain HTTP is spoken",
        redirect("https://{host}:{port}/2"),
        O.TLS,
        O.CONNECT,
        requests=(1, 2, 3),
        keeps_alive=True,
    ),
)
