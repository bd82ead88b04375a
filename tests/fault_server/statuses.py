"""Statuses, with and without the wish to be asked again later; and wishes not to be asked at all."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

from fault_server.behaviour import LONGEST_PAUSE_S, PICTURE, Visit, answer, behaviour, head, redirect
from laion_assets.outcomes import Outcome as O  # noqa: N817 (there are hundreds below)

PASSING = (408, 425, 429, 502, 503, 504, 520, 521, 522, 523, 524)
LASTING = (
    *(400, 401, 402, 403, 404, 405, 406, 407, 409, 410, 411, 412, 413, 414, 415, 416, 417, 418, 421, 422),
    *(
        423,
        424,
        426,
        428,
        431,
        444,
        451,
        494,
        499,
        500,
        501,
        505,
        506,
        507,
        508,
        510,
        511,
        525,
        526,
        530,
        599,
    ),
)

WAIT = (
    "0",
    " 1 ",
    str(LONGEST_PAUSE_S),
    "Wed, 21 Oct 2015 07:28:00 GMT",
    "Wednesday, 21-Oct-15 07:28:00 GMT",
)
# What says nothing that can be understood is no reason not to ask again.
MUMBLE = ("", "-5", "1.5", "kilroy", "0x10", "Fri, 99 Foo 9999 99:99:99 GMT", "\xb2", "1, 2")
TOO_LONG = (str(LONGEST_PAUSE_S + 1), "86400", "9" * 400, "Fri, 31 Dec 2100 23:59:59 GMT")

ALLOWED = (
    "all",
    "noarchive",
    "kilroybot: noai, noindex",
    "kilroybot: noai; noindex",
    "unavailable_after: 25 Jun 2010 15:00:00 PST",
    "max-image-preview: none",
    "notranslate, nosnippet",
    "noaibutno",
    "",
)
OPTED_OUT = (
    "noai",
    "noimageai",
    "noindex",
    "noimageindex",
    "none",
    "NoAI",
    "all, noai",
    "nofollow,noindex",
    "  noai  ",
    "laion_assets: noai",
    "LAION_Assets: noimageai",
    "kilroybot: all, laion_assets: noindex",
    "unavailable_after: 25 Jun 2010 15:00:00 PST, noai",
    "max-snippet: 5, noai",
)


async def opt_out_and_flood(visit: Visit) -> None:
    await visit.send(head("X-Robots-Tag: noai", "Connection: close"))
    await visit.flood()


async def opt_out_and_wait(visit: Visit) -> None:
    await visit.send(head("X-Robots-Tag: noai", "Content-Length: 5000"))
    await visit.silence()


def failing(status: int, *headers: str) -> bytes:
    """An answer with that status, and a picture that must not be taken."""
    return answer(PICTURE, *headers, status=f"{status} kilroy")


def family(status: int) -> O:
    return O.HTTP_4XX if status < 500 else O.HTTP_5XX


def soon(seconds: int) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


TABLE = (
    *(
        behaviour(f"status {status}", failing(status), family(status), requests=1, http_status=status)
        for status in LASTING
    ),
    *(
        behaviour(f"status {status}", failing(status), family(status), requests=2, http_status=status)
        for status in PASSING
    ),
    *(
        behaviour(f"{status}, then a picture", [failing(status), answer()], O.SUCCESS, requests=2)
        for status in PASSING
    ),
    *(
        behaviour(
            f"{status} with Retry-After: 0", failing(status, "Retry-After: 0"), family(status), requests=2
        )
        for status in PASSING
    ),
    *(
        behaviour(
            f"{status} with Retry-After: 3600",
            failing(status, "Retry-After: 3600"),
            family(status),
            requests=1,
        )
        for status in PASSING
    ),
    *(
        behaviour(
            f"Retry-After: {text!a}", [failing(503, f"Retry-After: {text}"), answer()], O.SUCCESS, requests=2
        )
        for text in (*WAIT, *MUMBLE)
    ),
    *(
        behaviour(f"Retry-After: {text[:40]}", failing(503, f"Retry-After: {text}"), O.HTTP_5XX, requests=1)
        for text in TOO_LONG
    ),
    behaviour(
        "Retry-After an hour from now", failing(429, f"Retry-After: {soon(3600)}"), O.HTTP_4XX, requests=1
    ),
    behaviour(
        "Retry-After with a redirect", [redirect("/2", "Retry-After: 3600"), answer()], O.SUCCESS, requests=2
    ),
    *(
        behaviour(
            f"{status} that asks for {scheme}",
            failing(status, f'{header}: {scheme} realm="kilroy", nonce="kilroy"'),
            O.HTTP_4XX,
            requests=1,
            http_status=status,
        )
        for status, header in ((401, "WWW-Authenticate"), (407, "Proxy-Authenticate"))
        for scheme in ("Basic", "Digest", "Negotiate", "NTLM")
    ),
    # Without a body of its own, a success is none; a part of one was not asked for.
    behaviour("status 201", failing(201), O.PROTOCOL, O.SUCCESS, requests=1),
    behaviour("status 202", failing(202), O.PROTOCOL, O.SUCCESS, requests=1),
    behaviour("status 203", failing(203), O.SUCCESS, requests=1, http_status=203),
    behaviour("status 204", head(status="204 kilroy"), O.PROTOCOL, requests=1, http_status=204),
    behaviour("status 204 with a body", failing(204), O.PROTOCOL, requests=1),
    behaviour("status 205", failing(205), O.PROTOCOL, requests=1),
    behaviour("status 206", failing(206, "Content-Range: bytes 0-99/100000"), O.PROTOCOL, requests=1),
    behaviour(
        "status 206 in several parts",
        answer(PICTURE, "Content-Type: multipart/byteranges; boundary=kilroy", status="206 kilroy"),
        O.PROTOCOL,
        requests=1,
    ),
    behaviour("status 226", failing(226), O.PROTOCOL, O.SUCCESS, requests=1),
    behaviour("status 304", head(status="304 kilroy"), O.PROTOCOL, requests=1, http_status=304),
    behaviour(
        "status 304 with a Location", head("Location: /2", status="304 kilroy"), O.PROTOCOL, requests=1
    ),
    *(
        behaviour(f"X-Robots-Tag: {text!a}", answer(PICTURE, f"X-Robots-Tag: {text}"), O.SUCCESS)
        for text in ALLOWED
    ),
    *(
        behaviour(
            f"X-Robots-Tag: {text!a}",
            answer(PICTURE, f"X-Robots-Tag: {text}"),
            O.OPTED_OUT,
            requests=1,
            http_status=200,
        )
        for text in OPTED_OUT
    ),
    behaviour(
        "several X-Robots-Tags, the last an opt-out",
        answer(PICTURE, "X-Robots-Tag: all", "x-robots-tag: kilroybot: noindex", "X-ROBOTS-TAG: noai"),
        O.OPTED_OUT,
    ),
    behaviour(
        "several X-Robots-Tags, one for us",
        answer(PICTURE, "X-Robots-Tag: all", "X-Robots-Tag: laion_assets: none", "X-Robots-Tag: all"),
        O.OPTED_OUT,
    ),
    behaviour(
        "X-Robots-Tag of the redirect's target",
        [redirect("/2"), answer(PICTURE, "X-Robots-Tag: noai")],
        O.OPTED_OUT,
    ),
    behaviour("X-Robots-Tag with a 404", failing(404, "X-Robots-Tag: noai"), O.HTTP_4XX, requests=1),
    behaviour("X-Robots-Tag and an endless body", opt_out_and_flood, O.OPTED_OUT, requests=1),
    behaviour("X-Robots-Tag and a body that never comes", opt_out_and_wait, O.OPTED_OUT, requests=1),
)
