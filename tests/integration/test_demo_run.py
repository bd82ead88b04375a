"""What the demo prints and records, and what the command line says of it."""

import os
import re
import shutil
import subprocess
import sys
from xml.etree import ElementTree as ET

import dagster as dg
import duckdb
import pytest
from PIL import Image
from served_ui import ROOT

from laion_assets.defs.instance import open_instance
from laion_assets.partitions import Axis, find_partitions
from laion_assets.pipeline import STAGES
from laion_assets.quality.checks import rules_of
from laion_assets.settings import Settings

# The one thing that is markup: what the project drew itself.
_PICTURE = re.compile(r"!\[[a-z ]+\]\(data:image/png;base64,[A-Za-z0-9+/=]+\)")


@pytest.fixture
def settings(demo):
    return Settings.load(demo / "laion.toml")


def test_it_prints_a_line_for_each_shard(demo, settings):
    printed = demo / "printed.txt"
    if not printed.exists():
        pytest.skip("the demo was built by somebody else")
    text = printed.read_text()
    shards = find_partitions(settings).shards
    assert len(shards) >= 6
    for shard in shards:
        rows, images, failures, passed, total = re.search(
            rf"{shard} +\S +(\d+) +\S +(\d+) +\S +(.*?) +\S +(\d+) of (\d+)", text
        ).groups()
        assert int(images) <= int(rows)
        assert "http_4xx" in failures
        assert 0 < int(passed) <= int(total)
    for remark in re.findall(r"^(?:warning|failed): .*", text, re.MULTILINE):
        assert remark.startswith("warning: "), remark
    assert "captions are true" in text
    assert "tfds.load('laion400m/images'" in text
    assert "127.0.0.1:3000" in text


def test_every_partition_and_check_is_recorded_in_dagster(settings):
    found = find_partitions(settings)
    with open_instance(settings.dagster_home) as instance:
        for stage in STAGES:
            key = dg.AssetKey(stage.name)
            if stage.axis is Axis.NONE:
                assert instance.get_latest_materialization_event(key), stage.name
            else:
                assert instance.get_materialized_partitions(key) == set(found.keys(stage.axis)), stage.name
            for rule in rules_of(stage.name):
                records = instance.event_log_storage.get_asset_check_execution_history(
                    dg.AssetCheckKey(key, rule.name), limit=200
                )
                evaluations = [record.event.dagster_event.event_specific_data for record in records]
                partitions = {evaluation.partition for evaluation in evaluations} - {None}
                assert evaluations, (stage.name, rule.name)
                if stage.axis is not Axis.NONE:
                    assert partitions == set(found.keys(stage.axis)), (stage.name, rule.name)
                if rule.blocking:
                    assert all(evaluation.passed for evaluation in evaluations), (stage.name, rule.name)


def test_materializations_carry_versions_counts_and_no_markup(settings):
    with open_instance(settings.dagster_home) as instance:
        for stage in STAGES:
            event = instance.get_latest_materialization_event(dg.AssetKey(stage.name))
            materialization = event.asset_materialization
            assert materialization.tags["dagster/data_version"]
            assert materialization.tags["dagster/code_version"] == stage.code_version
            assert materialization.metadata["dagster/row_count"].value >= 0
            for value in materialization.metadata.values():
                assert not isinstance(value, dg.UrlMetadataValue)
                if isinstance(value, dg.MarkdownMetadataValue):
                    assert _PICTURE.fullmatch(value.value)


def test_status_says_everything_is_done(cli, settings):
    result = cli("status")
    assert result.returncode == 0, result.stderr
    found = find_partitions(settings)
    for stage in STAGES:
        total = 1 if stage.axis is Axis.NONE else len(found.keys(stage.axis))
        assert re.search(rf"{stage.name} +\S +{stage.axis} +\S +{total} +\S +0 +\S +0 ", result.stdout), stage


def test_check_passes_and_counts_every_rule(cli):
    result = cli("check")
    assert result.returncode == 0, result.stdout + result.stderr
    for stage in STAGES:
        for rule in rules_of(stage.name):
            assert rule.name in result.stdout


def test_a_second_build_writes_nothing(cli, settings):
    before = {path: path.stat().st_mtime_ns for path in settings.data_root.rglob("*") if path.is_file()}
    result = cli("build")
    assert result.returncode == 0, result.stderr
    after = {path: path.stat().st_mtime_ns for path in settings.data_root.rglob("*") if path.is_file()}
    assert after == before


def test_show_draws_a_contact_sheet(cli, tmp_path):
    result = cli("show", "00001", "--output", tmp_path / "sheet.png")
    assert result.returncode == 0, result.stderr
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 500
        assert len(sheet.convert("RGB").getcolors(1 << 24)) > 50


