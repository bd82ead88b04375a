"""What TensorFlow Datasets reads, made without TensorFlow: features, examples, shard names, metadata.

The data set is ``laion400m`` 1.0.0 as tensorflow-datasets 4.9.10 defines it (vision_language/laion400m),
so that its own class reads these files by name. Knows nothing of stages.

An example is a ``tf.train.Example`` (tensorflow/core/example/{example,feature}.proto), put together here
byte by byte: protobuf writes a map in an order that differs from process to process, and this is also
several times faster. Its features come in order of their names, so equal rows give equal bytes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from laion_assets.errors import CorruptParquet, CorruptRecords
from laion_assets.formats.durable import make_folder, write_durably
from laion_assets.formats.sealed import fingerprint
from laion_assets.formats.tfrecord import Payloads
from laion_assets.layout import DATASET_NAME, DATASET_VERSION, FileFormat
from laion_assets.schema import EMBEDDING_WIDTH, MISSING_SIMILARITY, NsfwTag
from laion_assets.vectors import as_float32

Config = Literal["images", "embeddings"]

SPLIT: Final = "train"
DEFAULT_CONFIG: Final[Config] = "images"
_DEFAULT_CONFIG_FILE: Final = f'{{"default_config_name": "{DEFAULT_CONFIG}"}}'.encode()
METADATA_FILES: Final = ("features.json", "nsfw.labels.txt", "dataset_info.json")

_NSFW_TAGS: Final = tuple(str(tag) for tag in NsfwTag)

# -- features and metadata ------------------------------------------------------------------------


def features(config: Config, width: int = EMBEDDING_WIDTH) -> Any:  # noqa: ANN401 (TFDS is untyped)
    """The data set's ``tfds.features.FeaturesDict``, doc strings included, as the official class has it.

    Args:
        config: which of the two configs.
        width: elements of a vector; of ``embeddings`` only.
    """
    import tensorflow_datasets as tfds

    described = {
        "caption": tfds.features.Text(doc="HTML alt-text attribute"),
        "nsfw": tfds.features.ClassLabel(
            names=_NSFW_TAGS,
            doc=(
                "NSFW tag (detected with CLIP). Incohesive and missing tags"
                f" are replaced with {NsfwTag.UNTAGGED}"
            ),
        ),
        "similarity": tfds.features.Scalar(
            np.float64,
            doc=tfds.features.Documentation(
                desc=(
                    "cosine similarity score between the text and image embedding. "
                    f"Missing values default to {MISSING_SIMILARITY}"
                ),
                value_range="[0.0, 1.0]",
            ),
        ),
        "license": tfds.features.Text(doc="type of Creative Commons license (if applicable)"),
        "url": tfds.features.Text(doc="image URL"),
        "original_width": tfds.features.Scalar(np.int32, doc="original width of the image"),
        "original_height": tfds.features.Scalar(np.int32, doc="original height of the image"),
    }
    if config == "images":
        described["image"] = tfds.features.Image(doc="image")
    else:
        for name, doc in (
            ("image_embedding", "CLIP image embedding"),
            ("text_embedding", "CLIP text embedding"),
        ):
            described[name] = tfds.features.Tensor(shape=(width,), dtype=np.float16, doc=doc)
    return tfds.features.FeaturesDict(described)


def shard_file_name(shard: int, shard_count: int, file_format: FileFormat) -> str:
    """Name by which TFDS looks for one of ``shard_count`` shards (``tfds.core.ShardedFileTemplate``)."""
    digits = max(5, len(str(shard_count)))
    return f"{DATASET_NAME}-{SPLIT}.{file_format}-{shard:0{digits}d}-of-{shard_count:0{digits}d}"


def write_metadata(
    folder: Path,
    config: Config,
    *,
    shard_lengths: Sequence[int],
    payload_bytes: int,
    width: int = EMBEDDING_WIDTH,
    file_format: FileFormat = "tfrecord",
) -> None:
    """Write ``METADATA_FILES``, in this order, and sync them.

    TFDS takes a folder without ``dataset_info.json`` for one that is being prepared, so it comes last.

    Args:
        folder: where the shards are, or will be once the folder has its final name.
        config: which of the two configs.
        shard_lengths: examples of each shard; TFDS passes over a shard of 0, whose file may be missing.
        payload_bytes: bytes of all records' payloads, without framing.
        width: elements of a vector; of ``embeddings`` only.
        file_format: of the shards.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.vision_language.laion400m import laion400m as official

    identity = tfds.core.DatasetIdentity(
        name=DATASET_NAME,
        version=tfds.core.Version(DATASET_VERSION),
        data_dir=os.fspath(folder),
        module_name=official.__name__,
        config_name=config,
        release_notes=official.Laion400m.RELEASE_NOTES,
    )
    info = tfds.core.DatasetInfo(
        builder=identity,
        description=official._DESCRIPTION,  # noqa: SLF001 (the text has no public name)
        features=features(config, width),
        homepage=official._HOMEPAGE,  # noqa: SLF001
        citation=official._CITATION,  # noqa: SLF001
    )
    info.set_file_format(file_format)
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name=DATASET_NAME, split=SPLIT, filetype_suffix=file_format
    )
    split = tfds.core.SplitInfo(
        name=SPLIT,
        shard_lengths=list(shard_lengths),
        num_bytes=payload_bytes,
        filename_template=template,
    )
    info.set_splits(tfds.core.splits.SplitDict([split]))
    info.write_to_directory(folder)
    for name in METADATA_FILES:
        with (folder / name).open("rb") as file:
            os.fsync(file.fileno())


