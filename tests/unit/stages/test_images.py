import asyncio
import hashlib
import io
import json
import math
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections import Counter
from contextlib import suppress
from pathlib import Path

import duckdb
import hypothesis
import one_host
import pyarrow as pa
import pytest
from hypothesis import strategies as st
from PIL import Image

from laion_assets.errors import (
    CorruptInput,
    CorruptParquet,
    CorruptRecords,
    CorruptTar,
    MisalignedShard,
    MissingInput,
    PlanError,
)
from laion_assets.fetch.policy import FetchPolicy
from laion_assets.fetch.transport import ExchangeFailed, FakeTransport, respond
from laion_assets.formats import parquet, tfrecord
from laion_assets.formats.publish import Recipe, Tally, read_manifest, verify, vouch
from laion_assets.formats.sealed import fingerprint, seal, unseal
from laion_assets.formats.webdataset import index_tar
from laion_assets.image import check_and_resize
from laion_assets.image_policy import ImagePolicy
from laion_assets.layout import Layout, ShardId
from laion_assets.outcomes import Outcome, Status
from laion_assets.published import partitions_of, some_partitions, whole_partitions
from laion_assets.quality.checks import evaluate, rules_of
from laion_assets.quality.contact_sheet import draw_contact_sheet
from laion_assets.quality.thresholds import Thresholds
from laion_assets.schema import IMAGES, IMAGES_IMG2DATASET, REQUESTS, SAMPLES
from laion_assets.stages.catalog import write_catalog
from laion_assets.stages.images import _IMAGE_SETTINGS, adopt_images, download_images, images
from laion_assets.stages.normalized_images import normalize_images
from laion_assets.stages.tfds_images import write_tfds_images

SHARD = ShardId(12)
FETCH = FetchPolicy(
    backoff_s=0,
    attempts=2,
    total_timeout_s=5,
    concurrency=8,
    **one_host.MANNERS,
)
IMAGE = ImagePolicy(size=32, workers=1)


def jpeg(number=0, size=(60, 48)):
    stream = io.BytesIO()
    Image.new("RGB", size, (number % 256, 100, 200)).save(stream, "JPEG")
    return stream.getvalue()


def sample(number, **changes):
    return {
        "key": f"00012{number:04d}",
        "sample_id": number,
        "url": f"http://host{number % 7}.com/{number}.jpg",
        "caption": f"caption {number}",
        "declared_height": 48,
        "declared_width": 60,
        "LICENSE": "?",
        "NSFW": "UNLIKELY",
        "similarity": 0.25 + number / 1000,
        "set_aside": None,
    } | changes


def lay_samples(root, rows):
    layout = Layout(root)
    output = layout.samples(SHARD)
    output.folder.mkdir(parents=True, exist_ok=True)
    parquet.write_table(output.only, pa.Table.from_pylist(rows, schema=SAMPLES), SAMPLES)
    vouch(output, Recipe(code_version="1", settings=str(rows)), lambda: Tally(rows=len(rows)))
    return layout


def web(special=None):
    """A web that has a picture for each number, and something else for some."""

    def handler(url):
        number = int(url.rsplit("/", 1)[1].split(".")[0])
        answer = (special or {}).get(number)
        if isinstance(answer, Exception):
            raise answer
        return respond(200, jpeg(number), {"Content-Type": "image/jpeg"}) if answer is None else answer

    return FakeTransport(handler, FETCH)


def run(layout, transport, fetch=FETCH, image=IMAGE, **options):
    return images(SHARD, layout, fetch, image, transport=transport, **options)


def data_of(layout):
    """What follows from the samples and the answers, and not from the run."""
    output = layout.images(SHARD)
    return {name: output.path(name).read_bytes() for name in output.names if name not in output.logs}


def rows_of(layout):
    return parquet.read_table(layout.images_table(SHARD), IMAGES).to_pylist()


# -- downloading ----------------------------------------------------------------------------------


SPECIAL = {
    1: respond(404),
    2: respond(200, b"<html>gone"),
    3: ExchangeFailed(Outcome.DNS, "DNS: Name or service not known"),
    4: respond(200, jpeg()[:-30]),
    5: respond(200, jpeg(), {"X-Robots-Tag": "noai"}),
}


