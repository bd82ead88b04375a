"""Columns of the source from the raw file to the images, the catalog and the checks."""

import datetime as dt
import hashlib
import io
import json
import math
import tarfile

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from laion_assets.columns import ColumnPolicy
from laion_assets.errors import CorruptParquet, MissingInput, SettingsError
from laion_assets.fetch.policy import FetchPolicy
from laion_assets.fetch.transport import FakeTransport, respond
from laion_assets.image_policy import ImagePolicy
from laion_assets.layout import Layout, ShardId
from laion_assets.quality.checks import evaluate, rules_of
from laion_assets.quality.thresholds import Thresholds
from laion_assets.schema import IMAGES, RAW, REQUESTS, SAMPLES
from laion_assets.stages.catalog import write_catalog
from laion_assets.stages.images import images
from laion_assets.stages.normalized_images import normalize_images
from laion_assets.stages.raw_metadata import check_part
from laion_assets.stages.samples import write_samples
from laion_assets.stages.shard_plan import plan_shards

SHARD = ShardId(0)
ROWS = 12
FETCH = FetchPolicy(backoff_s=0, attempts=2)
IMAGE = ImagePolicy(size=32, workers=1)
HOSTILE = '<img src=x onerror=alert(1)> | \x1b[31m "; DROP TABLE'

EXTRA = {
    "pUnsafe": pa.array([0.5, math.nan, None, math.inf, *[0.1] * (ROWS - 4)], pa.float32()),
    "hash": pa.array(range(-3, ROWS - 3), pa.int64()),
    "nested": pa.array([[[1.0, math.nan], []], None, *[[[0.5]]] * (ROWS - 2)]),
    "told": pa.array([HOSTILE, None, "", *["x"] * (ROWS - 3)], pa.large_string()),
    "kind": pa.array(["a", "b"] * (ROWS // 2)).dictionary_encode(),
    "seen": pa.array([dt.datetime(2021, 8, 20, tzinfo=dt.UTC)] * ROWS, pa.timestamp("ms")),
    'odd "name"': pa.array([True] * ROWS),
}  # fmt: skip
ALL = ColumnPolicy(extra_columns=("PUNSAFE", *list(EXTRA)[1:]))


def picture(number):
    stream = io.BytesIO()
    Image.effect_noise((40 + number, 40), 80).convert("RGB").save(stream, "PNG")
    return stream.getvalue()


PICTURES = [picture(number) for number in range(ROWS)]


def answer(url):
    return respond(200, PICTURES[int(url.rsplit("/", 1)[1])], {"Content-Type": "image/png"})


def lay_raw(root, further=EXTRA, rows=ROWS):
    table = {
        "URL": [f"http://host{row % 3}.com/{row}" for row in range(rows)],
        "TEXT": [f"text {row}" for row in range(rows)],
        "similarity": pa.array([0.3] * rows, pa.float64()),
    }
    root.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table | dict(further)), root / "p.parquet")


def take(root, columns, transport=None, fetch=FETCH):
    layout = Layout(root / "data")
    location = str(root / "p.parquet")
    check_part("p", layout, location=location, source_schema="laion2b", rows_per_shard=ROWS, columns=columns)
    plan_shards(layout, ("p",), rows_per_shard=ROWS)
    write_samples(SHARD, layout, columns=columns)
    transport = transport or FakeTransport(answer)
    manifest = images(SHARD, layout, fetch, IMAGE, columns=columns, transport=transport)
    return layout, manifest


def rows_of(layout):
    return pq.read_table(layout.images_table(SHARD)).to_pylist()


def told_of(layout):
    with tarfile.open(layout.images_tar(SHARD)) as tar:
        names = [name for name in tar.getnames() if name.endswith(".json")]
        return [json.loads(tar.extractfile(name).read(), parse_constant=pytest.fail) for name in names]


