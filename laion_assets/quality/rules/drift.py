"""Rules that hold a shard against the other shards of the data set, as their manifests count them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from laion_assets.errors import CorruptManifest
from laion_assets.formats import parquet
from laion_assets.formats.publish import read_manifest
from laion_assets.image_table import read_image_table
from laion_assets.layout import Layout
from laion_assets.normalization import count_classes
from laion_assets.outcomes import OUTCOME_PREFIX, Outcome, Status
from laion_assets.published import changed_at, output_of, partitions_of
from laion_assets.quality.measures import SIMILARITIES, SUCCESS, TAGS, Measure, Shares
from laion_assets.quality.rules.rule import Rule, Subject, Verdict, spread
from laion_assets.schema import NORMALIZED_EMBEDDINGS, NORMALIZED_IMAGES

# Of a normal distribution, the median absolute deviation times this is the standard deviation.
_DEVIATIONS_PER_MAD: Final = 1.4826


class Comparison(NamedTuple):
    """A shard's shares beside those of others, each float64 (shares,).

    Attributes:
        median: of the others.
        distance: how far the shard's are from it.
        allowed: how far they may be.
    """

    median: npt.NDArray[np.float64]
    distance: npt.NDArray[np.float64]
    allowed: npt.NDArray[np.float64]


def compare(own: Shares, others: Sequence[Shares], *, floor: float, deviations: float) -> Comparison:
    """Hold a shard's shares against the median of others.

    A share may be off by ``floor``, or by so many standard deviations if that is more: of the others, which
    their median absolute deviation (MAD) tells without heed to a few odd ones, or of chance in so few rows.

    Args:
        own: the shard's shares.
        others: those of one or more other shards.
        floor: a share, below which nothing counts as off.
        deviations: how many standard deviations.
    """
    table = np.stack([shares.values for shares in others])
    median = np.median(table, axis=0)
    spread_of_others = _DEVIATIONS_PER_MAD * np.median(np.abs(table - median), axis=0)
    # Of a binomial distribution; by Laplace's rule of succession, or nothing could happen by chance where the
    # median is 0 or 1.
    expected = (own.rows * median + 1) / (own.rows + 2)
    chance = np.sqrt(expected * (1 - expected) / own.rows)
    return Comparison(
        median=median,
        distance=np.abs(own.values - median),
        allowed=np.maximum(floor, deviations * np.maximum(spread_of_others, chance)),
    )


def _check(
    subject: Subject,
    *,
    stage: str,
    measure: Measure,
    floor: str,
    count: Callable[[Subject], Mapping[str, int]],
) -> Verdict:
    """The shard's own shares are of its file; those of the others of what their manifests count."""
    limits = subject.thresholds
    own = measure.shares(count(subject))
    sampled = _counts_of_others(subject, stage)
    others = [shares for counts in sampled if (shares := measure.shares(counts)) is not None]
    is_compared = own is not None and len(others) >= limits.drift_least_shards
    figures: dict[str, float | int] = {
        "shards_sampled": len(sampled),
        "shards_compared": len(others) if is_compared else 0,
    }
    if own is None:
        return Verdict(passed=True, offending=0, rows=0, figures=figures)
    figures |= measure.figures(own.values)
    if not is_compared:
        return Verdict(passed=True, offending=0, rows=own.rows, figures=figures)
    found = compare(own, others, floor=getattr(limits, floor), deviations=limits.drift_deviations)
    worst = int(np.argmax(found.distance / found.allowed))
    distance, allowed = float(found.distance[worst]), float(found.allowed[worst])
    figures |= {f"{name}_median": figure for name, figure in measure.figures(found.median).items()}
    figures |= {"distance": distance, "allowed": allowed}
    passed = distance <= allowed
    example = (
        f"{measure.names[worst]}: {own.values[worst]:.4f} of the rows; in {len(others)} other shards the "
        f"median is {found.median[worst]:.4f}, and {allowed:.4f} from it is usual"
    )
    return Verdict(
        passed=passed,
        # The rows that would have to be others.
        offending=0 if passed else round(distance * own.rows),
        rows=own.rows,
        examples=() if passed else (example,),
        figures={name: round(figure, 6) for name, figure in figures.items()},
    )