def test_every_row_gets_an_outcome_and_every_success_a_picture(tmp_path):
    rows = [sample(number) for number in range(40)]
    rows[6] |= {"set_aside": "missing_url", "url": None}
    rows[7] |= {"set_aside": "similarity_above_one", "similarity": 6016.0}
    layout = lay_samples(tmp_path, rows)
    transport = web(SPECIAL)
    manifest = run(layout, transport)

    failed = {
        1: "http_4xx",
        2: "not_an_image",
        3: "dns",
        4: "undecodable",
        5: "opted_out",
        6: "set_aside",
        7: "set_aside",
    }
    table = rows_of(layout)
    assert [row["key"] for row in table] == [row["key"] for row in rows]
    for number, row in enumerate(table):
        assert row["outcome"] == failed.get(number, "success")
        assert row["caption"] == rows[number]["caption"]
        assert row["url"] == rows[number]["url"]
        if number not in failed:
            body = jpeg(number)
            assert row["status"] == "success"
            assert row["error_message"] is None
            assert row["sha256"] == hashlib.sha256(body).hexdigest()
            assert (row["width"], row["height"]) == (40, 32)
            assert (row["original_width"], row["original_height"]) == (60, 48)
            assert row["http_status"] == 200
        else:
            assert row["status"] == ("failed_to_resize" if number in (2, 4) else "failed_to_download")
            assert row["error_message"]
            assert row["width"] is None
    assert table[1]["error_message"] == "HTTP Error 404: Not Found"
    assert table[6]["error_message"] == "set aside: missing_url"
    assert table[2]["sha256"] == hashlib.sha256(b"<html>gone").hexdigest()

    # Rows set aside are not asked for.
    assert len([url for url in transport.asked if url.endswith(("/6.jpg", "/7.jpg"))]) == 0
    index = index_tar(layout.images_tar(SHARD))
    successes = [number for number in range(40) if number not in failed]
    assert list(index) == [f"00012{number:04d}" for number in successes]
    assert all(list(members) == ["jpg", "txt", "json"] for members in index.values())
    with tarfile.open(layout.images_tar(SHARD)) as tar:
        for number in successes:
            key = f"00012{number:04d}"
            assert tar.extractfile(f"{key}.jpg").read() == check_and_resize(jpeg(number), IMAGE).encoded
            assert tar.extractfile(f"{key}.txt").read().decode() == f"caption {number}"
            told = json.load(tar.extractfile(f"{key}.json"))
            assert list(told) == IMAGES_IMG2DATASET.names
            assert told == {name: table[number][name] for name in told}

    assert manifest.rows == 40
    assert (
        manifest.counts["success"]
        + manifest.counts["failed_to_download"]
        + manifest.counts["failed_to_resize"]
        == 40
    )
    assert {
        name[8:]: count for name, count in manifest.counts.items() if name.startswith("outcome:")
    } == Counter(row["outcome"] for row in table)
    bodies = [len(jpeg(number)) for number in successes] + [len(b"<html>gone"), len(jpeg()) - 30]
    assert manifest.counts["bytes_downloaded"] == sum(bodies)
    stats = json.loads(layout.images_stats(SHARD).read_text())
    assert (stats["count"], stats["successes"], stats["failed_to_resize"]) == (40, 33, 2)
    assert stats["status_dict"]["HTTP Error 404: Not Found"] == 1
    assert verify(layout.images(SHARD)) == manifest


DOWNLOAD = """
import io, sys
from pathlib import Path
from PIL import Image
from laion_assets.fetch.policy import FetchPolicy
from laion_assets.fetch.transport import FakeTransport, respond
from laion_assets.image_policy import ImagePolicy
from laion_assets.layout import Layout, ShardId
from laion_assets.stages.images import images

stream = io.BytesIO()
Image.new("RGB", (60, 48)).save(stream, "JPEG")
policy = FetchPolicy(per_domain_interval_s=0)
web = FakeTransport(lambda url: respond(200, stream.getvalue()), policy)
manifest = images(ShardId(12), Layout(Path(sys.argv[1])), policy, ImagePolicy(workers=1), transport=web)
print(manifest.counts["success"], *sorted({"pandas", "matplotlib", "dagster"} & set(sys.modules)))
"""


def test_a_process_that_only_downloads_loads_nothing_heavy(tmp_path):
    lay_samples(tmp_path, [sample(number) for number in range(3)])
    command = [sys.executable, "-c", DOWNLOAD, tmp_path]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.split() == ["3"]


def test_the_same_answers_give_the_same_bytes_in_whatever_order_they_come(tmp_path):
    rows = [sample(number) for number in range(30)]
    versions = set()
    for folder, concurrency, slow in (("a", 1, ()), ("b", 30, (0, 3, 17)), ("c", 7, range(20))):
        layout = lay_samples(tmp_path / folder, rows if folder == "a" else rows[::-1])

        async def handler(url, slow=slow):
            number = int(url.rsplit("/", 1)[1].split(".")[0])
            await asyncio.sleep(0.05 if number in slow else 0)
            return SPECIAL.get(number) if number in (1, 2, 4) else respond(200, jpeg(number))

        fetch = FETCH.model_copy(update={"concurrency": concurrency})
        manifest = run(layout, FakeTransport(handler, fetch), fetch)
        versions.add(manifest.data_version)
    assert len(versions) == 1


