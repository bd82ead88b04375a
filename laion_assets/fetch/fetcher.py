"""From a URL to the bytes of its picture, or to why there are none: checks, redirects, manners, retries.

Knows nothing of shards and images. Every failure is a value; an exception here is a fault of ours.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, Final

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

_NOT_ASKED: Final = (Outcome.HOST_DOWN, Outcome.DISALLOWED)

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
        attempts: how often it was asked for; redirects do not count.
        milliseconds: from :meth:`Fetcher.fetch` to its end, waiting for the domain's turn and the pauses
            between attempts included.
    """

    body: bytes
    http_status: int
    final_url: str
    content_type: str
    attempts: int = 1
    milliseconds: int = field(default=0, compare=False)


@dataclass(frozen=True, kw_only=True)
class FetchFailed:
    """Why there is no body.

    Attributes:
        outcome: class of the failure.
        message: short and ours: it holds no text that a server sent.
        http_status: HTTP status of the last answer; None where none came.
        final_url: URL of the last answer; None where none came.
        content_type: what the last answer calls its body, as in :class:`Fetched`; None where none came.
        attempts: how often it was asked for; 0 for a URL that may not be.
        milliseconds: as in :class:`Fetched`.
    """

    outcome: Outcome
    message: str
    http_status: int | None = None
    final_url: str | None = None
    content_type: str | None = None
    attempts: int = 1
    milliseconds: int = field(default=0, compare=False)


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
            return FetchFailed(outcome=Outcome.BAD_URL, message=str(error), attempts=0)
        loop = asyncio.get_running_loop()
        began = loop.time()
        attempts, found = await self._try(target, _Admission(admit_large))
        return replace(found, attempts=attempts, milliseconds=round(1000 * (loop.time() - began)))

    async def _try(self, target: Target, admission: _Admission) -> tuple[int, Fetched | FetchFailed]:
        """How often the URL was asked for, and what came of the last time."""
        try:
            found = await self._attempt(target, admission)
        except _Passing as error:
            return await self._try_again(target, admission, error)
        is_untouched = isinstance(found, FetchFailed) and found.outcome in _NOT_ASKED and not found.final_url
        return 0 if is_untouched else 1, found

    async def _try_again(
        self, target: Target, admission: _Admission, first: _Passing
    ) -> tuple[int, Fetched | FetchFailed]:
        """The attempts after the first one, which is counted here but was made without stamina's 50 µs."""
        policy = self._policy
        failed: _Passing | None = first
        attempts = 1
        try:
            async for attempt in stamina.retry_context(
                on=_pause,
                attempts=policy.attempts,
                timeout=None,
                wait_initial=policy.backoff_s,
                wait_max=max(policy.backoff_s, policy.retry_after_s),
                wait_jitter=policy.backoff_s,
            ):
                attempts = attempt.num
                with attempt:
                    if failed is not None:
                        error, failed = failed, None
                        raise error
                    found = await self._attempt(target, admission)
                    if isinstance(found, FetchFailed) and found.outcome is Outcome.HOST_DOWN:
                        # This URL was asked for, so what came of that says more.
                        return attempts - 1, first.failure
                    return attempts, found
        except _Passing as error:
            return attempts, error.failure
        raise AssertionError("stamina returns or raises")

    async def _attempt(self, target: Target, admission: _Admission) -> Fetched | FetchFailed:
        """Ask once, redirects included."""
        seconds = self._policy.total_timeout_s
        answer: dict[str, Any] = {}
        for _ in range(self._policy.max_redirects + 1):
            if self._policy.honour_robots_txt and not await self._robots.allow(target.url):
                message = "disallowed by robots.txt"
                return FetchFailed(outcome=Outcome.DISALLOWED, message=message, **answer)
            try:
                response, seconds = await self._ask(target, seconds, admission, self._wants_body)
            except ExchangeFailed as error:
                if error.head is not None:
                    answer = _describe(target, error.head)
                failure = FetchFailed(outcome=error.outcome, message=error.message, **answer)
                if error.passing:
                    raise _Passing(failure, self._policy) from error
                return failure
            answer = _describe(target, response.head)
            try:
                following = _redirect(target, response.head)
            except BadUrl as error:
                return FetchFailed(outcome=Outcome.BAD_URL, message=f"redirect: {error}", **answer)
            if following is None:
                return self._judge(response, answer)
            target = following
        return FetchFailed(
            outcome=Outcome.TOO_MANY_REDIRECTS,
            message=f"more than {self._policy.max_redirects} redirects",
            **answer,
        )

    async def _ask_for_robots(self, url: str) -> Response | None:
        """What answers to the URL of a robots.txt, redirects followed; None where nothing does."""
        target, seconds, admission = parse_url(url), self._policy.total_timeout_s, _Admission(_admit)
        for _ in range(self._policy.max_redirects + 1):
            try:
                response, seconds = await self._ask(target, seconds, admission, _has_body)
                following = _redirect(target, response.head)
            except (ExchangeFailed, BadUrl):
                return None
            if following is None:
                return response
            target = following
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

    def _judge(self, response: Response, answer: Mapping[str, Any]) -> Fetched | FetchFailed:
        status = response.head.status
        if response.body is not None:
            return Fetched(body=response.body, **answer)
        if status in _WITH_BODY:
            return FetchFailed(
                outcome=Outcome.OPTED_OUT,
                message="Use of image disallowed by X-Robots-Tag directive",
                **answer,
            )
        outcome = {4: Outcome.HTTP_4XX, 5: Outcome.HTTP_5XX}.get(status // 100, Outcome.PROTOCOL)
        failure = FetchFailed(outcome=outcome, message=_http_message(status), **answer)
        if status in _PASSING_STATUSES:
            raise _Passing(failure, self._policy, retry_after=response.head.value("retry-after"))
        return failure


def _redirect(target: Target, head: Head) -> Target | None:
    """Where an answer leads; None where it is the last one.

    Raises:
        BadUrl: if it leads to what may not be asked for.
    """
    location = head.value("location")
    if head.status not in _REDIRECTS or location is None:
        return None
    return parse_redirect(target, location)


def _describe(target: Target, head: Head) -> dict[str, Any]:
    """What is kept of an answer, whether there is a body or not."""
    content_type = _printable(head.value("content-type") or "", 100)
    return {"http_status": head.status, "final_url": target.url, "content_type": content_type}


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
