import os
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from laion_assets.defs.assembly import build_definitions
from laion_assets.layout import Layout
from laion_assets.partitions import Axis
from laion_assets.pipeline import STAGES
from laion_assets.quality.checks import rules_of
from laion_assets.settings import Settings


@pytest.fixture
def empty(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return build_definitions(Settings.load())


def test_without_data_the_graph_is_whole(empty):
    graph = empty.resolve_asset_graph()
    assert {key.to_user_string() for key in graph.get_all_asset_keys()} == {stage.name for stage in STAGES}
    for stage in STAGES:
        node = graph.get(dg.AssetKey(stage.name))
        assert {key.to_user_string() for key in node.parent_keys} == set(stage.inputs)
        assert node.group_name == stage.group
        assert node.kinds == stage.kinds
        assert node.owners == ["team:data-sets"]
        assert node.code_version == stage.code_version
        assert node.description
        assert (node.partitions_def is None) == (stage.axis is Axis.NONE)
    assert "laion.toml" in graph.get(dg.AssetKey("raw_metadata")).description


def test_lineage_leads_from_the_raw_file_to_every_dataset(empty):
    graph = empty.resolve_asset_graph()
    ancestors = graph.get_ancestor_asset_keys(dg.AssetKey("laion400m_images"))
    assert {key.to_user_string() for key in ancestors} >= {
        "raw_metadata", "shard_plan", "samples", "images", "normalized_images", "tfds_images",
    }  # fmt: skip
    ancestors = graph.get_ancestor_asset_keys(dg.AssetKey("laion400m_embeddings"))
    assert {key.to_user_string() for key in ancestors} >= {
        "embeddings", "embedding_join", "normalized_embeddings", "tfds_embeddings",
    }  # fmt: skip
    ancestors = graph.get_ancestor_asset_keys(dg.AssetKey("laion400m_image_embeddings"))
    assert {key.to_user_string() for key in ancestors} >= {
        "raw_metadata", "images", "embeddings", "image_embeddings", "tfds_image_embeddings",
    }  # fmt: skip


def test_every_rule_is_a_check(empty):
    graph = empty.resolve_asset_graph()
    found = {(key.asset_key.to_user_string(), key.name) for key in graph.asset_check_keys}
    assert found == {(stage.name, rule.name) for stage in STAGES for rule in rules_of(stage.name)}
    assert all(rules_of(stage.name) for stage in STAGES if stage.columns is not None)


def test_every_table_stage_shows_its_columns(empty):
    graph = empty.resolve_asset_graph()
    for stage in STAGES:
        shown = graph.get(dg.AssetKey(stage.name)).metadata.get("dagster/column_schema")
        if stage.columns is None:
            assert shown is None
        else:
            assert [column.name for column in shown.columns] == stage.columns.names
            assert all(column.description for column in shown.columns)


def test_the_code_location_imports_no_heavy_library():
    heavy = {
        "aiohttp", "array_record", "datasets", "etils", "matplotlib", "pandas", "pycurl", "rich",
        "tensorflow", "tensorflow_datasets", "torch",
    }  # fmt: skip
    code = "import sys, laion_assets.definitions; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    imported = set(done.stdout.split())
    assert "laion_assets.pipeline" in imported
    assert imported & heavy == set()


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [["dagster", "definitions", "validate", "-w", "workspace.yaml"], ["dg", "check", "defs"]],
    ids=["dagster", "dg"],
)
def test_the_code_location_is_valid(command, tmp_path, request):
    program, *arguments = command
    done = subprocess.run(
        [Path(sys.executable).parent / program, *arguments], check=False, cwd=request.config.rootpath,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "DG_CLI_CONFIG": str(tmp_path / "dg.toml")},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_vectors_of_image_shards_are_looked_up_in_indexes_of_the_joined_shards(empty):
    graph = empty.resolve_asset_graph()
    ancestors = graph.get_ancestor_asset_keys(dg.AssetKey("image_embeddings"))
    assert {key.to_user_string() for key in ancestors} >= {
        "normalized_images", "embeddings", "embedding_join", "embedding_index",
    }  # fmt: skip


def test_every_description_names_a_file_of_its_stage(empty):
    graph = empty.resolve_asset_graph()
    for stage in STAGES:
        text = graph.get(dg.AssetKey(stage.name)).description
        output = stage.output(Layout(Path()), "00000")
        names = [name.replace("00000", key) for name in output.names for key in ("SHARD", "PART")]
        opened = ("tfds.load", *(f"{output.folder}/{name}" for name in names))
        assert any(name in text for name in opened), stage.name