def test_a_second_run_asks_for_nothing(tmp_path):
    layout = lay_samples(tmp_path, [sample(number) for number in range(5)])
    first = run(layout, web())
    again = web()
    assert run(layout, again) == first
    # Neither patience nor speed changes what a shard holds, so changing them asks for nothing either.
    patient = FETCH.model_copy(
        update={"total_timeout_s": 60, "concurrency": 3, "attempts": 5, "contact": "a@b.c"}
    )
    assert (
        run(layout, again, patient, IMAGE.model_copy(update={"workers": 2, "decode_timeout_s": 9})) == first
    )
    assert again.asked == []


def test_other_pictures_wanted_are_downloaded(tmp_path):
    layout = lay_samples(tmp_path, [sample(number) for number in range(5)])
    run(layout, web())
    run(layout, web(), image=IMAGE.model_copy(update={"size": 16}))
    assert [(row["width"], row["height"]) for row in rows_of(layout)] == [(20, 16)] * 5
    more = web()
    lay_samples(tmp_path, [sample(number) for number in range(7)])
    run(layout, more, image=IMAGE.model_copy(update={"size": 16}))
    assert len(more.asked) == 7
    assert len(rows_of(layout)) == 7


def test_every_setting_that_shapes_pictures_is_in_the_recipe():
    limits = {"worker_memory_bytes", "decode_timeout_s", "workers"}
    assert set(ImagePolicy.model_fields) == set(_IMAGE_SETTINGS) | limits
    assert not limits & set(_IMAGE_SETTINGS)


@pytest.mark.parametrize(("kind", "quality", "examples"), [("jpg", 95, 6), ("png", 6, 6), ("webp", 80, 0)])
def test_pictures_of_each_format_go_down_the_graph(tmp_path, kind, quality, examples):
    import tensorflow_datasets as tfds
    from tensorflow_datasets.proto import tf_example_pb2

    layout = lay_samples(tmp_path, [sample(number) for number in range(6)])
    run(layout, web(), image=IMAGE.model_copy(update={"format": kind, "quality": quality}))
    index = index_tar(layout.images_tar(SHARD))
    assert all(list(members) == [kind, "txt", "json"] for members in index.values())
    normalized = normalize_images(SHARD, layout)
    assert (normalized.counts["examples"], normalized.counts["set_aside"]) == (examples, 6 - examples)
    assert normalized.counts.get("set_aside:not_tfds_format", 0) == 6 - examples
    for rule in (*rules_of("images"), *rules_of("normalized_images")):
        verdict = evaluate(rule, layout, Thresholds(), str(SHARD))
        assert verdict.passed or not rule.blocking, (rule.name, verdict)
    write_tfds_images(SHARD, layout)
    summary = tfrecord.check_records(layout.tfds_images(SHARD).only)
    assert summary.records == examples
    tar = layout.images_tar(SHARD).read_bytes()
    stored = [members[kind] for members in index.values()]
    records = tfrecord.read_records(layout.tfds_images(SHARD).only, expected=summary)
    for payload, member in zip(records, stored[:examples], strict=True):
        feature = tf_example_pb2.Example.FromString(payload).features.feature
        body = feature["image"].bytes_list.value[0]
        assert body == tar[member.offset : member.offset + member.size]
        assert tfds.features.Image().decode_example_np(body).shape == (32, 40, 3)
    assert draw_contact_sheet(layout, SHARD, tmp_path / "sheet.png") == examples


@pytest.mark.parametrize("rows", [[], [sample(0, set_aside="missing_url", url=None)], [sample(1)]])
def test_a_shard_without_a_single_picture_is_a_shard(tmp_path, rows):
    layout = lay_samples(tmp_path, rows)
    manifest = run(layout, web(SPECIAL))
    assert manifest.rows == len(rows)
    assert manifest.counts["success"] == 0
    assert index_tar(layout.images_tar(SHARD)) == {}
    assert run(layout, web()) == manifest


def test_odd_texts_and_numbers_are_written(tmp_path):
    rows = [
        sample(0, caption=None, similarity=math.nan, LICENSE=None, NSFW=None),
        sample(1, caption="\x00\x1b[31m line\nbreak | ☃ 𝄞 \u202e", similarity=math.inf),
        sample(2, caption="x" * 61_192, similarity=None),
    ]
    rows[1]["url"] = "http://host.com/10.jpg"
    layout = lay_samples(tmp_path, rows)
    run(layout, web())
    with tarfile.open(layout.images_tar(SHARD)) as tar:
        told = [
            json.loads(tar.extractfile(f"{row['key']}.json").read(), parse_constant=pytest.fail)
            for row in rows
        ]
        texts = [tar.extractfile(f"{row['key']}.txt").read().decode() for row in rows]
    assert [one["similarity"] for one in told] == [None, None, None]
    assert texts == ["", rows[1]["caption"], rows[2]["caption"]]
    assert told[1]["caption"] == rows[1]["caption"]
    kept = [row["similarity"] for row in rows_of(layout)]
    assert math.isnan(kept[0])
    assert kept[1:] == [math.inf, None]


