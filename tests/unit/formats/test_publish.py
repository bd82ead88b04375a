import errno
import multiprocessing
import os
import signal
from dataclasses import replace

import pytest
import xxhash

from laion_assets.errors import CorruptInput, CorruptManifest, DiskFull, MissingInput, ShardBusy
from laion_assets.formats.checksums import sha256_of
from laion_assets.formats.publish import Recipe, Tally, done, publish, read_manifest, require, verify, vouch
from laion_assets.formats.sealed import fingerprint, seal, unseal
from laion_assets.layout import Layout, ShardId

RECIPE = Recipe(code_version="1", settings="s", inputs={"samples": "v"})


@pytest.fixture
def output(tmp_path):
    return Layout(tmp_path).normalized_images(ShardId(3))


def writer(*contents):
    calls = []

    def write(draft):
        calls.append(1)
        for name, content in zip(("00003.parquet", "00003.set_aside.parquet"), contents, strict=True):
            draft.path(name).write_bytes(content)
        return Tally(rows=2, counts={"b": 1, "a": 2})

    write.calls = calls
    return write


def test_what_is_published_is_whole_and_recorded(output):
    manifest = publish(output, RECIPE, writer(b"one", b"two"))
    assert output.path("00003.parquet").read_bytes() == b"one"
    assert read_manifest(output) == manifest == verify(output)
    assert (manifest.rows, manifest.counts, manifest.bytes) == (2, {"a": 2, "b": 1}, 6)
    assert not output.draft.exists()


def test_the_same_recipe_is_not_cooked_twice(output):
    write = writer(b"one", b"two")
    first = publish(output, RECIPE, write)
    assert publish(output, RECIPE, write) == first
    assert len(write.calls) == 1


@pytest.mark.parametrize(
    "other",
    [
        Recipe(code_version="2", settings="s", inputs={"samples": "v"}),
        Recipe(code_version="1", settings="t", inputs={"samples": "v"}),
        Recipe(code_version="1", settings="s", inputs={"samples": "w"}),
    ],
)
def test_another_recipe_is_cooked_again(output, other):
    before = publish(output, RECIPE, writer(b"one", b"two"))
    after = publish(output, other, writer(b"three", b"two"))
    assert before.data_version != after.data_version
    assert output.path("00003.parquet").read_bytes() == b"three"


def test_a_file_that_went_missing_or_changed_size_is_made_again(output):
    publish(output, RECIPE, writer(b"one", b"two"))
    output.path("00003.parquet").write_bytes(b"longer")
    with pytest.raises(CorruptInput, match="expected 3 bytes, found 6 bytes"):
        require(output)
    publish(output, RECIPE, writer(b"one", b"two"))
    output.path("00003.set_aside.parquet").unlink()
    publish(output, RECIPE, writer(b"one", b"two"))
    assert verify(output).rows == 2


def test_a_flipped_byte_is_found_by_verify(output):
    publish(output, RECIPE, writer(b"one", b"two"))
    output.path("00003.parquet").write_bytes(b"0ne")
    require(output)
    with pytest.raises(CorruptInput, match="XXH3-128"):
        verify(output)


@pytest.mark.parametrize(("older", "compared"), [(3, "sha256"), (4, "XXH3-128")])
def test_manifests_of_older_versions_name_contents_by_sha256(output, older, compared):
    publish(output, RECIPE, writer(b"one", b"two"))
    document = unseal(output.manifest.read_bytes())
    for name, record in document["files"].items():
        del record["blake3"]
        record["sha256"] = sha256_of(output.path(name))
        if older == 3:
            del record["xxh3_128"]
    output.manifest.write_bytes(seal({**document, "format": older}))
    version = fingerprint({name: sha256_of(output.path(name)) for name in document["files"]})
    assert verify(output).data_version == version
    assert publish(output, RECIPE, writer(b"one", b"two")).data_version == version
    output.path("00003.parquet").write_bytes(b"0ne")
    with pytest.raises(CorruptInput, match=f"expected {compared}"):
        verify(output)


def test_a_writer_that_fails_leaves_nothing(output):
    def write(draft):
        draft.path("00003.parquet").write_bytes(b"half")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        publish(output, RECIPE, write)
    assert read_manifest(output) is None
    assert not output.path("00003.parquet").exists()
    assert not output.draft.exists()
    with pytest.raises(MissingInput, match="materialize normalized_images first"):
        require(output)


def test_a_writer_that_forgets_a_file_leaves_the_old_partition(output):
    publish(output, RECIPE, writer(b"one", b"two"))

    def write(draft):
        draft.path("00003.parquet").write_bytes(b"new")
        return Tally(rows=1)

    with pytest.raises(FileNotFoundError):
        publish(output, Recipe(code_version="9"), write)
    assert verify(output).recipe == RECIPE


def hold(output, held, release):
    def write(draft):
        for name in output.names:
            draft.path(name).write_bytes(b"x")
        held.set()
        release.wait(30)
        return Tally(rows=0)

    publish(output, RECIPE, write)