@pytest.fixture
def copy(demo, tmp_path):
    """A copy of the demo that a test may damage."""
    shutil.copytree(demo, tmp_path / ".demo", symlinks=True)
    return Settings.load(tmp_path / ".demo" / "laion.toml")


def test_check_fails_on_a_damaged_shard(copy, tmp_path, run_cli):
    target = copy.data_root / "tfds_images" / "00002.tfrecord"
    body = bytearray(target.read_bytes())
    body[len(body) // 2] ^= 1
    target.write_bytes(body)
    settings = tmp_path / ".demo" / "laion.toml"
    result = run_cli("check", "--junit", "checks.xml", "--settings", settings, cwd=tmp_path)
    assert result.returncode == 1
    assert "tfds_images" in result.stdout
    failed = ET.parse(tmp_path / "checks.xml").findall(".//testcase[failure]")
    assert {("tfds_images.records_are_the_rows", "00002")} <= {
        (case.get("classname"), case.get("name")) for case in failed
    }


def test_verify_reads_everything_and_names_what_is_damaged(copy, tmp_path, run_cli):
    settings = tmp_path / ".demo" / "laion.toml"
    whole = run_cli("verify", "--settings", settings, cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    for stage in STAGES:
        assert stage.name in whole.stdout
    target = copy.data_root / "images" / "00002.tar"
    body = bytearray(target.read_bytes())
    body[len(body) // 2] ^= 1
    target.write_bytes(body)
    (copy.data_root / "samples" / "00001.parquet").unlink()
    result = run_cli("verify", "--settings", settings, cwd=tmp_path)
    assert result.returncode == 1
    assert re.search(r"images/00002\.tar: expected XXH3-128 .*images/00002\.manifest", result.stderr)
    assert re.search(r"samples/00001\.parquet: expected \d+ bytes, found no file", result.stderr)
    assert len(result.stderr.splitlines()) == 2
    only = run_cli("verify", "--shards", "00003", "--settings", settings, cwd=tmp_path)
    assert only.returncode == 0, only.stderr


def test_a_file_that_was_deleted_is_made_again_by_the_next_build(copy, tmp_path, run_cli):
    target = copy.data_root / "normalized_images" / "00002.parquet"
    before = target.read_bytes()
    target.unlink()
    settings = tmp_path / ".demo" / "laion.toml"
    result = run_cli("build", "--settings", settings, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert target.read_bytes() == before
    assert re.search(r"what is missing will take about .*; .* are free", result.stdout)


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ["-m", "dagster", "asset", "materialize", "-m", "laion_assets.definitions", "--select"],
        ["-m", "dagster_dg_cli.cli", "launch", "--assets"],
    ],
    ids=["dagster", "dg"],
)
def test_dagsters_own_commands_take_a_range(copy, tmp_path, command):
    settings_file, home = tmp_path / ".demo" / "laion.toml", copy.dagster_home
    done = subprocess.run(
        [sys.executable, *command, "samples,images", "--partition-range", "00001...00003"],
        env={
            **os.environ,
            "LAION_SETTINGS": str(settings_file),
            "LAION_ONE_RUN": "true",
            "DAGSTER_HOME": str(home),
        },
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with open_instance(home) as instance:
        (newest,) = instance.get_run_records(limit=1)
        for stage in ("samples", "images"):
            asset = dg.AssetKey(stage)
            records = instance.fetch_materializations(
                dg.AssetRecordsFilter(asset, asset_partitions=["00001", "00002", "00003"]), limit=3
            ).records
            assert {(one.run_id, one.partition_key) for one in records} == {
                (newest.dagster_run.run_id, key) for key in ("00001", "00002", "00003")
            }


def test_what_is_recorded_of_shards_and_report_has_pictures_and_figures(settings):
    with open_instance(settings.dagster_home) as instance:
        shard = instance.get_latest_materialization_event(dg.AssetKey("normalized_images"))
        report = instance.get_latest_materialization_event(dg.AssetKey("dataset_report"))
    found = shard.asset_materialization.metadata
    assert {name for name, value in found.items() if isinstance(value, dg.MarkdownMetadataValue)} == {
        "overview", "pictures",
    }  # fmt: skip
    assert found["rows per second"].value > 0
    assert len(shard.to_json()) < 40_000
    found = report.asset_materialization.metadata
    assert {name for name, value in found.items() if isinstance(value, dg.MarkdownMetadataValue)} == {
        "data set", "runs",
    }  # fmt: skip
    assert len(report.to_json()) < 400_000


def test_the_catalogs_example_queries_find_something(settings):
    with duckdb.connect(str(settings.layout.catalog().only), read_only=True) as catalog:
        for question, query in catalog.execute("SELECT question, query FROM example_queries").fetchall():
            assert catalog.execute(query).fetchall(), question