def test_columns_keep_their_types_and_values_up_to_the_images(tmp_path):
    lay_raw(tmp_path)
    layout, _ = take(tmp_path, ALL)
    for path, ours in (
        (layout.raw_table("p"), RAW),
        (layout.samples(SHARD).only, SAMPLES),
        (layout.images_table(SHARD), IMAGES),
    ):
        table = pq.read_table(path)
        assert table.column_names == [*ours.names, *ALL.extra_columns]
        for name, source in zip(ALL.extra_columns, EXTRA.values(), strict=True):
            expected = source.dictionary_decode() if pa.types.is_dictionary(source.type) else source
            assert table.schema.field(name).type == expected.type
            assert repr(table[name].to_pylist()) == repr(expected.to_pylist())
        assert pq.ParquetFile(path, page_checksum_verification=True).read().num_rows == ROWS
    told = told_of(layout)
    assert [list(one)[-len(EXTRA) :] for one in told] == [list(ALL.extra_columns)] * ROWS
    assert [one["PUNSAFE"] for one in told[:4]] == [0.5, None, None, None]
    assert [one["nested"] for one in told[:3]] == [[[1.0, None], []], None, [[0.5]]]
    assert [one["told"] for one in told[:3]] == [HOSTILE, None, ""]
    assert told[0]["seen"] == "2021-08-20 00:00:00.000"
    assert told[0]["hash"] == -3


def test_the_rest_of_the_pipeline_takes_them_as_they_are(tmp_path):
    lay_raw(tmp_path)
    layout, _ = take(tmp_path, ALL)
    assert normalize_images(SHARD, layout).rows == ROWS
    for stage, key in (("raw_metadata", "p"), ("samples", "00000"), ("images", "00000")):
        for rule in rules_of(stage):
            verdict = evaluate(rule, layout, Thresholds(), key)
            assert verdict.passed, (stage, rule.name, verdict)
    write_catalog(layout)
    with duckdb.connect(str(layout.catalog().only), read_only=True) as catalog:
        for view in ("raw_metadata", "samples", "images"):
            found = catalog.execute(f'SELECT told, "odd ""name""", nested FROM {view} WHERE hash = -3')
            text, truth, nested = found.fetchone()
            assert (text, truth, nested[1]) == (HOSTILE, True, [])
        (total,) = catalog.execute(
            "SELECT sum(attempts) FROM image_requests WHERE shard = '00000'"
        ).fetchone()
        assert total == ROWS
        unknown = "SELECT count(*) FROM duckdb_columns() WHERE NOT internal AND comment IS NULL"
        assert catalog.execute(unknown).fetchone() == (0,)


def test_views_outlive_shards_with_other_columns(tmp_path):
    lay_raw(tmp_path)
    layout, _ = take(tmp_path, ColumnPolicy(extra_columns=("hash",)))
    write_catalog(layout)
    take(tmp_path, ALL)
    with duckdb.connect(str(layout.catalog().only), read_only=True) as catalog:
        columns = [name for name, *_ in catalog.execute("DESCRIBE images").fetchall()]
        assert "hash" in columns
        assert "told" not in columns
        assert catalog.execute("SELECT count(hash) FROM images").fetchone() == (ROWS,)
    write_catalog(layout)
    with duckdb.connect(str(layout.catalog().only), read_only=True) as catalog:
        assert catalog.execute("SELECT told FROM images ORDER BY key").fetchone() == (HOSTILE,)


def test_a_source_without_a_column_is_named(tmp_path):
    lay_raw(tmp_path)
    with pytest.raises(CorruptParquet, match=r"p\.parquet: expected a column 'aesthetic', found URL, TEXT"):
        take(tmp_path, ColumnPolicy(extra_columns=("hash", "aesthetic")))
    with pytest.raises(CorruptParquet, match="digests as text in 'hash', found type int64"):
        take(tmp_path, ColumnPolicy(digest_column="hash"))
    with pytest.raises(SettingsError, match="'cc12m' has no further columns"):
        check_part(
            "p",
            Layout(tmp_path / "other"),
            location=str(tmp_path / "p.parquet"),
            source_schema="cc12m",
            rows_per_shard=ROWS,
            columns=ColumnPolicy(extra_columns=("hash",)),
        )


