"""Stock TensorFlow Datasets reads, by name and from the folder, exactly what went in."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tfds_datasets import SHARD_COUNT, SHARDS, TAGS, Dataset, publish_embeddings, row_of
from tfds_inputs import Row, payloads_of, write_image_inputs

from laion_assets.formats import tfds as formats
from laion_assets.layout import Layout, ShardId
from laion_assets.schema import NsfwTag
from laion_assets.stages.laion400m import publish_dataset
from laion_assets.stages.tfds_images import write_tfds_images

# TFDS 4.9.10 asks protobuf 6 for what it now calls otherwise (dataset_info.py, read_from_directory).
pytestmark = pytest.mark.filterwarnings(r"ignore:label\(\) is deprecated:DeprecationWarning")


def _builder(dataset: Dataset, config: str, way: str) -> Any:
    import tensorflow_datasets as tfds

    data_dir = str(dataset.layout.tfds_data_dir)
    if way == "by name":
        builder = tfds.builder(f"laion400m/{config}", data_dir=data_dir)
        assert type(builder).__name__ == "Laion400m"
        return builder
    return tfds.builder_from_directory(str(dataset.layout.tfds_version(config)))


def _read(builder: Any, split: str = "train") -> list[dict[str, Any]]:
    import tensorflow_datasets as tfds

    return list(tfds.as_numpy(builder.as_dataset(split=split)))


def _check_metadata(found: dict[str, Any], row: Row) -> None:
    assert found["caption"] == row.caption.encode()
    assert found["license"] == row.license.encode()
    assert found["nsfw"] == TAGS.index(NsfwTag(row.nsfw))
    assert found["similarity"].dtype == np.float64
    assert found["similarity"] == np.float64(np.float32(row.similarity))
    assert (found["original_height"], found["original_width"]) == (row.original_height, row.original_width)


_WAYS = pytest.mark.parametrize("way", ["by name", "from directory"])


@_WAYS
def test_images_are_what_went_in(images: Dataset, way: str) -> None:
    builder = _builder(images, "images", way)
    assert builder.info.splits["train"].num_examples == sum(SHARDS.values())
    assert builder.info.splits["train"].shard_lengths == [SHARDS.get(k, 0) for k in range(SHARD_COUNT)]
    found = _read(builder)
    assert sorted(example["url"].decode() for example in found) == sorted(images.rows)
    for example in found:
        row = images.rows[example["url"].decode()]
        _check_metadata(example, row)
        assert example["image"].dtype == np.uint8
        with Image.open(io.BytesIO(row.picture)) as opened:
            pixels = np.asarray(opened.convert("RGB"))
        assert example["image"].shape == pixels.shape
        # JPEG decoders round differently.
        assert np.abs(example["image"].astype(int) - pixels).max() <= (opened.format == "JPEG") * 4


def test_image_bytes_are_what_went_in(images: Dataset) -> None:
    import tensorflow_datasets as tfds

    builder = _builder(images, "images", "by name")
    raw = builder.as_dataset(split="train", decoders={"image": tfds.decode.SkipDecoding()})
    for example in tfds.as_numpy(raw):
        assert example["image"] == images.rows[example["url"].decode()].picture


@_WAYS
def test_embeddings_are_what_went_in(embeddings: Dataset, way: str) -> None:
    found = _read(_builder(embeddings, "embeddings", way))
    assert sorted(example["url"].decode() for example in found) == sorted(embeddings.rows)
    for example in found:
        url = example["url"].decode()
        _check_metadata(example, embeddings.rows[url])
        for name, vectors_ in (("image_embedding", embeddings.image), ("text_embedding", embeddings.text)):
            assert example[name].dtype == np.float16
            assert example[name].tobytes() == vectors_[url].tobytes()


def test_vectors_of_another_width_are_read_from_the_directory(tmp_path: Path) -> None:
    narrow = publish_embeddings(Layout(tmp_path), 8)
    found = _read(_builder(narrow, "embeddings", "from directory"))
    for example in found:
        assert example["text_embedding"].tobytes() == narrow.text[example["url"].decode()].tobytes()


def test_load_by_name_with_the_default_config(images: Dataset) -> None:
    import tensorflow_datasets as tfds

    loaded = tfds.load("laion400m/images", split="train", data_dir=str(images.layout.tfds_data_dir))
    assert len(loaded) == sum(SHARDS.values())
    builder = tfds.builder("laion400m", data_dir=str(images.layout.tfds_data_dir))
    assert builder.builder_config.name == "images"
    assert len(_read(builder)) == sum(SHARDS.values())
    stored = tfds.core.dataset_builder.load_default_config_name(images.layout.tfds_default_config.parents[1])
    assert stored == "images"


@pytest.mark.parametrize(
    ("split", "count"),
    [
        ("train[:1]", 1),
        ("train[5:6]", 1),  # across the missing shards 3 and 4
        ("train[4:8]", 4),
        ("train[-1:]", 1),
        ("train[:50%]", 6),
    ],
)
def test_slices_pass_over_missing_shards(images: Dataset, split: str, count: int) -> None:
    builder = _builder(images, "images", "by name")
    assert len(_read(builder, split)) == count


def test_even_splits_hold_everything_once(images: Dataset) -> None:
    import tensorflow_datasets as tfds

    builder = _builder(images, "images", "from directory")
    found = [
        example["url"].decode()
        for split in tfds.even_splits("train", 3, drop_remainder=False)
        for example in _read(builder, split)
    ]
    assert sorted(found) == sorted(images.rows)


def _write_shard(layout: Layout, shard: int, examples: int) -> list[str]:
    rows = [row_of(shard, number) for number in range(examples)]
    write_image_inputs(layout, ShardId(shard), rows)
    write_tfds_images(ShardId(shard), layout)
    return [row.url for row in rows]


def _urls(builder: Any) -> list[str]:
    return [example["url"].decode() for example in _read(builder)]


def test_a_growing_data_set_is_read_anew(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    dataset = Dataset(layout, {}, {}, {})
    first = _write_shard(layout, 0, 1)
    publish_dataset("images", layout, shard_count=2)
    opened = _builder(dataset, "images", "from directory")
    second = _write_shard(layout, 1, 2)
    publish_dataset("images", layout, shard_count=2)
    assert _urls(opened) == first
    assert _urls(_builder(dataset, "images", "by name")) == first + second


def test_a_plan_that_grew_is_relinked(tmp_path: Path) -> None:
    import tensorflow_datasets as tfds

    layout = Layout(tmp_path)
    dataset = Dataset(layout, {}, {}, {})
    first = _write_shard(layout, 0, 2)
    publish_dataset("images", layout, shard_count=1)
    # Its files have other names now, so a reader that is to go on has to have resolved the link.
    opened = tfds.builder_from_directory(str(layout.tfds_version("images").resolve()))
    last = _write_shard(layout, 3, 3)
    publish_dataset("images", layout, shard_count=4)
    assert _urls(opened) == first
    for way in ("by name", "from directory"):
        builder = _builder(dataset, "images", way)
        assert builder.info.splits["train"].shard_lengths == [2, 0, 0, 3]
        assert [Path(path).name for path in builder.info.splits["train"].filepaths] == [
            f"laion400m-train.tfrecord-{number:05d}-of-00004" for number in range(4)
        ]
        assert _urls(builder) == first + last
    # It grows once more, by a part none of whose shards is there yet.
    publish_dataset("images", layout, shard_count=7)
    grown = _builder(dataset, "images", "by name")
    assert grown.info.splits["train"].shard_lengths == [2, 0, 0, 3, 0, 0, 0]
    assert _urls(grown) == first + last


@_WAYS
def test_a_dense_data_set_has_no_empty_shard(tmp_path: Path, way: str) -> None:
    import tensorflow_datasets as tfds

    layout = Layout(tmp_path, dense=True)
    urls = {shard: _write_shard(layout, shard, examples) for shard, examples in SHARDS.items()}
    publish_dataset("images", layout, shard_count=SHARD_COUNT)
    builder = _builder(Dataset(layout, {}, {}, {}), "images", way)
    split = builder.info.splits["train"]
    assert split.shard_lengths == [5, 1, 7]
    assert all(Path(path).exists() for path in split.filepaths)
    assert builder.info.metadata["shard_of_number"] == [1, 2, 5]
    assert _urls(builder) == [url for shard in urls.values() for url in shard]
    # What a data set with gaps is not good for: a slice by shards.
    by_shard = builder.as_dataset(split="train[1shard:3shard]")
    assert [example["url"].decode() for example in tfds.as_numpy(by_shard)] == urls[2] + urls[5]


@_WAYS
def test_provenance_is_shown_as_tfds_shows_it(images: Dataset, way: str) -> None:
    info = _builder(images, "images", way).info
    assert info.metadata["examples"] == sum(SHARDS.values())
    assert info.metadata["counts"]["nsfw"] == {
        str(tag): sum(row.nsfw == tag for row in images.rows.values()) for tag in TAGS
    }
    assert info.metadata["shards"] == {"planned": SHARD_COUNT, "present": 4, "without_examples": 1}
    assert info.redistribution_info.license == ""
    assert "laion400m/images/1.0.0" in repr(info)


@pytest.mark.parametrize("config", ["images", "embeddings"])
def test_metadata_is_byte_for_byte_the_official_classs(
    tmp_path: Path, images: Dataset, embeddings: Dataset, config: formats.Config
) -> None:
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import constants

    ours = {"images": images, "embeddings": embeddings}[config].layout.tfds_version(config)
    official = tfds.builder(f"laion400m/{config}", data_dir=str(tmp_path / "elsewhere"))
    read = tfds.builder_from_directory(str(ours)).info.splits["train"]
    info = official.info
    info.set_file_format("tfrecord")
    info.set_splits(
        tfds.core.splits.SplitDict(
            [
                tfds.core.SplitInfo(
                    name="train", shard_lengths=read.shard_lengths, num_bytes=int(read.num_bytes)
                )
            ]
        )
    )
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    info.write_to_directory(theirs)
    assert sorted(path.name for path in theirs.iterdir()) == sorted(formats.METADATA_FILES)
    for name in formats.METADATA_FILES:
        assert (ours / name).read_bytes() == (theirs / name).read_bytes()
    # Beside these and the shards there are two files of ours, under names that TFDS has for such.
    others = {path.name for path in ours.iterdir() if "-of-" not in path.name} - {*formats.METADATA_FILES}
    assert others == {constants.LICENSE_FILENAME, constants.METADATA_FILENAME}


def test_numbytes_is_what_tfds_itself_would_record(images: Dataset) -> None:
    split = _builder(images, "images", "by name").info.splits["train"]
    sizes = [path.stat().st_size - 16 * split.shard_lengths[number] for number, path in _shard_files(images)]
    assert int(split.num_bytes) == sum(sizes)


def _shard_files(dataset: Dataset) -> list[tuple[int, Path]]:
    folder = dataset.layout.tfds_version("images")
    names = {
        number: formats.shard_file_name(number, SHARD_COUNT, "tfrecord") for number in range(SHARD_COUNT)
    }
    return [(number, folder / name) for number, name in names.items() if (folder / name).exists()]


def test_tensorflow_verifies_our_records_and_we_verify_tensorflows(tmp_path: Path) -> None:
    import tensorflow as tf

    from laion_assets.formats.tfrecord import read_records, write_records

    payloads = [b"", b"a", bytes(range(256)) * 300]
    write_records(tmp_path / "ours", [payloads_of(payloads)])
    assert [record.numpy() for record in tf.data.TFRecordDataset(str(tmp_path / "ours"))] == payloads
    with tf.io.TFRecordWriter(str(tmp_path / "theirs")) as writer:
        for payload in payloads:
            writer.write(payload)
    assert list(read_records(tmp_path / "theirs")) == payloads
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