def test_two_processes_never_write_one_partition(output):
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    process = context.Process(target=hold, args=(output, held, release))
    process.start()
    try:
        assert held.wait(60)
        with pytest.raises(ShardBusy, match="another process"):
            publish(output, RECIPE, writer(b"one", b"two"))
    finally:
        release.set()
        process.join(60)
    assert verify(output).files["00003.parquet"].bytes == 1


def test_a_killed_writer_leaves_no_partition_and_no_lease(output):
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    process = context.Process(target=hold, args=(output, held, release))
    process.start()
    assert held.wait(60)
    os.kill(process.pid, signal.SIGKILL)
    process.join(60)
    assert read_manifest(output) is None
    publish(output, RECIPE, writer(b"one", b"two"))
    assert verify(output).bytes == 6


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"{}", seal({"format": 3}), seal({"format": 2, "stage": 3}), b'{"format": 2}']
)
def test_a_manifest_that_is_none_is_named_and_replaced(output, text):
    output.folder.mkdir(parents=True)
    output.manifest.write_bytes(text)
    with pytest.raises(CorruptManifest, match=r"00003\.manifest\.json"):
        read_manifest(output)
    publish(output, RECIPE, writer(b"one", b"two"))
    assert verify(output).rows == 2


def test_files_laid_down_by_others_are_vouched_for_where_they_lie(output):
    output.folder.mkdir(parents=True)
    for name in output.names:
        output.path(name).write_bytes(b"theirs")
    manifest = vouch(output, RECIPE, lambda: Tally(rows=5))
    assert verify(output) == manifest
    assert vouch(output, RECIPE, lambda: pytest.fail("checked twice")) == manifest


def test_manifests_differ_only_in_seconds(tmp_path):
    documents = []
    for name in ("a", "b"):
        output = Layout(tmp_path / name).normalized_images(ShardId(3))
        publish(output, RECIPE, writer(b"one", b"two"))
        document = unseal(output.manifest.read_bytes())
        assert document.pop("seconds") >= 0
        documents.append(document)
    assert documents[0] == documents[1]


def test_a_log_is_published_and_verified_and_no_part_of_the_data(tmp_path):
    output = replace(Layout(tmp_path).normalized_images(ShardId(3)), logs=("00003.set_aside.parquet",))
    first = publish(output, RECIPE, writer(b"one", b"two"))
    second = publish(output, replace(RECIPE, settings="t"), writer(b"one", b"2"))
    assert first.data_version == second.data_version
    assert (second.bytes, second.data_bytes) == (4, 3)
    assert read_manifest(output) == second
    output.path("00003.set_aside.parquet").write_bytes(b"3")
    with pytest.raises(CorruptInput, match=r"set_aside\.parquet: expected XXH3-128"):
        verify(output)
    other = publish(output, replace(RECIPE, settings="u"), writer(b"two", b"2"))
    assert other.data_version != second.data_version


def test_a_manifest_of_an_older_place_and_format_is_read_until_another_takes_its_place(output):
    whole = publish(output, RECIPE, writer(b"one", b"two"))
    document = unseal(output.manifest.read_bytes())
    document["format"] = 2
    for record in document["files"].values():
        del record["is_log"]
    output.manifest.write_bytes(seal(document))
    moved = replace(output, manifest_suffix=".manifest")
    assert read_manifest(moved) == verify(moved) == whole
    assert publish(moved, RECIPE, writer(b"one", b"two")) == whole
    assert not moved.manifest.exists()
    moved.older_manifest.write_bytes(b"{}")
    with pytest.raises(CorruptManifest, match=r"00003\.manifest\.json"):
        read_manifest(moved)
    publish(moved, RECIPE, writer(b"one", b"two"))
    assert moved.manifest.exists()
    assert not moved.older_manifest.exists()


def test_a_manifest_with_files_that_the_output_has_not_is_none_of_its(output):
    publish(output, RECIPE, writer(b"one", b"two"))
    fewer = replace(output, names=output.names[:1])
    with pytest.raises(CorruptManifest, match=r"00003\.set_aside\.parquet"):
        read_manifest(fewer)
    assert vouch(fewer, RECIPE, lambda: Tally(rows=1)).files.keys() == {"00003.parquet"}


def test_fingerprint_depends_on_values_and_not_on_order():
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1}) != fingerprint({"a": 1, "b": 3})


def test_a_manifest_of_another_partition_vouches_for_nothing(output, tmp_path):
    other = Layout(tmp_path).normalized_images(ShardId(4))
    publish(output, RECIPE, writer(b"one", b"two"))
    other.manifest.write_bytes(output.manifest.read_bytes())
    with pytest.raises(CorruptManifest, match="of normalized_images 00003"):
        read_manifest(other)


def test_a_changed_byte_of_a_manifest_is_refused(output):
    publish(output, RECIPE, writer(b"one", b"two"))
    whole = output.manifest.read_bytes()
    at = whole.index(b'"rows": 2') + 8
    output.manifest.write_bytes(whole[:at] + b"3" + whole[at + 1 :])
    with pytest.raises(CorruptManifest, match="another checksum"):
        read_manifest(output)


