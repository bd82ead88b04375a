"""Which addresses may be connected to. Decides at the socket, and knows nothing of URLs.

An address is judged when its socket is made, so that literals, answers of the resolver, answers that
change between two lookups, and every redirect pass the same gate.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from typing import Final

from laion_assets.fetch.policy import FetchPolicy

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# Not for us although `ipaddress.is_global` of Python 3.11 passes them (IANA's special-purpose registries).
_REFUSED: Final[tuple[tuple[_Network, str], ...]] = tuple(
    (ipaddress.ip_network(network), reason)
    for network, reason in (
        ("0.0.0.0/8", "this network"),
        ("168.63.129.16/32", "Azure's host"),
        ("192.0.0.0/24", "IETF protocol assignments"),
        ("192.88.99.0/24", "6to4 relays"),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved"),
        ("::/96", "IPv4-compatible"),
        ("64:ff9b:1::/48", "local NAT64"),
        ("2001::/32", "Teredo"),
        ("3fff::/20", "documentation"),
        ("5f00::/16", "segment routing"),
        ("fec0::/10", "site-local"),
        ("ff00::/8", "multicast"),
    )
)

# RFC 6052's well-known prefix: the last 32 bits are the IPv4 address that is reached.
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")


# All that IANA has given out so far; the rest is nobody's (IANA's IPv6 address space registry).
_GLOBAL_UNICAST: Final = ipaddress.IPv6Network("2000::/3")


class RefusedAddress(Exception):
    """A connection that the policy does not allow."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def refusal(address: str, *, allow_loopback: bool) -> str | None:
    """Why an address may not be connected to, or None where it may.

    Args:
        address: IPv4 or IPv6 address; one that carries another (IPv4-mapped, NAT64, 6to4) is judged by
            the one that would be reached.
        allow_loopback: whether 127.0.0.0/8 and ::1 may.
    """
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return "not an address"
    return _judge(parsed, allow_loopback=allow_loopback)


def make_socket(
    family: int, kind: int, protocol: int, address: Sequence[object], policy: FetchPolicy
) -> socket.socket:
    """A socket for connecting to an address (host, port, ...), if that is allowed.

    An allowed loopback address may have any port.

    Raises:
        RefusedAddress: if the policy does not allow the address, or the port.
        OSError: if there can be no socket.
    """
    reason = _endpoint_refusal(family, address, policy)
    if reason is not None:
        raise RefusedAddress(reason)
    return socket.socket(family=family, type=kind, proto=protocol)


def _endpoint_refusal(family: int, address: Sequence[object], policy: FetchPolicy) -> str | None:
    if family not in (socket.AF_INET, socket.AF_INET6):
        return "not an internet address"
    host, port = str(address[0]), address[1]
    reason = refusal(host, allow_loopback=policy.allow_loopback)
    if reason is not None or port in policy.ports:
        return reason
    is_loopback = refusal(host, allow_loopback=False) is not None
    return None if is_loopback else f"port {port}"


def _judge(address: _Address, *, allow_loopback: bool) -> str | None:
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return _judge(address.ipv4_mapped, allow_loopback=allow_loopback)
        carried = address.sixtofour
        if address in _NAT64:
            carried = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
        if carried is not None:
            # What is_global makes of these prefixes differs from one Python to the next.
            return _judge(carried, allow_loopback=False)
    if address.is_loopback:
        return None if allow_loopback else "loopback"
    for network, reason in _REFUSED:
        if address.version == network.version and address in network:
            return reason
    if address.is_link_local:
        return "link-local"
    if isinstance(address, ipaddress.IPv6Address) and address not in _GLOBAL_UNICAST:
        return "not a public address"
    return None if address.is_global else "not a public address"
