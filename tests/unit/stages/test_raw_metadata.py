import functools
import hashlib
import http.server
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laion_assets.errors import CorruptInput, CorruptParquet, SourceUnavailable
from laion_assets.formats.parquet import read_table
from laion_assets.formats.publish import verify
from laion_assets.layout import Layout
from laion_assets.raw_source import read_source, without_secrets
from laion_assets.schema import RAW
from laion_assets.stages.raw_metadata import check_part

SHARED = Path(__file__).resolve().parents[3].parent / "shared" / "data"


def raw_table(rows):
    return pa.table(
        {
            "SAMPLE_ID": pa.array(range(rows), pa.int64()),
            "URL": [f"http://example.org/{row}.jpg" for row in range(rows)],
            "TEXT": [None if row % 7 == 0 else f"text {row}" for row in range(rows)],
            "HEIGHT": pa.array([100] * rows, pa.int32()),
            "WIDTH": pa.array([None] * rows, pa.int32()),
            "LICENSE": ["?"] * rows,
            "NSFW": ["UNLIKELY"] * rows,
            "similarity": pa.array([0.3] * rows, pa.float64()),
        },
        schema=RAW,
    )


def check(tmp_path, source, schema="laion400m", rows_per_shard=10):
    layout = Layout(tmp_path / "data")
    manifest = check_part(
        "p", layout, location=str(source), source_schema=schema, rows_per_shard=rows_per_shard
    )
    return layout, manifest


