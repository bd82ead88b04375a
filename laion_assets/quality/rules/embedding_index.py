"""The rule of the index by which image shards find their vectors."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from laion_assets.formats.digest_index import open_index
from laion_assets.quality.rules.embeddings import Vectors, read_vectors
from laion_assets.quality.rules.rule import Offences, Rule, Subject, Verdict, spread
from laion_assets.schema import embedding_join
from laion_assets.vector_places import SEARCHED, VECTOR_PLACE, checksum_of, digest_of_shard, digest_of_text

# Records that are looked up, as many as an image shard looks up.
_LOOKED_UP: Final = 10_000

# What a row is found by and told from others.
_IDENTITY: Final = ("digest", "caption", "shard_id", "number")


def _rows_are_found(subject: Subject) -> Verdict:
    shard = subject.embedding_shard
    path = subject.layout.embedding_join(shard).only
    offences = Offences()
    records, lost = _read_index(subject.layout.embedding_index(shard).only)
    for row in lost:
        offences.add(f"row {row}", "is in the index and not found in it")
    records = records[np.argsort(records["row"], kind="stable")]
    rows = matched = 0
    for found in read_vectors(path, embedding_join, SEARCHED):
        first, last = np.searchsorted(records["row"], [rows, rows + len(found.rows)])
        held = dict(zip(records["row"][first:last].tolist(), range(first, last), strict=True))
        matched += len(held)
        _compare(path, found, rows, records, held, offences)
        rows += len(found.rows)
    if matched < len(records):
        offences.add(
            path.name,
            f"{len(records) - matched} records of no row, or of one that has another",
            count=len(records) - matched,
        )
    return offences.verdict(rows=rows, figures={"records": len(records)})


def _read_index(path: Path) -> tuple[npt.NDArray[np.void], list[int]]:
    """All records, and the rows of those that were looked up and are not found."""
    with open_index(path, VECTOR_PLACE) as index:
        records = np.concatenate([*index.everything(), np.empty(0, VECTOR_PLACE)])
        asked = records[spread(len(records), _LOOKED_UP)]
        answered = {row for found in index.find(asked["digest"]) for row in found["row"].tolist()}
    return records, [row for row in asked["row"].tolist() if row not in answered]


def _compare(
    path: Path,
    found: Vectors,
    first: int,
    records: npt.NDArray[np.void],
    held: Mapping[int, int],
    offences: Offences,
) -> None:
    """Compare some rows with their records, the vectors' bytes by their checksum."""
    with path.open("rb", buffering=0) as file:
        for at, row in enumerate(found.rows.select(SEARCHED).to_pylist()):
            index, identity = held.get(first + at), _identity(row)
            if (index is None) != (identity is None):
                offences.add(row["key"], f"row {first + at} has {'no' if index is None else 'a'} record")
            elif index is not None:
                record = records[index]
                vectors = found.images[at].tobytes(), found.texts[at].tobytes()
                if record[list(_IDENTITY)].item() != identity:
                    offences.add(row["key"], f"row {first + at} is found by something else")
                elif record["checksum"] != checksum_of(*vectors) or vectors != tuple(
                    os.pread(file.fileno(), len(vectors[0]), int(record[name]))
                    for name in ("image_at", "text_at")
                ):
                    offences.add(row["key"], f"the vectors of row {first + at} are not where its record says")


def _identity(row: Mapping[str, Any]) -> tuple[bytes, bytes, int, int] | None:
    """What a row's record must hold; None where it must have none."""
    number = int(row["key"]) if re.fullmatch(r"[0-9]{1,18}", row["key"]) else -1
    shard_id = -1 if row["shard_id"] is None else row["shard_id"]
    if math.isnan(row["cosine"]) or not (row["url"] or (shard_id >= 0 and number >= 0)):
        return None
    digest = digest_of_text(row["url"].encode()) if row["url"] else digest_of_shard(shard_id)
    return digest, digest_of_text((row["caption"] or "").encode()), shard_id, number


EMBEDDING_INDEX_RULES: Final = (
    Rule(
        name="rows_are_found",
        stage="embedding_index",
        blocking=True,
        description="Every row that a picture may take vectors from is found, and its vectors where it says.",
        check=_rows_are_found,
        needs=("embedding_join",),
    ),
)
