"""The usual ways to read a TFDS data set, each with the packages that people use for it."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tfds_datasets import SHARD_COUNT, SHARDS, Dataset, publish_embeddings, publish_images, row_of
from tfds_inputs import write_image_inputs

from laion_assets.formats import tfds as formats
from laion_assets.layout import Layout, ShardId
from laion_assets.stages.laion400m import publish_dataset
from laion_assets.stages.tfds_images import write_tfds_images

pytestmark = pytest.mark.filterwarnings(r"ignore:label\(\) is deprecated:DeprecationWarning")
linux = pytest.mark.skipif(sys.platform != "linux", reason="array_record exists for Linux only")


@pytest.fixture(scope="module")
def images_at_random(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return publish_images(Layout(tmp_path_factory.mktemp("images"), "array_record"))


@pytest.fixture(scope="module")
def embeddings_at_random(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return publish_embeddings(Layout(tmp_path_factory.mktemp("embeddings"), "array_record"), 512)


def _data_dir(dataset: Dataset) -> str:
    return str(dataset.layout.tfds_data_dir)


def _urls(examples: Any) -> list[str]:
    return [example["url"].decode() for example in examples]


def _check_picture(example: dict[str, Any], dataset: Dataset) -> None:
    row = dataset.rows[example["url"].decode()]
    with Image.open(io.BytesIO(row.picture)) as opened:
        pixels = np.asarray(opened.convert("RGB"))
        tolerance = 4 if opened.format == "JPEG" else 0
    assert example["caption"] == row.caption.encode()
    # The reader without TensorFlow leaves a grey picture its one channel.
    found = np.broadcast_to(example["image"], pixels.shape)
    assert np.abs(found.astype(int) - pixels).max() <= tolerance


# -- with TensorFlow ------------------------------------------------------------------------------


def test_load_by_name_and_version(images: Dataset) -> None:
    import tensorflow_datasets as tfds

    loaded, info = tfds.load(
        "laion400m/images:1.0.0", split="train", data_dir=_data_dir(images), with_info=True
    )
    assert str(info.version) == "1.0.0"
    found = list(tfds.as_numpy(loaded))
    assert sorted(_urls(found)) == sorted(images.rows)
    for example in found:
        _check_picture(example, images)


@pytest.mark.parametrize("cycle", [1, 3, 16])
def test_shards_read_at_once(images: Dataset, cycle: int) -> None:
    import tensorflow_datasets as tfds

    config = tfds.ReadConfig(interleave_cycle_length=cycle, interleave_block_length=2, shuffle_seed=1)
    loaded = tfds.load(
        "laion400m/images", split="train", data_dir=_data_dir(images), read_config=config, shuffle_files=True
    )
    found = list(tfds.as_numpy(loaded))
    assert sorted(_urls(found)) == sorted(images.rows)
    for example in found:
        _check_picture(example, images)


def test_as_a_data_frame(images: Dataset) -> None:
    import tensorflow_datasets as tfds

    loaded, info = tfds.load("laion400m/images", split="train", data_dir=_data_dir(images), with_info=True)
    frame = tfds.as_dataframe(loaded.take(6), info)
    assert len(frame) == 6
    for _, line in frame.iterrows():
        assert line["caption"] == images.rows[line["url"].decode()].caption.encode()
        assert line["nsfw"] in range(4)


def test_examples_shown(images: Dataset) -> None:
    import tensorflow_datasets as tfds

    loaded, info = tfds.load("laion400m/images", split="train", data_dir=_data_dir(images), with_info=True)
    figure = tfds.show_examples(loaded, info, rows=2, cols=2)
    shown = [axes.get_images()[0].get_array() for axes in figure.axes if axes.get_images()]
    assert len(shown) == 4
    first = list(tfds.as_numpy(loaded.take(4)))
    assert [picture.shape for picture in shown] == [example["image"].shape for example in first]
    for picture, example in zip(shown, first, strict=True):
        assert np.array_equal(picture, example["image"])


# -- at random, without TensorFlow ----------------------------------------------------------------


@linux
@pytest.mark.parametrize("way", ["by name", "from directory"])
def test_a_data_source_of_images(images_at_random: Dataset, way: str) -> None:
    import tensorflow_datasets as tfds

    if way == "by name":
        source = tfds.data_source("laion400m/images", split="train", data_dir=_data_dir(images_at_random))
    else:
        folder = images_at_random.layout.tfds_version("images")
        source = tfds.builder_from_directory(str(folder)).as_data_source(split="train")
    assert len(source) == sum(SHARDS.values())
    found = [source[index] for index in reversed(range(len(source)))]
    assert sorted(_urls(found)) == sorted(images_at_random.rows)
    for example in found:
        _check_picture(example, images_at_random)


@linux
def test_a_data_source_of_embeddings(embeddings_at_random: Dataset) -> None:
    import tensorflow_datasets as tfds

    source = tfds.data_source("laion400m/embeddings", split="train", data_dir=_data_dir(embeddings_at_random))
    assert sorted(_urls(source)) == sorted(embeddings_at_random.rows)
    for example in source:
        url = example["url"].decode()
        assert example["image_embedding"].tobytes() == embeddings_at_random.image[url].tobytes()
        assert example["text_embedding"].tobytes() == embeddings_at_random.text[url].tobytes()


@linux
@pytest.mark.parametrize(("split", "count"), [("train[:1]", 1), ("train[4:8]", 4), ("train[-1:]", 1)])
def test_slices_of_a_data_source(images_at_random: Dataset, split: str, count: int) -> None:
    import tensorflow_datasets as tfds

    source = tfds.data_source("laion400m/images", split=split, data_dir=_data_dir(images_at_random))
    assert len(_urls(source)) == count


@linux
@pytest.mark.parametrize("workers", [0, 2])
def test_grains_loader_with_workers(images_at_random: Dataset, workers: int) -> None:
    import grain
    import tensorflow_datasets as tfds

    source = tfds.data_source("laion400m/images", split="train", data_dir=_data_dir(images_at_random))
    sampler = grain.samplers.IndexSampler(len(source), shuffle=True, seed=1, num_epochs=1)
    loader = grain.DataLoader(data_source=source, sampler=sampler, worker_count=workers)
    found = list(loader)
    assert sorted(_urls(found)) == sorted(images_at_random.rows)
    for example in found:
        _check_picture(example, images_at_random)


@linux
def test_both_formats_are_there_at_once_and_hold_the_same(tmp_path: Path) -> None:
    import tensorflow_datasets as tfds

    one, other = Layout(tmp_path), Layout(tmp_path, "array_record")
    rows = [row_of(1, number) for number in range(5)]
    write_image_inputs(one, ShardId(1), rows)
    for layout in (one, other):
        write_tfds_images(ShardId(1), layout)
        publish_dataset("images", layout, shard_count=SHARD_COUNT)
    loaded = tfds.load("laion400m/images", split="train", data_dir=str(one.tfds_data_dir))
    source = tfds.data_source("laion400m/images", split="train", data_dir=str(other.tfds_data_dir))
    assert _urls(tfds.as_numpy(loaded)) == _urls(source) == [row.url for row in rows]
    infos = [(layout.tfds_version("images") / "dataset_info.json").read_text() for layout in (one, other)]
    assert infos[0] == infos[1].replace("array_record", "tfrecord")
    names = formats.METADATA_FILES[:2]
    assert [(one.tfds_version("images") / name).read_bytes() for name in names] == [
        (other.tfds_version("images") / name).read_bytes() for name in names
    ]


@linux
def test_a_data_source_while_the_data_set_grows_shrinks_and_changes(tmp_path: Path) -> None:
    import tensorflow_datasets as tfds

    layout = Layout(tmp_path, "array_record")

    def publish(number: int, rows: range) -> list[str]:
        write_image_inputs(layout, ShardId(number), [row_of(number, row) for row in rows])
        write_tfds_images(ShardId(number), layout)
        return read()

    def read() -> list[str]:
        publish_dataset("images", layout, shard_count=4)
        data_dir = str(layout.tfds_data_dir)
        return _urls(tfds.data_source("laion400m/images", split="train", data_dir=data_dir))

    def urls(*places: tuple[int, int]) -> list[str]:
        return [row_of(*place).url for place in places]

    assert publish(2, range(2)) == urls((2, 0), (2, 1))
    assert publish(0, range(1)) == urls((0, 0), (2, 0), (2, 1))  # added
    assert publish(2, range(1, 2)) == urls((0, 0), (2, 1))  # replaced
    layout.tfds_images(ShardId(0)).manifest.unlink()
    assert read() == urls((2, 1))  # taken away
