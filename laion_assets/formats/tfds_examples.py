"""Examples of TFDS's data set as their shards hold them.

An example is a ``tf.train.Example`` (tensorflow/core/example/{example,feature}.proto), put together here
byte by byte: protobuf writes a map in an order that differs from process to process, and this is also
several times faster. Its features come in order of their names, so equal rows give equal bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from laion_assets.errors import CorruptParquet, CorruptRecords
from laion_assets.formats.tfds import NSFW_TAGS
from laion_assets.formats.tfrecord import Part, Payloads, as_column, join, lengths_of
from laion_assets.schema import TAG_PREFIX
from laion_assets.vectors import as_float32

# Name -> tf.train.Feature, of the protobuf that comes with TFDS and needs no TensorFlow.
Features = Mapping[str, Any]


def decode_example(payload: bytes, *, path: Path, record: int) -> Features:
    """Features of one example, by name.

    Args:
        payload: a serialized ``tf.train.Example``.
        path: the file it is from, and
        record: its number there, for the message.

    Raises:
        CorruptRecords: if it is no example.
    """
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from tensorflow_datasets.proto import tf_example_pb2

    try:
        features: Features = tf_example_pb2.Example.FromString(payload).features.feature
    except DecodeError as error:
        raise CorruptRecords(
            path,
            expected=f"record {record} to be a tf.train.Example",
            found=str(error),
            remedy="Materialize its stage again.",
        ) from error
    return features


def encode_image_examples(rows: pa.RecordBatch, pictures: Part, path: Path) -> Payloads:
    """Examples of the config ``images``, each a serialized ``tf.train.Example`` around its picture.

    Args:
        rows: rows of a normalized table.
        pictures: the JPEG or PNG file of each.
        path: the file that the rows come from, for the error.

    Raises:
        CorruptParquet: if a tag is none of the four.
    """
    after = [*_text("license", rows), *_numbers(rows, path), *_text("url", rows)]
    return _around_pictures(rows, pictures, after)


def encode_image_embedding_examples(
    rows: pa.RecordBatch,
    pictures: Part,
    image_embedding: npt.NDArray[np.float16],
    text_embedding: npt.NDArray[np.float16],
    path: Path,
) -> Payloads:
    """Examples of the config ``image_embeddings``, each a serialized ``tf.train.Example`` around its picture.

    Args:
        rows: rows of a normalized table.
        pictures: the JPEG or PNG file of each.
        image_embedding: their pictures' vectors, float16 (rows, width).
        text_embedding: their captions' vectors, of the same shape.
        path: the file that the rows come from, for the error.

    Raises:
        CorruptParquet: if a tag is none of the four.
    """
    return _around_pictures(rows, pictures, _after_images(rows, image_embedding, text_embedding, path))


def encode_embedding_examples(
    rows: pa.RecordBatch,
    image_embedding: npt.NDArray[np.float16],
    text_embedding: npt.NDArray[np.float16],
    path: Path,
) -> Payloads:
    """Examples of the config ``embeddings``, each a serialized ``tf.train.Example``.

    Args:
        rows: rows of a normalized table.
        image_embedding: their pictures' vectors, float16 (rows, width); float32 of the same values will do.
        text_embedding: their captions' vectors, of the same shape.
        path: the file that the rows come from, for the error.

    Raises:
        CorruptParquet: if a tag is none of the four.
    """
    return _of_features(*_text("caption", rows), *_after_images(rows, image_embedding, text_embedding, path))


def tag_counts(tags: Mapping[str, int]) -> dict[str, int]:
    """How many examples have which tag, each of the four by its name in a manifest."""
    return {f"{TAG_PREFIX}{tag}": tags.get(tag, 0) for tag in NSFW_TAGS}


# -- features of many examples at once ------------------------------------------------------------

# The one protobuf tag byte of `Example.features`, `Features.feature`, the map entry's key, and the `value`
# of each list (packed, for numbers): field 1, length-delimited.
_FIELD_1: Final = b"\x0a"
# The map entry's value: field 2, length-delimited.
_FIELD_2: Final = b"\x12"
# `Feature.kind`: bytes_list is field 1, float_list 2, int64_list 3.
_BYTES: Final = b"\x0a"
_FLOATS: Final = b"\x12"
_INTEGERS: Final = b"\x1a"

# Lengths of texts and sides of pictures are mostly below this; what is made of them is looked up. To make the
# tables takes as long as to do without them for as many rows.
_SMALL: Final = 1 << 11


def _of_features(*parts: Part) -> Payloads:
    return _bytes(_FIELD_1), _varints(sum(map(lengths_of, parts))), *parts


def _around_pictures(rows: pa.RecordBatch, pictures: Part, after: Sequence[Part]) -> Payloads:
    """Examples of a caption, a picture and the features after it."""
    opening = _openings("image", _BYTES, lengths_of(pictures))
    return _of_features(*_text("caption", rows), opening, pictures, *after)


def _after_images(
    rows: pa.RecordBatch,
    image_embedding: npt.NDArray[np.float16],
    text_embedding: npt.NDArray[np.float16],
    path: Path,
) -> list[Part]:
    """Features ``image_embedding`` to ``url``, which both configs with vectors end with."""
    return [
        *_floats("image_embedding", image_embedding),
        *_text("license", rows),
        *_numbers(rows, path),
        *_floats("text_embedding", text_embedding),
        *_text("url", rows),
    ]


def _text(name: str, rows: pa.RecordBatch) -> tuple[Part, Part]:
    values = rows[name].cast(pa.large_binary())
    return _openings(name, _BYTES, lengths_of(values)), values


def _floats(name: str, values: npt.NDArray[np.floating[Any]]) -> tuple[Part, Part]:
    # tf.train.Example knows no float16: TFDS stores each element as float32 and casts it back on reading.
    stored = as_column(values.astype("<f4") if values.dtype != np.float16 else as_float32(values))
    (opening,) = _openings(name, _FLOATS, np.array([4 * values.shape[1]]))
    return opening, stored


def _numbers(rows: pa.RecordBatch, path: Path) -> Iterator[Part]:
    """Features ``nsfw`` to ``similarity``, which follow each other in every config."""
    yield _integers("nsfw", labels(rows["nsfw"], path))
    yield _integers("original_height", rows["original_height"])
    yield _integers("original_width", rows["original_width"])
    # TFDS stores a float64 scalar as float32.
    yield from _floats("similarity", rows["similarity"].to_numpy()[:, None])


def labels(tags: pa.Array, path: Path) -> pa.Array:
    """Places of tags among the four, int32 (rows,).

    Args:
        tags: strings.
        path: the file that they come from, for the error.

    Raises:
        CorruptParquet: if a tag is none of the four.
    """
    found = pc.index_in(tags, value_set=pa.array(NSFW_TAGS))
    if found.null_count:
        raise CorruptParquet(
            path,
            expected=f"nsfw to be one of {', '.join(NSFW_TAGS)}",
            found=repr(tags.filter(pc.is_null(found))[0].as_py()),
            remedy="Delete its manifest to have it made again.",
        )
    return found


def _integers(name: str, values: pa.Array) -> pa.Array:
    """An integer feature of each row."""
    return _of_small(partial(_small_integers, name), partial(_make_integers, name), values.to_numpy())


def _openings(name: str, kind: bytes, lengths: npt.NDArray[np.int64]) -> pa.Array:
    """Everything of a feature before its ``length`` bytes of text, picture, packed floats or varints."""
    return _of_small(partial(_small_openings, name, kind), partial(_make_openings, name, kind), lengths)


def _varints(values: npt.NDArray[np.int64]) -> pa.Array:
    return _of_small(_small_varints, _make_varints, values)


def _of_small(
    small: Callable[[], pa.Array],
    make: Callable[[npt.NDArray[np.int64]], pa.Array],
    values: npt.NDArray[np.int64],
) -> pa.Array:
    """What is made of each value, looked up where all of them are small."""
    if len(values) and values.min() >= 0 and values.max() < _SMALL:
        return small().take(pa.array(values))
    return make(values)


@cache
def _small_integers(name: str) -> pa.Array:
    return _make_integers(name, np.arange(_SMALL))


@cache
def _small_openings(name: str, kind: bytes) -> pa.Array:
    return _make_openings(name, kind, np.arange(_SMALL))


@cache
def _small_varints() -> pa.Array:
    return _make_varints(np.arange(_SMALL))


def _make_integers(name: str, values: npt.NDArray[np.int64]) -> pa.Array:
    varints = _varints(values)
    return join([_make_openings(name, _INTEGERS, lengths_of(varints)), varints])


def _make_openings(name: str, kind: bytes, lengths: npt.NDArray[np.int64]) -> pa.Array:
    # From the inside out, since each length counts what is inside: the list's value, the feature with its
    # list, the map's entry with its key and feature, and all of it.
    value = _varints(lengths)
    feature = _varints(1 + lengths_of(value) + lengths)
    inside = 1 + lengths_of(feature) + 1 + lengths_of(value) + lengths
    key = _FIELD_1 + bytes([len(name)]) + name.encode() + _FIELD_2
    entry = _varints(inside)
    whole = _varints(len(key) + lengths_of(entry) + inside)
    return join([_bytes(_FIELD_1), whole, _bytes(key), entry, _bytes(kind), feature, _bytes(_FIELD_1), value])


def _make_varints(values: npt.NDArray[np.int64]) -> pa.Array:
    """Protobuf's varints: seven bits a byte, the lowest first, and the eighth where more follow."""
    # A negative int64 is the varint of its two's complement.
    unsigned = values.astype(np.int64).view(np.uint64)
    most = -(-int(unsigned.max(initial=1)).bit_length() // 7)
    left = unsigned[:, None] >> (7 * np.arange(most, dtype=np.uint64))
    is_there = left > 0
    is_there[:, 0] = True
    groups = (left & np.uint64(0x7F)).astype(np.uint8)
    groups[:, :-1] |= is_there[:, 1:].astype(np.uint8) << 7
    ends = np.zeros(len(values) + 1, np.int64)
    np.cumsum(is_there.sum(axis=1), out=ends[1:])
    return pa.Array.from_buffers(
        pa.large_binary(), len(values), [None, pa.py_buffer(ends), pa.py_buffer(groups[is_there])]
    )


def _bytes(value: bytes) -> pa.Scalar:
    return pa.scalar(value, pa.large_binary())
