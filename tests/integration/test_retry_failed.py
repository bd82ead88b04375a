"""Downloads that failed for the moment, retried by a build, the job and the schedule."""

import datetime as dt
import io
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import dagster as dg
import one_host
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from laion_assets.defs.assembly import build_definitions
from laion_assets.defs.instance import open_instance
from laion_assets.defs.partitions import range_tags
from laion_assets.defs.recording import RETRY_TAG
from laion_assets.formats.publish import verify
from laion_assets.layout import ShardId
from laion_assets.schema import RAW

SETTINGS = f"""\
data_root = "data"
dagster_home = "dagster_home"
rows_per_shard = 3
[raw]
source = "raw"
[fetch]
allow_loopback = true
attempts = 1
per_domain_concurrency = 4
{one_host.SETTINGS}"""
ROWS = 9
SCHEDULE = "retry_failed_weekly"


class Web:
    """Pictures at /0 to /8; those in ``down`` are a server's error for now. Counts what it is asked for."""

    def __init__(self):
        self.asked = Counter()
        self.down = {"/1", "/7"}
        web = self
        stream = io.BytesIO()
        Image.new("RGB", (60, 48), (200, 100, 50)).save(stream, "JPEG")
        picture = stream.getvalue()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                web.asked[self.path] += 1
                body = b"" if self.path in web.down else picture
                self.send_response(503 if self.path in web.down else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def heal(self):
        self.down = set()
        self.asked.clear()


@pytest.fixture
def web(tmp_path):
    running = Web()
    thread = Thread(target=running.server.serve_forever)
    thread.start()
    address = f"http://127.0.0.1:{running.server.server_port}"
    rows = [{"URL": f"{address}/{row}", "TEXT": f"picture {row}", "similarity": 0.31} for row in range(ROWS)]
    (tmp_path / "raw").mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schema=RAW), tmp_path / "raw" / "part-0.parquet")
    yield running
    running.server.shutdown()
    running.server.server_close()
    thread.join()


def successes(settings):
    return [verify(settings.layout.images(ShardId(number))).counts["success"] for number in range(3)]


@pytest.mark.slow
def test_a_build_retries_only_what_failed_for_the_moment(build_all, web):
    settings, done = build_all(SETTINGS)
    assert done.went_well
    assert successes(settings) == [2, 3, 2]
    web.heal()
    _, done = build_all(SETTINGS)
    assert web.asked == {}
    _, done = build_all(SETTINGS, retry_failed=True, shards=["00000", "00001"])
    assert done.went_well
    assert web.asked == {"/1": 1}
    assert successes(settings) == [3, 3, 2]
    _, done = build_all(SETTINGS, retry_failed=True)
    assert web.asked == {"/1": 1, "/7": 1}
    assert successes(settings) == [3, 3, 3]
    assert done.manifests["laion400m_images", "laion400m_images"].rows == ROWS
    _, done = build_all(SETTINGS, retry_failed=True)
    assert not any(stage == "images" for stage, _ in done.manifests)


def test_the_job_retries_a_range_and_the_schedule_asks_for_it(build_all, web):
    settings, _ = build_all(SETTINGS)
    web.heal()
    definitions = build_definitions(settings)
    repository = definitions.get_repository_def()
    schedule = repository.get_schedule_def(SCHEDULE)
    assert schedule.default_status is dg.DefaultScheduleStatus.STOPPED
    at = dt.datetime(2026, 1, 4, 3, tzinfo=dt.UTC)
    with open_instance(settings.dagster_home) as instance:
        with dg.build_schedule_context(instance=instance, scheduled_execution_time=at) as context:
            requests = schedule.evaluate_tick(context).run_requests
        assert [request.tags["dagster/partition"] for request in requests] == ["00000", "00002"]
        job = repository.get_job("retry_failed")
        assert RETRY_TAG in job.tags
        run = job.execute_in_process(
            instance=instance, tags=range_tags(["00000", "00001", "00002"]), raise_on_error=False
        )
        assert run.success
        assert web.asked == {"/1": 1, "/7": 1}
        assert successes(settings) == [3, 3, 3]
        with dg.build_schedule_context(instance=instance, scheduled_execution_time=at) as context:
            tick = schedule.evaluate_tick(context)
        assert tick.run_requests == []
        assert "no shard" in tick.skip_message
