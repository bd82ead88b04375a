"""What a user may set about pictures. Apart from :mod:`laion_assets.image`, which starts without pydantic."""

from __future__ import annotations

import math
from typing import Final, Literal, Self

from pydantic import Field, field_validator, model_validator

from laion_assets.policy import Policy

StoredFormat = Literal["jpg", "png", "webp"]
"""img2dataset's ``encode_format``, and the extension of a picture in a tar."""

MAX_PIXELS: Final = 50_000_000
"""Largest width x height decoded unless a user says otherwise; it takes about 400 MB."""

_MOST_PNG_COMPRESSION: Final = 9


class ImagePolicy(Policy):
    """What is accepted as a picture and how it is stored; img2dataset's words mean what they mean there."""

    size: int = Field(default=256, ge=1, le=8192)
    """Target side in pixels."""
    mode: Literal["no", "border", "keep_ratio", "keep_ratio_largest", "center_crop"] = "keep_ratio"
    """img2dataset's resize modes: keep the original size (``no``; a picture that is one of the format
    already is kept byte for byte), shorter side to ``size`` (``keep_ratio``), the same and cropped to a
    square (``center_crop``), longer side to ``size`` (``keep_ratio_largest``), the same and padded with
    white to a square (``border``)."""
    only_if_bigger: bool = True
    """Leave pictures alone, uncropped and unpadded, whose side that counts for the mode is at most ``size``;
    else they are enlarged."""
    format: StoredFormat = "jpg"
    """How pictures are stored. TensorFlow Datasets decodes ``jpg`` and ``png``: ``webp`` is for readers of
    the tars, and its pictures are set aside (``not_tfds_format``) when their shard is normalized."""
    quality: int = Field(default=95, ge=0, le=100)
    """Of ``jpg`` and ``webp``, 1 to 100; of ``png``, its compression level, 0 to 9, which costs no detail."""
    min_size: int = Field(default=0, ge=0)
    """Shortest side in pixels of a picture that is accepted; 0 accepts any."""
    max_aspect_ratio: float | None = Field(default=None, ge=1)
    """Largest ratio of the longer side to the shorter that is accepted; none, or inf, accepts any."""
    max_pixels: int = Field(default=MAX_PIXELS, ge=1)
    """Largest width x height decoded (50 million pixels take about 400 MB)."""
    max_jpeg_scans: int = Field(default=64, ge=1)
    """Most scans of a progressive JPEG (a 47 kB file of many took 12 s to decode)."""
    worker_memory_bytes: int = Field(default=2 << 30, ge=1 << 28)
    """Address space that a decoding process may use on top of what it starts with."""
    decode_timeout_s: float = Field(default=20.0, gt=0)
    """CPU seconds one picture may take."""
    workers: int = Field(default=0, ge=0)
    """Decoding processes; 0 takes one for each core."""

    @field_validator("max_aspect_ratio")
    @classmethod
    def _inf_is_none(cls, value: float | None) -> float | None:
        return None if value == math.inf else value

    @model_validator(mode="after")
    def _quality_is_the_format_s(self) -> Self:
        if self.format == "png" and self.quality > _MOST_PNG_COMPRESSION:
            raise ValueError(f"quality of png is its level of compression, 0 to 9, not {self.quality}")
        if self.format != "png" and self.quality == 0:
            raise ValueError(f"quality of {self.format} is 1 to 100")
        return self
