"""Hugging Face's datasets reads from an export exactly what went in."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from tfds_datasets import TAGS
from tfds_inputs import Row, picture, write_image_inputs

from laion_assets.formats.hugging_face import schema
from laion_assets.layout import Layout, ShardId
from laion_assets.schema import NsfwTag
from laion_assets.stages.export import CONFIGS, export
from laion_assets.stages.tfds_images import write_tfds_images

WIDTH = 24

_EACH_CONFIG = pytest.mark.parametrize("config", CONFIGS)
_WITH_PICTURES = pytest.mark.parametrize("config", ["images", "image_embeddings"])
_WITH_VECTORS = pytest.mark.parametrize("config", ["embeddings", "image_embeddings"])


def _load(folder: str, *config: str, cache: Path, **options: Any) -> Any:
    import datasets

    if not options.get("streaming"):
        options["cache_dir"] = str(cache)
    return datasets.load_dataset(folder, *config, split="train", **options)


def _pixels(picture: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(picture)) as opened:
        return np.asarray(opened)


@_EACH_CONFIG
def test_the_features_are_those_that_the_library_makes_of_the_types(config: str, exported, tmp_path) -> None:
    import datasets

    found = _load(exported.folder, config, cache=tmp_path).features
    expected = {
        "caption": datasets.Value("string"),
        "nsfw": datasets.ClassLabel(names=list(map(str, TAGS))),
        "similarity": datasets.Value("float64"),
        "license": datasets.Value("string"),
        "url": datasets.Value("string"),
        "original_width": datasets.Value("int32"),
        "original_height": datasets.Value("int32"),
        "key": datasets.Value("string"),
    }
    if config != "embeddings":
        expected["image"] = datasets.Image()
    if config != "images":
        vector = datasets.List(datasets.Value("float16"), length=WIDTH)
        expected |= {"image_embedding": vector, "text_embedding": vector}
    assert dict(found) == expected
    # Where the types differ by anything, the library passes over what the file's metadata says.
    assert found.arrow_schema.equals(schema(config, WIDTH), check_metadata=False)


@pytest.mark.parametrize("streaming", [False, True])
@_EACH_CONFIG
def test_every_row_is_what_went_in(config: str, streaming: bool, exported, tmp_path) -> None:
    rows = {row.key: row for row in exported.datasets[config].rows.values()}
    found = list(_load(exported.folder, config, cache=tmp_path, streaming=streaming))
    assert [example["key"] for example in found] == sorted(rows)
    for example in found:
        row = rows[example["key"]]
        assert example["caption"] == row.caption
        assert example["url"] == row.url
        assert example["license"] == row.license
        assert example["nsfw"] == TAGS.index(NsfwTag(row.nsfw))
        assert example["similarity"] == row.similarity  # of all its 64 bits
        assert (example["original_width"], example["original_height"]) == (
            row.original_width,
            row.original_height,
        )
        if config != "embeddings":
            np.testing.assert_array_equal(np.asarray(example["image"]), _pixels(row.picture))


@_WITH_PICTURES
def test_the_pictures_files_are_as_they_were(config: str, exported, tmp_path) -> None:
    import datasets

    rows = {row.key: row for row in exported.datasets[config].rows.values()}
    loaded = _load(exported.folder, config, cache=tmp_path)
    found = list(loaded.cast_column("image", datasets.Image(decode=False)))
    assert len(found) == len(rows)
    for example in found:
        picture = rows[example["key"]].picture
        extension = {b"\xff\xd8": "jpg", b"\x89P": "png"}[picture[:2]]
        assert example["image"] == {"bytes": picture, "path": f"{example['key']}.{extension}"}


@_WITH_VECTORS
def test_vectors_are_the_same_bit_for_bit(config: str, exported, tmp_path) -> None:
    dataset = exported.datasets[config]
    loaded = _load(exported.folder, config, cache=tmp_path)
    urls = loaded["url"]
    for name, went_in in (("image_embedding", dataset.image), ("text_embedding", dataset.text)):
        column = pa.chunked_array(loaded.with_format("arrow")[name]).combine_chunks()
        assert column.type == pa.list_(pa.float16(), WIDTH)
        found = column.flatten().to_numpy().reshape(-1, WIDTH)
        assert found.dtype == np.float16
        for url, vector in zip(urls, found, strict=True):
            assert vector.tobytes() == went_in[url].tobytes()
        # And as numbers: the library makes float32 of it, in which each has its value.
        as_numbers = np.stack(list(loaded.with_format("numpy")[name]))
        np.testing.assert_array_equal(as_numbers, found.astype(np.float32))


def test_without_a_config_it_is_images(exported, tmp_path: Path) -> None:
    import datasets

    assert datasets.get_dataset_config_names(exported.folder) == list(CONFIGS)
    loaded = _load(exported.folder, cache=tmp_path)
    assert len(loaded) == len(exported.datasets["images"].rows)
    assert loaded.config_name == "images"


def test_the_card_says_how_much_there_is(exported) -> None:
    text = (exported.layout.export_folder / "README.md").read_text()
    for config in CONFIGS:
        folder = exported.layout.export_folder / config
        files = list(folder.iterdir())
        rows, bytes_ = len(exported.datasets[config].rows), sum(file.stat().st_size for file in files)
        assert f"| {config} | {rows} | {len(files)} | {bytes_:,} |" in text


@_EACH_CONFIG
def test_the_folder_can_be_copied_and_read_without_its_card(config: str, exported, tmp_path: Path) -> None:
    copy = shutil.copytree(exported.layout.export_folder / config, tmp_path / "copy")
    found = _load(str(copy), cache=tmp_path / "cache")
    assert sorted(found["url"]) == sorted(exported.datasets[config].rows)


HOSTILE = [
    "",
    " ",
    "\x00",
    "a\x00b",
    "\x1b[31m red \x7f \x85 \u2028 \ufeff",
    "\r\n\t",
    "\u202egnp.exe",
    "日本語 🙂 e\u0301 \U0010fffd",
    '{"a": "b"} | <script> $x^2$ \\ \' "',
    "---\nconfigs: []\n---",
    "x" * 100_000,
]


@pytest.mark.parametrize("streaming", [False, True])
def test_hostile_captions_come_back_equal_with_their_own_pictures(streaming: bool, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "data")
    rows = [
        Row(key=f"00000{row:04d}", caption=caption, url=caption, license=caption, picture=picture(row))
        for row, caption in enumerate(HOSTILE)
    ]
    write_image_inputs(layout, ShardId(0), rows)
    write_tfds_images(ShardId(0), layout)
    export(layout)
    loaded = _load(str(layout.export_folder), cache=tmp_path / "cache", streaming=streaming)
    found = {example["key"]: example for example in loaded}
    assert len(found) == len(rows)
    for row in rows:
        example = found[row.key]
        assert example["caption"] == example["url"] == example["license"] == row.caption
        np.testing.assert_array_equal(np.asarray(example["image"]), _pixels(row.picture))


def test_what_changes_is_read_anew_from_the_same_folder_and_cache(tmp_path: Path) -> None:
    layout, cache = Layout(tmp_path / "data"), tmp_path / "cache"

    def captions() -> list[str]:
        return list(_load(str(layout.export_folder), cache=cache)["caption"])

    def write(shard: int, caption: str) -> None:
        row = Row(key=f"{shard:05d}0000", caption=caption, picture=picture(shard))
        write_image_inputs(layout, ShardId(shard), [row])
        write_tfds_images(ShardId(shard), layout)

    write(0, "first")
    export(layout)
    assert captions() == ["first"]
    write(2, "third")
    export(layout)
    assert captions() == ["first", "third"]
    write(0, "other")
    export(layout)
    assert captions() == ["other", "third"]
    layout.tfds_images(ShardId(2)).manifest.unlink()
    export(layout)
    assert captions() == ["other"]
