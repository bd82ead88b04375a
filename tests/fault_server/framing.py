"""Where a body ends, in how many ways that can be said wrongly; and codings that were not asked for."""

from __future__ import annotations

import gzip
import zlib

from fault_server.behaviour import LIMIT, PICTURE, Visit, answer, behaviour, chunked, head
from laion_assets.outcomes import Outcome as O  # noqa: N817 (there are hundreds below)

CHUNKED = head("Transfer-Encoding: chunked")
# What frames no body is malformed; a client that reads on to where the connection ends may call it cut short.
MALFORMED = (O.PROTOCOL, O.TRUNCATED)
# A recipient may refuse it or repair it (RFC 9112, 6.3).
TOLERABLE = (O.SUCCESS, O.PROTOCOL)


def coded(coding: str, body: bytes) -> bytes:
    return answer(body, f"Content-Encoding: {coding}")


def raw_deflate(body: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-15)
    return stream.compress(body) + stream.flush()


async def endless_chunks(visit: Visit) -> None:
    await visit.send(CHUNKED)
    await visit.flood(b"10\r\n0123456789abcdef\r\n")


async def endless_chunk_size(visit: Visit) -> None:
    await visit.send(CHUNKED)
    await visit.flood(b"0")


async def endless_chunk_extension(visit: Visit) -> None:
    await visit.send(CHUNKED + b"4;")
    await visit.flood(b"kilroy=1;")


async def endless_trailers(visit: Visit) -> None:
    await visit.send(CHUNKED + chunked(PICTURE, end=b"0\r\n"))
    await visit.flood(b"X-Kilroy: was here\r\n")


async def one_endless_trailer(visit: Visit) -> None:
    await visit.send(CHUNKED + chunked(PICTURE, end=b"0\r\nX-Kilroy: "))
    await visit.flood()


