"""A partition in object storage: what is put, what is taken, and what becomes of two that are put at once."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import obstore
import pytest
from obstore.store import from_url

from laion_assets.errors import CorruptInput, CorruptManifest, MissingInput, StoreUnavailable
from laion_assets.formats.publish import (
    Draft,
    Recipe,
    Tally,
    bring,
    done,
    publish,
    read_manifest,
    read_ranges,
    require,
    verify,
    verify_published,
    vouch,
    withdraw,
)
from laion_assets.layout import Layout, Output, ShardId
from laion_assets.published import manifests_of, partitions_of, whole_partitions

RECIPE = Recipe(code_version="1", inputs={"samples": "v"})
OTHER = Recipe(code_version="2", inputs={"samples": "v"})


@pytest.fixture
def machine(tmp_path, store):
    """A machine's view of one partition: its name in, the partition out."""

    def view(name: str, shard: int = 3) -> Output:
        return Layout(tmp_path / name, store=store).normalized_images(ShardId(shard))

    return view


def writer(*contents: bytes):
    def write(draft: Draft) -> Tally:
        write.calls.append(contents)
        for name, content in zip((_TABLE, _ASIDE), contents, strict=True):
            draft.path(name).write_bytes(content)
        return Tally(rows=2)

    write.calls = []
    return write


_TABLE, _ASIDE = "00003.parquet", "00003.set_aside.parquet"


def keys(store: str) -> list[str]:
    return sorted(entry["path"] for page in obstore.list(from_url(store)) for entry in page)


def test_what_one_machine_publishes_another_has(machine):
    here, there = machine("a"), machine("b")
    assert done(there) is None
    manifest = publish(here, RECIPE, writer(b"one", b"two"))
    assert done(there) == manifest == require(there) == read_manifest(there)
    assert not there.folder.exists()  # nobody has asked for a file
    assert bring(there) == manifest == verify(there)
    assert there.path(_TABLE).read_bytes() == b"one"
    assert there.path(_ASIDE).read_bytes() == b"two"
    again = writer(b"other", b"bytes")
    assert publish(there, RECIPE, again) == manifest
    assert not again.calls


def test_only_the_files_asked_for_come(machine):
    publish(machine("a"), RECIPE, writer(b"one", b"two"))
    there = machine("b")
    bring(there, [_ASIDE])
    assert there.path(_ASIDE).read_bytes() == b"two"
    assert not there.path(_TABLE).exists()
    bring(there)
    assert there.path(_TABLE).read_bytes() == b"one"


def test_objects_are_named_by_their_contents(machine, store):
    manifest = publish(machine("a"), RECIPE, writer(b"one", b"two"))
    objects = [f"objects/{record.blake3[:32]}/{name}" for name, record in manifest.files.items()]
    names = sorted([*objects, "00003.manifest.json"])
    assert keys(store) == [f"normalized_images/{name}" for name in names]


def test_what_is_not_there_is_missing(machine):
    with pytest.raises(MissingInput, match=r"normalized_images 00003 is not there yet.*s3://"):
        bring(machine("a"))
    with pytest.raises(MissingInput):
        require(machine("a"))


def test_another_version_takes_the_place_of_a_copy(machine):
    here, there = machine("a"), machine("b")
    publish(here, RECIPE, writer(b"one", b"two"))
    bring(there)
    second = publish(here, OTHER, writer(b"ONE", b"TWO"))  # of the same size
    assert there.path(_TABLE).read_bytes() == b"one"
    assert bring(there, [_TABLE]) == second
    assert there.path(_TABLE).read_bytes() == b"ONE"
    assert not there.path(_ASIDE).exists()  # rather than be of the version before


def test_of_two_workers_one_wins_and_no_bytes_are_mixed(machine, store):
    both = threading.Barrier(2)
    found = {}

    def work(name: str) -> None:
        def write(draft: Draft) -> Tally:
            both.wait(timeout=60)  # nobody has put anything yet
            return writer(f"table of {name}".encode(), f"aside of {name}".encode())(draft)

        found[name] = publish(machine(name), RECIPE, write)

    workers = [threading.Thread(target=work, args=(name,)) for name in ("a", "b")]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert found["a"] == found["b"] == verify_published(machine("c"))
    bodies = {}
    for name in ("a", "b", "c"):
        output = machine(name)
        bring(output)
        bodies[name] = (output.path(_TABLE).read_bytes(), output.path(_ASIDE).read_bytes())
    winner = bodies["c"][0].removeprefix(b"table of ")
    assert bodies["a"] == bodies["b"] == bodies["c"] == (b"table of " + winner, b"aside of " + winner)
    assert sum(key.endswith(".manifest.json") for key in keys(store)) == 1


