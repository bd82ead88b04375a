"""Which URLs may be asked for, and in which spelling. Connects to nothing."""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Final
from urllib.parse import quote, urljoin, urlsplit

from publicsuffixlist import PublicSuffixList
from yarl import URL

# Longer ones are refused by most servers (8 kB is Apache's and nginx's limit for a request line).
MAX_URL_LENGTH: Final = 8000

# RFC 3986's reserved and unreserved characters, and '%': what is escaped already stays as it is, because
# signed URLs break when they are spelled anew.
_KEPT: Final = "!$%&'()*+,/:;=?@[]~-._"

# Most URLs are spelled right already, which is seen ten times faster than done again.
_SPELLED_RIGHT: Final = re.compile(rf"[A-Za-z0-9{re.escape(_KEPT)}]*")

# Labels of letters, digits and hyphens; and where real hosts have them, underscores and hyphens at the ends.
_HOST: Final = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\.?")
_MAX_HOST_LENGTH: Final = 253
_LONE_SURROGATE: Final = re.compile("[\ud800-\udc7f\udd00-\udfff]")


class BadUrl(ValueError):
    """A URL that is not asked for; the message says why and holds nothing of the URL."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A URL that may be asked for.

    Attributes:
        url: the URL in ASCII, without fragment.
        host: its host, lower case and in ASCII.
        domain: its registered domain (one owner), or its address.
    """

    url: str
    host: str
    domain: str


def parse_url(text: str) -> Target:
    """Check a URL and spell it in ASCII.

    Raises:
        BadUrl: if it is not http or https, names a user, lacks a host, is too long or is malformed.
    """
    text = text.strip()
    if len(text) > MAX_URL_LENGTH:
        raise BadUrl("URL too long")
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise BadUrl("malformed URL") from None
    if parts.scheme not in ("http", "https"):
        raise BadUrl("scheme is not http or https")
    if parts.username is not None or parts.password is not None:
        raise BadUrl("URL names a user")
    if not host:
        raise BadUrl("URL has no host")
    host = _ascii_host(host)
    if port == 0:
        raise BadUrl("malformed URL")
    authority = f"[{host}]" if ":" in host else host
    if port is not None:
        authority = f"{authority}:{port}"
    path = _escape(parts.path) or "/"
    query = f"?{_escape(parts.query)}" if parts.query else ""
    url = f"{parts.scheme}://{authority}{path}{query}"
    if len(url) > MAX_URL_LENGTH:
        raise BadUrl("URL too long")
    return Target(url=url, host=host, domain=registered_domain(host))


def parse_redirect(base: Target, location: str) -> Target:
    """Check where a redirect leads.

    Raises:
        BadUrl: as :func:`parse_url`.
    """
    try:
        joined = urljoin(base.url, location.strip())
    except ValueError:
        raise BadUrl("malformed URL") from None
    return parse_url(joined)


@lru_cache(maxsize=65_536)
def registered_domain(host: str) -> str:
    """The part of a host's name that one owner registered; the host itself if it is an address."""
    if is_address(host):
        return host
    return _public_suffixes().privatesuffix(host.rstrip(".")) or host


@cache
def _public_suffixes() -> PublicSuffixList:
    return PublicSuffixList()


def _ascii_host(host: str) -> str:
    if ":" in host:  # only an IPv6 literal has one
        if "%" in host or not is_address(host):
            raise BadUrl("malformed host")
        return host
    if not host.isascii():
        try:
            host = (URL.build(scheme="http", host=host).raw_host or "").lower()
        except ValueError:
            raise BadUrl("malformed host") from None
    if len(host) > _MAX_HOST_LENGTH or not _HOST.fullmatch(host):
        raise BadUrl("malformed host")
    return host


def is_address(host: str) -> bool:
    """Whether a host is an address and not a name."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except (OSError, ValueError):
            continue
        return True
    return False


def _escape(text: str) -> str:
    if _SPELLED_RIGHT.fullmatch(text):
        return text
    # Undecodable bytes of a header come as surrogates U+DC80 to U+DCFF: they become those bytes again. Any
    # other surrogate stands for nothing and becomes U+FFFD, as in browsers.
    text = _LONE_SURROGATE.sub("\ufffd", text)
    return quote(text, safe=_KEPT, errors="surrogateescape")
