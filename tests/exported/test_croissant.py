"""mlcroissant finds nothing to say against croissant.json, and reads through it what went in."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import re
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tfds_datasets import TAGS

from laion_assets.schema import NsfwTag
from laion_assets.stages.export import CONFIGS

pytestmark = [
    # Of mlcroissant 1.1.1's own calls of rdflib 7.6 and pandas 3.1.
    pytest.mark.filterwarnings("ignore:ConjunctiveGraph is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The inplace keyword in DataFrame.reset_index:DeprecationWarning"),
]

_EACH_CONFIG = pytest.mark.parametrize("config", CONFIGS)


def _open(exported) -> Any:
    import mlcroissant

    return mlcroissant.Dataset(str(exported.croissant))


def test_there_is_nothing_to_say_against_it(exported, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        dataset = _open(exported)
    issues = dataset.metadata.ctx.issues
    assert issues.errors == set()
    assert issues.warnings == set()
    # A context that is not the standard one is told only here.
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_the_validator_does_find_what_is_missing(exported) -> None:
    import mlcroissant

    document = json.loads(exported.croissant.read_bytes())
    del document["citeAs"]
    assert any("citeAs" in said for said in mlcroissant.Dataset(document).metadata.ctx.issues.warnings)
    del document["distribution"][1]["contentUrl"]
    with pytest.raises(mlcroissant.ValidationError, match="contentUrl"):
        mlcroissant.Dataset(document)


def test_it_says_whose_data_it_is(exported) -> None:
    metadata = _open(exported).metadata
    assert metadata.name == "LAION-400M"
    assert str(metadata.version) == "1.0.0"
    assert metadata.license[0] == "https://creativecommons.org/licenses/by/4.0/"
    assert "each picture keeps its own copyright" in metadata.license[1]
    assert "2111.02114" in metadata.cite_as
    assert "CLIP" in metadata.description
    assert metadata.ctx.is_v1_1()


def test_every_file_is_described_with_its_own_checksum(exported) -> None:
    folder = exported.layout.export_folder
    files = {f"{path.relative_to(folder)}": path for path in folder.glob("*/*.parquet")}
    described = {file.id: file for file in _open(exported).metadata.file_objects}
    assert described.keys() == files.keys()
    for name, path in files.items():
        assert described[name].content_url == name
        assert described[name].sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert described[name].content_size == f"{path.stat().st_size} B"
    sums = dict(line.split("  ")[::-1] for line in (folder / "SHA256SUMS").read_text().splitlines())
    assert sums == {name: described[name].sha256 for name in files}


@_EACH_CONFIG
def test_a_file_set_is_of_the_files_of_its_config(config: str, exported) -> None:
    metadata = _open(exported).metadata
    (files,) = [files for files in metadata.file_sets if files.id == f"{config}-files"]
    (pattern,) = files.includes
    folder = exported.layout.export_folder
    assert sorted(folder.glob(pattern)) == sorted((folder / config).iterdir())


@_EACH_CONFIG
def test_the_records_are_what_went_in(config: str, exported) -> None:
    dataset = exported.datasets[config]
    rows = {row.key: row for row in dataset.rows.values()}
    found = {}
    for record in _open(exported).records(config):
        example = {re.sub(f"^{config}/", "", name): value for name, value in record.items()}
        found[example["key"].decode()] = example
    assert found.keys() == rows.keys()
    for key, row in rows.items():
        example = found[key]
        assert example["caption"] == row.caption.encode()
        assert example["url"] == row.url.encode()
        assert example["license"] == row.license.encode()
        assert example["nsfw"] == TAGS.index(NsfwTag(row.nsfw))
        assert example["similarity"] == row.similarity
        assert (example["original_width"], example["original_height"]) == (
            row.original_width,
            row.original_height,
        )
        if config != "embeddings":
            with Image.open(io.BytesIO(row.picture)) as opened:
                np.testing.assert_array_equal(np.asarray(example["image"]), np.asarray(opened))
        if config != "images":
            for name, went_in in (("image_embedding", dataset.image), ("text_embedding", dataset.text)):
                assert np.array(example[name], np.float16).tobytes() == went_in[row.url].tobytes()


def test_every_column_has_a_field_of_its_shape(exported) -> None:
    import pyarrow.parquet as pq

    for record_set in _open(exported).metadata.record_sets:
        path = next((exported.layout.export_folder / record_set.id).iterdir())
        columns = pq.read_schema(path)
        assert [field.name for field in record_set.fields] == columns.names
        shapes = {field.name: field.array_shape_tuple for field in record_set.fields if field.is_array}
        widths = {
            column.name: (column.type.list_size,) for column in columns if hasattr(column.type, "list_size")
        }
        assert shapes == widths