def settings_of(config: Config, width: int) -> str:
    """Fingerprint, for a recipe, of the settings that shape the examples of a config."""
    return fingerprint({"width": width}) if config == "embeddings" else ""


def names_default_config(path: Path) -> bool:
    """Whether :func:`write_default_config` wrote the file, and nobody changed it."""
    return path.exists() and path.read_bytes() == _DEFAULT_CONFIG_FILE


def write_default_config(path: Path, *, draft: Path) -> None:
    """Write which config ``tfds.builder("laion400m", data_dir=...)`` opens, unless it is written already.

    Args:
        path: ``.config/metadata.json`` beside the configs' folders (TFDS, ``load_default_config_name``).
        draft: where to write it first.
    """
    if not names_default_config(path):
        make_folder(path.parent)
        write_durably(path, _DEFAULT_CONFIG_FILE, draft=draft)


# -- examples on the wire -------------------------------------------------------------------------


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
    lengths = np.fromiter(map(len, pictures), np.int64, len(pictures))
    before = [*_text("caption", rows), _openings("image", _BYTES, lengths)]
    after = _joined([*_text("license", rows), *_numbers(rows, path), *_text("url", rows)])
    head = _openings_of_examples(np.sum([*map(_lengths, (*before, after)), lengths], axis=0))
    return _joined([head, *before]).to_pylist(), pictures, after.to_pylist()


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
    body = [
        *_text("caption", rows),
        *_floats("image_embedding", image_embedding),
        *_text("license", rows),
        *_numbers(rows, path),
        *_floats("text_embedding", text_embedding),
        *_text("url", rows),
    ]
    head = _openings_of_examples(np.sum([_lengths(part) for part in body], axis=0))
    return (_joined([head, *body]).to_pylist(),)


# -- features of many examples at once ------------------------------------------------------------


def _text(name: str, rows: pa.RecordBatch) -> tuple[pa.Array, pa.Array]:
    values = rows[name].cast(pa.large_binary())
    return _openings(name, _BYTES, _lengths(values)), values


def _floats(name: str, values: npt.NDArray[np.floating[Any]]) -> tuple[pa.Array, pa.Array]:
    # tf.train.Example knows no float16: TFDS stores each element as float32 and casts it back on reading.
    stored = _blocks(values.astype("<f4") if values.dtype != np.float16 else as_float32(values))
    return _openings(name, _FLOATS, _lengths(stored)), stored


def _numbers(rows: pa.RecordBatch, path: Path) -> Iterator[pa.Array]:
    """Features ``nsfw`` to ``similarity``, which follow each other in both configs."""
    yield _each("nsfw", _labels(rows["nsfw"], path))
    yield _each("original_height", rows["original_height"])
    yield _each("original_width", rows["original_width"])
    # TFDS stores a float64 scalar as float32.
    yield from _floats("similarity", rows["similarity"].to_numpy()[:, None])


def _labels(tags: pa.Array, path: Path) -> pa.Array:
    labels = pc.index_in(tags, value_set=pa.array(_NSFW_TAGS))
    if labels.null_count:
        raise CorruptParquet(
            path,
            expected=f"nsfw to be one of {', '.join(_NSFW_TAGS)}",
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
