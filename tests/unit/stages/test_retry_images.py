import io
import tarfile

import one_host
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from laion_assets.errors import CorruptInput, PlanError
from laion_assets.fetch.policy import FetchPolicy
from laion_assets.fetch.transport import ExchangeFailed, FakeTransport, respond
from laion_assets.formats import parquet
from laion_assets.formats.publish import Recipe, Tally, read_manifest, verify, vouch
from laion_assets.image_policy import ImagePolicy
from laion_assets.layout import Layout, ShardId
from laion_assets.outcomes import PASSING, Outcome, count_passing
from laion_assets.schema import SAMPLES
from laion_assets.stages.images import download_images, images

SHARD = ShardId(12)
FETCH = FetchPolicy(backoff_s=0, attempts=1, concurrency=4, compute_hash="md5", **one_host.MANNERS)
IMAGE = ImagePolicy(size=32, workers=1)
ROWS = 8


@pytest.fixture
def layout(tmp_path):
    layout = Layout(tmp_path)
    output = layout.samples(SHARD)
    output.folder.mkdir(parents=True)
    rows = [
        {
            "key": f"00012{number:04d}",
            "sample_id": number,
            "url": f"http://host{number}.com/{number}.jpg",
            "caption": f"caption {number}",
            "LICENSE": "?",
            "NSFW": "UNLIKELY",
            "similarity": 0.3,
            "set_aside": "no_url" if number == 2 else None,
        }
        for number in range(ROWS)
    ]
    parquet.write_table(output.only, pa.Table.from_pylist(rows, schema=SAMPLES), SAMPLES)
    vouch(output, Recipe(code_version="1"), lambda: Tally(rows=ROWS))
    return layout


def jpeg(number):
    stream = io.BytesIO()
    Image.new("RGB", (60, 48), (number * 20, 100, 200)).save(stream, "JPEG")
    return stream.getvalue()


def web(failing=None):
    """A web whose pages are pictures, some of them failing: number -> status or exception."""

    def handler(url):
        number = int(url.rsplit("/", 1)[1].removesuffix(".jpg"))
        match (failing or {}).get(number):
            case int(status):
                return respond(status)
            case ExchangeFailed() as error:
                raise error
        return respond(200, jpeg(number))

    return FakeTransport(handler, FETCH)


def timed_out():
    return ExchangeFailed(Outcome.TIMEOUT, "timed out", passing=True)


def first(layout):
    """A shard of which row 1 is gone, 3 and 5 failed for the moment."""
    return download_images(SHARD, layout, FETCH, IMAGE, transport=web({1: 404, 3: timed_out(), 5: 503}))


def retry(layout, transport, fetch=FETCH, image=IMAGE):
    return images(SHARD, layout, fetch, image, transport=transport, retry=True)


def members(layout):
    with tarfile.open(layout.images_tar(SHARD)) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def outcomes(layout):
    return pq.read_table(layout.images_table(SHARD))["outcome"].to_pylist()


def test_only_what_failed_for_the_moment_is_asked_for_again(layout):
    before = first(layout)
    kept = members(layout)
    again = web()
    after = retry(layout, again)
    assert sorted(again.asked) == ["http://host3.com/3.jpg", "http://host5.com/5.jpg"]
    assert count_passing(before.counts) == 2
    assert count_passing(after.counts) == 0
    assert after.rows == ROWS
    assert after.data_version != before.data_version
    assert outcomes(layout)[:4] == ["success", "http_4xx", "set_aside", "success"]
    assert kept.items() <= members(layout).items()
    assert verify(layout.images(SHARD)) == after


def test_it_is_the_shard_that_a_download_without_failures_makes(layout, tmp_path):
    first(layout)
    retry(layout, web())
    retried = {
        path.name: path.read_bytes() for path in (layout.images_table(SHARD), layout.images_tar(SHARD))
    }
    layout.images(SHARD).manifest.unlink()
    download_images(SHARD, layout, FETCH, IMAGE, transport=web({1: 404}))
    for path in (layout.images_table(SHARD), layout.images_tar(SHARD)):
        assert path.read_bytes() == retried[path.name]


def test_what_fails_again_stays_a_failure_and_is_asked_for_another_time(layout):
    first(layout)
    retry(layout, web({3: 404, 5: timed_out()}))
    assert [outcomes(layout)[row] for row in (3, 5)] == ["http_4xx", "timeout"]
    last = web()
    retry(layout, last)
    assert last.asked == ["http://host5.com/5.jpg"]


def test_a_shard_without_such_failures_stays_as_it_is(layout):
    before = download_images(SHARD, layout, FETCH, IMAGE, transport=web({1: 404}))
    again = web()
    assert retry(layout, again) == before
    assert again.asked == []


def test_a_shard_that_is_not_there_is_downloaded(layout):
    transport = web()
    assert retry(layout, transport).counts["success"] == ROWS - 1
    assert len(transport.asked) == ROWS - 1


def test_a_shard_made_with_other_settings_is_refused_and_stays(layout):
    before = first(layout)
    with pytest.raises(PlanError, match="materialize it again"):
        retry(layout, web(), image=ImagePolicy(size=16, workers=1))
    assert read_manifest(layout.images(SHARD)) == before


def test_a_damaged_shard_is_refused_and_stays(layout):
    before = first(layout)
    tar = bytearray(layout.images_tar(SHARD).read_bytes())
    tar[600] ^= 1
    layout.images_tar(SHARD).write_bytes(tar)
    with pytest.raises(CorruptInput, match="changed after it was published"):
        retry(layout, web())
    assert read_manifest(layout.images(SHARD)) == before


def test_an_interrupted_retry_is_gone_on_with(layout):
    first(layout)

    def handler(url):
        if "host5" in url:
            raise RuntimeError("a fault of ours")
        return respond(200, jpeg(3))

    with pytest.raises(RuntimeError, match="a fault of ours"):
        retry(layout, FakeTransport(handler, FETCH), fetch=FETCH.model_copy(update={"concurrency": 1}))
    assert verify(layout.images(SHARD)).counts["outcome:timeout"] == 1
    again = web()
    assert count_passing(retry(layout, again).counts) == 0
    assert "http://host5.com/5.jpg" in again.asked
    assert set(again.asked) <= {"http://host3.com/3.jpg", "http://host5.com/5.jpg"}


def test_the_log_of_requests_is_kept_for_the_rows_not_asked_for(layout):
    first(layout)
    path = layout.images_requests(SHARD)
    before = pq.read_table(path).to_pylist()
    retry(layout, web())
    after = pq.read_table(path).to_pylist()
    assert [row for number, row in enumerate(after) if number not in (3, 5)] == [
        row for number, row in enumerate(before) if number not in (3, 5)
    ]


def test_what_may_pass_is_none_of_the_final_outcomes():
    assert PASSING.isdisjoint({Outcome.SUCCESS, Outcome.HTTP_4XX, Outcome.OPTED_OUT, Outcome.SET_ASIDE})
