import asyncio
import time
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laion_assets.fetch.fetcher import Fetched, Fetcher, FetchFailed
from laion_assets.fetch.manners import Manners, spread
from laion_assets.fetch.policy import FetchPolicy
from laion_assets.fetch.transport import ExchangeFailed, FakeTransport, respond
from laion_assets.fetch.urls import parse_url
from laion_assets.outcomes import Outcome

PLAIN = FetchPolicy(attempts=1, backoff_s=0, per_domain_interval_s=0)


def silent(outcome=Outcome.TIMEOUT):
    return ExchangeFailed(outcome, "silence", passing=True)


def ask_in_turn(urls, handler, policy):
    async def run():
        transport = FakeTransport(handler, policy)
        fetcher = Fetcher(policy, transport)
        return [await fetcher.fetch(url) for url in urls], transport.asked

    return asyncio.run(run())


def outcomes(found):
    return [one.outcome if isinstance(one, FetchFailed) else Outcome.SUCCESS for one in found]


@pytest.mark.parametrize("outcome", [Outcome.TIMEOUT, Outcome.CONNECT])
def test_a_host_that_is_silent_several_times_in_a_row_is_left_alone(outcome):
    def handler(url):
        if url.endswith("/0"):
            return respond(404)
        raise silent(outcome)

    urls = [f"http://down.example.com/{number}" for number in range(7)]
    policy = PLAIN.model_copy(update={"host_failures": 3})
    found, asked = ask_in_turn(urls, handler, policy)
    assert outcomes(found) == [Outcome.HTTP_4XX] + [outcome] * 3 + [Outcome.HOST_DOWN] * 3
    assert asked == urls[:4]
    assert found[4].message == "not asked: the host does not answer"
    assert [one.attempts for one in found] == [1] * 4 + [0] * 3


@pytest.mark.parametrize(("outcome", "times"), [(Outcome.TIMEOUT, 2), (Outcome.CONNECT, 3)])
def test_a_host_that_never_answered_and_lets_the_time_run_out_is_down_sooner(outcome, times):
    def handler(url):
        raise silent(outcome)

    urls = [f"http://down.example.com/{number}" for number in range(5)]
    found, asked = ask_in_turn(urls, handler, PLAIN.model_copy(update={"host_failures": 3}))
    assert outcomes(found) == [outcome] * times + [Outcome.HOST_DOWN] * (5 - times)
    assert len(asked) == times


@pytest.mark.parametrize(("retried", "attempts"), [(False, 1), (True, 2)])
def test_a_silent_host_is_asked_again_only_if_the_policy_says_so(retried, attempts):
    def handler(url):
        raise silent()

    policy = PLAIN.model_copy(update={"attempts": 2, "retry_silent_hosts": retried})
    found, asked = ask_in_turn(["http://down.example.com/"], handler, policy)
    assert outcomes(found) == [Outcome.TIMEOUT]
    assert (found[0].attempts, len(asked)) == (attempts, attempts)


def test_an_answer_that_had_begun_is_a_sign_of_life():
    def handler(url):
        error = silent()
        error.head = respond(200).head
        raise error

    found, _ = ask_in_turn(["http://slow.example.com/"] * 5, handler, PLAIN)
    assert outcomes(found) == [Outcome.TIMEOUT] * 5


def test_a_host_is_asked_by_two_at_a_time_until_it_has_answered():
    now, most = 0, []

    async def handler(url):
        nonlocal now
        now += 1
        most.append(now)
        await asyncio.sleep(0.3)  # long enough for all others to begin on a busy machine
        now -= 1
        return respond(200, b"body")

    async def run():
        fetcher = Fetcher(PLAIN, FakeTransport(handler, PLAIN))
        urls = [f"http://some.example.com/{number}" for number in range(6)]
        return await asyncio.gather(*map(fetcher.fetch, urls))

    assert all(isinstance(found, Fetched) for found in asyncio.run(run()))
    assert max(most[:2]) == 2
    assert max(most) == 4


def test_only_the_host_is_down_and_not_its_domain():
    def handler(url):
        if "down." in url:
            raise silent()
        return respond(200, b"body")

    urls = ["http://down.example.com/", "http://up.example.com/"] * 4
    found, _ = ask_in_turn(urls, handler, PLAIN.model_copy(update={"host_failures": 1}))
    assert outcomes(found) == [Outcome.TIMEOUT, Outcome.SUCCESS, *[Outcome.HOST_DOWN, Outcome.SUCCESS] * 3]


@pytest.mark.parametrize("answer", [respond(200, b"body"), respond(404), respond(503)])
def test_any_answer_is_a_sign_of_life(answer):
    answers = [answer, silent(), silent(), answer, silent(), silent(), answer, silent(), silent()]

    def handler(url):
        given = answers.pop(0)
        if isinstance(given, Exception):
            raise given
        return given

    urls = [f"http://slow.example.com/{number}" for number in range(9)]
    found, asked = ask_in_turn(urls, handler, PLAIN.model_copy(update={"host_failures": 3}))
    assert Outcome.HOST_DOWN not in outcomes(found)
    assert len(asked) == 9


