"""Whose turn it is: how much is asked of one site at once, how often, and of none that does not answer.

A *domain* is what one owner registered (``example.co.uk``) and has places and a pace; a *host* is one of its
names, and is down or not.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from laion_assets.fetch.policy import FetchPolicy
from laion_assets.fetch.transport import ExchangeFailed
from laion_assets.fetch.urls import Target
from laion_assets.outcomes import Outcome

# The other end gave no sign of life; any answer at all is one.
_SILENCES = (Outcome.CONNECT, Outcome.TIMEOUT)


class _Domain:
    def __init__(self, places: int) -> None:
        self.places = asyncio.Semaphore(places)
        self.pace = asyncio.Lock()
        self.next_turn_s = 0.0


class _Host:
    def __init__(self) -> None:
        self.silences = 0
        self.down_until_s = 0.0


class Manners:
    """Turns at the sites that are asked; for one event loop."""

    def __init__(self, policy: FetchPolicy) -> None:
        self._policy = policy
        self._domains: defaultdict[str, _Domain] = defaultdict(lambda: _Domain(policy.per_domain_concurrency))
        self._hosts: defaultdict[str, _Host] = defaultdict(_Host)

    @asynccontextmanager
    async def turn(self, target: Target) -> AsyncIterator[None]:
        """Wait for a place and the domain's pace; ask once in the block, and let its failure come through.

        Raises:
            ExchangeFailed: HOST_DOWN, if the host did not answer the last times, without being asked again.
        """
        domain, host = self._domains[target.domain], self._hosts[target.host]
        self._refuse_down(host)
        async with domain.places:
            self._refuse_down(host)  # it may have gone down meanwhile
            async with domain.pace:
                early = domain.next_turn_s - time.monotonic()
                if early > 0:
                    await asyncio.sleep(early)
                domain.next_turn_s = time.monotonic() + self._policy.per_domain_interval_s
            try:
                yield
            except ExchangeFailed as error:
                self._note(host, is_silent=error.outcome in _SILENCES)
                raise
            self._note(host, is_silent=False)

    def _refuse_down(self, host: _Host) -> None:
        if host.down_until_s > time.monotonic():
            raise ExchangeFailed(
                Outcome.HOST_DOWN, f"not asked: the host did not answer {self._policy.host_failures} times"
            )

    def _note(self, host: _Host, *, is_silent: bool) -> None:
        host.silences = host.silences + 1 if is_silent else 0
        if host.silences >= self._policy.host_failures:
            # One more silence after that, and it is down again.
            host.down_until_s = time.monotonic() + self._policy.host_down_s
        elif not is_silent:
            host.down_until_s = 0.0


def spread(domains: Sequence[str]) -> list[int]:
    """An order in which every domain is asked early and none more often than need be.

    Each domain's URLs are spaced evenly over the whole: so sites that do not answer are found out while there
    is much else to do, and the sites with the most URLs, which pace and places hold back, are not left over.

    Args:
        domains: the domain of each URL.

    Returns:
        Indices into ``domains``.
    """
    total = Counter(domains)
    seen: Counter[str] = Counter()
    positions = []
    for domain in domains:
        positions.append(seen[domain] / total[domain])
        seen[domain] += 1
    return sorted(range(len(domains)), key=positions.__getitem__)
