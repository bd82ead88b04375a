"""What a published data set says of where it comes from, held against the stages that it was made by."""

import json
from pathlib import Path

import pytest
from quality_inputs import PART, ROWS_PER_SHARD, SHARDS, VECTORS, WIDTH, copy_root, shared_root
from tfds_inputs import Row, picture, write_image_inputs

from laion_assets.embedding_source import read_embedding_source
from laion_assets.formats import parquet
from laion_assets.formats.publish import Recipe, Tally, publish, require
from laion_assets.layout import Layout, ShardId
from laion_assets.plan import ShardPlan
from laion_assets.published import output_of
from laion_assets.raw_source import RawSource, read_source
from laion_assets.schema import COUNTED, NORMALIZED_EMBEDDINGS, NORMALIZED_IMAGES
from laion_assets.stages.laion400m import publish_dataset
from laion_assets.stages.shard_plan import plan_shards
from laion_assets.stages.tfds_images import write_tfds_images


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    return shared_root(tmp_path_factory)


@pytest.fixture
def root(pristine, tmp_path):
    return copy_root(pristine, tmp_path)


def said(layout, config="images"):
    return json.loads((layout.tfds_version(config) / "metadata.json").read_bytes())


def tags_of(tables, schema):
    found = [tag for path in tables for tag in parquet.read_table(path, schema)["nsfw"].to_pylist()]
    return {tag: found.count(tag) for tag in ("UNLIKELY", "UNSURE", "NSFW", "UNTAGGED")}


def counted(layout, stage, keys, prefix):
    counts = {name.removeprefix(prefix): 0 for name in COUNTED if name.startswith(prefix)}
    for key in keys:
        for name, count in require(output_of(layout, stage, str(key))).counts.items():
            if name.startswith(prefix):
                counts[name.removeprefix(prefix)] += count
    return counts


def test_every_row_of_the_shards_is_counted(pristine):
    found = said(pristine)
    counts = found["counts"]
    assert counts["outcome"] == counted(pristine, "images", SHARDS, "outcome:")
    assert counts["set_aside"] == counted(pristine, "normalized_images", SHARDS, "set_aside:")
    assert counts["nsfw"] == tags_of(map(pristine.normalized_table, SHARDS), NORMALIZED_IMAGES)
    rows = sum(require(pristine.images(shard)).rows for shard in SHARDS)
    assert sum(counts["outcome"].values()) == rows
    assert counts["outcome"]["success"] == found["examples"] + sum(counts["set_aside"].values())
    assert sum(counts["nsfw"].values()) == found["examples"]
    assert found["shards_not_counted"] == {"nsfw": 0, "outcome": 0, "set_aside": 0}
    assert found["shards"] == {"planned": 3, "present": len(SHARDS), "without_examples": 0}
    assert list(found["shards_by_recipe"].values()) == [len(SHARDS)]


def test_the_plan_is_there_with_the_sha256_of_its_parts(pristine):
    plan = ShardPlan.load(pristine)
    (entry,) = plan.entries
    (part,) = said(pristine)["plan"]["parts"]
    source = read_source(pristine, PART)
    assert part == {
        "part": PART,
        "sha256": source.sha256,
        "rows": entry.rows,
        "first_shard": 0,
        "shards": 3,
        "url": None,  # it was a file of this machine
        "bytes": source.size_bytes,
        "source_schema": "laion400m",
    }
    assert said(pristine)["plan"]["rows_per_shard"] == ROWS_PER_SHARD


def test_embeddings_name_their_source_files(pristine):
    found = said(pristine, "embeddings")
    source = read_embedding_source(pristine, VECTORS)
    assert found["source_files"] == {
        str(VECTORS): [
            {"name": Path(file.path).name, "bytes": file.size_bytes, "sha256": file.sha256}
            for file in source.files
        ]
    }
    table = pristine.normalized_embeddings_table(VECTORS)
    assert found["counts"]["nsfw"] == tags_of([table], NORMALIZED_EMBEDDINGS)
    assert found["counts"].keys() == {"nsfw", "set_aside"}
    assert found["plan"] is None


