"""How many URLs are in flight: as many as keep the decoding processes busy, and no more than allowed.

Fewer connections at once are kinder, and more often used again, which saves what a TLS handshake costs; and
bodies that wait for a decoder are memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

# With a latency of 150 ms, two decoders of 200 pictures a second each need about half as many.
_AT_FIRST: Final = 128
_SECONDS_PER_LOOK: Final = 0.1
_GROWTH: Final = 1.25
# Bodies for each decoder: with fewer, it soon has nothing to do.
_HUNGRY: Final = 2
# Bodies that may wait for a decoder: a second or two of work, so that the last of a shard's URLs, which may
# have to be asked for again, are asked for while there is still much to decode.
_FULL: Final = 512


class Flow:
    """Turns at fetching and decoding; for one event loop.

    Args:
        most: URLs in flight at once at most.
        decoders: pictures that are decoded at once.

    Attributes:
        allowed: URLs that may be in flight now.
    """

    def __init__(self, most: int, decoders: int) -> None:
        self.allowed = min(most, _AT_FIRST)
        self._most = most
        self._turns = asyncio.Semaphore(self.allowed)
        self._withheld = 0
        self._decoding = 0
        self._hungry = decoders * _HUNGRY

    @asynccontextmanager
    async def fetching(self) -> AsyncIterator[None]:
        """Wait for a turn, and fetch in the block."""
        await self._turns.acquire()
        try:
            yield
        finally:
            if self._decoding >= _FULL:
                self._withheld += 1
            else:
                self._turns.release()

    @asynccontextmanager
    async def decoding(self) -> AsyncIterator[None]:
        """Decode in the block, or wait for a decoder."""
        self._decoding += 1
        try:
            yield
        finally:
            self._decoding -= 1
            if self._decoding < _FULL:
                for _ in range(self._withheld):
                    self._turns.release()
                self._withheld = 0

    async def grow(self) -> None:
        """Allow more for as long as the decoders have too little to do, until cancelled."""
        while True:
            await asyncio.sleep(_SECONDS_PER_LOOK)
            if self._turns.locked() and self._decoding < self._hungry:
                more = min(int(self.allowed * _GROWTH) + 1, self._most) - self.allowed
                self.allowed += more
                for _ in range(more):
                    self._turns.release()
