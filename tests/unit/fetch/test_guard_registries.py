"""The guard against IANA's registries, written out here: whatever spelling of whatever address."""

from __future__ import annotations

import ipaddress
import socket

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from laion_assets.fetch.guard import refusal

# Not globally reachable, by the IANA IPv4 Special-Purpose Address Registry and RFC 5771 (multicast); and what
# Azure puts in the place of 169.254.169.254.
INSIDE_V4 = [
    ipaddress.IPv4Network(block)
    for block in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "168.63.129.16/32",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
]
# Of the only block that is delegated as global unicast (IANA IPv6 Address Space), what is not globally
# reachable by the IANA IPv6 Special-Purpose Address Registry; Teredo reaches an IPv4 address of its own.
GLOBAL_V6 = ipaddress.IPv6Network("2000::/3")
INSIDE_V6 = [
    ipaddress.IPv6Network(block)
    for block in ("2001::/32", "2001:2::/48", "2001:10::/28", "2001:db8::/32", "3fff::/20")
]
# Globally reachable by the registry, and of no use to a downloader: either answer is right.
EITHER = [
    ipaddress.ip_network(block)
    for block in ("192.0.0.9/32", "192.0.0.10/32", "192.31.196.0/24", "192.52.193.0/24", "192.175.48.0/24")
] + [ipaddress.ip_network(block) for block in ("2001::/23", "2620:4f:8000::/48")]

MAPPED, NAT64, SIX_TO_FOUR = 0xFFFF << 32, 0x64_FF9B << 96, 0x2002 << 112
LOW_32 = (1 << 32) - 1


def is_in(address, networks):
    return any(address.version == network.version and address in network for network in networks)


def is_inside(address):
    """Whether a downloader must not connect there, by the tables above."""
    if address.version == 4:
        return is_in(address, INSIDE_V4)
    number = int(address)
    for prefix, bits, shift in ((MAPPED, 32, 0), (NAT64, 32, 0), (SIX_TO_FOUR, 112, 80)):
        if number >> bits == prefix >> bits:
            return is_inside(ipaddress.IPv4Address(number >> shift & LOW_32))
    return address not in GLOBAL_V6 or is_in(address, INSIDE_V6)


def is_either(address):
    number = int(address)
    carried = [ipaddress.IPv4Address(number >> shift & LOW_32) for shift in (0, 80)]
    return is_in(address, EITHER) or (address.version == 6 and any(is_in(one, EITHER) for one in carried))


def within(networks):
    """Addresses of some networks, and their neighbours on both sides, so that every edge is met."""

    def pick(network):
        first, last = int(network[0]), int(network[-1])
        top = 2**network.max_prefixlen - 1
        edges = [first, last, max(0, first - 1), min(top, last + 1)]
        numbers = st.one_of(st.sampled_from(edges), st.integers(first, last))
        return numbers.map(ipaddress.IPv4Address if network.version == 4 else ipaddress.IPv6Address)

    return st.sampled_from(networks).flatmap(pick)


V4 = st.one_of(within(INSIDE_V4), st.ip_addresses(v=4))
CARRYING = st.one_of(
    V4.map(lambda one: ipaddress.IPv6Address(MAPPED | int(one))),
    V4.map(lambda one: ipaddress.IPv6Address(NAT64 | int(one))),
    V4.map(lambda one: ipaddress.IPv6Address(int(one))),
    V4.map(lambda one: ipaddress.IPv6Address((0x64_FF9B_0001 << 80) | int(one))),
    st.builds(
        lambda one, rest: ipaddress.IPv6Address(SIX_TO_FOUR | int(one) << 80 | rest),
        V4,
        st.integers(0, 2**80 - 1),
    ),
    # Teredo: server, flags, port and client, the latter two inverted (RFC 4380, 4).
    st.builds(
        lambda server, client: ipaddress.IPv6Address(
            0x2001_0000 << 96 | int(server) << 64 | 0xFFFF << 32 | (int(client) ^ LOW_32)
        ),
        V4,
        V4,
    ),
)
BLOCKS_V6 = [
    *INSIDE_V6,
    GLOBAL_V6,
    *map(
        ipaddress.IPv6Network,
        ("::/96", "::1/128", "64:ff9b:1::/48", "100::/64", "200::/7", "5f00::/16", "fc00::/7", "fe80::/10",
         "fec0::/10", "ff00::/8"),
    ),
]  # fmt: skip
ADDRESSES = st.one_of(V4, CARRYING, within(BLOCKS_V6), st.ip_addresses(v=6))


@st.composite
def spelled(draw):
    """An IPv4 address as inet_aton reads it: one to four parts, each decimal, octal or hexadecimal."""
    number = int(draw(V4))
    count = draw(st.integers(1, 4))
    parts = [number >> 8 * (3 - place) & 0xFF for place in range(count - 1)]
    parts.append(number & (1 << 8 * (5 - count)) - 1)
    form = st.sampled_from(("{}", "0{:o}", "000{:o}", "0x{:x}", "0X{:X}", "0x00{:x}"))
    return ".".join(draw(form).format(part) for part in parts)


@settings(deadline=None, max_examples=400)
@given(ADDRESSES)
@example(ipaddress.ip_address("::ffff:169.254.169.254"))
@example(ipaddress.ip_address("200::1"))
@example(ipaddress.ip_address("4000::1"))
def test_what_iana_calls_unreachable_is_refused(address):
    if is_inside(address):
        for text in (str(address), address.exploded):
            assert refusal(text, allow_loopback=False)


@settings(deadline=None, max_examples=400)
@given(ADDRESSES)
@example(ipaddress.ip_address("8.8.8.8"))
def test_what_iana_calls_reachable_is_allowed(address):
    if not is_inside(address) and not is_either(address):
        assert refusal(str(address), allow_loopback=False) is None


@settings(deadline=None, max_examples=300)
@given(ADDRESSES)
def test_allowing_loopback_allows_loopback_alone(address):
    plain = getattr(address, "ipv4_mapped", None) or address
    is_loopback = is_in(plain, [ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128")])
    if is_loopback:
        assert refusal(str(address), allow_loopback=True) is None
    elif is_inside(address):
        assert refusal(str(address), allow_loopback=True)


@settings(deadline=None, max_examples=400)
@given(spelled())
@example("0x7f.1")
@example("0177.0.0.1")
def test_no_spelling_of_an_unreachable_address_passes(text):
    if is_inside(ipaddress.IPv4Address(socket.inet_aton(text))):
        assert refusal(text, allow_loopback=False)


@pytest.mark.parametrize("zone", ["", "%lo", "%1", "%25lo"])
@pytest.mark.parametrize(
    "address", ["fe80::1", "::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "fd00::1", "ff02::1"]
)
def test_a_zone_opens_nothing(address, zone):
    assert refusal(address + zone, allow_loopback=False)
