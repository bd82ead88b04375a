"""Every behaviour of the fault server, through the whole downloader: sockets, decoding processes, journal."""

from __future__ import annotations

import asyncio
import dataclasses
import re
import resource
import socket
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
from fault_server import connections, framing, guarded, heads, names, pictures, redirects, statuses, tls
from fault_server.behaviour import ATTEMPTS, LIMIT, LONGEST_PAUSE_S, REDIRECTS, overflow, refuse
from fault_server.server import serving

from laion_assets.download import Wanted, download
from laion_assets.fetch.curl import HttpTransport
from laion_assets.fetch.policy import FetchPolicy
from laion_assets.formats.journal import open_journal
from laion_assets.image_policy import ImagePolicy
from laion_assets.outcomes import Outcome, Status

pytestmark = pytest.mark.skipif(
    sys.platform != "linux",
    reason="each behaviour has an address in 127.0.0.0/8, all of which only Linux has",
)

BEHAVIOURS = [
    behaviour
    for module in (connections, framing, heads, statuses, redirects, pictures, tls, names, guarded)
    for behaviour in module.TABLE
]
BY_NAME = {behaviour.name: behaviour for behaviour in BEHAVIOURS}

# Patient, so that a busy machine turns nothing into a timeout; what must time out is asked for in a hurry.
PATIENT = FetchPolicy(
    retry_silent_hosts=True,
    attempts=ATTEMPTS,
    backoff_s=0,
    retry_after_s=LONGEST_PAUSE_S,
    max_redirects=REDIRECTS,
    max_body_bytes=LIMIT,
    large_body_bytes=LIMIT // 2,
    connect_timeout_s=60,
    response_timeout_s=60,
    total_timeout_s=60,
)
HURRIED = PATIENT.model_copy(update={"connect_timeout_s": 2.0, "total_timeout_s": 2.5})
IMAGE = ImagePolicy(size=32, workers=1)

# libcurl passes over a chunk's extension without a word to us: it is no body, so the minimum rate ends it.
BOUNDED_BY_TIME = ("an endless chunk extension",)

# What this process may grow by, the fault server's own buffers included: 300 MB and bombs of 500 MB go by.
MOST_GROWTH_BYTES = 150 << 20
# Of 300 MB, what fits into the buffers of two sockets and of whoever reads.
MOST_SENT_BYTES = 64 << 20
UNASKED_HEADERS = (
    "cookie",
    "authorization",
    "proxy-authorization",
    "proxy-connection",
    "referer",
    "x-injected",
    "range",
    "upgrade",
)


class ResolvingTransport:
    """The real transport with the fault server's resolver, opened in the loop that asks it first.

    It is closed when that loop ends, which cancels what is left.
    """

    def __init__(self, policy, look_up):
        self._policy, self._look_up = policy, look_up
        self._keeper = None

    async def get(self, url, **options):
        if self._keeper is None:
            self._opened = asyncio.get_running_loop().create_future()
            self._keeper = asyncio.create_task(self._keep())
        transport = await asyncio.shield(self._opened)
        return await transport.get(url, **options)

    async def _keep(self):
        async with HttpTransport(self._policy, look_up=self._look_up) as transport:
            self._opened.set_result(transport)
            await asyncio.Event().wait()


@dataclasses.dataclass(frozen=True)
class Run:
    """What came of asking every host once.

    Attributes:
        found: name -> what became of its URL.
        hosts: name -> its host, which says what it saw.
        kept: how often the journals have each URL.
        canary_hits: what reached the canary.
        growth_bytes: peak of this process's memory, above what it had before.
        knocks: where the canary could be reached, when that was tried in the end.
    """

    found: dict
    hosts: dict
    kept: Counter
    canary_hits: list
    growth_bytes: int
    knocks: set


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(8192, hard), hard))
    try:
        with serving(BEHAVIOURS, folder) as web, pytest.MonkeyPatch.context() as patch:
            # OpenSSL's own variable for the authorities to trust.
            patch.setenv("SSL_CERT_FILE", str(web.trusted))
            for name in ("http_proxy", "https_proxy", "all_proxy", "HTTPS_PROXY", "ALL_PROXY"):
                patch.setenv(name, f"http://127.0.0.1:{web.canary_port}")
            return ask_all(web, folder)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def ask_all(web, folder):
    found, kept = {}, Counter()
    before = forget_peak()
    for number, hosts in enumerate(grouped(web.hosts)):
        behaviour = hosts[0].behaviour
        policy = (HURRIED if behaviour.hurried else PATIENT).model_copy(
            update={
                "allow_loopback": not behaviour.guarded,
                # The canary's port may be asked, so that it is the address that is refused.
                "ports": (*PATIENT.ports, web.canary_port),
            }
        )
        transport = ResolvingTransport(policy, web.look_up) if needs_resolver(behaviour) else None
        path = folder / f"{number}.journal"
        with open_journal(path, work="") as journal:
            wanted = [Wanted(url=host.url) for host in hosts]
            downloads = download(wanted, journal, policy, IMAGE, transport=transport)
        found |= {host.behaviour.name: one for host, one in zip(hosts, downloads, strict=True)}
        with open_journal(path, work="") as journal:
            kept.update(hosts[entry.fields["index"]].behaviour.name for entry in journal.entries)
    growth = peak_bytes() - before
    hits = list(web.canary_hits)
    return Run(
        found=found,
        hosts={host.behaviour.name: host for host in web.hosts},
        kept=kept,
        canary_hits=hits,
        growth_bytes=growth,
        knocks={address for address in ("127.0.0.1", "127.0.0.2", "0.0.0.0") if knock(address, web)},
    )


