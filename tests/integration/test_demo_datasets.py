"""The demo's datasets, read back by stock TFDS; what they say is held against the pixels."""

import json
from collections import defaultdict
from typing import get_args

import numpy as np
import pytest

from laion_assets.demo.dataset import DemoDataset, captions_true
from laion_assets.formats.tfds import Config
from laion_assets.layout import Layout
from laion_assets.outcomes import Outcome
from laion_assets.plan import ShardPlan
from laion_assets.schema import NsfwTag

pytestmark = [
    # TensorFlow and TFDS warn of their own use of NumPy, Keras and pkg_resources on import.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.fixture(scope="module")
def tfds():
    pytest.importorskip("tensorflow", reason="pip install -r requirements/dev.txt")
    return pytest.importorskip("tensorflow_datasets")


@pytest.fixture(scope="module")
def data_dir(demo):
    return Layout(demo / "data").tfds_data_dir


@pytest.fixture(scope="module")
def images(tfds, data_dir):
    return list(tfds.as_numpy(tfds.load("laion400m/images", split="train", data_dir=str(data_dir))))


def test_every_caption_is_true_of_its_pixels(images):
    true, false = captions_true((example["caption"].decode(), example["image"]) for example in images)
    assert false == []
    # A row whose TEXT is null has an empty caption, which claims nothing.
    assert true == sum(bool(example["caption"]) for example in images) > 350


def test_each_picture_is_the_one_its_url_serves(demo, images):
    truth = DemoDataset.load(demo).truth
    for example in images:
        expected = truth[example["url"].decode()]
        assert expected.outcome == Outcome.SUCCESS
        assert (example["original_width"], example["original_height"]) == (expected.width, expected.height)


def test_labels_are_normalized(images):
    assert {int(example["nsfw"]) for example in images} <= set(range(len(NsfwTag)))
    similarities = np.array([example["similarity"] for example in images])
    assert np.all((similarities == -1.0) | ((similarities >= 0) & (similarities <= 1.001)))
    assert np.any(similarities == -1.0)
    assert all(example["image"].dtype == np.uint8 and example["image"].shape[2] == 3 for example in images)


def test_no_row_is_lost_on_the_way(demo, images):
    layout = Layout(demo / "data")
    made = DemoDataset.load(demo)
    plan = ShardPlan.load(layout)
    assert sum(entry.rows for entry in plan.entries) == made.rows
    outcomes = dict.fromkeys(made.outcomes, 0)
    examples = set_aside = failed = 0
    for shard in plan.shards:
        fetched = json.loads(layout.images(shard).manifest.read_text())
        normal = json.loads(layout.normalized_images(shard).manifest.read_text())
        assert fetched["rows"] == plan.rows_of(shard).rows == normal["counts"]["rows"]
        for outcome in outcomes:
            outcomes[outcome] += fetched["counts"].get(f"outcome:{outcome}", 0)
        examples += normal["counts"]["examples"]
        set_aside += normal["counts"]["set_aside"]
        failed += normal["counts"]["failed"]
    assert outcomes == made.outcomes
    assert examples + set_aside + failed == made.rows
    assert examples == len(images)


def test_every_dataset_is_found_without_its_name(tfds, data_dir, images):
    for config in get_args(Config):
        builder = tfds.builder_from_directory(str(data_dir / "laion400m" / config / "1.0.0"))
        dataset = builder.as_dataset(split="train")
        assert sum(1 for _ in dataset) == builder.info.splits["train"].num_examples > 0
        if config == "images":
            assert builder.info.splits["train"].num_examples == len(images)


def test_vectors_agree_with_their_similarity(tfds, data_dir):
    rows = list(tfds.as_numpy(tfds.load("laion400m/embeddings", split="train", data_dir=str(data_dir))))
    assert len(rows) > 350
    image = np.stack([row["image_embedding"] for row in rows]).astype(np.float32)
    text = np.stack([row["text_embedding"] for row in rows]).astype(np.float32)
    assert image.shape == text.shape == (len(rows), 512)
    similarity = np.array([row["similarity"] for row in rows])
    known = similarity > 0.01
    assert np.abs((image * text).sum(axis=1) - similarity)[known].max() < 0.01
    assert known.sum() > 300


def test_vectors_are_those_of_the_picture(tfds, demo, data_dir):
    """The second join: the vectors found for an image shard are those of the same URL."""
    import pyarrow.parquet as pq

    layout = Layout(demo / "data")
    by_url = defaultdict(set)  # one URL is on two rows
    for row in tfds.as_numpy(tfds.load("laion400m/embeddings", split="train", data_dir=str(data_dir))):
        by_url[row["url"]].add(row["image_embedding"].tobytes())
    joined = 0
    for shard in ShardPlan.load(layout).shards:
        urls = pq.read_table(layout.normalized_table(shard), columns=["key", "url"])
        url_of = dict(zip(urls["key"].to_pylist(), urls["url"].to_pylist(), strict=True))
        for row in pq.read_table(layout.image_embeddings(shard).only).to_pylist():
            assert row["image_embedding"] in by_url[url_of[row["key"]].encode()]
            joined += 1
    assert joined > 300


def test_pictures_with_vectors_are_those_of_their_keys(tfds, demo, data_dir):
    """Every row of the second join is an example, with the picture that the tar has under its key."""
    import pyarrow.parquet as pq

    layout = Layout(demo / "data")
    loaded = tfds.load(
        "laion400m/image_embeddings",
        split="train",
        data_dir=str(data_dir),
        decoders={"image": tfds.decode.SkipDecoding()},
        # An example holds no key, but shards and rows are in its order.
        read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False),
    )
    examples = iter(tfds.as_numpy(loaded))
    rows = without = 0
    for shard in ShardPlan.load(layout).shards:
        by_key = {row["key"]: row for row in pq.read_table(layout.normalized_table(shard)).to_pylist()}
        tar = layout.images_tar(shard).read_bytes()
        for vectors in pq.read_table(layout.image_embeddings(shard).only).to_pylist():
            row, example = by_key.pop(vectors["key"]), next(examples)
            assert example["url"].decode() == row["url"]
            assert example["caption"].decode() == row["caption"]
            assert example["image"] == tar[row["tar_offset"] :][: row["tar_bytes"]]
            for name in ("image_embedding", "text_embedding"):
                assert example[name].tobytes() == vectors[name]
            rows += 1
        counts = json.loads(layout.tfds_image_embeddings(shard).manifest.read_text())["counts"]
        assert counts["without_vectors"] == len(by_key)
        without += len(by_key)
    assert next(examples, None) is None
    assert rows > 300
    print(f"{rows} pictures with vectors, {without} without")
