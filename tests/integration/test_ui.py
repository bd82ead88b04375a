"""The real webserver and daemon over the demo: its graph in a real browser, and a backfill."""

import os
import signal
import time
from pathlib import Path

import pytest
from copying import copy_tree
from PIL import Image
from served_ui import (
    address_of,
    answers,
    ask,
    backfill_status,
    free_port,
    launch_backfill,
    launch_job_backfill,
    runs,
    start_ui,
)

from laion_assets.lineage import COLUMN_ORIGINS
from laion_assets.partitions import find_partitions
from laion_assets.pipeline import STAGES
from laion_assets.settings import Settings

pytestmark = pytest.mark.slow

# Where the picture goes that the README shows: LAION_SCREENSHOT=docs/graph.png
_SCREENSHOT = os.environ.get("LAION_SCREENSHOT")
_BACKFILL_S = 120


@pytest.fixture(scope="module")
def ui(demo, tmp_path_factory):
    """Address of the UI that the command line serves over a copy of the demo, which others read meanwhile."""
    folder = tmp_path_factory.mktemp("ui") / ".demo"
    copy_tree(demo, folder)
    port = free_port()
    process = start_ui(folder / "laion.toml", port, folder / "ui.log")
    try:
        yield address_of(port)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    assert not answers(address_of(port)), "the webserver outlived the command that started it"


def test_every_partition_is_there_and_fresh(ui):
    query = (
        "{ assetNodes { assetKey { path } staleStatus partitionStats { numMaterialized numPartitions } } }"
    )
    nodes = {node["assetKey"]["path"][0]: node for node in ask(ui, query)["assetNodes"]}
    assert set(nodes) == {stage.name for stage in STAGES}
    for name, node in nodes.items():
        assert node["staleStatus"] == "FRESH", name
        if (counts := node["partitionStats"]) is not None:
            assert counts["numMaterialized"] == counts["numPartitions"] > 0, name


def test_no_partition_is_stale(ui, demo):
    found = find_partitions(Settings.load(demo / "laion.toml"))
    query = (
        "query($key: AssetKeyInput!, $partition: String!) { assetNodeOrError(assetKey: $key)"
        " { ... on AssetNode { staleStatus(partition: $partition)"
        " staleCauses(partition: $partition) { reason } } } }"
    )
    for stage in STAGES:
        for partition in found.keys(stage.axis)[:2]:
            node = ask(ui, query, key={"path": [stage.name]}, partition=partition)["assetNodeOrError"]
            assert node["staleStatus"] == "FRESH", (stage.name, partition, node)


def test_columns_say_what_they_are_made_of(ui):
    query = (
        "{ assetNodes { assetKey { path } metadataEntries { ... on TableColumnLineageMetadataEntry"
        " { label lineage { columnName columnDeps { assetKey { path } columnName } } } } } }"
    )
    found = {
        (node["assetKey"]["path"][0], column["columnName"]): [
            (made_of["assetKey"]["path"][0], made_of["columnName"]) for made_of in column["columnDeps"]
        ]
        for node in ask(ui, query)["assetNodes"]
        for entry in node["metadataEntries"]
        for column in entry.get("lineage", ())
    }
    assert found["laion400m_images", "caption"] == [("tfds_images", "caption")]
    assert found["samples", "caption"] == [("raw_metadata", "TEXT")]
    shown = {(stage, column) for stage, columns in COLUMN_ORIGINS.items() for column in columns}
    assert set(found) == {(stage, column) for stage, column in shown if COLUMN_ORIGINS[stage][column]}


def test_the_graph_is_drawn(ui, program, tmp_path):
    chromium = program("chromium", "chromium-browser", "google-chrome", package="chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    picture = Path(_SCREENSHOT) if _SCREENSHOT else tmp_path / "graph.png"
    groups = "%2C".join(f"global%40global%3A{group}" for group in sorted({stage.group for stage in STAGES}))
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=chromium,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        page = browser.new_page(viewport={"width": 3600, "height": 2100})
        page.goto(f"{ui}/asset-groups?expanded={groups}", wait_until="domcontentloaded")
        for stage in STAGES:
            page.get_by_text(stage.name, exact=True).last.wait_for(timeout=60_000)
        page.get_by_text("7 partitions").first.wait_for(timeout=60_000)
        page.wait_for_timeout(3_000)
        page.screenshot(path=picture)
        browser.close()
    with Image.open(picture) as shot:
        assert shot.size == (3600, 2100)
        assert len(shot.convert("RGB").getcolors(1 << 24)) > 200


def status_at_the_end(ui, backfill):
    deadline = time.monotonic() + _BACKFILL_S
    status = "REQUESTED"
    while status == "REQUESTED" and time.monotonic() < deadline:
        time.sleep(1)
        status = backfill_status(ui, backfill)
    return status


def statuses_of_runs(ui, backfill):
    return [run["status"] for run in runs(ui) if run["tags"].get("dagster/backfill") == backfill]


def test_a_backfill_takes_a_range_of_shards_in_one_run(ui):
    chain = ["samples", "images", "normalized_images", "tfds_images"]
    backfill = launch_backfill(ui, chain, ["00000", "00001", "00002"])
    assert status_at_the_end(ui, backfill) == "COMPLETED_SUCCESS"
    assert statuses_of_runs(ui, backfill) == ["SUCCESS"]


def test_a_batch_of_shards_is_checked_and_none_is_made_again(ui):
    query = (
        "query($key: AssetKeyInput!, $check: String!) { assetNodeOrError(assetKey: $key) { ... on AssetNode {"
        " assetMaterializations(limit: 1) { runId }"
        " assetCheckOrError(checkName: $check) { ... on AssetCheck { jobNames partitionStatuses {"
        " ... on AssetCheckDefaultPartitionStatuses { succeededPartitions failedPartitions } } } } } }"
        " assetCheckExecutions(assetKey: $key, checkName: $check, limit: 1) { runId evaluation {"
        " partition metadataEntries { label ... on FloatMetadataEntry { floatValue } } } } }"
    )
    asked = {"key": {"path": ["normalized_images"]}, "check": "tags_are_as_elsewhere"}
    before = ask(ui, query, **asked)["assetNodeOrError"]["assetMaterializations"]
    backfill = launch_job_backfill(ui, "check_shards", ["00000..00006"])
    assert status_at_the_end(ui, backfill) == "COMPLETED_SUCCESS"
    assert statuses_of_runs(ui, backfill) == ["SUCCESS"]
    answer = ask(ui, query, **asked)
    node = answer["assetNodeOrError"]
    assert node["assetMaterializations"] == before
    shards = [f"{number:05d}" for number in range(7)]
    found = node["assetCheckOrError"]["partitionStatuses"]
    assert (sorted(found["succeededPartitions"]), found["failedPartitions"]) == (shards, [])
    (latest,) = answer["assetCheckExecutions"]
    assert latest["runId"] in {
        run["runId"] for run in runs(ui) if run["tags"].get("dagster/backfill") == backfill
    }
    assert latest["evaluation"]["partition"] == "00006"
    figures = {entry["label"]: entry.get("floatValue") for entry in latest["evaluation"]["metadataEntries"]}
    # Seven shards are too few to be compared with.
    assert (figures["shards_sampled"], figures["shards_compared"]) == (6.0, 0.0)
    assert 0 < figures["unlikely_share"] <= 1
