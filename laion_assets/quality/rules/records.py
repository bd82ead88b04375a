"""Rules of the TFDS shards: every record is read back and compared with the row it was made from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from laion_assets.formats import parquet
from laion_assets.formats.publish import Manifest, require
from laion_assets.formats.records import read_records
from laion_assets.formats.tfds import Features, decode_example
from laion_assets.quality.rules.embeddings import read_vectors
from laion_assets.quality.rules.rule import Offences, Rule, Subject, Verdict
from laion_assets.schema import (
    NORMALIZED_EMBEDDINGS,
    NORMALIZED_IMAGES,
    VECTOR_COLUMNS,
    NsfwTag,
    embedding_join,
)

_BATCH_ROWS: Final = 4096
_SHOWN_CHARACTERS: Final = 60
_TAGS: Final = {str(tag): index for index, tag in enumerate(NsfwTag)}


def _images_read_back(subject: Subject) -> Verdict:
    path = subject.layout.tfds_images(subject.shard).only
    table = subject.layout.normalized_table(subject.shard)
    manifest = require(subject.layout.tfds_images(subject.shard))
    records = read_records(path, subject.layout.file_format)
    return _read_back(path, records, manifest, _rows(table, NORMALIZED_IMAGES), _image_differs)


def _image_differs(row: Mapping[str, Any], features: Features) -> str | None:
    found = hashlib.sha256(_bytes(features, "image")).hexdigest()
    if found != row["image_sha256"]:
        return f"the picture's sha256 is {found}, not {row['image_sha256']}"
    return None


def _embeddings_read_back(subject: Subject) -> Verdict:
    path = subject.layout.tfds_embeddings(subject.embedding_shard).only
    manifest = require(subject.layout.tfds_embeddings(subject.embedding_shard))
    records = read_records(path, subject.layout.file_format)
    return _read_back(path, records, manifest, _rows_with_vectors(subject), _vectors_differ)


def _vectors_differ(row: Mapping[str, Any], features: Features) -> str | None:
    for name in VECTOR_COLUMNS:
        expected = row[name].astype(np.float32)
        found = _floats(features, name)
        if found.tobytes() != expected.tobytes():
            return f"{name} is not that of row {row['row']} of the join"
    return None


def _rows(path: Path, schema: pa.Schema) -> Iterator[dict[str, Any]]:
    for batch in parquet.read_batches(path, schema, batch_rows=_BATCH_ROWS):
        yield from batch.to_pylist()


def _rows_with_vectors(subject: Subject) -> Iterator[dict[str, Any]]:
    """Normalized rows, each with the two vectors of the joined row that it names; both files ascend."""
    shard = subject.embedding_shard
    joined = read_vectors(subject.layout.embedding_join(shard).only, embedding_join, ())
    first, held = 0, next(joined, None)
    for row in _rows(subject.layout.normalized_embeddings_table(shard), NORMALIZED_EMBEDDINGS):
        while held is not None and row["row"] >= first + len(held.images):
            first, held = first + len(held.images), next(joined, None)
        if held is None or row["row"] < first:
            # Rules of normalized_embeddings say more of such a row; no record can be right for it.
            yield row | {"image_embedding": np.empty(0, "<f2"), "text_embedding": np.empty(0, "<f2")}
            continue
        at = row["row"] - first
        yield row | {"image_embedding": held.images[at], "text_embedding": held.texts[at]}


def _read_back(
    path: Path,
    payloads: Iterator[bytes],
    manifest: Manifest,
    rows: Iterator[dict[str, Any]],
    differs: Callable[[Mapping[str, Any], Features], str | None],
) -> Verdict:
    """Compare each record with the row in the same place: a record holds no key, its file is in row order."""
    offences = Offences()
    records = payload_bytes = 0
    for payload, row in zip_longest(payloads, rows):
        if payload is not None:
            features = decode_example(payload, path=path, record=records)
            payload_bytes += len(payload)
            records += 1
            if row is None:
                offences.add(f"record {records - 1}", "no row is left for it")
            elif wrong := _metadata_differs(row, features) or differs(row, features):
                offences.add(row["key"], wrong)
        else:
            offences.add(row["key"], "no record is left for it")
    for name, found in {"examples": records, "payload_bytes": payload_bytes}.items():
        if manifest.counts.get(name) != found:
            offences.add(name, f"the manifest counts {manifest.counts.get(name)}, the file {found}")
    return offences.verdict(rows=records, figures={"payload_bytes": payload_bytes})


def _metadata_differs(row: Mapping[str, Any], features: Features) -> str | None:
    expected = {
        "caption": [row["caption"].encode()],
        "license": [row["license"].encode()],
        "url": [row["url"].encode()],
        "nsfw": [_TAGS.get(row["nsfw"])],
        "original_height": [row["original_height"]],
        "original_width": [row["original_width"]],
        # TFDS stores its float64 scalar as the only float that tf.train.Example has.
        "similarity": [float(np.float32(row["similarity"]))],
    }
    for name, value in expected.items():
        found = _values(features, name)
        if found != value:
            return f"{name} is {_shown(found)}, not {_shown(value)}"
    return None


def _values(features: Features, name: str) -> list[Any]:
    feature = features.get(name)
    kind = feature.WhichOneof("kind") if feature is not None else None
    return list(getattr(feature, kind).value) if kind else []


def _bytes(features: Features, name: str) -> bytes:
    values = _values(features, name)
    return values[0] if len(values) == 1 and isinstance(values[0], bytes) else b""


def _floats(features: Features, name: str) -> Any:  # noqa: ANN401 (numpy's types of a protobuf's floats)
    feature = features.get(name)
    return np.array(feature.float_list.value if feature is not None else (), np.float32)


def _shown(values: list[Any]) -> str:
    return ", ".join(
        repr(value.decode("utf-8", "replace")[:_SHOWN_CHARACTERS])
        if isinstance(value, bytes)
        else repr(value)
        for value in values[:2]
    )


RECORD_RULES: Final = (
    Rule(
        name="records_are_the_rows",
        stage="tfds_images",
        blocking=True,
        description="Read back, record n holds the caption, labels and very picture of row n; none lacks.",
        check=_images_read_back,
        needs=("normalized_images",),
    ),
    Rule(
        name="records_are_the_rows",
        stage="tfds_embeddings",
        blocking=True,
        description="Read back, record n holds the caption, labels and very vectors of row n; none lacks.",
        check=_embeddings_read_back,
        needs=("normalized_embeddings", "embedding_join"),
    ),
)