def test_who_replaces_what_was_replaced_meanwhile_takes_what_is_there(machine):
    publish(machine("a"), RECIPE, writer(b"one", b"two"))

    def write(draft: Draft) -> Tally:
        publish(machine("b"), OTHER, writer(b"quicker", b"worker"))
        return writer(b"slower", b"worker")(draft)

    there = publish(machine("a"), RECIPE, write, again=True)
    assert there.recipe == OTHER
    assert bring(machine("a")) == there
    assert machine("a").path(_TABLE).read_bytes() == b"quicker"


def test_what_was_published_before_there_was_a_store_is_sent(machine, tmp_path, store):
    local = Layout(tmp_path / "a").normalized_images(ShardId(3))
    manifest = publish(local, RECIPE, writer(b"one", b"two"))
    again = writer(b"other", b"bytes")
    assert publish(machine("a"), RECIPE, again) == manifest
    assert not again.calls
    assert verify_published(machine("b")) == manifest


def test_files_laid_down_are_put_and_stay(machine):
    here = machine("a")
    here.folder.mkdir(parents=True)
    for name in here.names:
        here.path(name).write_bytes(b"laid down")
    manifest = vouch(here, RECIPE, lambda: Tally(rows=1))
    assert bring(machine("b")) == manifest
    assert here.path(_TABLE).read_bytes() == machine("b").path(_TABLE).read_bytes() == b"laid down"


def test_a_file_of_unknown_origin_is_not_overwritten(machine):
    publish(machine("a"), RECIPE, writer(b"one", b"two"))
    there = machine("b")
    there.folder.mkdir(parents=True)
    there.path(_TABLE).write_bytes(b"mine")
    with pytest.raises(CorruptInput, match="move it away"):
        bring(there)
    assert there.path(_TABLE).read_bytes() == b"mine"


@pytest.mark.parametrize("damage", [b"onf", b"on", None], ids=["flipped", "cut", "gone"])
def test_a_damaged_object_is_refused(machine, store, damage):
    publish(machine("a"), RECIPE, writer(b"one", b"two"))
    (key,) = (key for key in keys(store) if key.endswith(_TABLE))
    if damage is None:
        obstore.delete(from_url(store), key)
    else:
        obstore.put(from_url(store), key, damage)
    there = machine("b")
    with pytest.raises(CorruptInput, match=rf"{_TABLE}: expected .*delete s3://.*00003\.manifest\.json"):
        bring(there)
    with pytest.raises(CorruptInput, match=_TABLE):
        verify_published(there)
    assert not there.path(_TABLE).exists()


def test_a_large_object_that_was_cut_is_refused(machine, store):
    publish(machine("a"), RECIPE, writer(bytes(20 << 20), b"two"))
    (key,) = (key for key in keys(store) if key.endswith(_TABLE))
    obstore.put(from_url(store), key, bytes(8 << 20))
    with pytest.raises(CorruptInput, match=r"expected 20971520 bytes with XXH3-128"):
        bring(machine("b"))


def test_leftovers_that_nothing_vouches_for_are_looked_at(machine):
    publish(machine("a"), RECIPE, writer(b"one", b"two"))
    there = machine("b")
    there.folder.mkdir(parents=True)
    there.path(_TABLE).write_bytes(b"one")
    there.path(_ASIDE).write_bytes(b"TWO")
    with pytest.raises(CorruptInput, match="move it away"):
        bring(there, [_TABLE])  # or the other would pass for what the manifest vouches for
    with pytest.raises(CorruptInput, match="move it away"):
        partitions_of(Layout(there.folder.parent, store=there.store), "normalized_images")
    there.path(_ASIDE).unlink()
    inode = there.path(_TABLE).stat().st_ino
    bring(there)
    assert there.path(_TABLE).stat().st_ino == inode


def test_a_damaged_manifest_is_named_and_made_again(machine, store):
    publish(machine("a"), RECIPE, writer(b"one", b"two"))
    key = "normalized_images/00003.manifest.json"
    obstore.put(from_url(store), key, b"{}")
    with pytest.raises(CorruptManifest, match=r"s3://.*00003\.manifest\.json"):
        read_manifest(machine("a"))
    manifest = publish(machine("a"), RECIPE, writer(b"one", b"two"))
    assert verify_published(machine("b")) == manifest


def test_what_is_withdrawn_is_gone_everywhere(machine):
    publish(machine("a"), RECIPE, writer(b"one", b"two"))
    withdraw(machine("a"))
    assert done(machine("b")) is None
    assert not machine("a").path(_TABLE).exists()


