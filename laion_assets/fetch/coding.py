"""Undoes a Content-Encoding, within a bound: nobody asked for one, and servers send it all the same."""

from __future__ import annotations

import zlib

from laion_assets.fetch.transport import ExchangeFailed, Head
from laion_assets.outcomes import Outcome


class Decompressor:
    """Undoes a Content-Encoding that was not asked for, never giving more bytes than wanted."""

    def __init__(self, coding: str) -> None:
        self._coding = coding
        # 47: zlib or gzip, whichever header is there.
        self._stream = None if coding == "identity" else zlib.decompressobj(47)

    def __call__(self, data: bytes, limit: int) -> bytes:
        """What some more bytes hold, up to ``limit`` bytes of it.

        Raises:
            ExchangeFailed: if they are not in the coding that was announced.
        """
        if self._stream is None:
            return data
        try:
            return self._stream.decompress(data, limit)
        except zlib.error:
            raise ExchangeFailed(Outcome.PROTOCOL, f"body is not {self._coding}") from None

    @property
    def is_whole(self) -> bool:
        """Whether the compressed stream, if there is one, has reached its end."""
        return self._stream is None or self._stream.eof


def decompressor(head: Head) -> Decompressor:
    """What undoes the Content-Encoding that an answer announces.

    Raises:
        ExchangeFailed: if it is another than gzip or deflate.
    """
    coding = (head.value("content-encoding") or "identity").strip().lower()
    if coding in ("", "identity", "none"):
        return Decompressor("identity")
    if coding in ("gzip", "x-gzip", "deflate"):
        return Decompressor(coding)
    raise ExchangeFailed(Outcome.PROTOCOL, "body in a Content-Encoding that was not asked for")
