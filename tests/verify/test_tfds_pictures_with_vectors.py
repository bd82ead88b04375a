"""The config that the official class does not have: how stock TFDS reads it, and that it is what went in."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tfds_datasets import (
    SHARD_COUNT,
    TAGS,
    WITH_VECTORS,
    Dataset,
    publish_image_embeddings,
    publish_images,
)

from laion_assets.layout import Layout
from laion_assets.schema import NsfwTag

pytestmark = pytest.mark.filterwarnings(r"ignore:label\(\) is deprecated:DeprecationWarning")
linux = pytest.mark.skipif(sys.platform != "linux", reason="array_record exists for Linux only")

_NAME = "laion400m/image_embeddings"
_EXAMPLES = sum(map(len, WITH_VECTORS.values()))


@pytest.fixture(scope="module")
def at_random(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return publish_image_embeddings(Layout(tmp_path_factory.mktemp("random"), "array_record"), 512)


def _data_dir(dataset: Dataset) -> str:
    return str(dataset.layout.tfds_data_dir)


def _check(found: list[dict[str, Any]], dataset: Dataset) -> None:
    """Every row, once, as it went in; a picture as its bytes or as pixels, which JPEG decoders round."""
    assert sorted(example["url"].decode() for example in found) == sorted(dataset.rows)
    for example in found:
        url = example["url"].decode()
        row = dataset.rows[url]
        assert example["caption"] == row.caption.encode()
        assert example["license"] == row.license.encode()
        assert example["nsfw"] == TAGS.index(NsfwTag(row.nsfw))
        assert example["similarity"] == np.float64(np.float32(row.similarity))
        assert example["original_height"] == row.original_height
        assert example["original_width"] == row.original_width
        for name, vectors in (("image_embedding", dataset.image), ("text_embedding", dataset.text)):
            assert example[name].dtype == np.float16
            assert example[name].tobytes() == vectors[url].tobytes()
        if isinstance(example["image"], bytes):
            assert example["image"] == row.picture
            continue
        with Image.open(io.BytesIO(row.picture)) as opened:
            pixels = np.asarray(opened.convert("RGB"))
        assert example["image"].dtype == np.uint8
        # The reader without TensorFlow leaves a grey picture its one channel.
        shown = np.broadcast_to(example["image"], pixels.shape)
        assert np.abs(shown.astype(int) - pixels).max() <= (opened.format == "JPEG") * 4


# -- with TensorFlow ------------------------------------------------------------------------------


def _builder(dataset: Dataset, way: str) -> Any:
    import tensorflow_datasets as tfds

    data_dir = _data_dir(dataset)
    builders = {
        "by name": lambda: tfds.builder(_NAME, data_dir=data_dir),
        "by name and version": lambda: tfds.builder(f"{_NAME}:1.0.0", data_dir=data_dir),
        "by its config's name": lambda: tfds.builder(
            "laion400m", config="image_embeddings", data_dir=data_dir
        ),
        "without the bucket": lambda: tfds.builder(_NAME, data_dir=data_dir, try_gcs=False),
        "from files": lambda: tfds.core.read_only_builder.builder_from_files(_NAME, data_dir=data_dir),
        "from directory": lambda: tfds.builder_from_directory(
            str(dataset.layout.tfds_version("image_embeddings"))
        ),
    }
    return builders[way]()


@pytest.mark.parametrize(
    "way",
    [
        "by name",
        "by name and version",
        "by its config's name",
        "without the bucket",
        "from files",
        "from directory",
    ],
)
def test_pictures_and_vectors_are_what_went_in(image_embeddings: Dataset, way: str) -> None:
    import tensorflow_datasets as tfds

    builder = _builder(image_embeddings, way)
    # Not the official class, whose configs are two.
    assert type(builder).__name__ == "ReadOnlyBuilder"
    assert (builder.builder_config.name, str(builder.version)) == ("image_embeddings", "1.0.0")
    split = builder.info.splits["train"]
    assert split.shard_lengths == [len(WITH_VECTORS.get(number, ())) for number in range(SHARD_COUNT)]
    _check(list(tfds.as_numpy(builder.as_dataset(split="train"))), image_embeddings)
    raw = builder.as_dataset(split="train", decoders={"image": tfds.decode.SkipDecoding()})
    _check(list(tfds.as_numpy(raw)), image_embeddings)


def test_the_official_class_does_not_know_it(image_embeddings: Dataset) -> None:
    import tensorflow_datasets as tfds

    official = tfds.builder_cls("laion400m")
    assert sorted(official.builder_configs) == ["embeddings", "images"]
    data_dir = _data_dir(image_embeddings)
    with pytest.raises(ValueError, match="BuilderConfig image_embeddings not found"):
        official(config="image_embeddings", data_dir=data_dir)
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        tfds.load(_NAME, split="train", data_dir=data_dir, builder_kwargs={"another": 1})


def test_as_a_data_frame(image_embeddings: Dataset) -> None:
    import tensorflow_datasets as tfds

    loaded, info = tfds.load(_NAME, split="train", data_dir=_data_dir(image_embeddings), with_info=True)
    frame = tfds.as_dataframe(loaded.take(3), info)
    assert sorted(frame.columns) == sorted(info.features)
    for _, line in frame.iterrows():
        assert line["caption"] == image_embeddings.rows[line["url"].decode()].caption.encode()


def test_load_by_name(image_embeddings: Dataset) -> None:
    import tensorflow_datasets as tfds

    loaded, info = tfds.load(_NAME, split="train", data_dir=_data_dir(image_embeddings), with_info=True)
    assert info.full_name == f"{_NAME}/1.0.0"
    assert info.citation.startswith("@article{DBLP:journals/corr/abs-2111-02114")
    _check(list(tfds.as_numpy(loaded)), image_embeddings)
    assert info.features["image_embedding"].shape == (512,)
    assert info.features["nsfw"].names == list(map(str, NsfwTag))


def test_what_is_not_there_is_not_found(tmp_path: Path) -> None:
    import tensorflow_datasets as tfds

    with pytest.raises(ValueError, match="image_embeddings"):
        tfds.load(_NAME, split="train", data_dir=str(tmp_path))


@pytest.mark.parametrize(("split", "count"), [("train[:1]", 1), ("train[2:5]", 3), ("train[-1:]", 1)])
def test_slices(image_embeddings: Dataset, split: str, count: int) -> None:
    import tensorflow_datasets as tfds

    loaded = tfds.load(_NAME, split=split, data_dir=_data_dir(image_embeddings))
    assert len(list(loaded)) == count


def test_even_splits_and_interleaving(image_embeddings: Dataset) -> None:
    import tensorflow_datasets as tfds

    config = tfds.ReadConfig(interleave_cycle_length=3, interleave_block_length=2, shuffle_seed=1)
    found = [
        example
        for split in tfds.even_splits("train", 3, drop_remainder=False)
        for example in tfds.as_numpy(
            tfds.load(
                _NAME,
                split=split,
                data_dir=_data_dir(image_embeddings),
                read_config=config,
                shuffle_files=True,
            )
        )
    ]
    _check(found, image_embeddings)


def test_vectors_of_another_width_are_read_by_name(tmp_path: Path) -> None:
    import tensorflow_datasets as tfds

    wide = publish_image_embeddings(Layout(tmp_path), 768)
    loaded = tfds.load(_NAME, split="train", data_dir=_data_dir(wide))
    _check(list(tfds.as_numpy(loaded)), wide)


def test_it_does_not_get_in_the_way_of_the_others(tmp_path: Path) -> None:
    import tensorflow_datasets as tfds

    layout = Layout(tmp_path)
    publish_image_embeddings(layout, 8)
    images = publish_images(layout)
    data_dir = str(layout.tfds_data_dir)
    assert len(tfds.load(_NAME, split="train", data_dir=data_dir)) == _EXAMPLES
    assert len(tfds.load("laion400m/images", split="train", data_dir=data_dir)) == len(images.rows)
    builder = tfds.builder("laion400m", data_dir=data_dir)
    assert (type(builder).__name__, builder.builder_config.name) == ("Laion400m", "images")


# -- at random, without TensorFlow ----------------------------------------------------------------


@linux
@pytest.mark.parametrize("way", ["by name", "from directory"])
def test_a_data_source(at_random: Dataset, way: str) -> None:
    import tensorflow_datasets as tfds

    if way == "by name":
        source = tfds.data_source(_NAME, split="train", data_dir=_data_dir(at_random))
    else:
        folder = at_random.layout.tfds_version("image_embeddings")
        source = tfds.builder_from_directory(str(folder)).as_data_source(split="train")
    assert len(source) == _EXAMPLES
    _check([source[index] for index in reversed(range(len(source)))], at_random)


@linux
@pytest.mark.parametrize("workers", [0, 2])
def test_grains_loader_with_workers(at_random: Dataset, workers: int) -> None:
    import grain
    import tensorflow_datasets as tfds

    source = tfds.data_source(_NAME, split="train", data_dir=_data_dir(at_random))
    sampler = grain.samplers.IndexSampler(len(source), shuffle=True, seed=1, num_epochs=1)
    _check(list(grain.DataLoader(data_source=source, sampler=sampler, worker_count=workers)), at_random)


@linux
def test_both_formats_have_the_same_metadata(image_embeddings: Dataset, at_random: Dataset) -> None:
    infos = [
        (dataset.layout.tfds_version("image_embeddings") / "dataset_info.json").read_text()
        for dataset in (image_embeddings, at_random)
    ]
    assert infos[0] == infos[1].replace("array_record", "tfrecord")