def test_endless_kinds_of_messages_are_counted_together(tmp_path):
    special = {number: ExchangeFailed(Outcome.PROTOCOL, f"message {number:03d}") for number in range(150)}
    layout = lay_samples(tmp_path, [sample(number) for number in range(150)])
    run(layout, web(special))
    messages = json.loads(layout.images_stats(SHARD).read_text())["status_dict"]
    assert len(messages) == 101
    assert messages["other messages"] == 50


def test_no_more_urls_are_in_flight_than_allowed_and_no_more_bodies_in_memory(tmp_path):
    layout = lay_samples(tmp_path, [sample(number) for number in range(60)])
    now, most = Counter(), Counter()

    async def handler(url):
        now["flight"] += 1
        most["flight"] = max(most["flight"], now["flight"])
        await asyncio.sleep(0.002)
        now["flight"] -= 1
        return respond(200, jpeg(1))

    fetch = FETCH.model_copy(update={"concurrency": 5, "per_domain_concurrency": 5})
    run(layout, FakeTransport(handler, fetch), fetch)
    assert most["flight"] == 5


def test_long_bodies_wait_for_one_another_and_all_arrive(tmp_path):
    layout = lay_samples(tmp_path, [sample(number) for number in range(20)])
    fetch = FETCH.model_copy(update={"large_body_bytes": 10, "large_bodies": 1, "total_timeout_s": 1})
    handler = FakeTransport(lambda url: respond(200, jpeg(1)), fetch)
    assert run(layout, handler, fetch).counts["success"] == 20


def test_progress_is_told(tmp_path):
    layout = lay_samples(tmp_path, [sample(number) for number in range(10)])
    told = []
    run(layout, web(), follow=lambda progress: told.append((progress.done, progress.total)))
    assert told == [(done, 10) for done in range(1, 11)]


def test_a_picture_that_kills_its_decoder_takes_no_other_along(tmp_path):
    heavy = io.BytesIO()
    Image.new("L", (6000, 6000), 7).save(heavy, "PNG")
    layout = lay_samples(tmp_path, [sample(number) for number in range(10)])
    image = IMAGE.model_copy(update={"decode_timeout_s": 0.15})
    manifest = run(layout, web({3: respond(200, heavy.getvalue())}), image=image)
    assert rows_of(layout)[3]["outcome"] == "decoder_died"
    assert rows_of(layout)[3]["status"] == "failed_to_resize"
    assert manifest.counts["success"] == 9


def test_it_runs_beside_a_running_loop_and_in_a_thread(tmp_path):
    layout = lay_samples(tmp_path / "a", [sample(number) for number in range(3)])

    async def main():
        return run(layout, web())

    assert asyncio.run(main()).counts["success"] == 3
    other = lay_samples(tmp_path / "b", [sample(number) for number in range(3)])
    found = []
    thread = threading.Thread(target=lambda: found.append(run(other, web())))
    thread.start()
    thread.join()
    assert found[0].counts["success"] == 3


class _Interrupted(BaseException):
    pass


def test_an_interrupt_ends_a_download_and_leaves_nothing(tmp_path):
    layout = lay_samples(tmp_path, [sample(number) for number in range(30)])
    begun, cancelled = [], []

    async def hang(url):
        begun.append(url)
        if len(begun) == FETCH.concurrency:
            os.kill(os.getpid(), signal.SIGUSR1)
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            cancelled.append(url)
            raise

    def interrupt(number, frame):
        raise _Interrupted

    previous = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with pytest.raises(_Interrupted):
            run(layout, FakeTransport(hang), FETCH.model_copy(update={"total_timeout_s": 600}))
    finally:
        signal.signal(signal.SIGUSR1, previous)
    assert len(cancelled) == FETCH.concurrency
    assert not layout.images(SHARD).draft.exists()
    assert read_manifest(layout.images(SHARD)) is None


def test_a_fault_of_ours_stops_the_shard_and_leaves_nothing(tmp_path):
    layout = lay_samples(tmp_path, [sample(number) for number in range(30)])
    with pytest.raises(ZeroDivisionError):
        run(layout, web({7: ZeroDivisionError()}))
    assert not layout.images(SHARD).draft.exists()
    assert not layout.images_tar(SHARD).exists()


# -- going on ---------------------------------------------------------------------------------------------


class Killed(Exception):
    pass


def killed_after(answers, special=None):
    """A web behind which the process is killed once it has given so many answers."""
    inner = web(special)
    given = []

    async def handler(url):
        if len(given) >= answers:
            raise Killed
        await asyncio.sleep(0.001)
        given.append(url)
        return await inner.get(url, wants_body=lambda _: True, admit_large=None)

    return FakeTransport(handler, FETCH)


