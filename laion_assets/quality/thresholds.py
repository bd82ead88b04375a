"""The numbers that quality rules compare with, each with the source of its default."""

from __future__ import annotations

from pydantic import Field

from laion_assets.policy import Policy


class Thresholds(Policy):
    """Limits of the quality rules; shares are between 0 and 1."""

    similarity_low: float = 0.3
    """LAION-400M kept rows of at least 0.3 (the release's own filter)."""
    similarity_outside_share: float = Field(default=0.01, ge=0, le=1)
    """Share of rows with a similarity outside [similarity_low, 1] above which a warning is given."""
    similarity_null_share: float = Field(default=0.12, ge=0, le=1)
    """9.5 % of the rows had none in a pre-release snapshot."""
    similarity_impossible_share: float = Field(default=0.0, ge=0, le=1)
    """No cosine is above 1, and the release's filter left none below 0; every such row is worth a warning."""
    duplicate_share: float = Field(default=0.01, ge=0, le=1)
    """(URL, TEXT) was the release's key, so repeated pairs are an anomaly."""
    null_url_share: float = Field(default=0.01, ge=0, le=1)
    """Rows with neither URL nor TEXT exist, but they are rare."""
    null_text_share: float = Field(default=0.01, ge=0, le=1)
    """As for URL: the release asked for a text of at least one character."""
    set_aside_share: float = Field(default=0.02, ge=0, le=1)
    """Share of a shard's rows that are never asked for above which a warning is given: as rare as their
    reasons, a missing URL and an impossible similarity."""
    success_share_low: float = Field(default=0.45, ge=0, le=1)
    """50 to 75 % of the URLs were alive in late 2024; far below that, suspect the resolver (0.5 to 5 %)."""
    bad_vector_share: float = Field(default=0.001, ge=0, le=1)
    """Share of vectors that are not finite or not of length 1 above which a warning is given; the release's
    all are."""
    norm_tolerance: float = Field(default=0.01, gt=0)
    """L2 norms of the release's vectors lie between 0.9999 and 1.0003; float16 alone costs 0.001."""
    cosine_median_difference: float = Field(default=0.02, gt=0)
    """Median of |cosine - similarity| above which vectors and metadata do not belong together."""
    cosine_far: float = Field(default=0.1, gt=0)
    """A row is off if its cosine differs from its similarity by more."""
    cosine_far_share: float = Field(default=0.05, ge=0, le=1)
    """Share of rows off above which vectors and metadata do not belong together."""
    drift_deviations: float = Field(default=5.0, gt=0)
    """Standard deviations that a shard's share may be off the other shards' median: of a normal distribution,
    one value in 1.7 million is further off, so by chance none of 41,455 shards. The deviation is 1.4826 times
    the others' median absolute deviation, or that of chance in so few rows (binomial) if it is more."""
    drift_success_share: float = Field(default=0.05, ge=0, le=1)
    """Difference in the share of downloads that succeed below which no warning is given: what links lose in
    four months (83 to 85 % were alive in February 2023, some 68 % a year later)."""
    drift_tag_share: float = Field(default=0.02, ge=0, le=1)
    """Difference in the share of an NSFW tag below which no warning is given: four times the most that is a
    standard deviation by chance in 10,000 rows, 0.005."""
    drift_similarity_distance: float = Field(default=0.05, ge=0, le=1)
    """Kolmogorov's and Smirnov's distance between similarities, in bins of 0.02, below which no warning is
    given. By chance, 10,000 rows are half as far from what they are drawn from in one case of 134,000
    (Dvoretzky, Kiefer, Wolfowitz and Massart: 2 exp(-2 n d²))."""
    drift_least_shards: int = Field(default=10, ge=1)
    """With fewer other shards than this nothing is compared: a median of few says little."""
    drift_sampled_shards: int = Field(default=200, ge=1)
    """Most other shards whose manifests are read for a comparison, spread over all: the median of 200 is off
    by some 0.09 standard deviations (1.25 / √200)."""
    sampled_images: int = Field(default=64, ge=1)
    """Pictures of a shard decoded in full by the check that a picture is what its row says."""
    sampled_shards: int = Field(default=16, ge=1)
    """Shards of a data set whose records are counted by the check that it holds what it says."""
    duckdb_memory_bytes: int = Field(default=512 << 20, ge=16 << 20)
    """Memory that DuckDB may take to find duplicates in all parts; beyond it, the data root's disk is used.
    Python and what DuckDB does not count take some 350 MB beside."""
