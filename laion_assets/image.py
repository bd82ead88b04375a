"""From the bytes a server sent to the bytes a shard keeps. Knows nothing of URLs or shards."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from laion_assets.policy import Policy


class ImagePolicy(Policy):
    """What is accepted as a picture and how it is stored."""

    size: int = Field(default=256, ge=1, le=8192)
    """Target side in pixels."""
    mode: Literal["no", "border", "keep_ratio", "center_crop"] = "keep_ratio"
    """img2dataset's resize modes: keep the original, pad to a square, shorter side to ``size``, or crop."""
    only_if_bigger: bool = True
    """Leave pictures alone whose shorter side is at most ``size``; else they are enlarged."""
    quality: int = Field(default=95, ge=1, le=100)
    """JPEG quality of the stored picture."""
    max_pixels: int = Field(default=50_000_000, ge=1)
    """Largest width x height decoded (50 million pixels take about 400 MB)."""
    max_jpeg_scans: int = Field(default=64, ge=1)
    """Most scans of a progressive JPEG (a 47 kB file of many took 12 s to decode)."""
    worker_memory_bytes: int = Field(default=2 << 30, ge=1 << 28)
    """Address space that a decoding process may use on top of what it starts with."""
    decode_timeout_s: float = Field(default=20.0, gt=0)
    """CPU seconds one picture may take."""
    workers: int = Field(default=0, ge=0)
    """Decoding processes; 0 takes one for each core."""