@pytest.mark.parametrize("answers", [0, 1, 20, 50])
def test_a_download_that_ended_half_way_is_gone_on_with_and_comes_to_the_same_bytes(tmp_path, answers):
    rows = [sample(number) for number in range(60)]
    whole = lay_samples(tmp_path / "whole", rows)
    run(whole, web(SPECIAL))
    layout = lay_samples(tmp_path / "killed", rows)
    with pytest.raises(Killed):
        run(layout, killed_after(answers, SPECIAL))
    journal = layout.images(SHARD).journal
    finished = {
        json.loads(payload.split(b"\n", 1)[0]).get("index") for payload in tfrecord.read_records(journal)
    } - {None}
    again = web(SPECIAL)
    counted = []
    run(layout, again, follow=lambda progress: counted.append((progress.done, progress.total)))
    missing = sorted(set(range(60)) - finished)
    assert sorted(set(again.asked)) == sorted(rows[number]["url"] for number in missing)
    assert len(finished) >= answers - FETCH.concurrency
    assert counted[0][0] >= len(finished)
    assert counted[-1] == (60, 60)
    assert not journal.exists()
    assert data_of(layout) == data_of(whole)


def test_what_was_downloaded_under_other_settings_is_not_gone_on_with(tmp_path):
    layout = lay_samples(tmp_path, [sample(number) for number in range(30)])
    with pytest.raises(Killed):
        run(layout, killed_after(20))
    again = web()
    run(layout, again, image=ImagePolicy(size=16, workers=1))
    assert len(again.asked) == 30
    assert {row["height"] for row in rows_of(layout)} == {16}


def test_limits_of_time_and_number_may_change_under_a_journal(tmp_path):
    layout = lay_samples(tmp_path, [sample(number) for number in range(30)])
    with pytest.raises(Killed):
        run(layout, killed_after(20))
    again = web()
    run(layout, again, FETCH.model_copy(update={"concurrency": 2, "total_timeout_s": 60}))
    assert len(again.asked) < 30


def test_a_damaged_journal_costs_downloads_and_nothing_else(tmp_path):
    rows = [sample(number) for number in range(30)]
    whole = lay_samples(tmp_path / "whole", rows)
    run(whole, web())
    layout = lay_samples(tmp_path / "killed", rows)
    with pytest.raises(Killed):
        run(layout, killed_after(20))
    journal = layout.images(SHARD).journal
    data = bytearray(journal.read_bytes())
    data[len(data) // 2] ^= 1
    journal.write_bytes(data)
    again = web()
    run(layout, again)
    assert 10 < len(again.asked) < 30
    assert data_of(layout) == data_of(whole)


def test_a_whole_journal_asks_the_web_for_nothing(tmp_path):
    layout = lay_samples(tmp_path, [sample(number) for number in range(10)])
    # Everything is downloaded, and then the tar cannot be put in place.
    layout.images_tar(SHARD).mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        run(layout, web())
    layout.images_tar(SHARD).rmdir()
    transport = web()
    assert run(layout, transport).counts["success"] == 10
    assert transport.asked == []


def test_samples_come_first(tmp_path):
    with pytest.raises(MissingInput, match="samples 00012"):
        run(Layout(tmp_path), web())


# -- whatever the order, and wherever it was cut ----------------------------------------------------------

FEW = [sample(number) for number in range(8)]
FEW[6] = sample(6, set_aside="missing_url", url=None)
# Starting a decoder is what takes the time.
few_times = hypothesis.settings(
    max_examples=10, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)


@pytest.fixture(scope="module")
def in_key_order(tmp_path_factory):
    """What a shard's data is if everything comes one after the other."""
    layout = lay_samples(tmp_path_factory.mktemp("whole"), FEW)
    run(layout, web(SPECIAL), FETCH.model_copy(update={"concurrency": 1}))
    return data_of(layout)


@pytest.fixture(scope="module")
def whole_journal(tmp_path_factory):
    """The journal of a shard that was all downloaded and not published."""
    layout = lay_samples(tmp_path_factory.mktemp("journal"), FEW)
    layout.images_tar(SHARD).mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        run(layout, web(SPECIAL))
    return layout.images(SHARD).journal.read_bytes()


@few_times
@hypothesis.given(order=st.permutations([number for number in range(8) if number != 6]), samples=st.randoms())
def test_table_and_tar_are_in_key_order_whatever_comes_first(in_key_order, order, samples):
    inner = web(SPECIAL)
    turns = {FEW[number]["url"]: turn for turn, number in enumerate(order)}
    gates = [asyncio.Event() for _ in range(len(order) + 1)]
    gates[0].set()
    answered = []

    async def handler(url):
        await gates[turns[url]].wait()
        gates[turns[url] + 1].set()
        answered.append(url)
        return await inner.get(url, wants_body=lambda _: True, admit_large=None)

    rows = list(FEW)
    samples.shuffle(rows)
    with tempfile.TemporaryDirectory() as folder:
        layout = lay_samples(Path(folder), rows)
        run(layout, FakeTransport(handler, FETCH))
        keys = parquet.read_table(layout.images_table(SHARD), IMAGES)["key"].to_pylist()
        requests = parquet.read_table(layout.images_requests(SHARD), REQUESTS)
        assert keys == sorted(keys) == requests["key"].to_pylist()
        stems = list(index_tar(layout.images_tar(SHARD)))
        assert stems == sorted(stems)
        assert data_of(layout) == in_key_order
    assert [turns[url] for url in answered] == list(range(7))


@few_times
@hypothesis.given(share=st.floats(0, 1))
def test_a_journal_cut_anywhere_is_gone_on_with_and_comes_to_the_same_bytes(
    in_key_order, whole_journal, share
):
    with tempfile.TemporaryDirectory() as folder:
        layout = lay_samples(Path(folder), FEW)
        journal = layout.images(SHARD).journal
        journal.parent.mkdir(parents=True)
        journal.write_bytes(whole_journal[: round(share * len(whole_journal))])
        records = []
        with suppress(CorruptRecords):
            records.extend(tfrecord.read_records(journal))
        transport = web(SPECIAL)
        run(layout, transport)
        assert len(transport.asked) == 7 - max(0, len(records) - 1)
        assert data_of(layout) == in_key_order


# -- what a killed run left -----------------------------------------------------------------------


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_files_that_a_killed_run_of_ours_left_are_downloaded_again(tmp_path, kept):
    layout = lay_samples(tmp_path, [sample(number) for number in range(5)])
    first = run(layout, web(SPECIAL))
    output = layout.images(SHARD)
    output.manifest.unlink()
    for name in output.names[kept:]:
        output.path(name).unlink()
    again = web(SPECIAL)
    assert run(layout, again).data_version == first.data_version
    assert again.asked


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("00012.tar", b""),
        ("00012.tar", b"x" * 600),
        ("00012.parquet", b"PAR1"),
        ("00012_stats.json", b"garbage"),
    ],
)
def test_published_files_that_were_damaged_are_downloaded_again(tmp_path, name, damage):
    layout = lay_samples(tmp_path, [sample(number) for number in range(5)])
    first = run(layout, web())
    (layout.images_folder / name).write_bytes(damage)
    assert run(layout, web()).data_version == first.data_version


