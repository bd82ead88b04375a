"""What a recorded value becomes in an example, and which rows become none; the same for both branches.

Every function takes an Arrow array, plain or chunked, and returns a plain one of the same length. What was
mapped to what is counted under names such as ``"nsfw:null -> UNTAGGED"``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from laion_assets.schema import (
    MISSING_SIMILARITY,
    SIMILARITY_BINS,
    SIMILARITY_CLASSES,
    TAG_CLASSES,
    TAG_PREFIX,
    NsfwTag,
    SetAside,
)

SIMILARITY_TOLERANCE: Final = 1e-3
"""How far above 1 a cosine may lie by rounding alone: float16 vectors are normalized to no better."""

MAX_TAGS_NAMED: Final = 20
"""Most tags that are counted by name; those beyond are lumped together."""

# Tags are foreign text and names of counts are shown to people: only short, plain words are named.
_PLAIN_TAG: Final = re.compile(r"[A-Za-z0-9 _.?+-]{0,40}")
_OTHER_TAG: Final = "other"

_KEPT_TAGS: Final = tuple(str(tag) for tag in NsfwTag)


def set_aside_reasons(url: pa.Array, similarity: pa.Array) -> pa.Array:
    """Why each row cannot become an example.

    A similarity that is null, NaN or exactly -1.0 is missing, which is no reason. Real files hold
    similarities up to 6016, which no cosine reaches.

    Args:
        url: strings.
        similarity: floats of any width.

    Returns:
        A string array of :class:`SetAside` values, null where the row is acceptable; where a row has
        several reasons, the address comes first.
    """
    missing_url = _is_blank(_as(url, pa.string()))
    values = _as(similarity, pa.float64())
    # Comparisons with NaN are false and with null are null, which is what a missing value needs here.
    above = pc.greater(values, 1.0 + SIMILARITY_TOLERANCE)
    below = pc.less(values, 0.0)
    if not any(mask.true_count for mask in (missing_url, above, below)):
        return pa.nulls(len(values), pa.string())  # as in many a shard, in a fraction of the time
    below = pc.and_(below, pc.not_equal(values, MISSING_SIMILARITY))
    return pc.case_when(
        pc.make_struct(missing_url, above, below),
        pa.scalar(str(SetAside.MISSING_URL)),
        pa.scalar(str(SetAside.SIMILARITY_ABOVE_ONE)),
        pa.scalar(str(SetAside.SIMILARITY_BELOW_ZERO)),
        pa.scalar(None, pa.string()),
    )


def normalize_nsfw(tags: pa.Array) -> tuple[pa.Array, dict[str, int]]:
    """Each tag as one of the four of :class:`NsfwTag`; any other, null too, becomes UNTAGGED.

    As TFDS does (tensorflow_datasets, vision_language/laion400m), tags are compared exactly.

    Returns:
        The tags, and how many were mapped from what. At most :data:`MAX_TAGS_NAMED` recorded tags are named
        there, the most frequent ones; long or odd ones and those beyond count as ``nsfw:other``.
    """
    values = _as(tags, pa.string())
    known = pc.is_in(values, value_set=pa.array(_KEPT_TAGS, pa.string()))
    mapped = pc.if_else(known, values, str(NsfwTag.UNTAGGED))
    counts: Counter[str] = Counter()
    for entry in pc.value_counts(values.filter(pc.invert(known))).to_pylist():
        counts[_mapping_name(entry["values"])] += entry["counts"]
    return mapped, merge_counts([counts])


def normalize_similarity(values: pa.Array) -> tuple[pa.Array, dict[str, int]]:
    """Each similarity as float64, and -1.0 where it is null or NaN; others stay as recorded.

    Returns:
        The similarities, and how many were mapped from what.
    """
    found = _as(values, pa.float64())
    not_a_number = pc.fill_null(pc.is_nan(found), False)
    mapped = pc.if_else(not_a_number, MISSING_SIMILARITY, pc.fill_null(found, MISSING_SIMILARITY))
    counts = {
        f"similarity:null -> {MISSING_SIMILARITY}": found.null_count,
        f"similarity:NaN -> {MISSING_SIMILARITY}": pc.sum(not_a_number, min_count=0).as_py(),
    }
    return mapped, counts


def fill_text(values: pa.Array) -> pa.Array:
    """Each text as it is, and ``''`` where it is null."""
    return pc.fill_null(_as(values, pa.string()), "")


def normalize_metadata(rows: pa.Table | pa.RecordBatch) -> tuple[dict[str, pa.Array], dict[str, int]]:
    """The columns that mean the same in both branches.

    Args:
        rows: with columns ``caption``, ``NSFW``, ``similarity`` and ``LICENSE``, as recorded.

    Returns:
        Columns ``caption``, ``nsfw``, ``similarity`` and ``license`` of the examples, how many values were
        mapped from what, and :func:`count_classes` of what they became.
    """
    nsfw, nsfw_counts = normalize_nsfw(rows["NSFW"])
    similarity, similarity_counts = normalize_similarity(rows["similarity"])
    columns = {
        "caption": fill_text(rows["caption"]),
        "nsfw": nsfw,
        "similarity": similarity,
        "license": fill_text(rows["LICENSE"]),
    }
    counts = {
        **nsfw_counts,
        **similarity_counts,
        **count_classes(nsfw, similarity),
        "caption:null -> ''": rows["caption"].null_count,
        "license:null -> ''": rows["LICENSE"].null_count,
    }
    return columns, counts


def count_classes(nsfw: pa.Array, similarity: pa.Array) -> dict[str, int]:
    """How many examples have which of the four tags, and a similarity in which bin.

    Args:
        nsfw: tags, each one of the four.
        similarity: floats; below 0 or NaN where missing.

    Returns:
        Counts by the names of ``TAG_CLASSES``, which are all there, and of those of ``SIMILARITY_CLASSES``
        that are not empty.
    """
    tags = {entry["values"]: entry["counts"] for entry in pc.value_counts(_as(nsfw, pa.string())).to_pylist()}
    values = _as(similarity, pa.float64()).to_numpy(zero_copy_only=False)
    known = values[values >= 0]
    bins = np.minimum(known * SIMILARITY_BINS, SIMILARITY_BINS - 1).astype(np.int64)
    similarities = [len(values) - len(known), *np.bincount(bins, minlength=SIMILARITY_BINS).tolist()]
    return {
        **{name: tags.get(tag, 0) for name, tag in zip(TAG_CLASSES, _KEPT_TAGS, strict=True)},
        **{name: count for name, count in zip(SIMILARITY_CLASSES, similarities, strict=True) if count},
    }


def merge_counts(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Sum of the counts of several pieces of one shard, with no more tags named than in one piece."""
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part)
    other = _mapping_name(None, lumped=True)
    fixed = (*TAG_CLASSES, other, _mapping_name(None))
    named = [name for name in total if name.startswith(TAG_PREFIX) and name not in fixed]
    # The most frequent first, and of equals the first by name, so that the choice is the same each time.
    for name in sorted(named, key=lambda name: (-total[name], name))[MAX_TAGS_NAMED:]:
        total[other] += total.pop(name)
    return dict(sorted(total.items()))


def _is_blank(texts: pa.Array) -> pa.Array:
    """Whether each text is null, empty or white space."""
    begins_like_a_url = pc.starts_with(texts, "http")
    if begins_like_a_url.true_count == len(texts):
        return pc.invert(begins_like_a_url)  # as good as always, in a tenth of the time
    is_empty = pc.or_(pc.equal(pc.binary_length(texts), 0), pc.utf8_is_space(texts))
    return pc.fill_null(is_empty, True)


def _mapping_name(tag: str | None, *, lumped: bool = False) -> str:
    if tag is None:
        found = _OTHER_TAG if lumped else "null"
    else:
        found = f"'{tag}'" if _PLAIN_TAG.fullmatch(tag) else _OTHER_TAG
    return f"{TAG_PREFIX}{found} -> {NsfwTag.UNTAGGED}"


def _as(values: pa.Array, type_: pa.DataType) -> pa.Array:
    if isinstance(values, pa.ChunkedArray):
        # Which copies even what is in one piece.
        values = values.chunk(0) if values.num_chunks == 1 else values.combine_chunks()
    return values if values.type == type_ else values.cast(type_)
