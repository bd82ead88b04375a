"""A publication to object storage that is killed, cut off or overtaken at any of its requests.

The promise: the store has the partition whole, of one worker, or not at all, and a run after that finishes
it.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import life
import pytest
from object_storage import Moment, Proxy

from laion_assets.dataset_sync import sync_dataset
from laion_assets.errors import CorruptInput, MissingInput, StoreUnavailable
from laion_assets.formats import object_store, publish
from laion_assets.formats.checksums import checksums_of
from laion_assets.formats.manifest import FileRecord, Manifest, write_manifest
from laion_assets.formats.publish import Draft, Recipe, Tally
from laion_assets.formats.tfds import CONFIGS
from laion_assets.layout import Layout, ShardId

SHARD = ShardId(3)
# Beyond 8 MiB, a file is put, and fetched, in several requests.
LARGE = 9 << 20

pytestmark = pytest.mark.slow


def body(worker: str, name: str, size: int) -> bytes:
    word = f"{worker} {name};".encode()
    return (word * (size // len(word) + 1))[:size]


def publish_source(root: Path, store: str) -> Manifest:
    def write(draft: Draft) -> Tally:
        draft.only.write_bytes(body("source", "samples", 1000))
        return Tally(rows=1)

    return publish.publish(Layout(root, store=store).samples(SHARD), Recipe(code_version="1"), write)


def publish_shard(root: Path, store: str, source: str, worker: str = "a", *, again: bool = False) -> Manifest:
    """Two files, one of them large, made from another partition."""
    layout = Layout(root, store=store)

    def write(draft: Draft) -> Tally:
        assert layout.samples(SHARD).only.read_bytes() == body("source", "samples", 1000)
        for name, size in zip(layout.normalized_images(SHARD).names, (LARGE, 1000), strict=True):
            draft.path(name).write_bytes(body(worker, name, size))
        return Tally(rows=1)

    recipe = Recipe(code_version="1", inputs={"samples": source})
    reads = [layout.samples(SHARD)]
    return publish.publish(layout.normalized_images(SHARD), recipe, write, reads=reads, again=again)


def found(root: Path, store: str) -> str | None:
    """The worker whose partition the store has, whole; None if it has none."""
    output = Layout(root, store=store).normalized_images(SHARD)
    try:
        manifest = publish.verify_published(output)
    except MissingInput:
        return None
    assert publish.bring(output) == manifest
    bodies = {name: output.path(name).read_bytes() for name in output.names}
    for worker in ("a", "b"):
        sizes = zip(output.names, (LARGE, 1000), strict=True)
        if bodies == {name: body(worker, name, size) for name, size in sizes}:
            return worker
    raise AssertionError("files of two workers, or of none")


def count_requests(proxy: Proxy, work: Callable[[], object]) -> int:
    proxy.cut_at = None
    proxy.requests.clear()
    work()
    return len(proxy.requests)


def moments(proxy: Proxy, moment: Moment) -> list[int]:
    """The requests just made that can be cut so: only what is sent can be cut in its midst."""
    return [
        number
        for number, request in enumerate(proxy.requests)
        if moment != "during" or not request.startswith("GET")
    ]


def cut(proxy: Proxy, number: int, moment: Moment, on_cut: Callable[[], object] = lambda: None) -> None:
    proxy.requests.clear()
    proxy.cut_at, proxy.moment, proxy.on_cut = number, moment, on_cut


def killed(proxy: Proxy, number: int, moment: Moment, work: Callable[[], object]) -> None:
    """Run something in a process of its own that is killed at one of its requests."""
    process = multiprocessing.get_context("spawn").Process(target=work)

    def kill() -> None:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)

    cut(proxy, number, moment, kill)
    process.start()
    process.join()
    proxy.cut_at = None
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("moment", ["before", "during", "after"])
def test_a_kill_at_any_request_leaves_all_or_nothing(tmp_path: Path, proxy: Proxy, moment: Moment) -> None:
    store = proxy.new_store()
    source = publish_source(tmp_path / "source", store).data_version
    total = count_requests(proxy, lambda: publish_shard(tmp_path / "whole", store, source))
    # Two looks; what is read, and its manifest; a file in two parts, with what begins and ends them; another
    # file; the manifest.
    assert total == 2 + 2 + 4 + 1 + 1
    left, numbers = [], moments(proxy, moment)
    for number in numbers:
        store = proxy.new_store()
        publish_source(tmp_path / "source" / str(number), store)
        root = tmp_path / f"killed-{number}"
        killed(proxy, number, moment, partial(publish_shard, root, store, source))
        left.append(found(tmp_path / f"other-{number}", store))
        publish_shard(root, store, source)
        assert found(tmp_path / f"third-{number}", store) == "a"
    # The manifest is the last request.
    assert numbers[-1] == total - 1
    assert left == [None] * (len(numbers) - 1) + ["a" if moment == "after" else None]


@pytest.mark.parametrize("moment", ["before", "during", "after"])
def test_a_connection_cut_at_any_request_is_made_anew(tmp_path: Path, proxy: Proxy, moment: Moment) -> None:
    store = proxy.new_store()
    source = publish_source(tmp_path / "source", store).data_version
    count_requests(proxy, lambda: publish_shard(tmp_path / "whole", store, source))
    failed = 0
    for number in moments(proxy, moment):
        store, root = proxy.new_store(), tmp_path / f"cut-{number}"
        publish_source(tmp_path / "source" / str(number), store)
        cut(proxy, number, moment)
        try:
            publish_shard(root, store, source)
        except StoreUnavailable:
            failed += 1
            assert found(tmp_path / f"other-{number}", store) is None
            publish_shard(root, store, source)
        assert found(tmp_path / f"third-{number}", store) == "a"
    # What obstore does not dare to send again: a writing that may be refused for its own sake.
    assert failed <= 1 + (moment == "after")


@pytest.mark.parametrize("again", [False, True])
def test_whoever_is_overtaken_at_any_request_takes_the_winners(
    tmp_path: Path, proxy: Proxy, again: bool
) -> None:
    store = proxy.new_store()
    source = publish_source(tmp_path / "source", store).data_version
    if again:
        publish_shard(tmp_path / "first", store, source)
    total = count_requests(proxy, lambda: publish_shard(tmp_path / "whole", store, source, again=again))
    winners = []
    for number in range(total):
        store = proxy.new_store()
        publish_source(tmp_path / "source" / str(number), store)
        if again:
            publish_shard(tmp_path / f"first-{number}", store, source)
        overtake = partial(publish_shard, tmp_path / f"b-{number}", store, source, "b", again=again)
        cut(proxy, number, "held", overtake)
        slower = publish_shard(tmp_path / f"a-{number}", store, source, again=again)
        proxy.cut_at = None
        winners.append(found(tmp_path / f"other-{number}", store))
        assert found(tmp_path / f"a-{number}", store) == found(tmp_path / f"b-{number}", store) == winners[-1]
        output = Layout(tmp_path, store=store).normalized_images(SHARD)
        assert publish.read_manifest(output) == slower
    # Who looks before the other has put takes what that one put, or, told to make it again, replaces it.
    looks = 2
    assert winners[looks:] == ["b"] * (total - looks)
    assert set(winners[:looks]) == ({"a"} if again else {"b"})


def put_manifest_first(root: Path, store: str) -> None:
    """What must not be done, for the rig to find."""
    output = Layout(root, store=store).normalized_images(SHARD)
    root.mkdir(exist_ok=True)
    files = {}
    for name in output.names:
        (root / name).write_bytes(body("a", name, 1000))
        files[name] = FileRecord(bytes=1000, **checksums_of(root / name))
    manifest = Manifest(
        stage=output.stage,
        partition=output.partition,
        recipe=Recipe(code_version="1"),
        files=files,
        rows=1,
        counts={},
        seconds=0.0,
        versions={},
    )
    object_store.put(store, output.manifest_key, write_manifest(manifest), None)
    for name, record in files.items():
        object_store.put_file(store, output.object_key(name, record.name), root / name)


def test_the_rig_finds_a_manifest_that_is_put_first(tmp_path: Path, proxy: Proxy) -> None:
    store = proxy.new_store()
    total = count_requests(proxy, lambda: put_manifest_first(tmp_path / "whole", store))
    refused = 0
    for number in range(total):
        store = proxy.new_store()
        killed(proxy, number, "before", partial(put_manifest_first, tmp_path / f"killed-{number}", store))
        try:
            found(tmp_path / f"other-{number}", store)
        except CorruptInput:
            refused += 1
    assert refused == total - 1 == 2


def test_every_stage_can_be_run_on_a_machine_of_its_own(tmp_path: Path, store: str, monkeypatch) -> None:
    life.live(tmp_path)
    local = life.layout_of(tmp_path)
    expected = {stage: publish.read_manifest(life.output(stage, tmp_path)) for stage in life.STAGES}
    (tmp_path / "data" / "tfds").rename(tmp_path / "tfds")
    shutil.rmtree(local.root)
    monkeypatch.setitem(life.STORES, tmp_path, store)
    stored = {}
    for stage, run in life.STAGES.items():
        stored[stage] = run(tmp_path)
        shutil.rmtree(local.root)
    for stage, manifest in expected.items():
        # What a store's record of a data set adds to it, and what follows from that, is other bytes.
        if not stage.startswith("laion400m_") and stage not in ("catalog", "dataset_report"):
            assert life.data_files(stored[stage]) == life.data_files(manifest), stage
        assert (stored[stage].rows, stored[stage].counts) == (manifest.rows, manifest.counts), stage
    for config in CONFIGS:
        folder = sync_dataset(config, life.layout_of(tmp_path), tmp_path / "copy").folder
        published = tmp_path / "tfds" / "laion400m" / config / "1.0.0"
        for path in published.iterdir():
            assert (folder / path.name).read_bytes() == path.read_bytes(), path
    for stage, run in life.STAGES.items():
        if stage != "catalog":  # which each machine has of its own
            assert run(tmp_path) == stored[stage], stage
    # Not a file was needed to see that, but those that say what is to be done.
    assert {path.suffix for path in local.root.rglob("*") if path.is_file()} <= {
        ".json",
        ".lock",
        ".manifest",
    }
