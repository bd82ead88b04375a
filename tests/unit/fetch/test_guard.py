import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laion_assets.fetch.guard import RefusedAddress, make_socket, refusal
from laion_assets.fetch.policy import FetchPolicy

REFUSED = [
    "0.0.0.0",
    "0.1.2.3",
    "10.1.2.3",
    "100.64.0.1",
    "100.100.100.200",
    "127.0.0.1",
    "127.255.255.254",
    "168.63.129.16",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.1",
    "192.0.0.8",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "224.0.1.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::7f00:1",
    "::8.8.8.8",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::7f00:1",
    "64:ff9b::a00:1",
    "64:ff9b:1::1",
    "64:ff9b:1::808:808",
    "100::1",
    "2001::1",
    "2001:0:808:808::",
    "2001:db8::1",
    "2002:7f00:1::1",
    "2002:a00:1::",
    "2002:a9fe:a9fe::",
    "3fff::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%1",
    "fec0::1",
    "ff02::1",
    "ff0e::1",
]
ALLOWED = [
    "1.1.1.1",
    "8.8.8.8",
    "93.184.216.34",
    "172.32.0.1",
    "2606:4700::1111",
    "2a00:1450::1",
    "::ffff:8.8.8.8",
    "64:ff9b::808:808",
    "2002:808:808::1",
]


@pytest.mark.parametrize("address", REFUSED)
def test_addresses_that_are_not_the_public_web_are_refused(address):
    assert refusal(address, allow_loopback=False)


@pytest.mark.parametrize("address", ALLOWED)
def test_public_addresses_are_allowed(address):
    assert refusal(address, allow_loopback=False) is None


@pytest.mark.parametrize("address", REFUSED)
def test_allowing_loopback_allows_nothing_else(address):
    is_loopback = address.startswith(("127.", "::ffff:127.")) or address == "::1"
    assert (refusal(address, allow_loopback=True) is None) == is_loopback


@pytest.mark.parametrize("text", ["", "localhost", "8.8.8.8.8", "8.8.8.8/32", "0x7f.1", "1.1.1.256", "[::1]"])
def test_what_is_no_address_is_refused(text):
    assert refusal(text, allow_loopback=True) == "not an address"


@settings(deadline=None, max_examples=50)
@given(st.ip_addresses(v=4))
def test_an_address_wrapped_in_another_is_judged_alike(address):
    number = int(address)
    low, high = number & 0xFFFF, number >> 16
    expected = refusal(str(address), allow_loopback=False) is None
    for wrapped in (f"::ffff:{address}", f"64:ff9b::{address}", f"2002:{high:x}:{low:x}::1"):
        assert (refusal(wrapped, allow_loopback=False) is None) == expected


def attempt(policy, address, port, family=socket.AF_INET):
    try:
        make_socket(family, socket.SOCK_STREAM, 0, (address, port), policy).close()
    except RefusedAddress as error:
        return error.reason
    return None


def test_sockets_are_made_for_allowed_endpoints_only():
    policy = FetchPolicy(ports=(80, 443))
    assert attempt(policy, "8.8.8.8", 443) is None
    assert attempt(policy, "8.8.8.8", 22) == "port 22"
    assert attempt(policy, "127.0.0.1", 80) == "loopback"
    assert attempt(policy, "169.254.169.254", 80) == "link-local"
    assert attempt(policy, "/run/docker.sock", 80, socket.AF_UNIX) == "not an internet address"


def test_loopback_may_have_any_port_if_it_is_allowed_and_nobody_else():
    policy = FetchPolicy(ports=(443,), allow_loopback=True)
    assert attempt(policy, "127.0.0.1", 34567) is None
    assert attempt(policy, "8.8.8.8", 34567) == "port 34567"
    assert attempt(policy, "10.0.0.1", 443) == "not a public address"