@pytest.fixture
def source(tmp_path):
    """A published input, and a recipe that follows from it."""
    source = Layout(tmp_path).samples(ShardId(3))
    manifest = publish(source, RECIPE, lambda draft: (draft.only.write_bytes(b"in"), Tally(rows=1))[1])
    return source, Recipe(code_version="1", inputs={"samples": manifest.data_version})


def test_nothing_is_made_of_an_input_that_changed(output, source):
    read, recipe = source
    read.only.write_bytes(b"IN")
    with pytest.raises(CorruptInput, match=r"samples/00003.parquet: expected XXH3-128"):
        publish(output, recipe, writer(b"one", b"two"), reads=[read])
    assert done(output) is None
    assert not output.draft.exists()


@pytest.mark.parametrize(
    "checksum", [None, xxhash.xxh3_128_hexdigest(b"IN"), xxhash.xxh3_128_hexdigest(b"in")]
)
def test_nothing_is_published_of_an_input_that_was_not_its_own_when_it_was_read(output, source, checksum):
    read, recipe = source
    read.only.write_bytes(b"IN")

    def write(draft):
        draft.note_read(read.only, checksum)
        return writer(b"one", b"two")(draft)

    def attempt():
        return publish(output, recipe, write, reads=[read], digested=[read.only])

    if checksum == xxhash.xxh3_128_hexdigest(b"in"):
        assert attempt().rows == 2  # of the bytes that were vouched for, whatever lies there by now
    else:
        with pytest.raises(CorruptInput, match=r"samples/00003.parquet: expected XXH3-128"):
            attempt()
        assert done(output) is None
        assert not output.draft.exists()


def test_an_input_whose_noted_checksum_is_wrong_is_refused_though_it_was_verified_before(output, source):
    read, recipe = source

    def write(draft):
        draft.note_read(read.only, xxhash.xxh3_128_hexdigest(b"IN"))
        return writer(b"one", b"two")(draft)

    publish(output, recipe, writer(b"one", b"two"), reads=[read])
    with pytest.raises(CorruptInput, match=r"samples/00003.parquet: expected XXH3-128"):
        publish(output, recipe, write, reads=[read], digested=[read.only], again=True)
    assert verify(output).rows == 2


def test_what_fails_for_a_damaged_input_is_the_input(output, source):
    read, recipe = source

    def fail(draft):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        publish(output, recipe, fail, reads=[read], digested=[read.only])
    read.only.write_bytes(b"IN")
    with pytest.raises(CorruptInput, match=r"samples/00003.parquet: expected XXH3-128"):
        publish(output, recipe, fail, reads=[read], digested=[read.only])


def test_an_input_is_not_replaced_while_it_is_read_but_may_be_read_by_others(output, source):
    read, recipe = source
    again = Recipe(code_version="2")

    def write(draft):
        with pytest.raises(ShardBusy, match="samples 00003 is being written or read"):
            publish(read, again, lambda draft: pytest.fail("written under a reader"))
        # What is there already may be asked for meanwhile, and read.
        assert publish(read, RECIPE, lambda draft: pytest.fail("made again")) == read_manifest(read)
        other = Layout(output.folder.parent).images(ShardId(3))
        publish(other, recipe, lambda draft: write_all(other, draft), reads=[read])
        return write_all(output, draft)

    publish(output, recipe, write, reads=[read])
    assert verify(output).rows == 0


def write_all(output, draft):
    for name in output.names:
        draft.path(name).write_bytes(b"x")
    return Tally(rows=0)


def test_an_input_that_was_made_again_meanwhile_is_noticed(output, source):
    read, recipe = source
    publish(read, Recipe(code_version="2"), lambda draft: (draft.only.write_bytes(b"new"), Tally(rows=1))[1])
    with pytest.raises(ShardBusy, match="made again just now"):
        publish(output, recipe, writer(b"one", b"two"), reads=[read])


def test_a_journal_outlives_a_run_that_fails_and_no_other(output):
    def fail(draft):
        draft.journal.parent.mkdir()
        draft.journal.write_bytes(b"so far")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        publish(output, RECIPE, fail)
    assert output.journal.read_bytes() == b"so far"
    publish(output, RECIPE, writer(b"one", b"two"))
    assert not output.journal.exists()


def test_what_a_killed_run_left_is_removed_by_the_next(output):
    output.draft.mkdir(parents=True)
    (output.draft / "half").write_bytes(b"x")
    publish(output, RECIPE, writer(b"one", b"two"))
    assert not output.draft.exists()
    # Killed after it had published: nothing is left to do but this.
    output.draft.mkdir(parents=True)
    output.journal.parent.mkdir()
    output.journal.write_bytes(b"x")
    publish(output, RECIPE, lambda draft: pytest.fail("made again"))
    assert not output.draft.exists()
    assert not output.journal.exists()


def test_the_old_partition_stays_until_the_new_one_is_whole(output):
    publish(output, RECIPE, writer(b"one", b"two"))

    def write(draft):
        write_all(output, draft)
        assert verify(output).recipe == RECIPE
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(DiskFull, match="normalized_images 00003: the disk of"):
        publish(output, Recipe(code_version="2"), write)
    assert verify(output).recipe == RECIPE
