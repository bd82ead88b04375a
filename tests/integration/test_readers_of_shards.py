"""What others' readers make of our shards: webdataset's, and img2dataset 1.47's own code."""

import gc
import hashlib
import http.server
import io
import json
import os
import subprocess
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from laion_assets.columns import ColumnPolicy
from laion_assets.fetch.policy import FetchPolicy
from laion_assets.fetch.transport import FakeTransport, respond
from laion_assets.formats.publish import verify
from laion_assets.image_policy import ImagePolicy
from laion_assets.layout import Layout, ShardId
from laion_assets.placed_images import PLACED
from laion_assets.stages.images import images
from laion_assets.stages.normalized_images import normalize_images
from laion_assets.stages.raw_metadata import check_part
from laion_assets.stages.samples import write_samples
from laion_assets.stages.shard_plan import plan_shards

ROOT = Path(__file__).resolve().parents[2]
IMG2DATASET = ROOT / ".venv-img2dataset" / "bin" / "python"

ROWS = 10
SHARDS = (ShardId(0), ShardId(1))
FAILED = (3, 14)
COLUMNS = ColumnPolicy(extra_columns=("punsafe", "boxes"), digest_column="digest")


def body(row):
    stream = io.BytesIO()
    Image.new("RGB", (64, 48), (row * 8, 100, 200)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    """Two shards of ten rows, one row of each failed."""
    folder = tmp_path_factory.mktemp("shards")
    layout = Layout(folder / "data")
    rows = range(ROWS * len(SHARDS))
    table = {
        "URL": [f"http://host{row}.com/{row}" for row in rows],
        "TEXT": [f"caption {row} ☃ <b>" for row in rows],
        "NSFW": ["UNLIKELY"] * len(rows),
        "punsafe": pa.array([row / 100 for row in rows], pa.float32()),
        "boxes": [[[0.0, 0.0, 0.5, 0.5]] * (row % 3) for row in rows],
        "digest": [hashlib.sha256(body(row)).hexdigest() for row in rows],
    }
    pq.write_table(pa.table(table), folder / "p.parquet")
    location = str(folder / "p.parquet")
    check_part("p", layout, location=location, source_schema="laion2b", rows_per_shard=ROWS, columns=COLUMNS)
    plan_shards(layout, ("p",), rows_per_shard=ROWS)

    def answer(url):
        row = int(url.rsplit("/", 1)[1])
        return respond(404) if row in FAILED else respond(200, body(row))

    for shard in SHARDS:
        write_samples(shard, layout, columns=COLUMNS)
        images(
            shard,
            layout,
            FetchPolicy(backoff_s=0),
            ImagePolicy(size=32, workers=1),
            columns=COLUMNS,
            transport=FakeTransport(answer),
        )
    return layout


def rows_of(layout):
    return [row for shard in SHARDS for row in pq.read_table(layout.images_table(shard)).to_pylist()]


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_webdataset_reads_pictures_captions_and_rows_in_key_order(layout):
    tars = [str(layout.images_tar(shard)) for shard in SHARDS]
    samples = list(webdataset.WebDataset(tars, shardshuffle=False).decode("rgb8"))
    gc.collect()  # webdataset 1.0.2 closes no tar
    successes = [row for row in rows_of(layout) if row["status"] == "success"]
    assert len(successes) == ROWS * len(SHARDS) - len(FAILED)
    assert [sample["__key__"] for sample in samples] == [row["key"] for row in successes]
    for sample, row in zip(samples, successes, strict=True):
        assert sample["txt"] == row["caption"]
        assert sample["json"] == {name: row[name] for name in sample["json"]}
        assert {"punsafe", "boxes", "sha256"} < set(sample["json"])
        number = int(row["url"].rsplit("/", 1)[1])
        assert sample["jpg"].shape == (row["height"], row["width"], 3) == (32, 43, 3)
        assert np.abs(sample["jpg"].astype(int) - (number * 8, 100, 200)).max() < 8


@pytest.fixture
def img2dataset():
    """The interpreter of an environment with img2dataset, which pins packages that ours has otherwise."""
    if not IMG2DATASET.exists():
        message = f"{IMG2DATASET} is not there: make .venv-img2dataset/done"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return IMG2DATASET


class Web(http.server.BaseHTTPRequestHandler):
    """A picture at every even number."""

    def do_GET(self):
        number = int(self.path[1:])
        self.send_response(404 if number % 2 else 200)
        data = b"" if number % 2 else body(number)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def web():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Web)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def contents(layout):
    return {path.name: path.read_bytes() for path in layout.images_folder.iterdir() if path.is_file()}


def test_img2dataset_takes_our_shards_for_its_own_and_we_take_its(layout, img2dataset, web, tmp_path):
    rows, before = rows_of(layout), contents(layout)
    # Of its list, the first two shards are ours; the third is left for it to download.
    third = {"url": [f"{web}/{row}" for row in range(ROWS)], "caption": ["c"] * ROWS}
    ours = {name: [row[name] for row in rows] for name in third}
    urls = tmp_path / "urls.parquet"
    pq.write_table(pa.table({name: ours[name] + third[name] for name in third}), urls)
    columns = ["NSFW", "punsafe", "boxes", "key"]
    answer = tmp_path / "seen.json"
    script = Path(__file__).with_name("img2dataset_readers.py")
    finished = subprocess.run(
        [img2dataset, script, layout.images_folder, urls, answer, str(ROWS), *columns],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        env=os.environ | {"WANDB_MODE": "disabled", "NO_ALBUMENTATIONS_UPDATE": "1"},
    )
    assert finished.returncode == 0, finished.stderr
    seen = json.loads(answer.read_text())

    expected = [{name: row[name] for name in (*columns, "caption", "sha256", "url")} for row in rows]
    assert seen["table"]["shards"] == [expected[:ROWS]]
    assert seen["folder"]["shards"] == [expected[:ROWS], expected[ROWS:]]
    assert seen["logger"].pop("seconds") > 0
    assert seen["logger"] == {
        "count": len(rows),
        "success": len(rows) - len(FAILED),
        "failed_to_download": len(FAILED),
        "failed_to_resize": 0,
    }
    assert "failed to parse" not in finished.stdout
    assert "error" not in finished.stdout + finished.stderr

    after = contents(layout)
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() == {"00002.tar", "00002.parquet", "00002_stats.json"}
    for shard in SHARDS:
        verify(layout.images(shard))
    adopted = images(ShardId(2), layout, FetchPolicy(), ImagePolicy())
    assert (adopted.recipe, adopted.counts["success"]) == (PLACED, ROWS // 2)
    assert normalize_images(ShardId(2), layout).rows == ROWS // 2
