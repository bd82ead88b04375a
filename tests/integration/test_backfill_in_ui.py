"""What a person does in the UI: take a shard, then a range with a bad one in it, mend that, and go on."""

import json
import os
import re
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from browser import browsing
from copying import copy_tree
from PIL import Image
from served_ui import address_of, free_port, runs, start_ui

from laion_assets.formats.publish import done
from laion_assets.layout import ShardId
from laion_assets.settings import Settings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# Where the pictures go that the documents show: LAION_SCREENSHOTS=docs
_SCREENSHOTS = os.environ.get("LAION_SCREENSHOTS")
_VIEW = {"width": 1440, "height": 900}
_LONG_MS = 120_000
_BAD = ShardId(2)
_FOREIGN = ["caption", "url", "NSFW", "similarity", "LICENSE", "key", "status", "error_message"]


@pytest.fixture(scope="module")
def broken(demo, tmp_path_factory):
    """The UI over a copy of the demo with a placed shard whose tar is cut short; and how to mend it."""
    folder = tmp_path_factory.mktemp("ui") / ".demo"
    copy_tree(demo, folder)
    settings = Settings.load(folder / "laion.toml")
    whole = _place_cut_short(settings)
    port = free_port()
    ui = start_ui(folder / "laion.toml", port, folder / "ui.log")
    try:
        yield SimpleNamespace(
            ui=address_of(port),
            settings=settings,
            mend=lambda: settings.layout.images_tar(_BAD).write_bytes(whole),
        )
    finally:
        ui.send_signal(signal.SIGTERM)
        ui.wait(60)


def _place_cut_short(settings):
    """Put a shard as img2dataset writes it in ours' place, without half of its tar; the whole tar."""
    layout = settings.layout
    rows = pq.read_table(layout.images_table(_BAD)).select(_FOREIGN)
    successes = rows["status"].to_pylist().count("success")
    tar = layout.images_tar(_BAD).read_bytes()
    layout.images(_BAD).manifest.unlink()
    for name in layout.images(_BAD).names:
        layout.images(_BAD).path(name).unlink()
    pq.write_table(rows, layout.images_table(_BAD))
    layout.images_tar(_BAD).write_bytes(tar[: len(tar) // 2])
    layout.images_stats(_BAD).write_text(json.dumps({"count": rows.num_rows, "successes": successes}))
    return tar


@pytest.fixture
def page(program):
    """A page of a real browser."""
    chromium = program("chromium", "chromium-browser", "google-chrome", package="chromium")
    pytest.importorskip("playwright.sync_api")
    with browsing(chromium, viewport=_VIEW) as context:
        page = context.new_page()
        page.set_default_timeout(_LONG_MS)
        yield page


def test_a_bad_shard_is_seen_mended_and_run_again(broken, page, tmp_path):
    ui, layout = broken.ui, broken.settings.layout
    folder = Path(_SCREENSHOTS) if _SCREENSHOTS else tmp_path
    bad = f"{ui}/assets/images?view=partitions&partition={_BAD}"

    # One shard, from its own page; a shard that is current is looked at, and recorded anew.
    page.goto(f"{ui}/assets/samples?view=partitions&partition=00000")
    page.get_by_role("button", name="Materialize…").click()
    _launch(page, "Launch 1 run")
    page.goto(f"{ui}/runs")
    page.get_by_text("Success").first.wait_for()

    # A range of shards, one of which cannot be read: it alone fails.
    _choose(page, ui, "Custom", ["00001", "00002", "00003"])
    _launch(page, "Launch backfill")
    _shoot(page, bad, "Failed (1)", folder / "backfill.png")
    _await_runs(page, ui)
    assert done(layout.images(ShardId(1))) is not None
    assert done(layout.images(ShardId(3))) is not None
    assert done(layout.placed_images(_BAD)) is None

    # Its cause is mended, and what failed runs again, and nothing else.
    broken.mend()
    _choose(page, ui, "Failed and missing")
    _launch(page, "Launch 1 run")
    page.goto(bad)
    page.get_by_text("Materialized (7)").wait_for()
    assert done(layout.placed_images(_BAD)) is not None
    assert runs(ui)[0]["tags"]["dagster/partition"] == str(_BAD)

    # What a check found, of the shard that was mended too.
    check = f"{ui}/assets/images?view=checks&checkDetail=tar_holds_the_successes"
    _shoot(page, check, "Passed", folder / "check.png")

    # A shard at a glance, as it was drawn for the record of it.
    page.goto(f"{ui}/assets/normalized_images?view=partitions&partition=00001")
    page.get_by_text("Show Markdown").first.click()
    page.locator("img[src^='data:image/png']").first.wait_for()
    _take(page, folder / "shard.png")


def _choose(page, ui, how, partitions=()):
    """Open the dialogue that takes shards through the whole branch, and choose some."""
    page.goto(f"{ui}/locations/laion_assets/jobs/build_shards")
    page.get_by_role("button", name="Materialize all").click()
    page.get_by_role("button", name=how, exact=True).click()
    if partitions:
        shown = page.get_by_text(re.compile("Select a partition|partitions selected")).last
        # All are chosen where the dialogue knew of them before that.
        are_chosen = "selected" in shown.inner_text()
        shown.click()
        if are_chosen:
            page.get_by_text("Select all").click()
        for partition in partitions:
            page.get_by_text(partition, exact=True).locator("visible=true").last.click()
        page.keyboard.press("Escape")


def _await_runs(page, ui):
    """Until no run goes on: what one is at is neither failed nor missing."""
    deadline = time.monotonic() + _LONG_MS / 1000
    while not all(run["endTime"] for run in runs(ui)):
        assert time.monotonic() < deadline
        page.wait_for_timeout(500)


def _launch(page, button):
    """Press a button, and wait until Dagster has heard of it: another page would cut that off."""
    with page.expect_response(lambda response: "mutation" in (response.request.post_data or "")):
        page.get_by_role("button", name=button).click()


def _shoot(page, address, told, picture):
    """Open a page, and once it shows a text take a picture of it."""
    page.goto(address)
    page.get_by_text(told).first.wait_for()
    _take(page, picture)


def _take(page, picture):
    page.screenshot(path=picture)
    with Image.open(picture) as shot:
        assert shot.size == (_VIEW["width"], _VIEW["height"])
        assert len(shot.convert("RGB").getcolors(1 << 24)) > 100
