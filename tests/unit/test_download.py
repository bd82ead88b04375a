import http.server
import io
import os
import threading
from pathlib import Path

import pytest
from PIL import Image

from laion_assets.download import Wanted, download
from laion_assets.fetch.policy import FetchPolicy
from laion_assets.fetch.transport import FakeTransport, respond
from laion_assets.formats.journal import open_journal
from laion_assets.image import check_and_resize
from laion_assets.image_policy import ImagePolicy
from laion_assets.outcomes import Outcome, Status

PHOTOS = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "photos"
FETCH = FetchPolicy(
    allow_loopback=True, backoff_s=0, attempts=1, per_domain_concurrency=16, per_domain_interval_s=0
)
IMAGE = ImagePolicy(size=64, workers=1)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def fetch(tmp_path, urls, *, work="", **options):
    with open_journal(tmp_path / "journal", work=work) as journal:
        return download([Wanted(url=url) for url in urls], journal, FETCH, IMAGE, **options)


@pytest.fixture
def serve():
    """Serves a folder at an address on 127.0.0.1."""
    servers = []

    def start(folder):
        handler = type(
            "Handler", (Quiet,), {"__init__": lambda self, *a: Quiet.__init__(self, *a, directory=folder)}
        )
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server, thread in servers:
        server.shutdown()
        server.server_close()
        thread.join()


def test_real_photographs_over_a_real_connection(tmp_path, serve):
    if not PHOTOS.is_dir():
        pytest.skip(f"{PHOTOS} is not there")
    names = sorted(path.relative_to(PHOTOS) for path in PHOTOS.rglob("*") if path.is_file())
    base = serve(PHOTOS)
    urls = [f"{base}/{name}" for name in names]
    found = fetch(tmp_path, [*urls, f"{base}/gone.jpg"])
    pictures = (tmp_path / "journal").read_bytes()
    for name, one in zip(names, found[:-1], strict=True):
        body = (PHOTOS / name).read_bytes()
        assert one.body_bytes == len(body)
        if name.suffix not in (".jpg", ".png"):
            assert (one.status, one.outcome) == (Status.FAILED_TO_RESIZE, Outcome.NOT_AN_IMAGE)
            continue
        expected = check_and_resize(body, IMAGE)
        assert pictures[one.picture.offset :][: one.picture.size] == expected.encoded
        assert (one.picture.width, one.picture.height) == (expected.width, expected.height)
    assert sum(one.outcome is Outcome.SUCCESS for one in found) >= 38
    assert found[-1].outcome is Outcome.HTTP_4XX


def test_the_order_is_that_of_the_urls(tmp_path):
    def handler(url):
        stream = io.BytesIO()
        Image.new("RGB", (20 + int(url[-2:]), 20)).save(stream, "PNG")
        return respond(200, stream.getvalue())

    urls = [f"http://host.com/{number:02d}" for number in range(50)]
    found = fetch(tmp_path, urls, transport=FakeTransport(handler))
    assert [one.picture.original_width for one in found] == [20 + number for number in range(50)]


def test_nothing_to_download_is_no_fault(tmp_path):
    assert fetch(tmp_path, []) == []


def test_no_descriptors_threads_or_processes_stay_behind(tmp_path, serve):
    (tmp_path / "web").mkdir()
    Image.new("RGB", (20, 20)).save(tmp_path / "web" / "a.png")
    base = serve(tmp_path / "web")
    fetch(tmp_path, [f"{base}/a.png"])
    before = (count_descriptors(), children())
    for work in "abc":
        found = fetch(tmp_path, [f"{base}/a.png"] * 20, work=work)
        assert {one.outcome for one in found} == {Outcome.SUCCESS}
    assert (count_descriptors(), children()) == before


def count_descriptors():
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def children():
    stats = (path / "stat" for path in Path("/proc").iterdir() if path.name.isdigit())
    return {path.parent.name for path in stats if parent_of(path) == os.getpid()}


def parent_of(stat):
    try:
        return int(stat.read_text().rsplit(")", 1)[1].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return None
