import asyncio
from collections import Counter

import pytest

from laion_assets.fetch.fetcher import Fetcher, FetchFailed
from laion_assets.fetch.policy import FetchPolicy
from laion_assets.fetch.transport import ExchangeFailed, FakeTransport, respond
from laion_assets.outcomes import Outcome

OBEDIENT = FetchPolicy(honour_robots_txt=True, attempts=1, backoff_s=0, per_domain_interval_s=0)


def fetch(robots, *urls, policy=OBEDIENT):
    """Outcome of each URL, and how often each was asked for."""

    def handler(url):
        if url.endswith("/robots.txt"):
            if isinstance(robots, Exception):
                raise robots
            return robots
        return respond(200, b"body")

    async def run():
        transport = FakeTransport(handler, policy)
        fetcher = Fetcher(policy, transport)
        found = await asyncio.gather(*(fetcher.fetch(url) for url in urls))
        return found, Counter(transport.asked)

    found, asked = asyncio.run(run())
    return [one.outcome if isinstance(one, FetchFailed) else Outcome.SUCCESS for one in found], asked


def rules(text):
    return respond(200, text.encode())


def test_what_robots_txt_disallows_is_not_asked_for():
    text = "User-agent: *\nDisallow: /private/\nAllow: /private/open/\n"
    found, asked = fetch(
        rules(text),
        "http://a.com/a.jpg",
        "http://a.com/private/a.jpg",
        "http://a.com/private/open/a.jpg",
    )
    assert found == [Outcome.SUCCESS, Outcome.DISALLOWED, Outcome.SUCCESS]
    assert "http://a.com/private/a.jpg" not in asked


def test_it_is_asked_for_once_a_site():
    urls = [f"http://{host}/{number}.jpg" for host in ("a.com", "a.com:8080", "b.com") for number in range(5)]
    found, asked = fetch(rules(""), *urls, "https://a.com/a.jpg")
    assert set(found) == {Outcome.SUCCESS}
    assert {url: count for url, count in asked.items() if url.endswith("robots.txt")} == {
        "http://a.com/robots.txt": 1,
        "http://a.com:8080/robots.txt": 1,
        "http://b.com/robots.txt": 1,
        "https://a.com/robots.txt": 1,
    }


@pytest.mark.parametrize(
    ("agent", "outcome"),
    [("laion_assets", Outcome.DISALLOWED), ("somebody_else", Outcome.SUCCESS), ("*", Outcome.DISALLOWED)],
)
def test_it_may_address_us(agent, outcome):
    found, _ = fetch(rules(f"User-agent: {agent}\nDisallow: /\n"), "http://a.com/a.jpg")
    assert found == [outcome]


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (respond(404), Outcome.SUCCESS),
        (respond(403), Outcome.SUCCESS),
        (respond(429), Outcome.DISALLOWED),
        (respond(503), Outcome.DISALLOWED),
        (ExchangeFailed(Outcome.TIMEOUT, "timed out", passing=True), Outcome.DISALLOWED),
        (respond(301, headers={"Location": "/robots.txt"}), Outcome.DISALLOWED),
        (respond(200, b"\xff\xfe<html>not robots</html>\x00"), Outcome.SUCCESS),
    ],
)
def test_a_robots_txt_that_cannot_be_had(answer, outcome):
    found, _ = fetch(answer, "http://a.com/a.jpg")
    assert found == [outcome]


def test_it_is_not_asked_for_unless_the_policy_says_so():
    found, asked = fetch(
        rules("User-agent: *\nDisallow: /\n"),
        "http://a.com/a.jpg",
        policy=OBEDIENT.model_copy(update={"honour_robots_txt": False}),
    )
    assert found == [Outcome.SUCCESS]
    assert asked == {"http://a.com/a.jpg": 1}
