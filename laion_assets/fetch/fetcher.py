"""From a URL to the bytes of its picture, or to why there are none: checks, redirects, manners, retries.

Knows nothing of shards and images. Every failure is a value; an exception here is a fault of ours.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Final

import stamina

from laion_assets.fetch.manners import Manners
from laion_assets.fetch.policy import FetchPolicy
from laion_assets.fetch.robots import Robots
from laion_assets.fetch.transport import ExchangeFailed, Head, Response, Transport, WantsBody
from laion_assets.fetch.urls import BadUrl, Target, parse_redirect, parse_url
from laion_assets.outcomes import Outcome

_REDIRECTS: Final = (301, 302, 303, 307, 308)
# Request timeout, too early, too many requests, and what gateways say, Cloudflare's own codes included.
_PASSING_STATUSES: Final = (408, 425, 429, 502, 503, 504, 520, 521, 522, 523, 524)
# 203 is what a proxy that changed something says; there is a body.
_WITH_BODY: Final = (200, 203)

# img2dataset's four, and `none`, which Google defines as noindex with nofollow.
_OPT_OUT: Final = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none"})
# Directives that have a colon themselves, so what stands before it is no agent's name.
_VALUED: Final = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """What a server sent.

    Attributes:
        body: the bytes, undecoded.
        http_status: HTTP status.
        final_url: URL of the last redirect.
        content_type: what the server calls it, printable and capped; '' where it says nothing.
    """

    body: bytes
    http_status: int
    final_url: str
    content_type: str


@dataclass(frozen=True, kw_only=True)
class FetchFailed:
    """Why there is no body.

    Attributes:
        outcome: class of the failure.
        message: short and ours: it holds no text that a server sent.
        http_status: HTTP status of the last answer; None where none came.
    """

    outcome: Outcome
    message: str
    http_status: int | None = None


async def _admit() -> None:
    """Let every body be as long as the policy allows."""


class Fetcher:
    """Fetches within a policy; made and used in one event loop."""

    def __init__(self, policy: FetchPolicy, transport: Transport) -> None:
        # stamina logs every retry, and here those are thousands and hold URLs; its hooks are process-wide.
        stamina.instrumentation.set_on_retry_hooks(())
        self._policy = policy
        self._transport = transport
        self._manners = Manners(policy)
        self._robots = Robots(policy, self._ask_for_robots)

    async def fetch(
        self, url: str | None, *, admit_large: Callable[[], Awaitable[None]] = _admit
    ) -> Fetched | FetchFailed:
        """Fetch a URL, again if its failure may pass.

        Args:
            url: as the data set has it.
            admit_large: awaited, at most once, before a body longer than ``large_body_bytes`` is held;
                the wait counts against no timeout.
        """
        try:
            target = parse_url(url or "")
        except BadUrl as error:
            return FetchFailed(outcome=Outcome.BAD_URL, message=str(error))
        admission = _Admission(admit_large)
        try:
            return await self._attempt(target, admission)
        except _Passing as error:
            return await self._ask_again(target, admission, error)

    async def _ask_again(
        self, target: Target, admission: _Admission, first: _Passing
    ) -> Fetched | FetchFailed:
        """The attempts after the first one, which is counted here but was made without stamina's 50 µs."""
        policy = self._policy
        failed: _Passing | None = first
        try:
            async for attempt in stamina.retry_context(
                on=_pause,
                attempts=policy.attempts,
                timeout=None,
                wait_initial=policy.backoff_s,
                wait_max=max(policy.backoff_s, policy.retry_after_s),
                wait_jitter=policy.backoff_s,
            ):
                with attempt:
                    if failed is not None:
                        error, failed = failed, None
                        raise error
                    found = await self._attempt(target, admission)
                    # This URL was asked for, so what came of that says more.
                    is_down = isinstance(found, FetchFailed) and found.outcome is Outcome.HOST_DOWN
                    return first.failure if is_down else found
        except _Passing as error:
            return error.failure
        raise AssertionError("stamina returns or raises")

    async def _attempt(self, target: Target, admission: _Admission) -> Fetched | FetchFailed:
        """Ask once, redirects included."""
        seconds = self._policy.total_timeout_s
        status: int | None = None
        for _ in range(self._policy.max_redirects + 1):
            if self._policy.honour_robots_txt and not await self._robots.allow(target.url):
                message = "disallowed by robots.txt"
                return FetchFailed(outcome=Outcome.DISALLOWED, message=message, http_status=status)
            try:
                response, seconds = await self._ask(target, seconds, admission, self._wants_body)
            except ExchangeFailed as error:
                failure = FetchFailed(
                    outcome=error.outcome, message=error.message, http_status=error.http_status or status
                )
                if error.passing:
                    raise _Passing(failure, self._policy) from error
                return failure
            status = response.head.status
            location = response.head.value("location")
            if status not in _REDIRECTS or location is None:
                return self._judge(target, response)
            try:
                target = parse_redirect(target, location)
            except BadUrl as error:
                message = f"redirect: {error}"
                return FetchFailed(outcome=Outcome.BAD_URL, message=message, http_status=status)
        return FetchFailed(
            outcome=Outcome.TOO_MANY_REDIRECTS,
            message=f"more than {self._policy.max_redirects} redirects",
            http_status=status,
        )

    async def _ask_for_robots(self, url: str) -> Response | None:
        """What answers to the URL of a robots.txt, redirects followed; None where nothing does."""
        target, seconds, admission = parse_url(url), self._policy.total_timeout_s, _Admission(_admit)
        for _ in range(self._policy.max_redirects + 1):
            try:
                response, seconds = await self._ask(target, seconds, admission, _has_body)
                location = response.head.value("location")
                if response.head.status not in _REDIRECTS or location is None:
                    return response
                target = parse_redirect(target, location)
            except (ExchangeFailed, BadUrl):
                return None
        return None

    async def _ask(
        self, target: Target, seconds: float, admission: _Admission, wants_body: WantsBody
    ) -> tuple[Response, float]:
        """One exchange once it is the site's turn, and the seconds that are left after it."""
        loop = asyncio.get_running_loop()
        async with self._manners.turn(target):
            try:
                async with asyncio.timeout(seconds) as limit:

                    async def admit_large() -> None:
                        left = (limit.when() or math.inf) - loop.time()
                        limit.reschedule(None)
                        await admission.admit()
                        limit.reschedule(loop.time() + left)

                    response = await self._transport.get(
                        target.url, wants_body=wants_body, admit_large=admit_large
                    )
                    return response, max(0.0, (limit.when() or math.inf) - loop.time())
            except TimeoutError as error:
                raise ExchangeFailed(Outcome.TIMEOUT, "timed out", passing=True) from error

    def _wants_body(self, head: Head) -> bool:
        return _has_body(head) and not self._is_opted_out(head)

    def _is_opted_out(self, head: Head) -> bool:
        return self._policy.honour_opt_out and opts_out(
            head.values("x-robots-tag"), self._policy.user_agent_token
        )

    def _judge(self, target: Target, response: Response) -> Fetched | FetchFailed:
        status = response.head.status
        if response.body is not None:
            return Fetched(
                body=response.body,
                http_status=status,
                final_url=target.url,
                content_type=_printable(response.head.value("content-type") or "", 100),
            )
        if status in _WITH_BODY:
            return FetchFailed(
                outcome=Outcome.OPTED_OUT,
                message="Use of image disallowed by X-Robots-Tag directive",
                http_status=status,
            )
        outcome = {4: Outcome.HTTP_4XX, 5: Outcome.HTTP_5XX}.get(status // 100, Outcome.PROTOCOL)
        failure = FetchFailed(outcome=outcome, message=_http_message(status), http_status=status)
        if status in _PASSING_STATUSES:
            raise _Passing(failure, self._policy, retry_after=response.head.value("retry-after"))
        return failure


def opts_out(values: Iterable[str], agent: str) -> bool:
    """Whether X-Robots-Tag headers forbid the picture's use, to all agents or to this one.

    Args:
        values: the header's values; each a list of directives, which ``name:`` addresses to one agent.
        agent: our name.
    """
    for value in values:
        addressee = "*"
        for item in value.split(","):
            name, colon, rest = item.partition(":")
            if colon and name.strip().lower() not in _VALUED:
                addressee, item = name.strip().lower(), rest
            if addressee in ("*", agent.lower()) and item.strip().lower() in _OPT_OUT:
                return True
    return False


def _has_body(head: Head) -> bool:
    return head.status in _WITH_BODY


class _Admission:
    """A place for a long body, asked for once even if the body is fetched twice."""

    def __init__(self, admit_large: Callable[[], Awaitable[None]]) -> None:
        self._admit_large = admit_large
        self._admitted = False

    async def admit(self) -> None:
        if not self._admitted:
            await self._admit_large()
            self._admitted = True


class _Passing(Exception):
    """A failure that may pass, and the pause that the server asked for, in seconds."""

    def __init__(self, failure: FetchFailed, policy: FetchPolicy, retry_after: str | None = None) -> None:
        super().__init__(failure.message)
        self.failure = failure
        pause = _seconds(retry_after)
        self.is_worth_it = pause is None or pause <= policy.retry_after_s
        self.pause = pause


def _pause(error: Exception) -> bool | float:
    """Whether stamina asks again; a number is the pause in seconds."""
    if not isinstance(error, _Passing) or not error.is_worth_it:
        return False
    return True if error.pause is None else error.pause


def _seconds(retry_after: str | None) -> float | None:
    """What a Retry-After header asks for: seconds, or an HTTP date (RFC 9110, 10.2.3)."""
    text = (retry_after or "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.now(UTC)).total_seconds())


def _http_message(status: int) -> str:
    """img2dataset's words, with the standard's phrase: what servers put there is theirs, and endless."""
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    return f"HTTP Error {status}: {phrase}"


def _printable(text: str, length: int) -> str:
    return "".join(
        character for character in text[:length] if character.isascii() and character.isprintable()
    )
