"""What can become of a row that is asked for, in img2dataset's words and in ours.

Apart from :mod:`laion_assets.schema` because decoding processes need it, and start without pyarrow.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final


class Status(StrEnum):
    """img2dataset's words for a row's outcome."""

    SUCCESS = "success"
    FAILED_TO_DOWNLOAD = "failed_to_download"
    FAILED_TO_RESIZE = "failed_to_resize"


class Outcome(StrEnum):
    """Class of a row's outcome, finer than its status."""

    SUCCESS = "success"
    SET_ASIDE = "set_aside"  # never asked for: the row itself is not acceptable
    BAD_URL = "bad_url"
    REFUSED_ADDRESS = "refused_address"
    DNS = "dns"
    CONNECT = "connect"
    TLS = "tls"
    TIMEOUT = "timeout"
    HOST_DOWN = "host_down"  # not asked for: the host had not answered several times in a row
    DISALLOWED = "disallowed"  # not asked for: robots.txt
    HTTP_4XX = "http_4xx"
    HTTP_5XX = "http_5xx"
    TOO_MANY_REDIRECTS = "too_many_redirects"
    OPTED_OUT = "opted_out"
    TOO_LARGE = "too_large"
    TRUNCATED = "truncated"
    PROTOCOL = "protocol"
    DIGEST_MISMATCH = "digest_mismatch"  # the body is not the one that the source has the digest of
    NOT_AN_IMAGE = "not_an_image"
    TOO_SMALL = "too_small"  # a side shorter than is wanted
    ASPECT_RATIO = "aspect_ratio"  # one side too long for the other
    TOO_MANY_PIXELS = "too_many_pixels"
    UNDECODABLE = "undecodable"
    DECODER_DIED = "decoder_died"
    BAD_BOXES = "bad_boxes"  # never asked for: what has to be blurred cannot be read
    OTHER = "other"  # of a shard made elsewhere, whose message says more


PASSING: Final = frozenset(
    {
        Outcome.DNS,
        Outcome.CONNECT,
        Outcome.TIMEOUT,
        Outcome.HOST_DOWN,
        Outcome.HTTP_5XX,
        Outcome.TRUNCATED,
    }
)
"""Failures that may be none another day."""

OUTCOME_PREFIX: Final = "outcome:"
"""What precedes an outcome where a manifest counts the rows of each."""


def count_failures(counts: Mapping[str, int]) -> dict[str, int]:
    """Outcome -> rows, of those that a manifest counts and that are no success."""
    outcomes = {
        name.removeprefix(OUTCOME_PREFIX): count
        for name, count in counts.items()
        if count and name.startswith(OUTCOME_PREFIX)
    }
    outcomes.pop(Outcome.SUCCESS, None)
    return outcomes


def count_passing(counts: Mapping[str, int]) -> int:
    """Rows that a manifest counts whose failure may be none another day."""
    return sum(count for outcome, count in count_failures(counts).items() if outcome in PASSING)
