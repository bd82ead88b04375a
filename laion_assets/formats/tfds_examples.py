"""Examples of TFDS's data set as their shards hold them.

An example is a ``tf.train.Example`` (tensorflow/core/example/{example,feature}.proto), put together here
byte by byte: protobuf writes a map in an order that differs from process to process, and this is also
several times faster. Its features come in order of their names, so equal rows give equal bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from laion_assets.errors import CorruptParquet, CorruptRecords
from laion_assets.formats.tfds import NSFW_TAGS
from laion_assets.formats.tfrecord import Payloads
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


def encode_image_examples(rows: pa.RecordBatch, pictures: Sequence[bytes], path: Path) -> Payloads:
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
    pictures: Sequence[bytes],
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
    body = [*_text("caption", rows), *_after_images(rows, image_embedding, text_embedding, path)]
    head = _openings_of_examples(np.sum([_lengths(part) for part in body], axis=0))
    return (_joined([head, *body]).to_pylist(),)


def tag_counts(tags: Mapping[str, int]) -> dict[str, int]:
    """How many examples have which tag, each of the four by its name in a manifest."""
    return {f"{TAG_PREFIX}{tag}": tags.get(tag, 0) for tag in NSFW_TAGS}


# -- features of many examples at once ------------------------------------------------------------


def _around_pictures(rows: pa.RecordBatch, pictures: Sequence[bytes], after: Sequence[pa.Array]) -> Payloads:
    """Examples of a caption, a picture and the features after it; no picture is copied."""
    lengths = np.fromiter(map(len, pictures), np.int64, len(pictures))
    before = [*_text("caption", rows), _openings("image", _BYTES, lengths)]
    tail = _joined(after)
    head = _openings_of_examples(np.sum([*map(_lengths, (*before, tail)), lengths], axis=0))
    return _joined([head, *before]).to_pylist(), pictures, tail.to_pylist()


def _after_images(
    rows: pa.RecordBatch,
    image_embedding: npt.NDArray[np.float16],
    text_embedding: npt.NDArray[np.float16],
    path: Path,
) -> list[pa.Array]:
    """Features ``image_embedding`` to ``url``, which both configs with vectors end with."""
    return [
        *_floats("image_embedding", image_embedding),
        *_text("license", rows),
        *_numbers(rows, path),
        *_floats("text_embedding", text_embedding),
        *_text("url", rows),
    ]


def _text(name: str, rows: pa.RecordBatch) -> tuple[pa.Array, pa.Array]:
    values = rows[name].cast(pa.large_binary())
    return _openings(name, _BYTES, _lengths(values)), values


def _floats(name: str, values: npt.NDArray[np.floating[Any]]) -> tuple[pa.Array, pa.Array]:
    # tf.train.Example knows no float16: TFDS stores each element as float32 and casts it back on reading.
    stored = _blocks(values.astype("<f4") if values.dtype != np.float16 else as_float32(values))
    return _openings(name, _FLOATS, _lengths(stored)), stored


def _numbers(rows: pa.RecordBatch, path: Path) -> Iterator[pa.Array]:
    """Features ``nsfw`` to ``similarity``, which follow each other in every config."""
    yield _each("nsfw", _labels(rows["nsfw"], path))
    yield _each("original_height", rows["original_height"])
    yield _each("original_width", rows["original_width"])
    # TFDS stores a float64 scalar as float32.
    yield from _floats("similarity", rows["similarity"].to_numpy()[:, None])


def _labels(tags: pa.Array, path: Path) -> pa.Array:
    labels = pc.index_in(tags, value_set=pa.array(NSFW_TAGS))
    if labels.null_count:
        raise CorruptParquet(
            path,
            expected=f"nsfw to be one of {', '.join(NSFW_TAGS)}",
            found=repr(tags.filter(pc.is_null(labels))[0].as_py()),
            remedy="Delete its manifest to have it made again.",
        )
    return labels


def _each(name: str, values: pa.Array) -> pa.Array:
    """An integer feature of each row."""
    if len(values) and pc.all(pc.and_(pc.less_equal(0, values), pc.less(values, _SMALL))).as_py():
        return _small(name).take(values)
    return _looked_up(values, lambda value: _integer(name, value))


@cache
def _small(name: str) -> pa.Array:
    """An integer feature of every value up to ``_SMALL``: sides of pictures, too many to look up in turn."""
    varints = _small_varints()
    return _joined([_openings(name, _INTEGERS, _lengths(varints)), varints])


@cache
def _small_varints() -> pa.Array:
    """Those of 0 to ``_SMALL``, which are of one byte below 128 and of two from there on."""
    numbers = np.arange(_SMALL)
    longer = numbers[0x80:]
    encoded = np.concatenate([numbers[:0x80], np.stack([longer & 0x7F | 0x80, longer >> 7], axis=1).ravel()])
    ends = np.concatenate([[0], np.cumsum(np.where(numbers < 0x80, 1, 2))])
    buffers = [None, pa.py_buffer(ends.astype(np.int64)), pa.py_buffer(encoded.astype(np.uint8))]
    return pa.Array.from_buffers(pa.large_binary(), _SMALL, buffers)


def _openings(name: str, kind: bytes, lengths: npt.NDArray[np.int64]) -> pa.Array:
    return _looked_up(pa.array(lengths), lambda length: _opening(name, kind, length))


def _openings_of_examples(lengths: npt.NDArray[np.int64]) -> pa.Array:
    return _looked_up(pa.array(lengths), lambda length: _FIELD_1 + _varint(length))


def _looked_up(values: pa.Array, encode: Callable[[int], bytes]) -> pa.Array:
    """What each value is encoded to; a batch has few different ones."""
    distinct = values.dictionary_encode()
    encoded = pa.array(map(encode, distinct.dictionary.to_pylist()), pa.large_binary())
    return encoded.take(distinct.indices)


def _lengths(values: pa.Array) -> npt.NDArray[np.int64]:
    lengths: npt.NDArray[np.int64] = pc.binary_length(values).to_numpy()
    return lengths


def _blocks(values: npt.NDArray[Any]) -> pa.Array:
    """The bytes of each row of an array, as a column."""
    rows, row_bytes = len(values), values.itemsize * values.shape[1]
    ends = pa.py_buffer(np.arange(rows + 1, dtype=np.int64) * row_bytes)
    return pa.Array.from_buffers(
        pa.large_binary(), rows, [None, ends, pa.py_buffer(np.ascontiguousarray(values))]
    )


def _joined(columns: Sequence[pa.Array]) -> pa.Array:
    return pc.binary_join_element_wise(*columns, pa.scalar(b"", pa.large_binary()))


# -- one feature ----------------------------------------------------------------------------------

# The one protobuf tag byte of `Example.features`, `Features.feature`, the map entry's key, and the `value`
# of each list (packed, for numbers): field 1, length-delimited.
_FIELD_1: Final = b"\x0a"
# The map entry's value: field 2, length-delimited.
_FIELD_2: Final = b"\x12"
# `Feature.kind`: bytes_list is field 1, float_list 2, int64_list 3.
_BYTES: Final = b"\x0a"
_FLOATS: Final = b"\x12"
_INTEGERS: Final = b"\x1a"

_TWO_TO_THE_64: Final = 1 << 64
_SMALL: Final = 1 << 14


# Few lengths make up most of a shard, and vectors have one.
@lru_cache(maxsize=65_536)
def _opening(name: str, kind: bytes, length: int) -> bytes:
    """Everything of a feature before its ``length`` bytes of text, picture, packed floats or varints."""
    value = _FIELD_1 + _varint(length)
    feature = kind + _varint(len(value) + length)
    key = _FIELD_1 + _varint(len(name)) + name.encode()
    entry = key + _FIELD_2 + _varint(len(feature) + len(value) + length)
    whole = len(entry) + len(feature) + len(value) + length
    return _FIELD_1 + _varint(whole) + entry + feature + value


def _integer(name: str, value: int) -> bytes:
    # A negative int64 is the varint of its two's complement.
    encoded = _varint(value % _TWO_TO_THE_64)
    return _opening(name, _INTEGERS, len(encoded)) + encoded


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