# -- the other shards -----------------------------------------------------------------------------


def _counts_of_others(subject: Subject, stage: str) -> list[Mapping[str, int]]:
    """What the manifests of at most so many other shards count, spread over those published."""
    changed_ns = changed_at(subject.layout, stage)
    sample = _sample(subject.layout, stage, subject.thresholds.drift_sampled_shards, changed_ns)
    return [counts for partition, counts in sample if partition != subject.partition]


# Shards are checked in batches, and each is compared with the same ones: as long as nothing is published, the
# folder, which has several files for each of tens of thousands of shards, is listed once.
@lru_cache(maxsize=16)
def _sample(
    layout: Layout, stage: str, most: int, changed_ns: int
) -> tuple[tuple[str, Mapping[str, int]], ...]:
    del changed_ns
    keys = partitions_of(layout, stage)
    found = []
    for index in spread(len(keys), most):
        with suppress(CorruptManifest):  # which fails the rules of its own shard
            manifest = read_manifest(output_of(layout, stage, keys[index]))
            if manifest is not None:
                found.append((keys[index], manifest.counts))
    return tuple(found)


# -- the shard itself -----------------------------------------------------------------------------


def _count_outcomes(subject: Subject) -> dict[str, int]:
    table = read_image_table(subject.shard, subject.layout, columns=("key", "status", "outcome"))
    # Tables made elsewhere know of no outcomes.
    succeeded = pc.equal(table["status"], Status.SUCCESS)
    by_status = pc.if_else(succeeded, str(Outcome.SUCCESS), str(Outcome.OTHER))
    outcomes = pc.coalesce(table["outcome"], by_status).to_pylist()
    return dict(Counter(f"{OUTCOME_PREFIX}{outcome}" for outcome in outcomes))


def _count_images(subject: Subject) -> dict[str, int]:
    return _count_examples(subject.layout.normalized_table(subject.shard), NORMALIZED_IMAGES)


def _count_embeddings(subject: Subject) -> dict[str, int]:
    path = subject.layout.normalized_embeddings_table(subject.embedding_shard)
    return _count_examples(path, NORMALIZED_EMBEDDINGS)


def _count_examples(path: Path, schema: pa.Schema) -> dict[str, int]:
    table = parquet.read_table(path, schema, columns=["nsfw", "similarity"])
    return count_classes(table["nsfw"], table["similarity"])


def _rules_of_examples(stage: str, count: Callable[[Subject], Mapping[str, int]]) -> tuple[Rule, Rule]:
    check = partial(_check, stage=stage, count=count)
    return (
        Rule(
            name="tags_are_as_elsewhere",
            stage=stage,
            blocking=False,
            description="Each NSFW tag is as frequent as in the other shards.",
            check=partial(check, measure=TAGS, floor="drift_tag_share"),
        ),
        Rule(
            name="similarities_are_as_elsewhere",
            stage=stage,
            blocking=False,
            description="Similarities are distributed as in the other shards (Kolmogorov and Smirnov).",
            check=partial(check, measure=SIMILARITIES, floor="drift_similarity_distance"),
        ),
    )


DRIFT_RULES: Final = (
    Rule(
        name="success_share_is_as_elsewhere",
        stage="images",
        blocking=False,
        description="As many downloads succeeded as in the other shards.",
        check=partial(
            _check, stage="images", count=_count_outcomes, measure=SUCCESS, floor="drift_success_share"
        ),
    ),
    *_rules_of_examples("normalized_images", _count_images),
    *_rules_of_examples("normalized_embeddings", _count_embeddings),
)
