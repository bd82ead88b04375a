import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import pairwise
from urllib.parse import urlsplit

import pytest

from laion_assets.fetch.fetcher import Fetched, Fetcher, FetchFailed, opts_out
from laion_assets.fetch.policy import FetchPolicy
from laion_assets.fetch.transport import ExchangeFailed, FakeTransport, respond
from laion_assets.outcomes import Outcome

URL = "http://example.com/a.jpg"
QUICK = FetchPolicy(backoff_s=0, total_timeout_s=5)


def fetch(handler, url=URL, policy=QUICK, **options):
    transport = FakeTransport(handler, policy)
    found = asyncio.run(Fetcher(policy, transport).fetch(url, **options))
    return found, transport.asked


def in_turn(*answers):
    remaining = list(answers)

    def handler(url):
        answer = remaining.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return handler


def redirect(location, status=302):
    return respond(status, headers={"Location": location})


def test_a_body_comes_with_what_was_said_of_it():
    found, asked = fetch(
        lambda url: respond(200, b"body", {"Content-Type": "image/jpeg\x00\x1b[31mä" + "x" * 500})
    )
    assert found == Fetched(
        body=b"body", http_status=200, final_url=URL, content_type="image/jpeg[31m" + "x" * 83
    )
    assert asked == [URL]


@pytest.mark.parametrize(
    "url", [None, "", "ftp://example.com/", "http://user@example.com/", "file:///etc/passwd"]
)
def test_a_bad_url_is_not_asked_for(url):
    found, asked = fetch(lambda url: respond(), url)
    assert isinstance(found, FetchFailed)
    assert found.outcome is Outcome.BAD_URL
    assert asked == []


@pytest.mark.parametrize(
    ("status", "outcome", "message", "times"),
    [
        (404, Outcome.HTTP_4XX, "HTTP Error 404: Not Found", 1),
        (403, Outcome.HTTP_4XX, "HTTP Error 403: Forbidden", 1),
        (408, Outcome.HTTP_4XX, "HTTP Error 408: Request Timeout", 3),
        (425, Outcome.HTTP_4XX, "HTTP Error 425: Too Early", 3),
        (429, Outcome.HTTP_4XX, "HTTP Error 429: Too Many Requests", 3),
        (500, Outcome.HTTP_5XX, "HTTP Error 500: Internal Server Error", 1),
        (502, Outcome.HTTP_5XX, "HTTP Error 502: Bad Gateway", 3),
        (503, Outcome.HTTP_5XX, "HTTP Error 503: Service Unavailable", 3),
        (504, Outcome.HTTP_5XX, "HTTP Error 504: Gateway Timeout", 3),
        (521, Outcome.HTTP_5XX, "HTTP Error 521: ", 3),
        (204, Outcome.PROTOCOL, "HTTP Error 204: No Content", 1),
        (304, Outcome.PROTOCOL, "HTTP Error 304: Not Modified", 1),
        (302, Outcome.PROTOCOL, "HTTP Error 302: Found", 1),
        (999, Outcome.PROTOCOL, "HTTP Error 999: ", 1),
    ],
)
def test_statuses_are_classed_and_asked_again_only_if_they_may_pass(status, outcome, message, times):
    policy = QUICK.model_copy(update={"attempts": 3})
    found, asked = fetch(lambda url: respond(status, b"page"), policy=policy)
    assert found == FetchFailed(
        outcome=outcome,
        message=message,
        http_status=status,
        final_url=URL,
        content_type="",
        attempts=times,
    )
    assert len(asked) == times


@pytest.mark.parametrize("first", [respond(503), ExchangeFailed(Outcome.TRUNCATED, "cut", passing=True)])
def test_what_passes_is_forgotten(first):
    found, asked = fetch(in_turn(first, respond(200, b"body")))
    assert isinstance(found, Fetched)
    assert len(asked) == 2


def test_a_failure_that_does_not_pass_is_not_repeated():
    found, asked = fetch(in_turn(ExchangeFailed(Outcome.TLS, "certificate verify failed")))
    assert found == FetchFailed(outcome=Outcome.TLS, message="certificate verify failed", http_status=None)
    assert len(asked) == 1


def test_a_fault_of_ours_is_raised():
    with pytest.raises(ZeroDivisionError):
        fetch(in_turn(ZeroDivisionError()))


def test_a_server_that_hangs_times_out():
    async def hang(url):
        await asyncio.sleep(60)

    found, asked = fetch(
        hang, policy=FetchPolicy(retry_silent_hosts=True, total_timeout_s=0.05, backoff_s=0, attempts=2)
    )
    assert found == FetchFailed(outcome=Outcome.TIMEOUT, message="timed out", attempts=2)
    assert found.milliseconds > 0
    assert len(asked) == 2


