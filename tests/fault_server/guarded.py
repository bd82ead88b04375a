"""URLs of this machine, asked for with a policy that allows none of it: the canary is at 127.0.0.1."""

from __future__ import annotations

from fault_server.behaviour import behaviour, refuse
from laion_assets.outcomes import Outcome as O  # noqa: N817 (there are hundreds below)

REFUSED = (
    "127.0.0.1",
    "127.0.0.2",
    "127.255.255.254",
    "0.0.0.0",
    "localhost",
    "LOCALHOST",
    "[::1]",
    "[::]",
    "[0:0:0:0:0:0:0:1]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[::127.0.0.1]",
    "[64:ff9b::7f00:1]",
    "[64:ff9b:1::7f00:1]",
    "[2002:7f00:1::]",
)
# Spellings of 127.0.0.1 that resolvers know; a client may take them for no host at all.
SPELT = (
    "127.1",
    "127.0.1",
    "2130706433",
    "0x7f000001",
    "0x7f.0x0.0x0.0x1",
    "0X7F.1",
    "017700000001",
    "0177.0.0.01",
    "0177.0.0x1",
    "127.0.0.1.",
    "localhost.",
    "0",
    "00000000177.0.0.1",
    "１２７.０.０.１",
    "①②⑦.⓪.⓪.①",
    "127。0。0。1",
    "%31%32%37.0.0.1",
    "127.0.0.1%20",
    "[::1%25lo]",
    "[::ffff:127.0.0.1%25lo]",
)
# What no policy allows, at the canary's port: the URL is refused before an address is looked up.
UNASKED = (
    "http://kilroy@127.0.0.1:{canary}/",
    "http://example.com@127.0.0.1:{canary}/",
    "ftp://127.0.0.1:{canary}/",
    "gopher://127.0.0.1:{canary}/_GET",
    "file:///etc/passwd",
    "file://localhost/etc/passwd",
    "//127.0.0.1:{canary}/",
    "127.0.0.1:{canary}/",
    "HTTP:127.0.0.1:{canary}",
    "http:127.0.0.1:{canary}",
    "http:///127.0.0.1:{canary}/",
    "",
)


def guarded(url: str, *expected: O, **options):
    return behaviour(f"guarded: {url or 'nothing'}", refuse, *expected, url=url, guarded=True, **options)


def guarded_name(name: str, *answers: list[str]):
    host = f"guarded-{name}.invalid"
    url = f"http://{host}:{{canary}}/"
    return guarded(url, O.REFUSED_ADDRESS, names={host: answers})


TABLE = (
    *(guarded(f"http://{host}:{{canary}}/", O.REFUSED_ADDRESS) for host in REFUSED),
    *(guarded(f"https://{host}:{{canary}}/", O.REFUSED_ADDRESS) for host in REFUSED[:1]),
    *(guarded(f"http://{host}:{{canary}}/", O.REFUSED_ADDRESS, O.BAD_URL, O.DNS) for host in SPELT),
    *(guarded(url, O.BAD_URL) for url in UNASKED),
    guarded_name("a", ["127.0.0.1"]),
    guarded_name("b", ["::1"]),
    guarded_name("c", ["::ffff:127.0.0.1"]),
    guarded_name("d", ["127.0.0.1"] * 100),
    guarded_name("e", ["::1", "127.0.0.1", "0.0.0.0", "10.0.0.1"]),
    guarded_name("f", ["10.0.0.1"], ["127.0.0.1"]),
)
