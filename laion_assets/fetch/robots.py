"""What sites' robots.txt allow (RFC 9309): asked for once a site, and only where the policy says so."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final
from urllib.parse import urlsplit

from protego import Protego

from laion_assets.fetch.policy import FetchPolicy
from laion_assets.fetch.transport import Response

# RFC 9309, 2.5: at least so much of it must be read.
_MOST_BYTES: Final = 500 << 10
_MOST_SITES: Final = 100_000
# Not "there are none", though 4xx: ask later.
_BUSY: Final = (408, 425, 429)

# From the URL of a robots.txt to what its site answers, redirects followed; None where it does not answer.
Ask = Callable[[str], Awaitable[Response | None]]


class Robots:
    """Remembers what each site's robots.txt says; for one event loop."""

    def __init__(self, policy: FetchPolicy, ask: Ask) -> None:
        self._policy = policy
        self._ask = ask
        self._sites: dict[str, asyncio.Task[Protego | bool]] = {}

    async def allow(self, url: str) -> bool:
        """Whether the site lets us ask for a URL."""
        parts = urlsplit(url)
        site = f"{parts.scheme}://{parts.netloc}/robots.txt"
        if site not in self._sites:
            if len(self._sites) >= _MOST_SITES:
                del self._sites[next(iter(self._sites))]
            self._sites[site] = asyncio.create_task(self._read(site))
        rules = await asyncio.shield(self._sites[site])
        return rules if isinstance(rules, bool) else rules.can_fetch(url, self._policy.user_agent_token)

    async def _read(self, site: str) -> Protego | bool:
        response = await self._ask(site)
        if response is None or response.head.status in _BUSY or response.head.status >= 500:
            return False  # RFC 9309, 2.3.1.4: unreachable, so nothing is allowed
        if response.body is None:
            return True  # RFC 9309, 2.3.1.3: unavailable, so there are no rules
        return Protego.parse(response.body[:_MOST_BYTES].decode("utf-8", "replace"))