@pytest.mark.parametrize("outcome", [Outcome.DNS, Outcome.TLS, Outcome.PROTOCOL, Outcome.TRUNCATED])
def test_failures_that_are_not_silence_do_not_count(outcome):
    def handler(url):
        raise ExchangeFailed(outcome, "failed")

    found, _ = ask_in_turn(
        ["http://bad.example.com/"] * 5, handler, PLAIN.model_copy(update={"host_failures": 2})
    )
    assert outcomes(found) == [outcome] * 5


def test_a_host_is_asked_again_after_a_while_and_one_more_silence_is_enough():
    body = respond(200, b"body")
    answers = [body, silent(), silent(), silent(), body, silent(), body]

    def handler(url):
        given = answers.pop(0)
        if isinstance(given, Exception):
            raise given
        return given

    policy = PLAIN.model_copy(update={"host_failures": 2, "host_down_s": 0.2})

    async def run():
        fetcher = Fetcher(policy, FakeTransport(handler, policy))
        found = [await fetcher.fetch("http://flaky.example.com/")]
        for pause in (0, 0, 0, 0.3, 0, 0.3, 0, 0):
            await asyncio.sleep(pause)
            found.append(await fetcher.fetch("http://flaky.example.com/"))
        return found

    assert outcomes(asyncio.run(run())) == [
        Outcome.SUCCESS,
        Outcome.TIMEOUT,
        Outcome.TIMEOUT,
        Outcome.HOST_DOWN,
        Outcome.TIMEOUT,  # asked once more, and down again
        Outcome.HOST_DOWN,
        Outcome.SUCCESS,
        Outcome.TIMEOUT,  # the count has begun anew
        Outcome.SUCCESS,
    ]


def test_a_url_that_was_asked_for_keeps_its_own_failure():
    def handler(url):
        raise silent()

    policy = FetchPolicy(attempts=3, backoff_s=0, per_domain_interval_s=0, host_failures=1)
    found, asked = ask_in_turn(["http://down.example.com/a", "http://down.example.com/b"], handler, policy)
    assert outcomes(found) == [Outcome.TIMEOUT, Outcome.HOST_DOWN]
    assert len(asked) == 1


def test_those_that_wait_for_their_turn_are_told_when_the_host_goes_down():
    async def handler(url):
        await asyncio.sleep(0.05)
        if url.endswith("/first"):
            return respond(404)
        raise silent()

    policy = PLAIN.model_copy(update={"host_failures": 2, "per_domain_concurrency": 2})

    async def run():
        transport = FakeTransport(handler, policy)
        fetcher = Fetcher(policy, transport)
        await fetcher.fetch("http://down.example.com/first")
        urls = [f"http://down.example.com/{number}" for number in range(20)]
        return await asyncio.gather(*map(fetcher.fetch, urls)), transport.asked

    found, asked = asyncio.run(run())
    assert Counter(outcomes(found)) == {Outcome.TIMEOUT: 2, Outcome.HOST_DOWN: 18}
    assert len(asked) == 3


def test_a_domain_is_asked_at_a_pace_and_others_do_not_wait_for_it():
    policy = FetchPolicy(attempts=1, per_domain_concurrency=8, per_domain_interval_s=0.1)
    asked = []

    async def run():
        manners = Manners(policy)

        async def ask(host):
            async with manners.turn(parse_url(f"http://{host}/")):
                asked.append((host, time.monotonic()))

        await asyncio.gather(*(ask(host) for host in ["a.one.com", "b.one.com"] * 3 + ["two.com"]))

    asyncio.run(run())
    hosts = [host for host, _ in asked]
    assert hosts.index("two.com") <= 1
    starts = [when for host, when in asked if host != "two.com"]
    assert len(starts) == 6
    # A sleep may end late, and early by no more than a clock's tick.
    assert all(later - earlier > 0.09 for earlier, later in pairwise(starts))


@given(st.lists(st.sampled_from("abcdef"), max_size=60))
def test_spreading_keeps_every_url_and_asks_every_domain_first(domains):
    order = spread(domains)
    assert sorted(order) == list(range(len(domains)))
    first = [domains[index] for index in order[: len(set(domains))]]
    assert set(first) == set(domains)
    for domain in set(domains):
        mine = [index for index in order if domains[index] == domain]
        assert mine == sorted(mine)


def test_spreading_spaces_a_large_domain_evenly():
    domains = ["large"] * 50 + [f"small-{number % 10}" for number in range(50)]
    order = spread(domains)
    places = [place for place, index in enumerate(order) if domains[index] == "large"]
    # Half of them in the first half of the list, a quarter in the first quarter.
    assert abs(sum(place < 50 for place in places) - 25) <= 5
    assert abs(sum(place < 25 for place in places) - 10) <= 5


def test_one_who_is_fetched_has_a_body():
    found, _ = ask_in_turn(["http://example.com/"], lambda url: respond(200, b"body"), PLAIN)
    assert isinstance(found[0], Fetched)
    assert found[0].body == b"body"
