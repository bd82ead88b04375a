"""Real photographs under real metadata, served on loopback, through the whole graph."""

import functools
import http.server
import io
import threading

import numpy as np
import one_host
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageOps
from tensorflow_datasets.proto import tf_example_pb2

from laion_assets.formats.tfrecord import read_records
from laion_assets.layout import ShardId
from laion_assets.schema import RAW

SETTINGS = f"""\
data_root = "data"
dagster_home = "dagster_home"
rows_per_shard = 20
[raw]
source = "raw"
[fetch]
allow_loopback = true
per_domain_concurrency = 16
{one_host.SETTINGS}"""


@pytest.fixture
def photographs(shared_data):
    folder = shared_data / "photos"
    served = [path for path in sorted(folder.rglob("*")) if path.suffix in {".jpg", ".png"}]
    assert len(served) >= 30

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield {f"http://127.0.0.1:{server.server_port}/{path.relative_to(folder)}": path for path in served}
        server.shutdown()
        thread.join()


def test_every_photograph_keeps_its_own_metadata(build_all, tmp_path, shared_data, photographs):
    real = pq.read_table(shared_data / "laion400m_real_rows" / "laion400m_raw_19rows.parquet").to_pylist()
    rows = []
    for number, url in enumerate(photographs):
        # Real values in every column; the text tells which photograph it was put on.
        row = real[number % len(real)]
        rows.append(row | {"URL": url, "TEXT": f"{row['TEXT']} #{number}"})
    (tmp_path / "raw").mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schema=RAW), tmp_path / "raw" / "part-00000.parquet")

    settings, done = build_all(SETTINGS)

    assert done.failures == {}
    assert not done.blocked
    expected = {row["URL"]: row for row in rows}
    seen = set()
    for shard in (0, 1):
        for payload in read_records(settings.layout.tfds_images(ShardId(shard)).only):
            feature = tf_example_pb2.Example.FromString(payload).features.feature
            url = feature["url"].bytes_list.value[0].decode()
            assert feature["caption"].bytes_list.value[0].decode() == expected[url]["TEXT"]
            assert feature["similarity"].float_list.value[0] == np.float32(expected[url]["similarity"])
            with Image.open(photographs[url]) as original:
                upright = ImageOps.exif_transpose(original).convert("RGB")
            assert feature["original_width"].int64_list.value[0] == upright.width
            assert feature["original_height"].int64_list.value[0] == upright.height
            with Image.open(io.BytesIO(feature["image"].bytes_list.value[0])) as stored:
                assert min(stored.size) == min(256, *upright.size)
                found = np.asarray(stored.convert("RGB"), dtype=np.float64)
                resized = np.asarray(upright.resize(stored.size, Image.Resampling.LANCZOS), dtype=np.float64)
            assert np.abs(found - resized).mean() < 5
            seen.add(url)
    assert seen == set(expected)
