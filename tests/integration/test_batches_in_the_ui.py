"""A batch with a bad shard through the real webserver and daemon, and what failed launched again."""

import signal
import time

import pytest
from served_ui import address_of, ask, backfill_status, free_port, launch_backfill, runs, start_ui
from test_placed_shards import SETTINGS, lay_down

from laion_assets.pipeline import IMAGES, STAGE_BY_NAME
from laion_assets.settings import Settings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SHARDS = ["00000", "00001", "00002"]
BAD = "00001"
PATIENCE_S = 240


@pytest.fixture
def tar(tmp_path):
    """The tar of a shard that was cut short; what it should have held."""
    folder = tmp_path / "data" / "images"
    for shard in SHARDS:
        lay_down(folder, int(shard), rows=20, seed=int(shard))
    path = folder / f"{BAD}.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    return path, whole


@pytest.fixture
def ui(tmp_path, tar):
    """Address of the UI over three planned shards."""
    (tmp_path / "laion.toml").write_text(SETTINGS)
    STAGE_BY_NAME["shard_plan"].run(Settings.load(tmp_path / "laion.toml"), "shard_plan")
    port = free_port()
    process = start_ui(tmp_path / "laion.toml", port, tmp_path / "ui.log")
    yield address_of(port)
    process.send_signal(signal.SIGTERM)
    process.wait(60)


def finish(ui, backfill):
    """Status of a backfill that has ended, and those of its runs."""
    deadline = time.monotonic() + PATIENCE_S
    while (status := backfill_status(ui, backfill)) in ("REQUESTED", "COMPLETING", "FAILING"):
        assert time.monotonic() < deadline, status
        time.sleep(0.5)
    return status, [run["status"] for run in runs(ui) if run["tags"].get("dagster/backfill") == backfill]


def failed_or_missing(ui):
    """What "failed and missing only" in the dialogue of a backfill leaves of the partitions."""
    query = (
        "query($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) { ... on AssetNode {"
        " assetPartitionStatuses { ... on DefaultPartitionStatuses {"
        " failedPartitions unmaterializedPartitions } } } } }"
    )
    found = set()
    for stage in IMAGES:
        node = ask(ui, query, key={"path": [stage]})["assetNodeOrError"]
        found |= {key for keys in node["assetPartitionStatuses"].values() for key in keys}
    return sorted(found)


def why(ui, stage):
    """What the page of a partition says of its failures: partition -> reason."""
    query = (
        "query($key: AssetKeyInput!) { assetOrError(assetKey: $key) { ... on Asset {"
        " assetEventHistory(limit: 10, eventTypeSelectors: [FAILED_TO_MATERIALIZE]) { results {"
        " ... on FailedToMaterializeEvent { partition metadataEntries { label"
        " ... on TextMetadataEntry { text } } } } } } } }"
    )
    events = ask(ui, query, key={"path": [stage]})["assetOrError"]["assetEventHistory"]["results"]
    return {event["partition"]: event["metadataEntries"][0]["text"] for event in events}


def test_a_bad_shard_takes_only_itself_down_and_is_all_that_is_done_again(ui, tar):
    status, of_runs = finish(ui, launch_backfill(ui, list(IMAGES), SHARDS))
    assert (status, of_runs) == ("COMPLETED_FAILED", ["FAILURE"])
    assert failed_or_missing(ui) == [BAD]
    assert f"{BAD}.tar" in why(ui, "images")[BAD]
    assert why(ui, "tfds_images")[BAD].startswith("images failed: ")
    path, whole = tar
    path.write_bytes(whole)
    status, of_runs = finish(ui, launch_backfill(ui, list(IMAGES), failed_or_missing(ui)))
    assert (status, of_runs) == ("COMPLETED_SUCCESS", ["SUCCESS"])
    assert failed_or_missing(ui) == []