def test_a_manifest_that_cannot_be_read_is_made_again(tmp_path):
    layout = lay_samples(tmp_path, [sample(number) for number in range(5)])
    first = run(layout, web())
    layout.images(SHARD).manifest.write_text("{")
    assert run(layout, web()).data_version == first.data_version


def as_0_1_0(layout):
    """The shard as version 0.1.0 published it: three files, statistics without times, another name."""
    output = layout.images(SHARD)
    manifest = unseal(output.manifest.read_bytes())
    table = parquet.read_table(layout.images_table(SHARD), IMAGES)
    older = pa.schema(list(IMAGES)[:16])
    parquet.write_table(layout.images_table(SHARD), table.select(older.names), older)
    layout.images_requests(SHARD).unlink()
    layout.images_stats(SHARD).write_text('{"count": 5, "writer": "laion_assets"}')
    manifest["format"] = 2
    manifest["recipe"]["code_version"] = "1"
    manifest["files"] = {
        path.name: {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in map(output.path, output.names[:3])
    }
    output.older_manifest.write_bytes(seal(manifest))
    output.manifest.unlink()


def test_a_shard_that_an_older_version_published_stays_published(tmp_path):
    layout = lay_samples(tmp_path, [sample(number) for number in range(5)])
    run(layout, web(SPECIAL))
    as_0_1_0(layout)
    assert whole_partitions(layout, "images") == {"00012"}
    assert partitions_of(layout, "images") == some_partitions(layout, "images", 9) == ("00012",)
    manifest = verify(layout.images(SHARD))
    assert manifest.data_version == fingerprint(
        {name: record.sha256 for name, record in manifest.files.items()}
    )
    assert normalize_images(SHARD, layout).rows == manifest.counts["success"]
    write_catalog(layout)
    with duckdb.connect(str(layout.catalog().only), read_only=True) as catalog:
        counts = [
            catalog.execute(f"SELECT count(*) FROM {rows}").fetchone()
            for rows in ("images", "image_requests", "shards WHERE stage = 'images'")
        ]
    assert counts == [(5,), (0,), (1,)]
    # What is damaged is still seen, and the remedy is about the manifest that there is.
    layout.images_table(SHARD).write_bytes(bytes(layout.images_table(SHARD).stat().st_size))
    with pytest.raises(CorruptInput, match=r"00012\.manifest\.json"):
        verify(layout.images(SHARD))
    # Downloaded again, it is as new, and nothing is left of the old.
    assert run(layout, web(SPECIAL)).recipe.code_version == "2"
    assert not layout.images(SHARD).older_manifest.exists()
    assert whole_partitions(layout, "images") == {"00012"}


def test_a_shard_without_one_of_its_files_is_not_whole(tmp_path):
    layout = lay_samples(tmp_path, [sample(number) for number in range(3)])
    for name in layout.images(SHARD).names:
        run(layout, web())
        layout.images(SHARD).path(name).unlink()
        assert whole_partitions(layout, "images") == set()


def test_how_long_it_took_is_no_other_version_of_the_data(tmp_path):
    layout = lay_samples(tmp_path, [sample(number) for number in range(5)])
    first = run(layout, web())
    logs = [layout.images(SHARD).path(name).read_bytes() for name in layout.images(SHARD).logs]
    layout.images(SHARD).manifest.unlink()
    again = run(layout, web())
    assert again.data_version == first.data_version
    assert layout.images_stats(SHARD).read_bytes() not in logs


# -- shards that img2dataset wrote ----------------------------------------------------------------


FOREIGN = pa.schema(
    [
        ("url", pa.string()), ("caption", pa.string()), ("key", pa.string()), ("status", pa.string()),
        ("error_message", pa.string()), ("width", pa.int32()), ("height", pa.int32()),
        ("original_width", pa.int32()), ("original_height", pa.int32()), ("exif", pa.string()),
        ("sha256", pa.string()),
    ]
)  # fmt: skip


def foreign_rows(count=8, failed=(2, 5), key="00012{:04d}"):
    rows = []
    for number in range(count):
        status = "failed_to_download" if number in failed else "success"
        rows.append(
            {
                "url": sample(number)["url"],
                "caption": f"caption {number}",
                "key": key.format(number),
                "status": status,
            }
        )
    # In order of completion.
    return rows[::-2] + rows[-2::-2]


def place(layout, rows, members=None, schema=FOREIGN, stats=None):
    """What img2dataset leaves: PAX headers because of its float times, rows in order of completion."""
    import pyarrow.parquet as pq

    layout.images_folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), layout.images_table(SHARD))
    if members is None:
        members = [
            (f"{row['key']}.{extension}", body)
            for row in rows
            if row["status"] == "success"
            for extension, body in (("jpg", jpeg()), ("txt", b"caption"), ("json", b"{}"))
        ]
    with tarfile.open(layout.images_tar(SHARD), "w", format=tarfile.PAX_FORMAT) as tar:
        for name, body in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(body), 1700000000.123
            tar.addfile(info, io.BytesIO(body))
    counted = Counter(row["status"] for row in rows)
    stats = (
        {"count": len(rows), "successes": counted["success"], "duration": 12.3} if stats is None else stats
    )
    layout.images_stats(SHARD).write_text(json.dumps(stats))
    return layout


