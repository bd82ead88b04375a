"""One HTTP GET, without redirects and retries: what was sent, within bounds, or why not.

:class:`laion_assets.fetch.curl.HttpTransport` is the real one; :class:`FakeTransport` answers from a
function, for tests.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from laion_assets.fetch.policy import FetchPolicy
from laion_assets.outcomes import Outcome


@dataclass(frozen=True, kw_only=True)
class Head:
    """Status and headers of an answer, before its body is read.

    Attributes:
        status: HTTP status.
        headers: (name, value) in order of arrival, names in lower case.
    """

    status: int
    headers: Sequence[tuple[str, str]] = ()

    def values(self, name: str) -> list[str]:
        """Every value of a header."""
        return [value for found, value in self.headers if found == name]

    def value(self, name: str) -> str | None:
        """First value of a header."""
        return next(iter(self.values(name)), None)


@dataclass(frozen=True, kw_only=True)
class Response:
    """An answer; ``body`` is None where the caller did not want it."""

    head: Head
    body: bytes | None


class ExchangeFailed(Exception):
    """No answer came, or not a whole one.

    Args:
        outcome: class of the failure.
        message: what went wrong, in our words.
        passing: whether it may go better another time.

    Attributes:
        head: what came before it went wrong; None where no answer had begun.
    """

    def __init__(self, outcome: Outcome, message: str, *, passing: bool = False) -> None:
        super().__init__(message)
        self.head: Head | None = None
        self.outcome = outcome
        self.message = message
        self.passing = passing


WantsBody = Callable[[Head], bool]
AdmitLarge = Callable[[], Awaitable[None]]


class Transport(Protocol):
    """Performs one GET."""

    async def get(self, url: str, *, wants_body: WantsBody, admit_large: AdmitLarge) -> Response:
        """Ask for a URL and read its body if it is wanted.

        Args:
            url: an http or https URL in ASCII.
            wants_body: asked once the headers are there.
            admit_large: awaited once a body outgrows ``large_body_bytes``, before more is read.

        Raises:
            ExchangeFailed: if no whole answer within the policy's bounds came.
        """


class FakeTransport:
    """Answers from a function of the URL, within the policy's bounds.

    Args:
        handler: URL -> answer; may be a coroutine function, and may raise :class:`ExchangeFailed`.
        policy: whose bounds hold.

    Attributes:
        asked: URLs asked for, in order.
    """

    def __init__(
        self,
        handler: Callable[[str], Response | Awaitable[Response]],
        policy: FetchPolicy | None = None,
    ) -> None:
        self._handler = handler
        self._policy = policy or FetchPolicy()
        self.asked: list[str] = []

    async def get(self, url: str, *, wants_body: WantsBody, admit_large: AdmitLarge) -> Response:
        """See :class:`Transport`."""
        self.asked.append(url)
        answered = self._handler(url)
        response = answered if isinstance(answered, Response) else await answered
        if response.body is None or not wants_body(response.head):
            return Response(head=response.head, body=None)
        if len(response.body) > self._policy.max_body_bytes:
            raise too_large(self._policy)
        if len(response.body) > self._policy.large_body_bytes:
            await admit_large()
        return response


def respond(status: int = 200, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Response:
    """A response, for handlers of :class:`FakeTransport`."""
    pairs = tuple((name.lower(), value) for name, value in (headers or {}).items())
    return Response(head=Head(status=status, headers=pairs), body=body)


def too_large(policy: FetchPolicy) -> ExchangeFailed:
    """What to raise where a body outgrows the policy."""
    return ExchangeFailed(Outcome.TOO_LARGE, f"body longer than {policy.max_body_bytes} bytes")