@pytest.mark.parametrize("config", ["images", "embeddings"])
def test_nothing_of_this_machine_or_of_the_time_is_said(pristine, config):
    folder = pristine.tfds_version(config)
    for name in ("metadata.json", "LICENSE"):
        text = (folder / name).read_text()
        assert str(pristine.root.parent) not in text
        assert "seconds" not in text
    assert said(pristine, config)["versions"].keys() == {"laion_assets", "pyarrow", "tensorflow-datasets"}


def test_a_part_from_the_web_has_its_url(tmp_path):
    layout = Layout(tmp_path)
    address = "https://example.org/part-0.parquet"
    source = RawSource(location=address, size_bytes=9, sha256="5a" * 32, source_schema="laion400m")

    def write(draft):
        table, record = layout.raw_metadata("part-0").names
        draft.path(table).write_bytes(b"not read")
        draft.path(record).write_bytes(source.to_json())
        return Tally(rows=25)

    publish(layout.raw_metadata("part-0"), Recipe(code_version="test"), write)
    plan_shards(layout, ["part-0"], rows_per_shard=10)
    write_image_inputs(layout, ShardId(1), [Row(key="000010", picture=picture())])
    write_tfds_images(ShardId(1), layout)
    publish_dataset("images", layout, shard_count=3)
    (part,) = said(layout)["plan"]["parts"]
    assert (part["url"], part["bytes"], part["sha256"]) == (address, 9, "5a" * 32)
    # The plan's own words remain where those of the part are gone.
    layout.raw_source("part-0").unlink()
    publish_dataset("images", layout, shard_count=3)
    (part,) = said(layout)["plan"]["parts"]
    assert (part["url"], part["bytes"], part["sha256"]) == (None, None, "5a" * 32)


def spoil_manifest(root):
    root.layout.images(SHARDS[0]).manifest.write_bytes(b"{}")


def make_again(root):
    output = root.layout.images(SHARDS[0])
    root.rewrite(output, output.names[0], lambda path: path.write_bytes(path.read_bytes() + b"x"))


def delete_manifest(root):
    root.layout.images(SHARDS[0]).manifest.unlink()


@pytest.mark.parametrize("change", [spoil_manifest, make_again, delete_manifest])
def test_rows_of_other_images_than_a_shards_own_are_not_counted(root, change):
    layout = root.layout
    change(root)
    publish_dataset("images", layout, shard_count=4)  # every inode of the copy is another
    found = said(layout)
    assert found["shards_not_counted"] == {"nsfw": 0, "outcome": 1, "set_aside": 0}
    assert found["counts"]["outcome"] == counted(layout, "images", SHARDS[1:], "outcome:")


def test_tags_that_an_older_version_did_not_count_are_not_counted(root):
    layout = root.layout
    output = layout.tfds_images(SHARDS[0])
    manifest, body = require(output), output.only.read_bytes()

    def write(draft):
        draft.only.write_bytes(body)
        counts = {name: manifest.counts[name] for name in ("examples", "payload_bytes")}
        return Tally(rows=manifest.rows, counts=counts)

    output.manifest.unlink()
    publish(output, manifest.recipe, write)
    publish_dataset("images", layout, shard_count=4)
    found = said(layout)
    assert found["shards_not_counted"] == {"nsfw": 1, "outcome": 0, "set_aside": 0}
    assert found["counts"]["nsfw"] == tags_of(map(layout.normalized_table, SHARDS[1:]), NORMALIZED_IMAGES)


def test_what_was_counted_is_remembered(root):
    layout = root.layout
    publish_dataset("embeddings", layout, shard_count=2, width=WIDTH)
    first = said(layout, "embeddings")
    layout.normalized_embeddings(VECTORS).manifest.unlink()
    publish_dataset("embeddings", layout, shard_count=3, width=WIDTH)
    again = said(layout, "embeddings")
    assert again["shards"].pop("planned") == 3
    assert first["shards"].pop("planned") == 2
    assert again == first


def test_the_licence_tells_metadata_from_pictures(pristine):
    text = (pristine.tfds_version("images") / "LICENSE").read_text()
    assert "CC BY 4.0, https://creativecommons.org/licenses/by/4.0/" in text
    assert "That licence does not cover the pictures." in text
    assert all(len(line) <= 110 for line in text.splitlines())