@pytest.mark.parametrize("rows", [0, 1, 9, 10, 11, 57])
@pytest.mark.parametrize("source_group", [1, 7, 1_000])
def test_a_row_group_is_a_shard_however_the_source_was_cut(tmp_path, rows, source_group):
    source = tmp_path / "p.parquet"
    pq.write_table(raw_table(rows), source, row_group_size=source_group)
    layout, manifest = check(tmp_path, source)
    assert manifest.rows == rows
    assert read_table(layout.raw_table("p"), RAW).equals(raw_table(rows))
    metadata = pq.ParquetFile(layout.raw_table("p")).metadata
    groups = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
    assert [size for size in groups if size] == [10] * (rows // 10) + ([rows % 10] if rows % 10 else [])


def test_the_source_is_recorded_and_a_second_run_does_nothing(tmp_path):
    source = tmp_path / "p.parquet"
    pq.write_table(raw_table(20), source)
    layout, first = check(tmp_path, source)
    record = read_source(layout, "p")
    assert record.sha256 == hashlib.sha256(source.read_bytes()).hexdigest()
    assert (record.location, record.size_bytes) == (str(source), source.stat().st_size)
    before = layout.raw_table("p").stat().st_mtime_ns
    assert check(tmp_path, source)[1] == first
    assert layout.raw_table("p").stat().st_mtime_ns == before
    pq.write_table(raw_table(21), source)
    assert check(tmp_path, source)[1].rows == 21


def test_sister_data_sets_are_mapped(tmp_path):
    source = tmp_path / "p.parquet"
    pq.write_table(
        pa.table(
            {
                "url": ["http://a/1", "http://a/2", "http://a/3"],
                "caption": pa.array(["x", "y", None], pa.large_string()),
                "hash": pa.array([5, -6, None], pa.int64()),
                "width": [640.0, float("nan"), 1e12],
                "punsafe": [0.1, 0.2, 0.3],
            }
        ),
        source,
    )
    layout, _ = check(tmp_path, source, "relaion")
    found = read_table(layout.raw_table("p"), RAW)
    assert found["URL"].to_pylist() == ["http://a/1", "http://a/2", "http://a/3"]
    assert found["TEXT"].to_pylist() == ["x", "y", None]
    assert found["SAMPLE_ID"].to_pylist() == [5, -6, None]
    assert found["WIDTH"].to_pylist() == [640, None, None]
    assert found["NSFW"].null_count == 3


def test_cc12m_is_text(tmp_path):
    source = tmp_path / "cc12m.tsv"
    source.write_text('http://a/1\ta "quoted" caption\nhttp://a/2\tanother, with comma\n')
    layout, manifest = check(tmp_path, source, "cc12m")
    assert manifest.rows == 2
    assert read_table(layout.raw_table("p"), RAW)["TEXT"][0].as_py() == 'a "quoted" caption'
    source.write_text("http://a/1\tone\nhttp://a/2\ttwo\tthree\n")
    with pytest.raises(CorruptInput, match=r"cc12m\.tsv: expected lines of URL, TEXT"):
        check(tmp_path, source, "cc12m")


@pytest.mark.parametrize(
    ("table", "found"),
    [
        (pa.table({"url": ["a"], "alt": ["b"]}), "expected a column 'TEXT', found url, alt"),
        (pa.table({"URL": [1], "TEXT": ["b"]}), "values of URL that fit string, found type int64"),
        (pa.table({"URL": ["a"], "TEXT": ["b"], "similarity": ["0.3"]}), "similarity that fit double"),
    ],
)
def test_a_file_of_another_data_set_is_refused(tmp_path, table, found):
    source = tmp_path / "p.parquet"
    pq.write_table(table, source)
    with pytest.raises(CorruptParquet, match=found) as caught:
        check(tmp_path, source)
    assert "source_schema" in str(caught.value)


def test_a_source_that_is_damaged_or_gone_is_named(tmp_path):
    source = tmp_path / "p.parquet"
    with pytest.raises(SourceUnavailable, match=r"p\.parquet"):
        check(tmp_path, source)
    pq.write_table(raw_table(1_000), source)
    source.write_bytes(source.read_bytes()[:-100])
    with pytest.raises(CorruptParquet, match=r"p\.parquet"):
        check(tmp_path, source)
    assert not Layout(tmp_path / "data").raw_metadata("p").manifest.exists()


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


def test_a_part_is_fetched_by_http(tmp_path, server):
    folder, base = server
    pq.write_table(raw_table(25), folder / "p.parquet")
    layout, manifest = check(tmp_path, f"{base}/p.parquet?token=secret")
    assert manifest.rows == 25
    assert verify(layout.raw_metadata("p")) == manifest
    assert read_source(layout, "p").location == f"{base}/p.parquet"
    with pytest.raises(SourceUnavailable, match="404"):
        check(tmp_path, f"{base}/none.parquet")


@pytest.fixture
def bucket(monkeypatch):
    """A bucket as far as readers see it: HEAD and ranged GET (Amazon S3 API reference)."""
    objects = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_HEAD(self):
            self.answer(send=False)

        def do_GET(self):
            self.answer(send=True)

        def answer(self, *, send):
            body = objects.get(self.path.split("?")[0])
            if body is None:
                self.send_response(404)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            status = 200
            if asked := self.headers.get("Range"):
                first, last = asked.removeprefix("bytes=").split("-")
                body, status = body[int(first) : int(last) + 1], 206
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Last-Modified", "Mon, 23 Nov 2026 09:00:00 GMT")
            self.send_header("Content-Type", "application/octet-stream")
            self.end_headers()
            if send:
                self.wfile.write(body)

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield objects, f"endpoint_override=127.0.0.1:{httpd.server_port}&scheme=http&region=us-east-1"
        httpd.shutdown()
        thread.join()


def test_a_part_is_fetched_from_s3(tmp_path, bucket):
    objects, server = bucket
    pq.write_table(raw_table(25), tmp_path / "p.parquet")
    objects["/raw/p.parquet"] = (tmp_path / "p.parquet").read_bytes()
    layout, manifest = check(tmp_path, f"s3://raw/p.parquet?{server}")
    assert manifest.rows == 25
    assert read_source(layout, "p").location == "s3://raw/p.parquet"
    with pytest.raises(SourceUnavailable, match=r"s3://raw/none\.parquet"):
        check(tmp_path, f"s3://raw/none.parquet?{server}")


def test_secrets_are_not_recorded():
    assert (
        without_secrets("https://me:pw@example.org:8/a/b.parquet?sig=x#y")
        == "https://example.org:8/a/b.parquet"
    )
    assert without_secrets("/data/a.parquet") == "/data/a.parquet"


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real rows are not on this machine")
@pytest.mark.parametrize(
    ("path", "schema", "rows"),
    [
        ("laion400m_real_rows/laion400m_raw_19rows.parquet", "laion400m", 19),
        ("coyo_preview/coyo700m_preview_7rows.parquet", "coyo700m", 7),
        ("web_urls/url_text.parquet", "laion400m", 9_407),
    ],
)
def test_real_rows_are_read(tmp_path, path, schema, rows):
    layout, manifest = check(tmp_path, SHARED / path, schema)
    found = read_table(layout.raw_table("p"), RAW)
    assert manifest.rows == found.num_rows == rows
    assert found["URL"].null_count == 0
    assert found["TEXT"].null_count == 0
    if schema != "laion400m" or rows == 19:
        assert all(0 < value <= 1 for value in found["similarity"].to_pylist())
        assert found["HEIGHT"].null_count == 0
