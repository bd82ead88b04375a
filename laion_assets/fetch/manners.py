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
from typing import Final

from laion_assets.fetch.policy import FetchPolicy
from laion_assets.fetch.transport import ExchangeFailed
from laion_assets.fetch.urls import Target
from laion_assets.outcomes import Outcome

# The other end gave no sign of life, unless an answer had begun.
_SILENCES: Final = (Outcome.CONNECT, Outcome.TIMEOUT)

# Asked at once of a host that has never answered; if none of them is answered in time, it is down.
_AT_FIRST_CONTACT: Final = 2


class _Domain:
    def __init__(self, places: int) -> None:
        self.places = asyncio.Semaphore(places)
        self.pace = asyncio.Lock()
        self.next_turn_s = 0.0


class _Host:
    def __init__(self) -> None:
        self.has_answered = False
        self.asked_unknown = 0
        self.changed = asyncio.Condition()
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

        A host that has never answered is asked by two at a time: the others then find its connections open,
        or need not wait as long as those did.

        Raises:
            ExchangeFailed: HOST_DOWN, if the host did not answer the last times, without being asked again.
        """
        domain, host = self._domains[target.domain], self._hosts[target.host]
        self._refuse_down(host)
        async with self._contact(host), domain.places:
            self._refuse_down(host)  # it may have gone down meanwhile
            async with domain.pace:
                early = domain.next_turn_s - time.monotonic()
                if early > 0:
                    await asyncio.sleep(early)
                domain.next_turn_s = time.monotonic() + self._policy.per_domain_interval_s
            try:
                yield
            except ExchangeFailed as error:
                self._note(host, error)
                raise
            self._note(host, None)

    @asynccontextmanager
    async def _contact(self, host: _Host) -> AsyncIterator[None]:
        """Let two at a time ask a host that has never answered, or one if another was met with silence."""

        def may_ask() -> bool:
            is_known = host.has_answered or host.down_until_s > time.monotonic()
            return is_known or host.asked_unknown < max(1, _AT_FIRST_CONTACT - host.silences)

        if host.has_answered:
            yield
            return
        async with host.changed:
            await host.changed.wait_for(may_ask)
        host.asked_unknown += 1
        try:
            yield
        finally:
            host.asked_unknown -= 1
            async with host.changed:
                host.changed.notify_all()

    def _refuse_down(self, host: _Host) -> None:
        if host.down_until_s > time.monotonic():
            raise ExchangeFailed(Outcome.HOST_DOWN, "not asked: the host does not answer")

    def _note(self, host: _Host, error: ExchangeFailed | None) -> None:
        if error is None or error.outcome not in _SILENCES or error.head is not None:
            host.has_answered, host.silences, host.down_until_s = True, 0, 0.0
            return
        host.silences += 1
        most = self._policy.host_failures
        if error.outcome is Outcome.TIMEOUT and not (host.has_answered or self._policy.retry_silent_hosts):
            error.passing = False  # it would take as long again
            most = min(most, _AT_FIRST_CONTACT)
        if host.silences >= most:
            # For a while; and again after one more silence.
            host.down_until_s = time.monotonic() + self._policy.host_down_s


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
