"""The real webserver and daemon over the demo, in a real browser."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from PIL import Image

from laion_assets.pipeline import STAGES

pytestmark = pytest.mark.slow

# Where `make screenshot` wants the picture that the README shows.
_SCREENSHOT = os.environ.get("LAION_SCREENSHOT")
_START_S = 90


@pytest.fixture
def ui(demo, tmp_path):
    """Address of the UI that the command line serves over the demo."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "laion_assets", "ui", "--port", str(port)]
    command += ["--settings", str(demo / "laion.toml"), "--workspace", "workspace.yaml"]
    log = (tmp_path / "ui.log").open("w")
    process = subprocess.Popen(
        command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        cwd=Path(__file__).resolve().parents[2],
    )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + _START_S
        while not _answers(address):
            assert process.poll() is None, (tmp_path / "ui.log").read_text()
            assert time.monotonic() < deadline, (tmp_path / "ui.log").read_text()
            time.sleep(0.5)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGINT)
        process.wait(60)
        log.close()


def _answers(address):
    try:
        with urllib.request.urlopen(f"{address}/server_info", timeout=2) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False


def _ask(address, query):
    request = urllib.request.Request(
        f"{address}/graphql", json.dumps({"query": query}).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)["data"]


def test_the_graph_and_its_partitions_are_shown(ui, program, tmp_path):
    nodes = _ask(ui, "{ assetNodes { assetKey { path } partitionStats { numMaterialized numPartitions } } }")
    stats = {node["assetKey"]["path"][0]: node["partitionStats"] for node in nodes["assetNodes"]}
    assert set(stats) == {stage.name for stage in STAGES}
    for name, counts in stats.items():
        if counts is not None:
            assert counts["numMaterialized"] == counts["numPartitions"] > 0, name

    chromium = program("chromium", "chromium-browser", "google-chrome", package="chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    picture = Path(_SCREENSHOT) if _SCREENSHOT else tmp_path / "graph.png"
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=chromium,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        page = browser.new_page(viewport={"width": 2200, "height": 1150})
        page.goto(f"{ui}/asset-groups", wait_until="domcontentloaded")
        page.wait_for_selector("text=laion400m_images", timeout=60_000)
        page.wait_for_timeout(4_000)
        for stage in STAGES:
            assert page.locator(f"text={stage.name}").count() > 0, stage.name
        page.screenshot(path=picture)
        browser.close()
    with Image.open(picture) as shot:
        assert shot.size == (2200, 1150)
        assert len(shot.convert("RGB").getcolors(1 << 24)) > 200