def test_columns_asked_for_later_need_the_stages_before(tmp_path):
    lay_raw(tmp_path)
    layout, _ = take(tmp_path, ColumnPolicy())
    with pytest.raises(MissingInput, match=r"00000\.parquet was made without the column 'hash'"):
        images(SHARD, layout, FETCH, IMAGE, columns=ColumnPolicy(extra_columns=("hash",)))
    with pytest.raises(MissingInput, match="materialize raw_metadata p again"):
        write_samples(SHARD, layout, columns=ColumnPolicy(extra_columns=("hash",)))


def test_settings_that_change_nothing_leave_what_is_there(tmp_path):
    lay_raw(tmp_path)
    layout, first = take(tmp_path, ColumnPolicy())
    # As versions that knew no further columns wrote it.
    assert (layout.samples(SHARD).manifest).read_bytes().count(b'"settings": ""') == 1
    again = FakeTransport(answer)
    assert take(tmp_path, ColumnPolicy(digest_kind="md5"), transport=again)[1] == first
    assert again.asked == []
    take(tmp_path, ColumnPolicy(extra_columns=("hash",)), transport=again)
    assert len(again.asked) == ROWS


# -- digests ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sha256", "md5", "sha512"])
def test_a_body_that_has_another_digest_is_a_failure_of_its_own(tmp_path, kind):
    digests = [hashlib.new(kind, body).hexdigest() for body in PICTURES]
    digests[1] = digests[1].upper() + " "
    digests[2], digests[3], digests[4] = None, "", "0" * len(digests[4])
    digests[5] = "not hexadecimal"
    lay_raw(tmp_path, {"Digest": digests})
    columns = ColumnPolicy(digest_column="digest", digest_kind=kind)
    layout, manifest = take(tmp_path, columns)
    rows = rows_of(layout)
    assert [row["outcome"] for row in rows] == [
        "digest_mismatch" if row in (4, 5) else "success" for row in range(ROWS)
    ]
    assert (rows[4]["status"], rows[4]["error_message"]) == ("failed_to_download", "hash mismatch")
    assert rows[4]["sha256"] == hashlib.sha256(PICTURES[4]).hexdigest()
    assert rows[4]["body_bytes"] == len(PICTURES[4])
    assert manifest.counts["outcome:digest_mismatch"] == 2
    assert "digest" not in rows[0]
    assert "digest" in pq.read_schema(layout.samples(SHARD).only).names
    stats = json.loads(layout.images_stats(SHARD).read_text())
    assert stats["status_dict"]["hash mismatch"] == 2


def test_the_digest_is_looked_at_before_anything_is_decoded(tmp_path):
    lay_raw(tmp_path, {"sha256": ["0" * 64] * ROWS})
    transport = FakeTransport(lambda url: respond(200, b"no picture"))
    layout, _ = take(tmp_path, ColumnPolicy(digest_column="sha256"), transport=transport)
    assert {row["outcome"] for row in rows_of(layout)} == {"digest_mismatch"}


@pytest.mark.parametrize("kind", ["md5", "sha512"])
def test_another_digest_is_recorded_beside_sha256(tmp_path, kind):
    lay_raw(tmp_path, {})
    fetch = FETCH.model_copy(update={"compute_hash": kind})

    def some(url):
        return respond(404) if url.endswith("/3") else answer(url)

    layout, manifest = take(tmp_path, ColumnPolicy(), fetch=fetch, transport=FakeTransport(some))
    expected = [hashlib.new(kind, body).hexdigest() for body in PICTURES]
    expected[3] = None
    rows = rows_of(layout)
    assert [row[kind] for row in rows] == expected
    assert [one[kind] for one in told_of(layout)] == [digest for digest in expected if digest]
    assert rows[0]["sha256"] == hashlib.sha256(PICTURES[0]).hexdigest()
    layout, other = take(tmp_path, ColumnPolicy())
    assert other.recipe != manifest.recipe
    assert kind not in rows_of(layout)[0]


# -- boxes ------------------------------------------------------------------------------------------------