def test_one_time_limit_holds_for_all_redirects_of_an_attempt():
    async def slowly(url):
        await asyncio.sleep(0.2)
        return redirect(url + "a")

    policy = FetchPolicy(total_timeout_s=0.5, backoff_s=0, attempts=1, max_redirects=20)
    found, asked = fetch(slowly, policy=policy)
    assert isinstance(found, FetchFailed)
    assert (found.outcome, found.http_status) == (Outcome.TIMEOUT, 302)
    assert len(asked) < 6


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed(status):
    handler = in_turn(
        redirect("/b.jpg", status), redirect("https://other.org/c", status), respond(200, b"body")
    )
    found, asked = fetch(handler)
    assert isinstance(found, Fetched)
    assert found.final_url == "https://other.org/c"
    assert asked == [URL, "http://example.com/b.jpg", "https://other.org/c"]


def test_what_is_told_of_a_failure_is_the_last_answer_s():
    page = respond(302, headers={"Location": "http://gone.org/b", "Content-Type": "text/html"})
    found, _ = fetch(in_turn(page, ExchangeFailed(Outcome.DNS, "DNS: Name or service not known")))
    assert (found.outcome, found.http_status, found.final_url) == (Outcome.DNS, 302, URL)
    assert found.content_type == "text/html"
    found, _ = fetch(in_turn(redirect("ftp://example.com/")))
    assert (found.outcome, found.http_status, found.final_url) == (Outcome.BAD_URL, 302, URL)
    found, asked = fetch(lambda url: respond(200), url="ftp://example.com/")
    assert (found.outcome, found.final_url, found.attempts, asked) == (Outcome.BAD_URL, None, 0, [])


def test_redirects_end():
    found, asked = fetch(lambda url: redirect(url))
    assert found == FetchFailed(
        outcome=Outcome.TOO_MANY_REDIRECTS,
        message="more than 5 redirects",
        http_status=302,
        final_url=URL,
        content_type="",
    )
    assert len(asked) == 6


@pytest.mark.parametrize(
    "location",
    ["file:///etc/passwd", "http://root@example.com/", "http://%20/", "gopher://example.com/", "http://[/"],
)
def test_a_redirect_is_checked_like_the_first_url(location):
    found, asked = fetch(in_turn(redirect(location)))
    assert isinstance(found, FetchFailed)
    assert (found.outcome, found.http_status) == (Outcome.BAD_URL, 302)
    assert found.message.startswith("redirect: ")
    assert len(asked) == 1


def timed(handler, policy):
    pauses = []

    async def run():
        loop = asyncio.get_running_loop()

        def noting(url):
            pauses.append(loop.time())
            return handler(url)

        return await Fetcher(policy, FakeTransport(noting, policy)).fetch(URL)

    return asyncio.run(run()), [later - earlier for earlier, later in pairwise(pauses)]


def test_retry_after_is_waited_for():
    handler = in_turn(respond(429, headers={"Retry-After": "1"}), respond(200, b"body"))
    found, pauses = timed(handler, QUICK)
    assert isinstance(found, Fetched)
    assert pauses[0] > 0.9


@pytest.mark.parametrize(
    "value",
    ["3600", "9" * 400, format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)],
    ids=["an hour", "more digits than a number has", "a date in an hour"],  # names that no clock changes
)
def test_a_server_that_asks_for_a_long_pause_is_left_alone(value):
    found, asked = fetch(lambda url: respond(503, headers={"Retry-After": value}))
    assert isinstance(found, FetchFailed)
    assert len(asked) == 1


@pytest.mark.parametrize(
    "value", ["soon", "-5", "1.5", "", "\x00", "²", "Mon, 01 Jan 99999999999999999999 00:00:00 GMT"]
)
def test_a_retry_after_that_says_nothing_is_passed_over(value):
    found, asked = fetch(lambda url: respond(503, headers={"Retry-After": value}))
    assert isinstance(found, FetchFailed)
    assert len(asked) == 2


