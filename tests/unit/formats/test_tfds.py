"""Examples on the wire against TFDS's own protobuf, and the metadata files; all without TensorFlow."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensorflow_datasets.proto import tf_example_pb2

from laion_assets.errors import CorruptParquet
from laion_assets.formats import tfds
from laion_assets.schema import NsfwTag

_TEXT = st.text(max_size=300)
_INT32 = st.integers(-(2**31), 2**31 - 1)
_METADATA = st.builds(
    tfds.ExampleMetadata,
    caption=_TEXT,
    license=_TEXT,
    nsfw=st.integers(0, 3),
    original_height=_INT32,
    original_width=_INT32,
    similarity=st.floats(-1, 1),
    url=_TEXT,
)
_PLAIN = tfds.ExampleMetadata(
    caption="ein Bild", license="?", nsfw=2, original_height=0, original_width=300, similarity=-1.0, url="u"
)


def _vector_of(bits: list[int]) -> np.ndarray:
    return np.array(bits, np.uint16).view(np.float16)


# Every finite float16: subnormal, negative zero and all.
_FLOAT16_BITS = st.integers(0, 2**16 - 1).filter(lambda bits: bits & 0x7C00 != 0x7C00)


@given(metadata=_METADATA, image=st.binary(max_size=40_000))
@settings(deadline=None, max_examples=50)
def test_an_image_example_is_what_protobuf_would_write(metadata: tfds.ExampleMetadata, image: bytes) -> None:
    encoded = tfds.encode_image_example(image, metadata)
    example = tf_example_pb2.Example.FromString(encoded)
    assert example.SerializeToString(deterministic=True) == encoded
    _check_metadata(example, metadata, others={"image"})
    assert list(example.features.feature["image"].bytes_list.value) == [image]


@given(
    metadata=_METADATA,
    bits=st.integers(1, 40).flatmap(
        lambda width: st.tuples(*[st.lists(_FLOAT16_BITS, min_size=width, max_size=width)] * 2)
    ),
)
@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.filter_too_much])
def test_an_embedding_example_is_what_protobuf_would_write(
    metadata: tfds.ExampleMetadata, bits: tuple[list[int], list[int]]
) -> None:
    image, text = map(_vector_of, bits)
    encoded = tfds.encode_embedding_example(image, text, metadata)
    example = tf_example_pb2.Example.FromString(encoded)
    assert example.SerializeToString(deterministic=True) == encoded
    _check_metadata(example, metadata, others={"image_embedding", "text_embedding"})
    for name, vector in (("image_embedding", image), ("text_embedding", text)):
        read = np.array(example.features.feature[name].float_list.value).astype(np.float16)
        assert read.tobytes() == vector.tobytes()


def _check_metadata(
    example: tf_example_pb2.Example, metadata: tfds.ExampleMetadata, others: set[str]
) -> None:
    feature = example.features.feature
    assert set(feature) == set(tfds.ExampleMetadata._fields) | others
    for name in ("caption", "license", "url"):
        assert list(feature[name].bytes_list.value) == [getattr(metadata, name).encode()]
    for name in ("nsfw", "original_height", "original_width"):
        assert list(feature[name].int64_list.value) == [getattr(metadata, name)]
    assert list(feature["similarity"].float_list.value) == [np.float32(metadata.similarity)]


@pytest.mark.parametrize("config", ["images", "embeddings"])
def test_tfds_own_parser_and_serializer_agree(config: tfds.Config) -> None:
    # TFDS's serializer, where no TensorFlow is needed, on the same values.
    from tensorflow_datasets.core import example_serializer

    features = tfds.features(config)
    values = {
        "caption": _PLAIN.caption,
        "license": _PLAIN.license,
        "nsfw": "NSFW",
        "original_height": 0,
        "original_width": 300,
        "similarity": -1.0,
        "url": _PLAIN.url,
    }
    vector = np.linspace(-1, 1, 512, dtype=np.float16)
    if config == "images":
        values |= {"image": b"\xff\xd8 any bytes"}
        ours = tfds.encode_image_example(b"\xff\xd8 any bytes", _PLAIN)
    else:
        values |= {"image_embedding": vector, "text_embedding": -vector}
        ours = tfds.encode_embedding_example(vector, -vector, _PLAIN)
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    theirs = serializer.serialize_example(features.encode_example(values))
    assert tf_example_pb2.Example.FromString(theirs) == tf_example_pb2.Example.FromString(ours)


def test_metadata_of_rows_follows_tfds_label_order() -> None:
    rows = _rows(nsfw=["UNTAGGED", "UNLIKELY", "NSFW", "UNSURE"])
    assert [row.nsfw for row in tfds.example_metadata(rows, Path("a.parquet"))] == [3, 0, 2, 1]
    names = tfds.features("images")["nsfw"].names
    assert names == [str(tag) for tag in NsfwTag]


def test_an_unknown_tag_is_refused() -> None:
    with pytest.raises(CorruptParquet, match=r"a\.parquet: expected nsfw to be one of .* found 'unsure'"):
        tfds.example_metadata(_rows(nsfw=["NSFW", "unsure"]), Path("a.parquet"))


def _rows(nsfw: list[str]) -> pa.RecordBatch:
    count = len(nsfw)
    return pa.RecordBatch.from_pydict(
        {
            "caption": ["c"] * count,
            "license": [""] * count,
            "nsfw": nsfw,
            "original_height": [1] * count,
            "original_width": [1] * count,
            "similarity": [0.5] * count,
            "url": ["u"] * count,
        }
    )


@pytest.mark.parametrize("shard_count", [1, 3, 41_455, 99_999, 100_000, 1_234_567])
def test_shard_names_are_tfds_own(shard_count: int) -> None:
    from tensorflow_datasets.core.naming import ShardedFileTemplate

    template = ShardedFileTemplate(
        data_dir="/d", dataset_name="laion400m", split="train", filetype_suffix="tfrecord"
    )
    for shard in {0, shard_count // 2, shard_count - 1}:
        expected = template.sharded_filepath(shard_index=shard, num_shards=shard_count).name
        assert tfds.shard_file_name(shard, shard_count) == expected


@pytest.mark.parametrize("config", ["images", "embeddings"])
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
    assert ("image" in shape) == (config == "images")
    if config == "embeddings":
        assert shape["text_embedding"]["tensor"]["shape"]["dimensions"] == ["8"]


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
        "for config in ('images', 'embeddings'):\n"
        "    tfds.write_metadata(Path(sys.argv[1]), config, shard_lengths=[1], payload_bytes=1)\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code, tmp_path], check=True)
