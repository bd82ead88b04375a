"""What may be asked of the web, and for how long."""

from __future__ import annotations

from typing import Final

from pydantic import Field

from laion_assets import __version__
from laion_assets.policy import Policy
from laion_assets.schema import Digest

MIB: Final = 1 << 20


class FetchPolicy(Policy):
    """Limits and manners of fetching one URL and many."""

    connect_timeout_s: float = Field(default=5.0, gt=0)
    """Name resolution aside, how long a connection, TLS included, may take."""
    total_timeout_s: float = Field(default=15.0, gt=0)
    """How long one attempt may take from first packet to last byte, redirects included."""
    response_timeout_s: float = Field(default=8.0, gt=0)
    """How long a host may take to connect and to send its answer's headers."""
    stall_timeout_s: int = Field(default=8, ge=1)
    """How long an answer may be slower than ``min_rate_bytes_s``; libcurl may take some seconds more."""
    min_rate_bytes_s: int = Field(default=1000, ge=1)
    """Slowest answer that is waited for, in bytes a second."""
    attempts: int = Field(default=2, ge=1, le=10)
    """How often a URL is asked for when its failure may pass."""
    backoff_s: float = Field(default=0.5, ge=0)
    """First pause before another attempt; it doubles, with jitter."""
    retry_after_s: float = Field(default=10.0, ge=0)
    """Longest pause that a server's Retry-After may ask for; one that asks for more is not asked again."""
    max_body_bytes: int = Field(default=20 * MIB, ge=1)
    """Longest body accepted."""
    large_body_bytes: int = Field(default=MIB // 4, ge=1)
    """A body longer than this needs one of ``large_bodies`` places, which bounds the memory."""
    large_bodies: int = Field(default=16, ge=1)
    """Long bodies held in memory at once; the others wait, and the wait counts against no timeout."""
    max_redirects: int = Field(default=5, ge=0, le=20)
    """How many redirects are followed, each checked like the first URL."""
    ports: tuple[int, ...] = (80, 443, 8000, 8080, 8443)
    """Ports that may be connected to."""
    concurrency: int = Field(default=1024, ge=1, le=4096)
    """URLs in flight at once at most, those included that wait for their site's turn or a silent host. There
    are as many as keep the decoding processes busy."""
    per_domain_concurrency: int = Field(default=8, ge=1)
    """Connections in use at once to one registered domain."""
    per_domain_interval_s: float = Field(default=0.02, ge=0)
    """Shortest time from one request to the next to one registered domain."""
    host_failures: int = Field(default=3, ge=1)
    """How often in a row a host may be silent before it counts as down and is not asked any more."""
    retry_silent_hosts: bool = False
    """Whether a host that has never answered gets as many chances as others. Else two requests that it lets
    run out of time are enough, and neither is repeated: a shard must not wait for the dead."""
    host_down_s: float = Field(default=300.0, ge=0)
    """How long a host that is down is left alone."""
    lookups: int = Field(default=32, ge=1, le=512)
    """Names asked of the system's resolver at once."""
    honour_robots_txt: bool = False
    """Whether robots.txt is asked for, once a site, and obeyed. Off, as in img2dataset: it is about crawling,
    and here are single pictures that pages show; ``honour_opt_out`` is on."""
    allow_loopback: bool = False
    """Whether 127.0.0.0/8 and ::1, at any port, may be connected to; for the demo and tests."""
    honour_opt_out: bool = True
    """Whether an X-Robots-Tag of noai, noimageai, noindex or noimageindex sets the picture aside."""
    user_agent_token: str = Field(default="laion_assets", pattern=r"^[A-Za-z0-9_-]+$")
    """Name by which X-Robots-Tag may address us."""
    contact: str = Field(default="", pattern=r"^[\x20-\x7e]*$")
    """URL or address in the User-Agent header, for site owners."""
    compute_hash: Digest = "sha256"
    """img2dataset's setting: a digest of each body that is recorded; its sha256 always is."""

    @property
    def user_agent(self) -> str:
        """Value of the User-Agent header."""
        contact = f" (+{self.contact})" if self.contact else ""
        return f"{self.user_agent_token}/{__version__}{contact}"