def bomb(wbits: int):
    """500 MB of zeros in 500 kB, by repeating a block that stands for 1 MB."""

    async def explode(visit: Visit) -> None:
        stream = zlib.compressobj(wbits=wbits)
        first, block = (stream.compress(bytes(1 << 20)) + stream.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
        coding = "deflate" if wbits == zlib.MAX_WBITS else "gzip"
        await visit.send(head(f"Content-Encoding: {coding}", "Connection: close") + first)
        for _ in range(500):
            await visit.send(block)

    return explode


TABLE = (
    behaviour("chunks", CHUNKED + chunked(PICTURE[:100], PICTURE[100:]), O.SUCCESS, requests=1),
    behaviour("chunks of one byte", CHUNKED + chunked(*(bytes([byte]) for byte in PICTURE)), O.SUCCESS),
    behaviour(
        "chunk sizes in capitals with leading zeros",
        CHUNKED + b"000%X\r\n%b\r\n0\r\n\r\n" % (len(PICTURE), PICTURE),
        O.SUCCESS,
    ),
    behaviour(
        "chunk extensions and trailers",
        CHUNKED + b"%x;kilroy=was;here\r\n%b\r\n0\r\nX-Kilroy: here\r\n\r\n" % (len(PICTURE), PICTURE),
        O.SUCCESS,
    ),
    behaviour("endless chunks", endless_chunks, O.TOO_LARGE, requests=1),
    behaviour("an endless chunk size", endless_chunk_size, *MALFORMED, O.TIMEOUT, O.TOO_LARGE, hurried=True),
    behaviour(
        "an endless chunk extension",
        endless_chunk_extension,
        *MALFORMED,
        O.TIMEOUT,
        O.TOO_LARGE,
        hurried=True,
    ),
    # Nobody needs trailers: what came before them is whole.
    behaviour("endless trailers", endless_trailers, *MALFORMED, O.TIMEOUT, O.TOO_LARGE, hurried=True),
    behaviour("one endless trailer", one_endless_trailer, *MALFORMED, O.TIMEOUT, O.TOO_LARGE, hurried=True),
    behaviour("chunks without the last one", CHUNKED + chunked(PICTURE, end=b""), O.TRUNCATED, requests=2),
    behaviour("closed within a chunk", CHUNKED + b"ffff\r\n" + PICTURE, O.TRUNCATED, requests=2),
    behaviour("closed within a chunk size", CHUNKED + b"f", *MALFORMED),
    behaviour("a chunk size that is no number", CHUNKED + b"kilroy\r\n" + PICTURE, *MALFORMED),
    behaviour("a negative chunk size", CHUNKED + b"-1\r\n" + PICTURE, *MALFORMED),
    behaviour("an empty chunk size", CHUNKED + b"\r\n" + PICTURE, *MALFORMED),
    behaviour(
        "a chunk size of 2^64 + 4",
        CHUNKED + b"10000000000000004\r\n\xff\xd8\xff\xe0\r\n0\r\n\r\n",
        *MALFORMED,
        O.TOO_LARGE,
    ),
    behaviour(
        "a chunk size in hexadecimal notation", CHUNKED + b"0x4\r\n\xff\xd8\xff\xe0\r\n0\r\n\r\n", *MALFORMED
    ),
    behaviour("a chunk longer than its size", CHUNKED + b"4\r\n" + PICTURE + b"\r\n0\r\n\r\n", *MALFORMED),
    behaviour("chunked, but is not", CHUNKED + PICTURE, *MALFORMED),
    behaviour(
        "chunked twice",
        head("Transfer-Encoding: chunked, chunked") + chunked(chunked(PICTURE)),
        *MALFORMED,
        O.NOT_AN_IMAGE,
    ),
    behaviour("a transfer coding nobody knows", head("Transfer-Encoding: kilroy") + PICTURE, *TOLERABLE),
    # gzip as a transfer coding was not asked for either.
    behaviour(
        "gzip as transfer coding",
        head("Transfer-Encoding: gzip, chunked") + chunked(gzip.compress(PICTURE)),
        *TOLERABLE,
        O.NOT_AN_IMAGE,
    ),
    behaviour(
        "Content-Length beside chunks",
        head("Content-Length: 5", "Transfer-Encoding: chunked") + chunked(PICTURE),
        *TOLERABLE,
    ),
    behaviour(
        "Content-Length beside no chunks",
        head(f"Content-Length: {len(PICTURE)}", "Transfer-Encoding: chunked") + PICTURE,
        *MALFORMED,
    ),
    behaviour("two Content-Lengths that differ", answer(PICTURE, "Content-Length: 10"), *MALFORMED),
    behaviour(
        "two Content-Lengths that agree", answer(PICTURE, f"Content-Length: {len(PICTURE)}"), *TOLERABLE
    ),
    behaviour("a list of Content-Lengths", head("Content-Length: 5, 6") + PICTURE, *MALFORMED),
    behaviour("a negative Content-Length", head("Content-Length: -5") + PICTURE, O.PROTOCOL),
    behaviour("a Content-Length that is no number", head("Content-Length: kilroy") + PICTURE, O.PROTOCOL),
    behaviour("a Content-Length in hexadecimal", head("Content-Length: 0x10") + PICTURE, O.PROTOCOL),
    behaviour("an empty Content-Length", head("Content-Length: ") + PICTURE, *TOLERABLE),
    behaviour(
        "a Content-Length of a terabyte",
        head("Content-Length: 1000000000000") + PICTURE,
        O.TOO_LARGE,
        requests=1,
    ),
    behaviour(
        "a Content-Length of 100 digits",
        head("Content-Length: " + "9" * 100) + PICTURE,
        O.TOO_LARGE,
        O.PROTOCOL,
    ),
    # Its value is 4 where arithmetic wraps at 64 bits.
    behaviour(
        "a Content-Length of 2^64 + 4",
        head("Content-Length: 18446744073709551620") + PICTURE,
        O.TOO_LARGE,
        O.PROTOCOL,
    ),
    behaviour("gzip not asked for", coded("gzip", gzip.compress(PICTURE)), O.SUCCESS),
    behaviour("x-gzip", coded("x-gzip", gzip.compress(PICTURE)), O.SUCCESS),
    behaviour("deflate", coded("deflate", zlib.compress(PICTURE)), O.SUCCESS),
    # What many servers mean by deflate, against RFC 9110, 8.4.1.2.
    behaviour("deflate without zlib's header", coded("deflate", raw_deflate(PICTURE)), O.SUCCESS, O.PROTOCOL),
    behaviour("identity", coded("identity", PICTURE), O.SUCCESS),
    behaviour(
        "gzip in chunks",
        head("Content-Encoding: gzip", "Transfer-Encoding: chunked") + chunked(gzip.compress(PICTURE)),
        O.SUCCESS,
    ),
    behaviour("brotli", coded("br", b"\x0b\x02\x80kilroy\x03"), O.PROTOCOL, requests=1),
    behaviour("zstd", coded("zstd", b"\x28\xb5\x2f\xfdkilroy"), O.PROTOCOL, requests=1),
    behaviour("a coding nobody knows", coded("kilroy", PICTURE), O.PROTOCOL, requests=1),
    behaviour(
        "gzip twice", coded("gzip, gzip", gzip.compress(gzip.compress(PICTURE))), O.PROTOCOL, requests=1
    ),
    behaviour("gzip announced, not done", coded("gzip", PICTURE), O.PROTOCOL),
    behaviour("gzip announced, nothing sent", coded("gzip", b""), O.TRUNCATED, O.PROTOCOL, O.NOT_AN_IMAGE),
    behaviour("gzip cut short", coded("gzip", gzip.compress(PICTURE)[:-12]), O.TRUNCATED, requests=2),
    behaviour(
        "gzip with a wrong checksum",
        coded("gzip", gzip.compress(PICTURE)[:-8] + bytes(8)),
        O.PROTOCOL,
        O.TRUNCATED,
    ),
    # There is no more to the picture; gzip's own tools pass over such bytes.
    behaviour(
        "gzip with bytes behind it", coded("gzip", gzip.compress(PICTURE) + b"kilroy"), O.SUCCESS, O.PROTOCOL
    ),
    behaviour("gzip bomb", bomb(31), O.TOO_LARGE, requests=1),
    behaviour("deflate bomb", bomb(zlib.MAX_WBITS), O.TOO_LARGE, requests=1),
    behaviour("gzip of exactly the limit", coded("gzip", gzip.compress(PICTURE.ljust(LIMIT))), O.SUCCESS),
    behaviour(
        "gzip of one byte over the limit", coded("gzip", gzip.compress(PICTURE.ljust(LIMIT + 1))), O.TOO_LARGE
    ),
)
