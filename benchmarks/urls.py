"""The list of URLs that is downloaded: which leads to a picture, which fails and how, and on which host.

Nothing here connects to anything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow.parquet as pq

from laion_assets.fetch.urls import BadUrl, parse_url

WEB_URLS: Final = Path(__file__).resolve().parents[2] / "shared" / "data" / "web_urls" / "url_text.parquet"

HOSTS: Final = 512
"""Loopback addresses; the domain with rank r is address r modulo this."""

FAILING: Final = 0.28
"""Share of URLs that fail: LAION-400M's in early 2024, between 17 % (2023) and 50 % (late 2024)."""

SUCCESS: Final = "success"
FAILURES: Final = {
    "404": 608,
    "403": 141,
    "dns": 139,
    "undecodable": 83,
    "tls_untrusted": 50,
    "opt_out": 30,
    "400": 31,
    "503": 32,
    "refused": 18,
    "500": 13,
    "401": 9,
    "closed": 5,
    "tls_not_spoken": 5,
}
"""Kind of failure -> how often in 10,000 URLs of a real shard (February 2023); scaled to FAILING."""

TLS_FAILURES: Final = ("tls_untrusted", "tls_not_spoken")


@dataclass(frozen=True, kw_only=True)
class Ports:
    """Where the server listens, on every address.

    Attributes:
        http: HTTP.
        https: HTTPS.
        untrusted: HTTPS with a certificate that nobody vouches for.
        refused: nothing.
        silent: connections are accepted, and nothing is ever said.
    """

    http: int
    https: int
    untrusted: int
    refused: int
    silent: int


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One URL to be downloaded: what is to come of it, and which picture it leads to, if to one."""

    url: str
    kind: str
    host: int
    name: str | None = None


@dataclass(frozen=True, kw_only=True)
class UrlList:
    """URLs and where they lead."""

    entries: tuple[Entry, ...]
    kinds: Counter[str] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "kinds", Counter(entry.kind for entry in self.entries))


def address(host: int) -> str:
    """The loopback address of a host."""
    return f"127.1.{host // 250}.{host % 250 + 1}"


def make_urls(
    count: int,
    *,
    scheme: str,
    corpus: str,
    names: Sequence[str],
    ports: Ports,
    seed: int,
    dead_hosts: frozenset[int] = frozenset(),
) -> UrlList:
    """A list of URLs.

    Args:
        count: how many.
        scheme: "http" or "https".
        corpus: folder of the pictures on the server.
        names: names of the pictures; a URL leads to one of them, with a query of its own.
        ports: where the server listens.
        seed: of every choice.
        dead_hosts: hosts that accept and say nothing.
    """
    rng = np.random.default_rng(seed)
    hosts = host_numbers(count, rng)
    kinds = rng.permutation(share_out(count, scheme))
    pictures = rng.integers(len(names), size=count)
    entries = []
    for number, (host, kind) in enumerate(zip(hosts, kinds, strict=True)):
        name = names[pictures[number]] if kind in (SUCCESS, "opt_out") else None
        url = _url(scheme, str(kind), int(host), f"{corpus}/{name}?n={number}", ports, number)
        if host in dead_hosts and kind != "dns":
            url = f"{scheme}://{address(int(host))}:{ports.silent}/silent/{number}.jpg"
            kind, name = "silent", None
        entries.append(Entry(url=url, kind=str(kind), host=int(host), name=name))
    return UrlList(entries=tuple(entries))


def share_out(count: int, scheme: str) -> list[str]:
    """Kinds in their shares, by largest remainder."""
    weights = {
        kind: weight for kind, weight in FAILURES.items() if scheme == "https" or kind not in TLS_FAILURES
    }
    total = sum(weights.values())
    failing = round(count * FAILING)
    exact = {kind: failing * weight / total for kind, weight in weights.items()}
    counts = {kind: int(share) for kind, share in exact.items()}
    by_remainder = sorted(exact, key=lambda kind: counts[kind] - exact[kind])
    for kind in by_remainder[: failing - sum(counts.values())]:
        counts[kind] += 1
    counts[SUCCESS] = count - failing
    return [kind for kind, number in counts.items() for _ in range(number)]


def host_numbers(count: int, rng: np.random.Generator, web_urls: Path = WEB_URLS) -> list[int]:
    """The host of each URL: domains as often as in real URLs, or after Zipf's law where those are missing."""
    if web_urls.exists():
        ranks = _real_ranks(web_urls)
        chosen = rng.choice(len(ranks), size=count, replace=count > len(ranks))
        return [ranks[index] % HOSTS for index in chosen]
    weights = 1 / np.arange(1, 3_601) ** 0.8
    return [int(rank) % HOSTS for rank in rng.choice(3_600, size=count, p=weights / weights.sum())]


@cache
def _real_ranks(web_urls: Path) -> tuple[int, ...]:
    """Rank of the registered domain of each real URL, the most frequent having rank 0."""
    domains = []
    for url in pq.read_table(web_urls, columns=["URL"])["URL"].to_pylist():
        try:
            domains.append(parse_url(url).domain)
        except BadUrl:
            continue
    ranks = {domain: rank for rank, (domain, _) in enumerate(Counter(domains).most_common())}
    return tuple(ranks[domain] for domain in domains)


def _url(scheme: str, kind: str, host: int, picture: str, ports: Ports, number: int) -> str:
    port = ports.https if scheme == "https" else ports.http
    base = f"{scheme}://{address(host)}"
    match kind:
        case "success":
            return f"{base}:{port}/files/{picture}"
        case "opt_out":
            return f"{base}:{port}/opt_out/{picture}"
        case "dns":
            return f"{scheme}://gone-{host}.invalid:{port}/{number}.jpg"
        case "refused":
            return f"{base}:{ports.refused}/{number}.jpg"
        case "tls_untrusted":
            return f"{base}:{ports.untrusted}/files/{picture}"
        case "tls_not_spoken":
            return f"{base}:{ports.http}/files/{picture}"
        case _:
            return f"{base}:{port}/{kind}/{number}.jpg"
