"""The demo's export, made by the command and read by Hugging Face's datasets; the pixels say what is true."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from offline_libraries import offline_libraries

from laion_assets.demo.dataset import captions_true
from laion_assets.layout import Layout
from laion_assets.plan import ShardPlan


@pytest.fixture(scope="module")
def load(demo, run_cli, tmp_path_factory):
    """Reads a config of the export; pictures decoded, or their files."""
    made = run_cli("export", "--settings", demo / "laion.toml", cwd=demo.parent)
    assert made.returncode == 0, made.stderr
    folder = Layout(demo / "data").export_folder
    assert made.stdout.endswith(f" rows: {folder}\n")
    with offline_libraries(tmp_path_factory.mktemp("hugging_face")):
        import datasets

        def load(config, **columns):
            loaded = datasets.load_dataset(str(folder), config, split="train", streaming=True)
            for name, feature in columns.items():
                loaded = loaded.cast_column(name, feature)
            return list(loaded)

        yield load


@pytest.mark.parametrize("config", ["images", "image_embeddings"])
def test_every_caption_is_true_of_its_pixels(load, config):
    examples = load(config)
    true, false = captions_true(
        (found["caption"], np.asarray(found["image"].convert("RGB"))) for found in examples
    )
    assert false == []
    # A row whose TEXT is null has an empty caption, which claims nothing.
    assert true == sum(bool(found["caption"]) for found in examples) > 300


def test_every_row_has_the_picture_that_the_tar_has_under_its_key(load, demo):
    import datasets

    examples = {found["key"]: found for found in load("images", image=datasets.Image(decode=False))}
    layout = Layout(demo / "data")
    rows = 0
    for shard in ShardPlan.load(layout).shards:
        tar = layout.images_tar(shard).read_bytes()
        for row in pq.read_table(layout.normalized_table(shard)).to_pylist():
            found = examples[row["key"]]
            assert found["image"]["bytes"] == tar[row["tar_offset"] :][: row["tar_bytes"]]
            for name in ("caption", "url", "license", "similarity", "original_width", "original_height"):
                assert found[name] == row[name]
            rows += 1
    assert rows == len(examples) > 350


def test_vectors_agree_with_their_similarity(load):
    rows = load("embeddings")
    assert len(rows) > 350
    image, text = (np.array([row[name] for row in rows]) for name in ("image_embedding", "text_embedding"))
    assert image.shape == text.shape == (len(rows), 512)
    similarity = np.array([row["similarity"] for row in rows])
    known = similarity > 0.01
    assert np.abs((image * text).sum(axis=1) - similarity)[known].max() < 0.01
    assert known.sum() > 300
