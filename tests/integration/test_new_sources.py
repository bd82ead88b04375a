"""The real daemon, code server and webserver: a part put down is read, planned, shown and published."""

import signal
import time

import one_host
import pytest
from demo_parts import write_part
from served_ui import address_of, ask, free_port, runs, start_ui

from laion_assets.demo.web import DemoWeb

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROWS = 8
SETTINGS = f"""\
data_root = "data"
dagster_home = "dagster_home"
rows_per_shard = 4
[raw]
source = "raw"
[automation]
interval_s = 5
request_runs = true
keep_current = true
[fetch]
allow_loopback = true
{one_host.SETTINGS}"""
WAIT_S = 300


@pytest.fixture
def web():
    with DemoWeb() as running:
        yield running


@pytest.fixture
def ui(tmp_path):
    """Address of the UI over a folder without data."""
    (tmp_path / "raw").mkdir()
    (tmp_path / "laion.toml").write_text(SETTINGS)
    port, log = free_port(), tmp_path / "ui.log"
    process = start_ui(tmp_path / "laion.toml", port, log)
    try:
        yield address_of(port)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def partitions(ui):
    """Stage -> partitions done and partitions known, as the webserver has them; 1 and 1 if it has none."""
    query = (
        "{ assetNodes { assetKey { path } partitionStats { numMaterialized numPartitions }"
        " assetMaterializations(limit: 1) { runId } } }"
    )
    found = {}
    for node in ask(ui, query)["assetNodes"]:
        stats = node["partitionStats"]
        done = len(node["assetMaterializations"])
        name = node["assetKey"]["path"][0]
        found[name] = (stats["numMaterialized"], stats["numPartitions"]) if stats else (done, 1)
    return found


def wait_for(ui, tmp_path, expected):
    deadline = time.monotonic() + WAIT_S
    while {name: found for name, found in partitions(ui).items() if name in expected} != expected:
        assert time.monotonic() < deadline, (partitions(ui), (tmp_path / "ui.log").read_text()[-5_000:])
        time.sleep(1)


def last_check(ui):
    query = (
        '{ assetNodeOrError(assetKey: {path: ["shard_plan"]}) { ... on AssetNode {'
        " assetChecksOrError { ... on AssetChecks { checks { name executionForLatestMaterialization"
        " { evaluation { success severity } } } } } } } }"
    )
    checks = ask(ui, query)["assetNodeOrError"]["assetChecksOrError"]["checks"]
    (found,) = (check for check in checks if check["name"] == "sources_are_there")
    return found["executionForLatestMaterialization"]["evaluation"]


def test_a_part_that_is_put_down_is_built_and_its_loss_is_said(ui, web, tmp_path):
    assert partitions(ui)["raw_metadata"] == (0, 0)
    write_part(tmp_path / "raw" / "part-0.parquet", web, ROWS)
    shards = dict.fromkeys(("samples", "images", "normalized_images", "tfds_images"), (2, 2))
    published = dict.fromkeys(("laion400m_images", "catalog", "dataset_report"), (1, 1))
    wait_for(ui, tmp_path, {"raw_metadata": (1, 1), "shard_plan": (1, 1), **shards, **published})

    # A run that starts late on a loaded machine is marked as failed and retried, by the shipped dagster.yaml.
    jobs = [run["jobName"] for run in runs(ui) if "dagster/retry_number" not in run["tags"]]
    assert [jobs.count(name) for name in ("read_parts", "plan_shards", "build_shards")] == [1, 1, 1]

    assert last_check(ui)["success"]
    (tmp_path / "raw" / "part-0.parquet").unlink()
    deadline = time.monotonic() + WAIT_S
    while last_check(ui)["success"]:
        assert time.monotonic() < deadline, (tmp_path / "ui.log").read_text()[-5_000:]
        time.sleep(1)
    assert last_check(ui)["severity"] == "WARN"