def test_a_date_gone_by_asks_for_no_pause():
    value = format_datetime(datetime.now(UTC) - timedelta(hours=1), usegmt=True)
    _, asked = fetch(lambda url: respond(503, headers={"Retry-After": value}))
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("values", "is_out"),
    [
        ([], False),
        (["all"], False),
        (["noai"], True),
        (["NoImageAI"], True),
        (["nofollow, noindex"], True),
        (["none"], True),
        (["nosnippet", "noimageindex"], True),
        (["otherbot: noindex"], False),
        (["otherbot: noindex, noai"], False),
        (["otherbot: noindex", "laion_assets: noai"], True),
        (["LAION_Assets: noai"], True),
        (["otherbot: nofollow, laion_assets: noindex"], True),
        (["laion_assets: nofollow, otherbot: noindex"], False),
        (["*: noai"], True),
        (["unavailable_after: 25 Jun 2030 15:00:00 PST, noai"], True),
        (["max-snippet: 10, noindex"], True),
        (["noaix, xnoai"], False),
        ([":", ",,,", ": noai"], False),
    ],
)
def test_opt_outs_are_understood(values, is_out):
    assert opts_out(values, "laion_assets") == is_out


def test_an_opted_out_picture_is_left_there():
    tag = {"X-Robots-Tag": "noai"}
    found, asked = fetch(lambda url: respond(200, b"body", tag))
    assert found == FetchFailed(
        outcome=Outcome.OPTED_OUT,
        message="Use of image disallowed by X-Robots-Tag directive",
        http_status=200,
        final_url=URL,
        content_type="",
    )
    assert len(asked) == 1
    found, _ = fetch(lambda url: respond(200, b"body", tag), policy=FetchPolicy(honour_opt_out=False))
    assert isinstance(found, Fetched)


def test_a_domain_is_asked_for_a_few_urls_at_once_and_others_do_not_wait():
    policy = FetchPolicy(per_domain_concurrency=2, per_domain_interval_s=0, backoff_s=0)
    now, most = Counter(), Counter()

    async def handler(url):
        host = urlsplit(url).hostname
        domain = host.split(".", 1)[1]
        now[domain] += 1
        most[domain] = max(most[domain], now[domain])
        most["all"] = max(most["all"], sum(now.values()))
        await asyncio.sleep(0.01)
        now[domain] -= 1
        return respond(200, b"body")

    async def run():
        fetcher = Fetcher(policy, FakeTransport(handler, policy))
        hosts = [f"{letter}.{domain}" for letter in "abcdefgh" for domain in ("one.com", "two.co.uk")]
        return await asyncio.gather(*(fetcher.fetch(f"http://{host}/") for host in hosts))

    assert all(isinstance(found, Fetched) for found in asyncio.run(run()))
    assert most == {"one.com": 2, "two.co.uk": 2, "all": 4}


def test_domains_that_redirect_to_each_other_do_not_lock_up():
    policy = FetchPolicy(per_domain_concurrency=1, backoff_s=0, total_timeout_s=5, attempts=1)

    def handler(url):
        if url.endswith("/there"):
            return respond(200, b"body")
        return redirect("http://two.com/there" if "one.com" in url else "http://one.com/there")

    async def run():
        fetcher = Fetcher(policy, FakeTransport(handler, policy))
        return await asyncio.gather(*(fetcher.fetch(f"http://{host}.com/") for host in ("one", "two") * 10))

    assert all(isinstance(found, Fetched) for found in asyncio.run(run()))


def test_waiting_for_a_domain_s_turn_is_no_timeout():
    policy = FetchPolicy(per_domain_concurrency=1, total_timeout_s=0.5, attempts=1)

    async def handler(url):
        await asyncio.sleep(0.1)
        return respond(200, b"body")

    async def run():
        fetcher = Fetcher(policy, FakeTransport(handler, policy))
        return await asyncio.gather(*(fetcher.fetch(URL) for _ in range(10)))

    assert all(isinstance(found, Fetched) for found in asyncio.run(run()))


def test_a_long_body_waits_for_its_place_once_and_not_against_the_clock():
    policy = FetchPolicy(large_body_bytes=10, total_timeout_s=0.2, backoff_s=0)
    admitted = []

    async def admit():
        admitted.append(True)
        await asyncio.sleep(0.6)

    answers = in_turn(respond(200, b"x" * 11), respond(200, b"x" * 11))
    calls = []

    class CutOnce(FakeTransport):
        async def get(self, url, **options):
            response = await super().get(url, **options)
            calls.append(url)
            if len(calls) == 1:
                raise ExchangeFailed(Outcome.TRUNCATED, "cut", passing=True)
            return response

    fetcher = Fetcher(policy, CutOnce(answers, policy))
    found = asyncio.run(fetcher.fetch(URL, admit_large=admit))
    assert isinstance(found, Fetched)
    assert (len(calls), admitted) == (2, [True])


def test_a_body_that_is_too_long_is_refused():
    found, asked = fetch(lambda url: respond(200, b"x" * 11), policy=FetchPolicy(max_body_bytes=10))
    assert found == FetchFailed(
        outcome=Outcome.TOO_LARGE, message="body longer than 10 bytes", http_status=None
    )
    assert len(asked) == 1
