"""How far a download is, counted while it runs and put in one line. Draws nothing and writes nothing."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from laion_assets.outcomes import Outcome

_MOST_FAILURES_TOLD: Final = 5


@dataclass(kw_only=True)
class DownloadProgress:
    """Changed in place while URLs are done.

    Attributes:
        total: URLs of the download.
        resumed: what became of those that an earlier run had done.
        outcomes: what became of all that are done, those included.
        body_bytes: bytes of their bodies.
        started_s: when this run began, on ``time.monotonic``'s clock.
    """

    total: int
    resumed: Counter[Outcome] = field(default_factory=Counter)
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    body_bytes: int = 0
    started_s: float = field(default_factory=time.monotonic)

    @property
    def done(self) -> int:
        """URLs that are done."""
        return self.outcomes.total()

    @property
    def urls_per_s(self) -> float:
        """URLs done a second by this run so far."""
        return (self.done - self.resumed.total()) / self._seconds

    @property
    def images_per_s(self) -> float:
        """Pictures stored a second by this run so far."""
        return (self.outcomes[Outcome.SUCCESS] - self.resumed[Outcome.SUCCESS]) / self._seconds

    @property
    def success_share(self) -> float:
        """Pictures among the URLs that are done, from 0 to 1."""
        return self.outcomes[Outcome.SUCCESS] / max(self.done, 1)

    @property
    def left_s(self) -> float | None:
        """About how many seconds the rest takes; None before anything is done."""
        rate = self.urls_per_s
        return (self.total - self.done) / rate if rate else None

    @property
    def _seconds(self) -> float:
        return max(time.monotonic() - self.started_s, 1e-3)

    def resume(self, outcome: Outcome, body_bytes: int) -> None:
        """Count one URL that an earlier run had done."""
        self.resumed[outcome] += 1
        self.add(outcome, body_bytes)

    def add(self, outcome: Outcome, body_bytes: int) -> None:
        """Count one URL that is done."""
        self.outcomes[outcome] += 1
        self.body_bytes += body_bytes

    def describe(self) -> str:
        """All of it in one line, from URLs done and rates to the most frequent failures."""
        return f"{self.done:,} of {self.total:,} URLs, {self.describe_rates()}"

    def describe_rates(self) -> str:
        """What a bar does not show: rates, the time left, failures by class, the most frequent first."""
        left = self.left_s
        parts = [
            f"{self.urls_per_s:,.0f} URLs/s",
            f"{self.images_per_s:,.0f} pictures/s",
            f"{self.success_share:.1%}",
            f"{self.body_bytes / 1e6:,.0f} MB",
        ]
        if left is not None and self.done < self.total:
            parts.append(f"{left // 60:.0f}:{left % 60:02.0f} left")
        failures = Counter(self.outcomes)
        del failures[Outcome.SUCCESS]
        told = failures.most_common(_MOST_FAILURES_TOLD)
        rest = failures.total() - sum(count for _, count in told)
        counts = [f"{outcome} {count:,}" for outcome, count in told] + ([f"others {rest:,}"] if rest else [])
        return ", ".join(parts) + (f"; {', '.join(counts)}" if counts else "")


Follow = Callable[[DownloadProgress], None]
"""Called after each URL that is done, from another thread than the caller's; it must be quick."""


def every(seconds: float, tell: Follow) -> Follow:
    """A follower that passes on what it is told at most once in so many seconds, and the end."""
    due = time.monotonic() + seconds

    def follow(progress: DownloadProgress) -> None:
        nonlocal due
        now = time.monotonic()
        if now >= due or progress.done == progress.total:
            due = now + seconds
            tell(progress)

    return follow