def contents(layout):
    return {path.name: path.read_bytes() for path in layout.images_folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("key", ["00012{:04d}", "00000{:04d}"])
@pytest.mark.parametrize("has_samples", [True, False])
def test_a_placed_shard_is_adopted_as_it_is(tmp_path, key, has_samples):
    layout = (
        lay_samples(tmp_path, [sample(number) for number in range(8)]) if has_samples else Layout(tmp_path)
    )
    place(layout, foreign_rows(key=key))
    before = contents(layout)
    transport = web()
    manifest = run(layout, transport)
    assert transport.asked == []
    assert manifest.rows == 8
    assert manifest.recipe.settings == "img2dataset"
    assert manifest.counts == {
        "success": 6,
        "failed_to_download": 2,
        "failed_to_resize": 0,
        "outcome:success": 6,
        "outcome:other": 2,
    }
    after = contents(layout)
    assert {name: after[name] for name in before} == before
    # Whatever changes, it stays.
    assert run(layout, transport, image=ImagePolicy(size=16)) == manifest
    lay_samples(tmp_path, [sample(number, caption="other") for number in range(8)])
    assert run(layout, transport) == manifest
    assert transport.asked == []


def test_a_placed_shard_is_never_overwritten(tmp_path):
    layout = lay_samples(tmp_path, [sample(number) for number in range(8)])
    place(layout, foreign_rows())
    before = contents(layout)
    with pytest.raises(PlanError, match="never overwritten"):
        download_images(SHARD, layout, FETCH, IMAGE, transport=web())
    run(layout, web())
    with pytest.raises(PlanError, match="never overwritten"):
        download_images(SHARD, layout, FETCH, IMAGE, transport=web())
    # Not even after it was damaged or half of it taken away.
    layout.images_table(SHARD).write_bytes(b"")
    with pytest.raises(CorruptParquet, match=r"00012\.parquet"):
        run(layout, web())
    layout.images_table(SHARD).unlink()
    with pytest.raises(MissingInput, match=r"00012\.parquet"):
        run(layout, web())
    after = contents(layout)
    assert after["00012.tar"] == before["00012.tar"]


def test_files_laid_over_ours_are_adopted(tmp_path):
    layout = lay_samples(tmp_path, [sample(number) for number in range(8)])
    run(layout, web())
    place(layout, foreign_rows())
    transport = web()
    assert run(layout, transport).recipe.settings == "img2dataset"
    assert transport.asked == []
    assert sorted(read_manifest(layout.images(SHARD)).files) == sorted(layout.placed_images(SHARD).names)
    assert not layout.images_requests(SHARD).exists()
    assert whole_partitions(layout, "images") == {"00012"}


def test_numbers_as_keys_are_understood(tmp_path):
    layout = Layout(tmp_path)
    rows = foreign_rows(key="00000{:04d}")
    members = [(f"{row['key']}.jpg", b"x") for row in rows if row["status"] == "success"]
    numbered = [row | {"key": int(row["key"])} for row in rows]
    place(layout, numbered, members, FOREIGN.set(2, pa.field("key", pa.int64())))
    assert adopt_images(SHARD, layout).counts["success"] == 6


def test_columns_that_were_not_saved_are_not_missed(tmp_path):
    layout = Layout(tmp_path)
    schema = pa.schema([FOREIGN.field(name) for name in ("status", "key", "url")])
    rows = [{name: row[name] for name in schema.names} for row in foreign_rows()]
    place(layout, rows, schema=schema, stats={})
    assert adopt_images(SHARD, layout).rows == 8


def first_success(rows):
    return next(row for row in rows if row["status"] == "success")


def members_of(rows, extension="jpg"):
    return [(f"{row['key']}.{extension}", b"x") for row in rows if row["status"] == "success"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: {"members": members_of(rows)[1:]}, "a picture for each success"),
        (lambda rows: {"members": [*members_of(rows), ("000120099.jpg", b"x")]}, "successes only"),
        (lambda rows: {"members": [*members_of(rows), ("000120002.jpg", b"x")]}, "successes only"),
        (
            lambda rows: {"members": [*members_of(rows), (f"{first_success(rows)['key']}.png", b"x")]},
            "one picture",
        ),
        (lambda rows: {"members": members_of(rows, "txt")}, "one picture"),
        (lambda rows: {"rows": [*rows, rows[0]], "members": members_of(rows)}, "each key once"),
        (
            lambda rows: {"rows": [row | {"key": row["key"].replace("00012", "00013")} for row in rows]},
            "keys of shard",
        ),
        (
            lambda rows: {"rows": [row | {"key": f"key {row['key']}"} for row in rows], "members": []},
            "keys of digits",
        ),
        (lambda rows: {"rows": [row | {"key": None} for row in rows], "members": []}, "keys of digits"),
        (lambda rows: {"rows": [row | {"status": "ok"} for row in rows], "members": []}, "statuses"),
        (lambda rows: {"rows": [row | {"status": None} for row in rows], "members": []}, "statuses"),
        (lambda rows: {"rows": [row | {"url": "http://other.com/"} for row in rows]}, "the URLs of"),
        (lambda rows: {"rows": [row | {"url": None} for row in rows]}, "8 rows with other ones"),
        (lambda rows: {"rows": rows[1:]}, "8 rows, as in"),
        (lambda rows: {"stats": {"count": 9}}, "count 8"),
        (lambda rows: {"stats": {"count": 8, "successes": 7}}, "successes 6"),
        (lambda rows: {"stats": [1, 2]}, "JSON object"),
    ],
)
def test_a_placed_shard_whose_files_do_not_belong_together_is_refused(tmp_path, change, message):
    layout = lay_samples(tmp_path, [sample(number) for number in range(8)])
    changed = {"rows": foreign_rows()} | change(foreign_rows())
    place(layout, **changed)
    before = contents(layout)
    with pytest.raises(MisalignedShard, match=message) as raised:
        run(layout, web())
    assert "again" in raised.value.remedy or "place" in raised.value.remedy
    assert contents(layout) == before
    assert read_manifest(layout.images(SHARD)) is None


def test_a_placed_tar_that_is_cut_short_is_refused(tmp_path):
    layout = place(Layout(tmp_path), foreign_rows())
    tar = layout.images_tar(SHARD)
    tar.write_bytes(tar.read_bytes()[:-12_000])
    with pytest.raises(CorruptTar, match=r"00012\.tar"):
        run(layout, web())


@pytest.mark.parametrize("name", ["00012.tar", "00012.parquet", "00012_stats.json"])
def test_a_file_that_was_not_placed_is_asked_for(tmp_path, name):
    layout = place(Layout(tmp_path), foreign_rows())
    (layout.images_folder / name).unlink()
    with pytest.raises(MissingInput, match=f"but not {name}"):
        run(layout, web())


def test_statuses_and_outcomes_of_a_download_are_the_schema_s(tmp_path):
    layout = lay_samples(tmp_path, [sample(number) for number in range(8)])
    run(layout, web(SPECIAL))
    assert {row["status"] for row in rows_of(layout)} <= set(Status)
    assert {row["outcome"] for row in rows_of(layout)} <= set(Outcome)
