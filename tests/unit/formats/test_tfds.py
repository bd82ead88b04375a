"""Examples on the wire against TFDS's own protobuf, and the metadata files; all without TensorFlow."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

from laion_assets.errors import CorruptParquet
from laion_assets.formats import tfds, tfds_examples
from laion_assets.formats.tfrecord import join
from laion_assets.schema import NORMALIZED_IMAGES, NsfwTag

_TEXT = st.text(max_size=300)
_INT32 = st.integers(-(2**31), 2**31 - 1)
_TAGS = tuple(str(tag) for tag in NsfwTag)
_CONFIGS = get_args(tfds.Config)
_ROW = st.fixed_dictionaries(
    {
        "caption": _TEXT,
        "license": _TEXT,
        "nsfw": st.sampled_from(_TAGS),
        "original_height": _INT32,
        "original_width": _INT32,
        "similarity": st.floats(-1, 1),
        "url": _TEXT,
    }
)
_PLAIN = {
    "caption": "ein Bild",
    "license": "?",
    "nsfw": "NSFW",
    "original_height": 0,
    "original_width": 300,
    "similarity": -1.0,
    "url": "u",
}
_PATH = Path("a.parquet")


def _batch(rows: list[dict[str, object]]) -> pa.RecordBatch:
    fields = [NORMALIZED_IMAGES.field(name) for name in _PLAIN]
    # Columns of a slice, whose first value is not the first of their buffers.
    return pa.RecordBatch.from_pylist([_PLAIN, *rows], pa.schema(fields)).slice(1)


def _pictures(pictures: list[bytes]) -> pa.Array:
    return pa.array(pictures, pa.large_binary())


# Every finite float16: subnormal, negative zero and all.
_FLOAT16_BITS = st.integers(0, 2**16 - 1).filter(lambda bits: bits & 0x7C00 != 0x7C00)


@given(rows=st.lists(st.tuples(_ROW, st.binary(max_size=40_000)), max_size=5))
@settings(deadline=None, max_examples=50)
def test_an_image_example_is_what_protobuf_would_write(rows: list[tuple[dict[str, object], bytes]]) -> None:
    pictures = [picture for _, picture in rows]
    parts = tfds_examples.encode_image_examples(_batch([row for row, _ in rows]), _pictures(pictures), _PATH)
    for payload, (row, picture) in zip(join(parts).to_pylist(), rows, strict=True):
        feature = _check(payload, row, others={"image"})
        assert list(feature["image"].bytes_list.value) == [picture]


_Vectors = list[tuple[dict[str, object], list[int], list[int]]]

_of_vectors = given(
    rows=st.integers(1, 40).flatmap(
        lambda width: st.lists(
            st.tuples(_ROW, *[st.lists(_FLOAT16_BITS, min_size=width, max_size=width)] * 2), max_size=4
        )
    ),
)
_fifty_times = settings(
    deadline=None,
    max_examples=50,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)


def _arrays(rows: _Vectors) -> list[np.ndarray]:
    return [
        np.array([row[place] for row in rows], np.uint16).view(np.float16).reshape(len(rows), -1)
        if rows
        else np.empty((0, 3), np.float16)
        for place in (1, 2)
    ]


@_of_vectors
@_fifty_times
def test_an_embedding_example_is_what_protobuf_would_write(rows: _Vectors) -> None:
    images, texts = _arrays(rows)
    parts = tfds_examples.encode_embedding_examples(_batch([row for row, *_ in rows]), images, texts, _PATH)
    for payload, (row, *_), *vectors in zip(join(parts).to_pylist(), rows, images, texts, strict=True):
        feature = _check(payload, row, others={"image_embedding", "text_embedding"})
        _check_vectors(feature, vectors)


@_of_vectors
@_fifty_times
def test_an_example_of_picture_and_vectors_is_what_protobuf_would_write(rows: _Vectors) -> None:
    images, texts = _arrays(rows)
    pictures = [bytes(length) + b"picture" for length in range(len(rows))]
    parts = tfds_examples.encode_image_embedding_examples(
        _batch([row for row, *_ in rows]), _pictures(pictures), images, texts, _PATH
    )
    payloads = join(parts).to_pylist()
    for payload, picture, (row, *_), image, text in zip(payloads, pictures, rows, images, texts, strict=True):
        feature = _check(payload, row, others={"image", "image_embedding", "text_embedding"})
        assert list(feature["image"].bytes_list.value) == [picture]
        _check_vectors(feature, [image, text])


def _check_vectors(feature: tfds_examples.Features, vectors: list[np.ndarray]) -> None:
    for name, vector in zip(("image_embedding", "text_embedding"), vectors, strict=True):
        read = np.array(feature[name].float_list.value).astype(np.float16)
        assert read.tobytes() == vector.tobytes()


def _check(encoded: bytes, row: dict[str, object], others: set[str]) -> tfds_examples.Features:
    example = tf_example_pb2.Example.FromString(encoded)
    feature = example.features.feature
    # Not deterministically: protobuf's fast implementation has "image" after "image_embedding" then.
    in_order = [tf_feature_pb2.Features(feature={name: feature[name]}) for name in sorted(feature)]
    entries = b"".join(entry.SerializeToString() for entry in in_order)
    assert encoded == example.SerializeToString()[: -len(entries)] + entries
    assert set(feature) == set(row) | others
    for name in ("caption", "license", "url"):
        assert list(feature[name].bytes_list.value) == [row[name].encode()]
    for name in ("original_height", "original_width"):
        assert list(feature[name].int64_list.value) == [row[name]]
    assert list(feature["nsfw"].int64_list.value) == [_TAGS.index(row["nsfw"])]
    assert list(feature["similarity"].float_list.value) == [np.float32(row["similarity"])]
    return feature


@pytest.mark.parametrize("config", _CONFIGS)
def test_tfds_own_parser_and_serializer_agree(config: tfds.Config) -> None:
    # TFDS's serializer, where no TensorFlow is needed, on the same values.
    from tensorflow_datasets.core import example_serializer

    features, rows = tfds.features(config), _batch([_PLAIN])
    picture, vectors = b"\xff\xd8 any bytes", np.linspace(-1, 1, 512, dtype=np.float16)[None]
    values = _PLAIN | {"image": picture, "image_embedding": vectors[0], "text_embedding": -vectors[0]}
    values = {name: values[name] for name in features}
    if config == "images":
        parts = tfds_examples.encode_image_examples(rows, _pictures([picture]), _PATH)
    elif config == "embeddings":
        parts = tfds_examples.encode_embedding_examples(rows, vectors, -vectors, _PATH)
    else:
        parts = tfds_examples.encode_image_embedding_examples(
            rows, _pictures([picture]), vectors, -vectors, _PATH
        )
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    theirs = serializer.serialize_example(features.encode_example(values))
    parsed = tf_example_pb2.Example.FromString(join(parts)[0].as_py())
    assert tf_example_pb2.Example.FromString(theirs) == parsed


def test_labels_follow_tfds_order() -> None:
    assert tfds.features("images")["nsfw"].names == list(_TAGS)


def test_an_unknown_tag_is_refused() -> None:
    rows = _batch([_PLAIN, _PLAIN | {"nsfw": "unsure"}])
    with pytest.raises(CorruptParquet, match=r"a\.parquet: expected nsfw to be one of .* found 'unsure'"):
        tfds_examples.encode_image_examples(rows, _pictures([b"", b""]), _PATH)


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
@pytest.mark.parametrize("shard_count", [1, 3, 41_455, 99_999, 100_000, 1_234_567])
def test_shard_names_are_tfds_own(shard_count: int, file_format: str) -> None:
    from tensorflow_datasets.core.naming import ShardedFileTemplate

    template = ShardedFileTemplate(
        data_dir="/d", dataset_name="laion400m", split="train", filetype_suffix=file_format
    )
    for shard in {0, shard_count // 2, shard_count - 1}:
        expected = template.sharded_filepath(shard_index=shard, num_shards=shard_count).name
        assert tfds.shard_file_name(shard, shard_count, file_format) == expected


@pytest.mark.parametrize("config", _CONFIGS)
def test_metadata_is_byte_stable_and_complete(tmp_path: Path, config: tfds.Config) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
        tfds.write_metadata(folder, config, shard_lengths=[0, 3, 0], payload_bytes=99, width=8)
    for name in tfds.METADATA_FILES:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
    info = json.loads((folders[0] / "dataset_info.json").read_text())
    assert (info["name"], info["configName"]) == ("laion400m", config)
    (split,) = info["splits"]
    assert (split["name"], split["shardLengths"], split["numBytes"]) == ("train", ["0", "3", "0"], "99")
    assert (folders[0] / "nsfw.labels.txt").read_text().split() == [str(tag) for tag in NsfwTag]
    shape = json.loads((folders[0] / "features.json").read_text())["featuresDict"]["features"]
    assert ("image" in shape) == (config != "embeddings")
    assert ("image_embedding" in shape) == ("text_embedding" in shape) == (config != "images")
    if config != "images":
        assert shape["text_embedding"]["tensor"]["shape"]["dimensions"] == ["8"]


def test_the_third_config_has_the_features_of_the_others(tmp_path: Path) -> None:
    described = {}
    for config in _CONFIGS:
        folder = tmp_path / config
        folder.mkdir()
        tfds.write_metadata(folder, config, shard_lengths=[1], payload_bytes=1)
        features = json.loads((folder / "features.json").read_text())
        described[config] = features["featuresDict"]["features"]
        assert features["pythonClassName"] == "tensorflow_datasets.core.features.features_dict.FeaturesDict"
    assert described["image_embeddings"] == described["images"] | described["embeddings"]


def test_the_default_config_is_written_once(tmp_path: Path) -> None:
    path = tmp_path / "laion400m" / ".config" / "metadata.json"
    tfds.write_default_config(path, draft=tmp_path / "draft")
    assert json.loads(path.read_text()) == {"default_config_name": "images"}
    before = path.stat()
    tfds.write_default_config(path, draft=tmp_path / "draft")
    assert path.stat().st_ino == before.st_ino
    path.write_text('{"default_config_name": "embeddings"}')
    tfds.write_default_config(path, draft=tmp_path / "draft")
    assert json.loads(path.read_text()) == {"default_config_name": "images"}


def test_no_tensorflow_is_needed(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "class Without:\n"
        "    def __init__(self, finder): self.finder = finder\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] != 'tensorflow':\n"
        "            return self.finder.find_spec(name, path, target)\n"
        "sys.meta_path[:] = map(Without, sys.meta_path)\n"
        "from pathlib import Path\n"
        "from laion_assets.formats import tfds\n"
        "assert 'tensorflow_datasets' not in sys.modules\n"
        "for config in ('images', 'embeddings', 'image_embeddings'):\n"
        "    tfds.write_metadata(Path(sys.argv[1]), config, shard_lengths=[1], payload_bytes=1)\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code, tmp_path], check=True)
