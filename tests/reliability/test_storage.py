"""A disk that fills and grows, one that is read-only, and limits on open files and on the size of a file.

Each is met for real, in a child process: tmpfs are mounted where nobody else sees them, limits set where they
hold for nobody else. Whatever refuses must say what is needed, leave nothing half-published, and go on from
there once the obstacle is gone.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import duckdb
import life
import one_host
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from embedding_inputs import cosines_of, metadata, pairs, place

from laion_assets.demo.pictures import Encoding, Picture
from laion_assets.demo.scenes import Scene
from laion_assets.demo.web import DemoWeb, Fault
from laion_assets.errors import (
    CorruptRecords,
    DiskFull,
    FileTooLong,
    NotWritable,
    StorageError,
    TooManyOpenFiles,
)
from laion_assets.fetch.policy import FetchPolicy
from laion_assets.fetch.transport import FakeTransport
from laion_assets.formats.publish import Manifest, done, verify
from laion_assets.formats.tfrecord import read_records
from laion_assets.outcomes import Outcome
from laion_assets.schema import RAW
from laion_assets.stages.images import download_images
from laion_assets.stages.raw_metadata import check_part
from laion_assets.stages.samples import write_samples
from laion_assets.stages.shard_plan import plan_shards

KB, MB = 1 << 10, 1 << 20
ROOMY = 512 * MB

Obstacle = Callable[[], AbstractContextManager[None]]


# -- children ---------------------------------------------------------------------------------------------


def run_in_child(
    body: Callable[..., None], folder: Path, *arguments: Any, prefix: Sequence[str] = ()
) -> None:
    """Run a function of this module, with JSON for its arguments, in a process of its own."""
    script = (
        "import json, pathlib, sys, test_storage\n"
        f"test_storage.{body.__name__}(pathlib.Path(sys.argv[1]), *json.loads(sys.argv[2]))"
    )
    ended = subprocess.run(
        [*prefix, sys.executable, "-W", "error", "-c", script, folder, json.dumps(arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    print(ended.stdout)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.fixture(scope="session")
def in_own_mounts():
    """Runs a function of this module where it may mount what nobody else sees."""
    for unshare in (("unshare", "--mount"), ("unshare", "--map-root-user", "--mount")):
        mount = [*unshare, "mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", "/mnt"]
        if (
            shutil.which("unshare")
            and subprocess.run(mount, capture_output=True, check=False).returncode == 0
        ):
            return lambda body, *arguments: run_in_child(body, *arguments, prefix=unshare)
    message = "this user may not mount a tmpfs, not even in a namespace (unshare --map-root-user --mount)"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


class Disk:
    """A tmpfs, in the mounts of this process."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOMY}", "tmpfs", folder], check=True)

    @property
    def used(self) -> int:
        status = os.statvfs(self.folder)
        return (status.f_blocks - status.f_bfree) * status.f_frsize

    def remount(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", self.folder], check=True)

    def empty(self) -> None:
        for path in self.folder.iterdir():
            shutil.rmtree(path)

    @contextmanager
    def with_room(self, room: int) -> Iterator[None]:
        """No more than this is free while the block runs; then the disk grows."""
        self.remount(f"size={self.used + room}")
        try:
            yield
        finally:
            self.remount(f"size={ROOMY}")

    @contextmanager
    def read_only(self) -> Iterator[None]:
        self.remount("ro")
        try:
            yield
        finally:
            self.remount("rw")


@contextmanager
def longest_file(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# -- a life in which every stage meets obstacles ----------------------------------------------------------


def live_against(
    folder: Path, until: str | None, obstacles: Mapping[str, Obstacle], error: type[StorageError], says: str
) -> None:
    """Live a life in which each stage meets one obstacle after another, until it gets past one.

    The first obstacle must stop every stage. The life must come to the bytes of an undisturbed one.
    """
    life.live(folder, until=until)
    expected = digests(folder)
    shutil.rmtree(folder)
    life.lay_sources(folder)
    for stage in life.STAGES:
        if stage == until:
            break
        output = life.output(stage, folder)
        stopped = []
        for name, obstacle in obstacles.items():
            with noting(f"{stage} with {name}"):
                with obstacle():
                    refusal = refusal_of(error, lambda stage=stage: run(stage, folder))
                if refusal is None:
                    break
                assert says in str(refusal), refusal
                assert str(folder) in str(refusal), refusal
                assert done(output) is None
                assert not output.draft.exists()
                stopped.append(name)
        assert stopped, f"nothing stopped {stage}"
        print(f"{stage:22} refused with {', '.join(stopped)}")
        run(stage, folder)
        verify(output)
    found = digests(folder)
    assert found == expected, found.items() ^ expected.items()


@contextmanager
def noting(place: str) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        error.add_note(place)
        raise


def refusal_of(error: type[StorageError], call: Callable[[], object]) -> StorageError | None:
    """Why a call was refused; None where it was not."""
    try:
        call()
    except error as refusal:
        return refusal
    return None


def digests(folder: Path) -> dict[str, str]:
    """As life has them, and what the catalog shows; a data set's builds are numbered as they came."""
    found = {
        re.sub(r"(/[.]builds/[0-9a-f]+)-[0-9]+/", r"\1/", name): digest
        for name, digest in life.digests(folder).items()
    }
    for path in folder.rglob("catalog.duckdb"):
        with duckdb.connect(str(path), read_only=True) as catalog:
            tables = sorted(name for (name,) in catalog.execute("SHOW TABLES").fetchall())
            found |= {name: str(catalog.table(name).count("*").fetchall()) for name in tables}
    return found


def run(stage: str, folder: Path) -> None:
    """Run a stage; of the web, no more may be asked than what no earlier run had finished."""
    if stage != "images":
        life.STAGES[stage](folder)
        return
    web = FakeTransport(life.answer, life.FETCH)
    kept = len(entries(life.output(stage, folder).journal))
    is_done = done(life.output(stage, folder)) is not None
    try:
        life._images(folder, web)
    finally:
        wanted = 0 if is_done else life.ROWS - 1 - kept  # one row has no URL
        assert len(web.asked) <= wanted, (kept, web.asked)
    assert len(web.asked) == wanted, (kept, web.asked)


def entries(journal: Path) -> list[dict[str, Any]]:
    """What a journal says was finished, up to where it is torn."""
    found = []
    with suppress(CorruptRecords, FileNotFoundError):
        found.extend(json.loads(payload.partition(b"\n")[0]) for payload in read_records(journal))
    return found[1:]  # the first says what the work is


def fill(folder: Path, until: str | None, rooms: Sequence[int]) -> None:
    disk = Disk(folder / "disk")
    obstacles = {f"{room >> 10} kB": lambda room=room: disk.with_room(room) for room in rooms}
    live_against(disk.folder / "life", until, obstacles, DiskFull, "is full")


def make_read_only(folder: Path, until: str | None) -> None:
    disk = Disk(folder / "disk")
    obstacles = {"read-only": disk.read_only}
    live_against(
        disk.folder / "life", until, obstacles, NotWritable, "is on a disk that is mounted read-only"
    )
    with disk.read_only():
        for stage in life.STAGES:
            if stage == until:
                break
            run(stage, disk.folder / "life")


def limit_files(folder: Path, until: str | None, sizes: Sequence[int]) -> None:
    obstacles = {f"{size} bytes": lambda size=size: longest_file(size) for size in sizes}
    live_against(folder / "life", until, obstacles, FileTooLong, "raise the limit")


# The first stages, which take no second, stand for all in the tests that are always run.
FEW, ALL = "images", None


def test_a_full_disk_is_named_and_the_next_run_goes_on(in_own_mounts, tmp_path):
    in_own_mounts(fill, tmp_path, FEW, [0, 4 * KB])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_stage_breaks_on_a_disk_that_fills_anywhere(in_own_mounts, tmp_path):
    in_own_mounts(fill, tmp_path, ALL, [*range(0, 96 * KB, 4 * KB), *range(96 * KB, 2 * MB, 32 * KB)])


def test_a_read_only_disk_is_named_and_what_is_done_on_it_stays_done(in_own_mounts, tmp_path):
    in_own_mounts(make_read_only, tmp_path, FEW)


@pytest.mark.slow
def test_no_stage_breaks_on_a_read_only_disk(in_own_mounts, tmp_path):
    in_own_mounts(make_read_only, tmp_path, ALL)


def test_a_limit_of_file_size_is_named_and_the_next_run_goes_on(tmp_path):
    run_in_child(limit_files, tmp_path, FEW, [0, 2 * KB])


@pytest.mark.slow
def test_no_stage_breaks_on_any_limit_of_file_size(tmp_path):
    run_in_child(limit_files, tmp_path, ALL, [0, *(512 << step for step in range(13))])


# -- a limit on open files --------------------------------------------------------------------------------

SETTINGS = f"""\
data_root = "{{data}}"
dagster_home = "{{home}}"
rows_per_shard = 5
check_space = false
[raw]
source = "raw"
[fetch]
allow_loopback = true
per_domain_concurrency = 16
{one_host.SETTINGS}[embeddings]
source = "vectors"
width = 16
[quality]
cosine_far_share = 0.5
"""
POLICY = FetchPolicy(
    allow_loopback=True, attempts=1, concurrency=8, per_domain_concurrency=8, per_domain_interval_s=0
)


def lay_sources(folder: Path, web: DemoWeb, rows: int) -> None:
    """A part whose pictures a demo's web has, at an address and at a name, and vectors for its rows."""
    scenes = list(Scene.every())
    pictures = [
        Picture(scene=scenes[7 * row % len(scenes)], seed=row, width=120, height=100, encoding=Encoding.JPEG)
        for row in range(rows)
    ]
    urls = [web.url_for(Fault.OK, picture) for picture in pictures]
    urls[::2] = [url.replace("127.0.0.1", "localhost") for url in urls[::2]]
    captions = [picture.scene.caption for picture in pictures]
    part = [
        {"URL": url, "TEXT": caption, "similarity": 0.31} for url, caption in zip(urls, captions, strict=True)
    ]
    (folder / "raw").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(part, schema=RAW), folder / "raw" / "part-0.parquet")
    cosines = cosines_of(rows)
    place(folder / "vectors", 0, *pairs(cosines), metadata(cosines, url=pa.array(urls)))


def write_samples_of(folder: Path, rows: int) -> None:
    layout = life.layout_of(folder)
    check_part(
        "part-0",
        layout,
        location=str(folder / "raw" / "part-0.parquet"),
        source_schema="laion400m",
        rows_per_shard=rows,
    )
    plan_shards(layout, ["part-0"], rows_per_shard=rows)
    write_samples(life.SHARD, layout)


def download(folder: Path) -> Manifest:
    return download_images(life.SHARD, life.layout_of(folder), POLICY, life.IMAGE)


def download_with_few_files(folder: Path, limit: int, spares: Sequence[int]) -> None:
    """Have fewer files to open than a download needs, then as many as needed."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    output = life.output("images", folder)
    stopped = []
    for spare in spares:
        with files_left(spare):
            refusal = refusal_of(TooManyOpenFiles, lambda: download(folder))
        if refusal is None:
            break
        assert "raise" in str(refusal)
        assert "fetch.concurrency" in str(refusal)
        assert done(output) is None
        blamed = [entry for entry in entries(output.journal) if entry["outcome"] != Outcome.SUCCESS]
        assert not blamed, (spare, blamed)
        stopped.append(spare)
    print(f"refused with {stopped} files left")
    assert stopped


@contextmanager
def files_left(spare: int) -> Iterator[None]:
    """Open files until this process may open no more than ``spare``."""
    held = []
    try:
        with suppress(OSError):
            while True:
                held.append(os.open(os.devnull, os.O_RDONLY))
        for _ in range(spare):
            os.close(held.pop())
        yield
    finally:
        for descriptor in held:
            os.close(descriptor)


@pytest.mark.parametrize(
    ("limit", "spares"),
    [
        pytest.param(64, [40], id="before"),
        pytest.param(128, list(range(2, 40)), id="during"),
    ],
)
def test_a_download_short_of_open_files_blames_no_url(tmp_path, limit, spares):
    with DemoWeb() as web:
        lay_sources(tmp_path, web, 24)
        write_samples_of(tmp_path, 24)
        run_in_child(download_with_few_files, tmp_path, limit, spares)
        output = life.output("images", tmp_path)
        asked = web.requests.total()
        missing = 0 if done(output) else 24 - len(entries(output.journal))
        assert asked == 0 or limit > 64
        counts = download(tmp_path).counts
        assert counts["outcome:success"] == 24, counts
        assert web.requests.total() - asked == missing


# -- the whole graph, through the command line ------------------------------------------------------------


def build(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "laion_assets", "build", "--settings", folder / "laion.toml", *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def write_settings(folder: Path, data: Disk, records: Disk) -> None:
    text = SETTINGS.replace("{data}", f"{data.folder}/data").replace("{home}", f"{records.folder}/home")
    (folder / "laion.toml").write_text(text)


def build_on_a_disk_that_fills(folder: Path, holds_records: bool, shares: Sequence[float]) -> None:
    """Build where a share of the room that it takes is free, then where all is."""
    disk = Disk(folder / "disk")
    write_settings(folder, disk, disk if holds_records else Disk(folder / "records"))
    with DemoWeb() as web:
        lay_sources(folder, web, 10)
        undisturbed = build(folder)
        assert undisturbed.returncode == 0, undisturbed.stderr
        expected, needed = digests(disk.folder / "data"), disk.used
        for share in shares:
            disk.empty()
            with disk.with_room(int(share * needed)):
                refused = build(folder)
            print(f"with {share:.0%} of {needed >> 10} kB:\n{refused.stderr}")
            assert refused.returncode == 1, refused
            assert "Traceback" not in refused.stderr
            # Dagster may complain beside it, of a log that it cannot write.
            lines = [line for line in refused.stderr.splitlines() if line.startswith("laion-assets: ")]
            assert any(f"the disk of {disk.folder}" in line and "is full" in line for line in lines)
            again = build(folder)
            assert again.returncode == 0, again.stderr
            found = digests(disk.folder / "data")
            assert found == expected, found.items() ^ expected.items()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("holds_records", "shares"),
    [
        # Of so few rows, most of what is written are Dagster's records.
        pytest.param(True, [0.02, 0.1, 0.5, 0.95], id="with-records"),
        pytest.param(False, [0.05, 0.15], id="data-alone"),
    ],
)
def test_a_build_on_a_disk_that_fills_says_so_and_goes_on_once_it_grew(
    in_own_mounts, tmp_path, holds_records, shares
):
    in_own_mounts(build_on_a_disk_that_fills, tmp_path, holds_records, shares)


def build_on_a_read_only_disk(folder: Path) -> None:
    """Build what is done already, then what is not."""
    disk = Disk(folder / "disk")
    write_settings(folder, disk, Disk(folder / "records"))
    with DemoWeb() as web:
        lay_sources(folder, web, 10)
        with disk.read_only():
            refused = build(folder)
        print(refused.stderr)
        assert refused.returncode == 1, refused
        assert "Traceback" not in refused.stderr
        assert f"{disk.folder}" in refused.stderr
        assert "mounted read-only" in refused.stderr
        assert build(folder).returncode == 0
        with disk.read_only():
            for options in ((), ("--again",)):
                done_already = build(folder, *options)
                assert done_already.returncode == 0, done_already.stderr
        assert max(web.requests.values()) == 1


@pytest.mark.slow
def test_a_build_on_a_read_only_disk_says_so_and_finds_what_is_done(in_own_mounts, tmp_path):
    in_own_mounts(build_on_a_read_only_disk, tmp_path)