def needs_resolver(behaviour):
    return bool(behaviour.names) or behaviour.guarded


def grouped(hosts):
    """The hosts that are asked together, since one policy and one transport do for them."""
    groups = {}
    for host in hosts:
        behaviour = host.behaviour
        key = (behaviour.hurried, behaviour.guarded, needs_resolver(behaviour))
        groups.setdefault(key, []).append(host)
    return groups.values()


def knock(address, web):
    """Whether the canary answers and counts it."""
    before = len(web.canary_hits)
    with socket.create_connection((address, web.canary_port), timeout=30) as connection:
        return connection.recv(5) == b"HTTP/" and len(web.canary_hits) == before + 1


def forget_peak():
    """Peak memory of this process from here on; Linux forgets an earlier one when told to (proc(5))."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak_bytes()


def peak_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.parametrize("name", BY_NAME)
def test_a_behaviour_is_told_for_what_it_is(run, name):
    found, host, behaviour = run.found[name], run.hosts[name], BY_NAME[name]
    assert host.faults == []
    assert found.outcome in behaviour.expected, f"{found.outcome}: {found.message}"
    if behaviour.http_status is not None:
        assert found.http_status == behaviour.http_status
    if behaviour.requests is not None:
        assert len(host.seen.requests) in behaviour.requests
    if behaviour.lookups is not None:
        assert host.seen.lookups in behaviour.lookups
    if behaviour.conduct not in (refuse, overflow) and found.outcome is not Outcome.REFUSED_ADDRESS:
        assert host.seen.connections > 0
    assert host.seen.sent_bytes <= MOST_SENT_BYTES or name in BOUNDED_BY_TIME


def test_records_are_sound_and_hold_nothing_a_server_sent(run):
    unsound = [f"{name}: {found.message!r}" for name, found in run.found.items() if not is_sound(found)]
    assert not unsound, "\n".join(unsound)


def is_sound(found):
    message = found.message or ""
    is_success = found.outcome is Outcome.SUCCESS
    return (
        (found.status is Status.SUCCESS, found.picture is not None, found.message is None)
        == (is_success,) * 3
        and message.isascii()
        and message.isprintable()
        and len(message) < 200
        and "kil" not in message.lower()
        # Markup, and Python's words for an object, whose address differs from run to run.
        and "<" not in message
    )


def test_requests_are_plain(run):
    assert [name for name, host in run.hosts.items() if not all(map(is_plain, host.seen.requests))] == []


def is_plain(request):
    first, *headers = request.decode("latin-1").rstrip("\r\n").split("\r\n")
    names = [header.split(":")[0].lower() for header in headers]
    return (
        re.fullmatch(r"GET /[!-~]* HTTP/1\.1", first) is not None
        and "#" not in first
        and len(set(names)) == len(names)
        and not set(names) & set(UNASKED_HEADERS)
    )


def test_every_host_is_accounted_for_once(run):
    print_table(run)
    assert len(BY_NAME) == len(BEHAVIOURS) >= 100
    assert run.kept == Counter(BY_NAME.keys())


def test_the_canary_is_never_reached_though_it_can_be(run):
    assert run.canary_hits == []
    assert run.knocks == {"127.0.0.1", "127.0.0.2", "0.0.0.0"}


def test_memory_stays_bounded(run):
    assert run.growth_bytes < MOST_GROWTH_BYTES


def print_table(run):
    """One line for each behaviour; pytest shows it with -s."""
    print()
    for name, host in run.hosts.items():
        found = run.found[name]
        mark = " " if found.outcome in host.behaviour.expected else "!"
        counts = f"{len(host.seen.requests):2} of {host.seen.connections:2}"
        print(f"{mark} {name[:62]:62} {found.outcome:18} {counts}  {found.message or ''}")
    print(
        f"{len(run.hosts)} behaviours, {len(run.canary_hits)} hits on the canary, "
        f"{run.growth_bytes >> 20} MiB more memory"
    )
