"""What shards are compared and drawn by: shares of a shard's rows, from what its manifests count."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from laion_assets.outcomes import OUTCOME_PREFIX, Outcome
from laion_assets.schema import SIMILARITY_BINS, SIMILARITY_CLASSES, TAG_CLASSES, NsfwTag


class Shares(NamedTuple):
    """Shares of one shard's rows.

    Attributes:
        rows: how many rows these are shares of, at least 1.
        values: float64 (shares,), each between 0 and 1.
    """

    rows: int
    values: npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One thing that shards are compared by.

    Attributes:
        shares: the shares, from counts by name; None where nothing was counted, or there are no rows.
        names: of what each is the share.
        figures: the few figures by which people know such shares.
    """

    shares: Callable[[Mapping[str, int]], Shares | None]
    names: tuple[str, ...]
    figures: Callable[[npt.NDArray[np.float64]], dict[str, float]]


def _success(counts: Mapping[str, int]) -> Shares | None:
    """Rows with a picture, of those asked for: rows set aside say nothing about the web."""
    asked = sum(count for name, count in counts.items() if name.startswith(OUTCOME_PREFIX))
    asked -= counts.get(f"{OUTCOME_PREFIX}{Outcome.SET_ASIDE}", 0)
    return _shares(np.array([counts.get(f"{OUTCOME_PREFIX}{Outcome.SUCCESS}", 0)]), asked)


def _tags(counts: Mapping[str, int]) -> Shares | None:
    # Versions until 0.1.0 counted no tags, which are all there where they are counted.
    found = np.array([counts.get(name, 0) for name in TAG_CLASSES])
    return _shares(found, int(found.sum()))


def _similarities(counts: Mapping[str, int]) -> Shares | None:
    """Cumulated, the missing ones first: the largest difference is Kolmogorov's and Smirnov's distance."""
    found = np.array([counts.get(name, 0) for name in SIMILARITY_CLASSES])
    return _shares(np.cumsum(found)[:-1], int(found.sum()))


def _shares(found: npt.NDArray[np.int64], rows: int) -> Shares | None:
    return Shares(rows, found / rows) if rows else None


def _similarity_figures(values: npt.NDArray[np.float64]) -> dict[str, float]:
    missing, *below = values.tolist()
    figures = {"similarity_missing_share": missing}
    if missing < 1:
        edges = np.linspace(0, 1, SIMILARITY_BINS + 1)
        cumulated = (np.array([missing, *below, 1.0]) - missing) / (1 - missing)
        figures["similarity_median"] = float(np.interp(0.5, cumulated, edges))
    return figures


SUCCESS: Final = Measure(
    shares=_success,
    names=("success",),
    figures=lambda values: {"success_share": float(values[0])},
)
TAGS: Final = Measure(
    shares=_tags,
    names=tuple(NsfwTag),
    figures=lambda values: {
        f"{tag.lower()}_share": share for tag, share in zip(NsfwTag, values.tolist(), strict=True)
    },
)
SIMILARITIES: Final = Measure(
    shares=_similarities,
    names=(
        "no similarity",
        *(f"a similarity below {index / SIMILARITY_BINS:.2f}" for index in range(1, SIMILARITY_BINS)),
    ),
    figures=_similarity_figures,
)


def key_figures(counts: Mapping[str, int]) -> dict[str, float]:
    """The figures that a stage's counts give, by name, rounded; none where it counts other things.

    Args:
        counts: of one manifest. Those of ``images`` give ``success_share``; those of the normalized tables a
            share for each tag, ``similarity_median`` and ``similarity_missing_share``.
    """
    found: dict[str, float] = {}
    for measure in (SUCCESS, TAGS, SIMILARITIES):
        shares = measure.shares(counts)
        if shares is not None:
            found |= measure.figures(shares.values)
    return {name: round(figure, 6) for name, figure in found.items()}
