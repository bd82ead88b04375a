"""Rules of the TFDS shards: every record is read back and compared with the row it was made from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import xxhash

from laion_assets.formats import parquet
from laion_assets.formats.publish import Manifest, require
from laion_assets.formats.records import read_records
from laion_assets.formats.tfds import features as features_of
from laion_assets.formats.tfds_examples import Features, decode_example
from laion_assets.picture_header import read_header
from laion_assets.quality.rules.embeddings import CosineComparison, read_vectors
from laion_assets.quality.rules.images import what_is_wrong_with_picture
from laion_assets.quality.rules.rule import Offences, Rule, Subject, Verdict, spread
from laion_assets.schema import (
    NORMALIZED_EMBEDDINGS,
    NORMALIZED_IMAGES,
    VECTOR_COLUMNS,
    NsfwTag,
    embedding_join,
    image_embeddings,
)
from laion_assets.vectors import as_float16, cosines

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
    found = xxhash.xxh3_128_hexdigest(_bytes(features, "image"))
    if found != row["image_xxh3"]:
        return f"the picture's XXH3 is {found}, not {row['image_xxh3']}"
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
            return f"{name} is another than its row's"
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


# -- tfds_image_embeddings ------------------------------------------------------------------------


def _image_embeddings_read_back(subject: Subject) -> Verdict:
    path = subject.layout.tfds_image_embeddings(subject.shard).only
    manifest = require(subject.layout.tfds_image_embeddings(subject.shard))
    records = read_records(path, subject.layout.file_format)
    return _read_back(path, records, manifest, _images_with_vectors(subject), _image_or_vectors_differ)


def _image_or_vectors_differ(row: Mapping[str, Any], features: Features) -> str | None:
    return _image_differs(row, features) or _vectors_differ(row, features)


def _images_with_vectors(subject: Subject) -> Iterator[dict[str, Any]]:
    """Normalized rows that have vectors, each with the two that have its key; both files are in key order."""
    path = subject.layout.image_embeddings(subject.shard).only
    vectors = (
        {"key": key, "image_embedding": image, "text_embedding": text}
        for found in read_vectors(path, image_embeddings, ("key",))
        for key, image, text in zip(found.rows["key"].to_pylist(), found.images, found.texts, strict=True)
    )
    held = next(vectors, None)
    for row in _rows(subject.layout.normalized_table(subject.shard), NORMALIZED_IMAGES):
        while held is not None and held["key"] < row["key"]:
            held = next(vectors, None)
        if held is not None and held["key"] == row["key"]:
            yield row | held


def _image_embeddings_accounted_for(subject: Subject) -> Verdict:
    tables = {
        "normalized_images": subject.layout.normalized_table(subject.shard),
        "image_embeddings": subject.layout.image_embeddings(subject.shard).only,
    }
    found = {}
    for stage, path in tables.items():
        with parquet.open_reader(path) as reader:
            found[stage] = reader.metadata.num_rows
    rows, examples = found.values()
    expected = {"rows": rows, "examples": examples, "without_vectors": rows - examples}
    counts = require(subject.layout.tfds_image_embeddings(subject.shard)).counts
    offences = Offences()
    for name, count in expected.items():
        if counts.get(name) != count:
            offences.add(name, f"the manifest counts {counts.get(name)}, {count} follow from the tables")
    return offences.verdict(rows=rows, figures=expected)


def _sampled_examples_decode(subject: Subject) -> Verdict:
    """Pictures in full by Pillow, and the rest by TFDS's own reader."""
    output = subject.layout.tfds_image_embeddings(subject.shard)
    total = require(output).rows
    width = parquet.vector_width(subject.layout.image_embeddings(subject.shard).only)
    features = features_of("image_embeddings", width)
    chosen = frozenset(spread(total, subject.thresholds.sampled_images))
    offences = Offences()
    for number, payload in enumerate(read_records(output.only, subject.layout.file_format)):
        if number in chosen and (wrong := _what_does_not_decode(payload, features, output.only, number)):
            offences.add(f"record {number}", wrong)
    return offences.verdict(rows=len(chosen), figures={"examples": total})


def _what_does_not_decode(payload: bytes, features: Any, path: Path, record: int) -> str | None:  # noqa: ANN401 (TFDS is untyped)
    from tensorflow_datasets.core.decode import SkipDecoding

    picture = _bytes(decode_example(payload, path=path, record=record), "image")
    header = read_header(picture)
    if header is None:
        return "its picture is no JPEG or PNG"
    try:
        if wrong := what_is_wrong_with_picture(picture, header.width, header.height):
            return wrong
        # Where OpenCV is installed, TFDS has it decode pictures, and it passes over what they lack.
        features.deserialize_example_np(payload, decoders={"image": SkipDecoding()})
    except Exception as error:  # noqa: BLE001 (TFDS and Pillow raise many kinds for what they cannot decode)
        return f"cannot be decoded: {type(error).__name__}: {error}"
    return None


def _image_embeddings_match(subject: Subject) -> Verdict:
    """Vectors that came to another row's picture have another cosine than its similarity."""
    output = subject.layout.tfds_image_embeddings(subject.shard)
    width = parquet.vector_width(subject.layout.image_embeddings(subject.shard).only)
    compared = CosineComparison(subject.thresholds)
    # Without their pictures, so that many can be looked at together.
    examples = (
        (f"record {number}", _float(features, "similarity"), *_vectors(features, width))
        for number, payload in enumerate(read_records(output.only, subject.layout.file_format))
        for features in [decode_example(payload, path=output.only, record=number)]
    )
    while batch := list(islice(examples, _BATCH_ROWS)):
        names, similarities, *vectors = zip(*batch, strict=True)
        images, texts = (as_float16(np.array(column)) for column in vectors)
        compared.add(names, np.array(similarities), *cosines(images, texts))
    return compared.verdict()


# -- how a file is read back ----------------------------------------------------------------------


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


def _vectors(features: Features, width: int) -> list[Any]:
    """Both vectors; one that has another width has no direction that could be compared."""
    found = [_floats(features, name) for name in VECTOR_COLUMNS]
    return [vector if len(vector) == width else np.zeros(width, np.float32) for vector in found]


def _float(features: Features, name: str) -> float:
    found = _floats(features, name)
    return float(found[0]) if len(found) == 1 else float("nan")


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
    Rule(
        name="rows_are_accounted_for",
        stage="tfds_image_embeddings",
        blocking=True,
        description="Every normalized row is an example or counted as one without vectors.",
        check=_image_embeddings_accounted_for,
        needs=("normalized_images", "image_embeddings"),
    ),
    Rule(
        name="records_are_the_rows",
        stage="tfds_image_embeddings",
        blocking=True,
        description="Read back, the records hold the rows with vectors: labels, picture, both by key.",
        check=_image_embeddings_read_back,
        needs=("normalized_images", "image_embeddings"),
    ),
    Rule(
        name="sampled_examples_decode",
        stage="tfds_image_embeddings",
        blocking=True,
        description="Examples spread over the shard are decoded, their labels and vectors by TFDS itself.",
        check=_sampled_examples_decode,
        needs=("image_embeddings",),
    ),
    Rule(
        name="cosines_match_similarities",
        stage="tfds_image_embeddings",
        blocking=True,
        description="The cosine of an example's vectors is its similarity, where it has one.",
        check=_image_embeddings_match,
        needs=("image_embeddings",),
    ),
)