def test_a_stage_is_listed_and_only_what_is_new_is_read(tmp_path, proxy):
    store = proxy.new_store()
    layouts = [Layout(tmp_path / name, store=store) for name in ("a", "b")]
    for number in range(5):
        output = layouts[0].samples(ShardId(number))
        publish(output, RECIPE, lambda draft: (draft.only.write_bytes(b"x"), Tally(rows=1))[1])
    proxy.requests.clear()
    assert partitions_of(layouts[1], "samples") == tuple(f"0000{number}" for number in range(5))
    assert len(proxy.requests) == 1 + 5
    proxy.requests.clear()
    assert whole_partitions(layouts[1], "samples") == {f"0000{number}" for number in range(5)}
    assert len(proxy.requests) == 1
    output = layouts[0].samples(ShardId(2))
    publish(output, OTHER, lambda draft: (draft.only.write_bytes(b"y"), Tally(rows=7))[1])
    withdraw(layouts[0].samples(ShardId(4)))
    proxy.requests.clear()
    rows = {key: manifest.rows for key, manifest in manifests_of(layouts[1], "samples").items()}
    assert rows == {"00000": 1, "00001": 1, "00002": 7, "00003": 1}
    assert len(proxy.requests) == 1 + 1


def test_parts_of_an_object_are_read_in_few_requests(tmp_path, proxy):
    store = proxy.new_store()
    here, there = (Layout(tmp_path / name, store=store).normalized_images(ShardId(3)) for name in "ab")
    table = bytes(range(256)) * (5 << 12)  # 5 MiB
    manifest = publish(here, RECIPE, writer(table, b"two"))
    starts, lengths = [7, 1000, 4 << 20, (5 << 20) - 2], [3, 5, 8, 2]
    expected = [table[at : at + length] for at, length in zip(starts, lengths, strict=True)]
    proxy.requests.clear()
    assert read_ranges(there, manifest, _TABLE, starts, lengths) == expected
    asked = sorted(request.split(" bytes=")[1] for request in proxy.requests)
    # What lies within a mebibyte is one request.
    assert asked == ["4194304-5242879", "7-1004"]
    assert not there.folder.exists()
    bring(there)
    proxy.requests.clear()
    assert read_ranges(there, manifest, _TABLE, starts, lengths) == expected
    assert not proxy.requests


def test_parts_of_a_local_file_are_read_whoever_wrote_its_manifest(tmp_path):
    local = Layout(tmp_path).normalized_images(ShardId(3))
    manifest = publish(local, RECIPE, writer(b"one", b"two"))
    older = replace(manifest, versions={"laion_assets": "0.1.0"})  # it would be written otherwise now
    assert read_ranges(local, older, _TABLE, [1, 0, 2], [2, 1, 9]) == [b"ne", b"o", b"e"]


def test_a_large_file_comes_in_large_pieces(tmp_path, proxy):
    store = proxy.new_store()
    here, there = (Layout(tmp_path / name, store=store).normalized_images(ShardId(3)) for name in "ab")
    table = bytes(range(256)) * (20 << 12)  # 20 MiB
    proxy.requests.clear()
    publish(here, RECIPE, writer(table, b"two"))
    # Two looks; three parts, with what begins and ends them; a file; the manifest.
    assert len(proxy.requests) == 2 + (1 + 3 + 1) + 1 + 1
    proxy.requests.clear()
    verify(there)
    assert there.path(_TABLE).read_bytes() == table
    assert len(proxy.requests) == 1 + 3 + 1


def test_a_store_that_does_not_answer_says_so(tmp_path, monkeypatch, s3, store):
    with pytest.raises(StoreUnavailable, match=r"s3://no-such-bucket/.*the bucket is not there"):
        publish(
            Layout(tmp_path / "a", store="s3://no-such-bucket").normalized_images(ShardId(3)),
            RECIPE,
            writer(b"one", b"two"),
        )


def test_a_copy_that_was_damaged_is_not_read(machine):
    here, there = machine("a"), machine("b")
    source = publish(here, RECIPE, writer(b"one", b"two"))
    bring(there)
    there.path(_TABLE).write_bytes(b"onf")
    recipe = Recipe(code_version="1", inputs={"normalized_images": source.data_version})
    target = replace(there, stage="tfds_images", folder=there.folder.with_name("t"), place="t")
    with pytest.raises(CorruptInput, match="delete it, and it is fetched again"):
        publish(target, recipe, writer(b"a", b"b"), reads=[there])
    there.path(_TABLE).unlink()
    publish(target, recipe, writer(b"a", b"b"), reads=[there])


def test_versions_noted_of_other_files_are_not_believed(machine):
    publish(machine("a"), RECIPE, writer(b"one", b"two"))
    there = machine("b")
    layout = Layout(there.folder.parent, store=there.store)
    assert partitions_of(layout, "normalized_images") == ("00003",)
    there.manifest.write_bytes(b"{}")
    assert manifests_of(layout, "normalized_images")["00003"] == read_manifest(there)
    notes = Path(there.folder / ".store_versions.json")
    assert set(json.loads(notes.read_bytes())) == {"00003.manifest.json"}