def test_a_row_whose_boxes_cannot_be_read_is_not_stored_and_not_asked_for(tmp_path):
    boxes = [None, "", "[]", "[[0, 0, 9", "[[10, 10, 20, 20]]", "{}", *[None] * (ROWS - 6)]
    lay_raw(tmp_path, {"face_bboxes": boxes})
    transport = FakeTransport(answer)
    columns = ColumnPolicy(boxes_column="FACE_BBOXES", extra_columns=("face_bboxes",))
    layout, manifest = take(tmp_path, columns, transport=transport)
    rows = rows_of(layout)
    assert [number for number, row in enumerate(rows) if row["outcome"] == "bad_boxes"] == [3, 4, 5]
    assert {row["status"] for row in rows[3:6]} == {"failed_to_download"}
    assert [row["error_message"] for row in rows[3:5]] == [
        "boxes to blur: not JSON",
        "boxes to blur: a box outside of the picture",
    ]
    assert [row["face_bboxes"] for row in rows] == boxes
    assert len(transport.asked) == ROWS - 3
    assert manifest.counts["outcome:bad_boxes"] == 3


@pytest.mark.parametrize("spell", [lambda boxes: boxes, json.dumps])
def test_a_row_with_boxes_is_blurred_there(tmp_path, spell):
    boxes = [spell([[0.0, 0.0, 0.5, 1.0]]), *[None] * (ROWS - 1)]
    lay_raw(tmp_path, {"face_bboxes": boxes})
    plain, _ = take(tmp_path, ColumnPolicy())
    clear = stored(plain)
    blurred, _ = take(tmp_path, ColumnPolicy(boxes_column="face_bboxes"))
    seen = stored(blurred)
    assert seen[1:] == clear[1:]
    left, right = (0, 0, 16, 32), (24, 0, 32, 32)
    before, after = (Image.open(io.BytesIO(bodies[0])).convert("L") for bodies in (clear, seen))
    assert spread(after.crop(left)) < spread(before.crop(left)) / 2
    assert spread(after.crop(right)) > spread(before.crop(right)) / 2


def stored(layout):
    with tarfile.open(layout.images_tar(SHARD)) as tar:
        return [tar.extractfile(name).read() for name in tar.getnames() if name.endswith(".jpg")]


def spread(picture):
    low, high = picture.getextrema()
    return high - low


# -- what was asked ---------------------------------------------------------------------------------------


def test_what_came_back_is_in_the_table_and_what_it_took_in_the_requests(tmp_path):
    lay_raw(tmp_path, {})
    tries = []

    def some(url):
        number = int(url.rsplit("/", 1)[1]) if "?" not in url else 0
        if number == 1:
            return respond(302, headers={"Location": "/moved?to=2"})
        if url.endswith("to=2"):
            return respond(200, PICTURES[2], {"Content-Type": "image/png; x=\u202e\x00"})
        if number == 3:
            tries.append(url)
            return respond(503)
        return answer(url) if number != 4 else respond(200, b"page", {})

    layout, manifest = take(tmp_path, ColumnPolicy(), transport=FakeTransport(some))
    rows = rows_of(layout)
    assert rows[1]["final_url"] == "http://host1.com/moved?to=2"
    assert rows[1]["content_type"] == "image/png; x="
    assert (rows[3]["http_status"], rows[3]["final_url"]) == (503, "http://host0.com/3")
    assert (rows[3]["content_type"], rows[3]["body_bytes"]) == ("", None)
    assert (rows[4]["outcome"], rows[4]["body_bytes"]) == ("not_an_image", 4)
    requests = pq.read_table(layout.images_requests(SHARD))
    assert requests.schema.equals(REQUESTS)
    assert requests["key"].to_pylist() == [row["key"] for row in rows]
    assert requests["attempts"].to_pylist() == [2 if number == 3 else 1 for number in range(ROWS)]
    assert len(tries) == 2
    assert {name for name, record in manifest.files.items() if record.is_log} == {
        "00000_stats.json",
        "00000.requests",
    }
    stats = json.loads(layout.images_stats(SHARD).read_text())
    assert stats["duration"] > 0
    assert stats["end_time"] > stats["start_time"]
