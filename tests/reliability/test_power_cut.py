"""The real webserver, daemon and code server over downloads in progress: killed, doubled, terminated."""

import os
import signal
import subprocess
import time
from pathlib import Path

import one_host
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from served_ui import (
    address_of,
    ask,
    backfill_status,
    free_port,
    launch_backfill,
    launch_run,
    runs,
    start_ui,
)

from laion_assets.defs.instance import open_instance, prepare_home
from laion_assets.defs.pools import NETWORK
from laion_assets.demo.pictures import Encoding, Picture
from laion_assets.demo.scenes import Scene
from laion_assets.demo.web import DemoWeb, Fault
from laion_assets.formats.publish import done, verify
from laion_assets.formats.tfrecord import read_records
from laion_assets.layout import Layout, ShardId
from laion_assets.pipeline import IMAGES
from laion_assets.schema import RAW

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROWS_PER_SHARD = 40
SHARDS = 5
SETTINGS = f"""\
data_root = "data"
dagster_home = "dagster_home"
rows_per_shard = {ROWS_PER_SHARD}
batch_shards = 1
[raw]
source = "raw"
[fetch]
allow_loopback = true
per_domain_concurrency = 1
{one_host.SETTINGS}"""
# Long enough for a machine that does other things too; what it took is printed.
PATIENCE_S = 240


class Stack:
    """The whole of ``laion-assets ui`` over one folder, which can be killed and started again."""

    def __init__(self, folder: Path, web: DemoWeb) -> None:
        self.folder = folder
        self.web = web
        self.layout = Layout(folder / "data")
        self.port = free_port()
        self.address = address_of(self.port)

    def start(self):
        self.process = start_ui(self.folder / "laion.toml", self.port, self.folder / "ui.log")

    def kill(self):
        """As a power cut: every process at once, without a word."""
        family = descendants(self.process.pid)
        for pid in (self.process.pid, *family):
            os.kill(pid, signal.SIGSTOP)  # so that none sees another die
        for pid in (self.process.pid, *family):
            os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def wait(self, condition, what):
        """Seconds until something holds."""
        started = time.monotonic()
        while not condition():
            assert time.monotonic() - started < PATIENCE_S, (
                what,
                (self.folder / "ui.log").read_text()[-5000:],
            )
            time.sleep(0.1)
        return time.monotonic() - started

    def asked(self, shard):
        """How often each picture of a shard was asked for."""
        return {path: self.web.requests[path] for path in paths_of(self.folder, shard)}

    def run(self, run_id):
        """A run by its id."""
        return next(run for run in runs(self.address) if run["runId"] == run_id)

    def writers(self, shard):
        """Processes that have a shard's journal open."""
        journal = str(self.layout.images(ShardId(shard)).journal)
        return [pid for pid in descendants(self.process.pid) if journal in open_files(pid)]

    def journaled(self, shard):
        """How many outcomes a shard's journal holds."""
        path = self.layout.images(ShardId(shard)).journal
        return sum(1 for _ in read_records(path)) - 1 if path.exists() else 0


def descendants(pid):
    """Every process that a process has started, and theirs."""
    parents = {}
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                parents[int(path.name)] = int((path / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
    found, new = set(), {pid}
    while new:
        new = {child for child, parent in parents.items() if parent in new} - found
        found |= new
    return found


def open_files(pid):
    try:
        return {str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()}
    except (FileNotFoundError, ProcessLookupError):
        return set()


def picture(row):
    scenes = list(Scene.every())
    scene = scenes[(7 * row) % len(scenes)]
    return Picture(scene=scene, seed=row, width=120, height=100, encoding=Encoding.JPEG)


def paths_of(folder, shard):
    rows = pq.read_table(folder / "raw" / "part-0.parquet").slice(shard * ROWS_PER_SHARD, ROWS_PER_SHARD)
    return ["/" + url.split("/", 3)[3] for url in rows["URL"].to_pylist()]


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stack")
    with DemoWeb() as web:
        rows = [
            {
                "URL": web.url_for(Fault.SLOW, picture(row)),
                "TEXT": picture(row).scene.caption,
                "similarity": 0.3,
            }
            for row in range(SHARDS * ROWS_PER_SHARD)
        ]
        (folder / "raw").mkdir()
        pq.write_table(pa.Table.from_pylist(rows, schema=RAW), folder / "raw" / "part-0.parquet")
        (folder / "laion.toml").write_text(SETTINGS)
        plan(folder)
        download_side_by_side(folder)
        stack = Stack(folder, web)
        stack.start()
        yield stack
        stack.stop()


def download_side_by_side(folder):
    """Let two runs download at once, on however few cores."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGSTER_HOME", str(folder))  # which preparing sets, restored at the end
        with open_instance(prepare_home(folder / "dagster_home")) as instance:
            instance.event_log_storage.set_concurrency_slots(NETWORK, 2)


def plan(folder):
    """Read the part and plan its shards, so that the code location knows its partitions."""
    from laion_assets.pipeline import STAGE_BY_NAME
    from laion_assets.settings import Settings

    settings = Settings.load(folder / "laion.toml")
    STAGE_BY_NAME["raw_metadata"].run(settings, "part-0")
    STAGE_BY_NAME["shard_plan"].run(settings, "shard_plan")


def test_after_a_power_cut_orphaned_runs_fail_and_their_retries_finish(stack):
    backfill = launch_backfill(stack.address, list(IMAGES), ["00000", "00001"])
    stack.wait(lambda: min(stack.journaled(0), stack.journaled(1)) >= 10, "downloads under way")
    stack.kill()
    kept = {shard: stack.journaled(shard) for shard in (0, 1)}
    before = {shard: stack.asked(shard) for shard in (0, 1)}
    assert all(done(stack.layout.images(ShardId(shard))) is None for shard in (0, 1))

    restarted = time.monotonic()
    stack.start()
    up = time.monotonic() - restarted
    orphans = {run["runId"] for run in runs(stack.address) if run["status"] in ("STARTED", "FAILURE")}
    assert len(orphans) == 2

    stack.wait(lambda: {stack.run(run)["status"] for run in orphans} == {"FAILURE"}, "orphans failed")
    failed = time.monotonic() - restarted
    outputs = [stack.layout.tfds_images(ShardId(shard)) for shard in (0, 1)]
    stack.wait(lambda: all(done(output) is not None for output in outputs), "shards done")
    finished = time.monotonic() - restarted
    stack.wait(lambda: backfill_status(stack.address, backfill) == "COMPLETED_SUCCESS", "backfill done")
    print(
        f"\npower cut: UI up {up:.1f} s after the restart, orphaned runs failed after {failed:.1f} s, shards "
        f"finished after {finished:.1f} s"
    )

    for shard in (0, 1):
        for output in (stack.layout.images(ShardId(shard)), stack.layout.tfds_images(ShardId(shard))):
            assert verify(output).rows == ROWS_PER_SHARD
        again = sum(stack.asked(shard)[path] - count for path, count in before[shard].items() if count)
        # What the journal had was not asked for again: only what was in flight, one URL at a time here.
        assert kept[shard] >= 10
        assert again <= sum(before[shard].values()) - kept[shard] <= 2
    assert not any(run["status"] in ("STARTED", "STARTING", "QUEUED") for run in runs(stack.address))


def test_one_partition_launched_twice_is_run_once(stack):
    both = [launch_run(stack.address, "build_shards", "00002") for _ in range(2)]
    stack.wait(lambda: {stack.run(run)["status"] for run in both} == {"SUCCESS"}, "both runs")
    assert set(stack.asked(2).values()) == {1}
    early, late = sorted(map(stack.run, both), key=lambda run: run["startTime"])
    assert early["endTime"] <= late["startTime"], "the two ran side by side"


def test_terminate_ends_a_run_and_keeps_its_journal(stack):
    run = launch_run(stack.address, "build_shards", "00003")
    stack.wait(lambda: stack.journaled(3) >= 10, "download under way")
    ask(
        stack.address,
        "mutation($id: String!) { terminateRun(runId: $id)"
        " { __typename ... on TerminateRunFailure { message } } }",
        id=run,
    )
    seconds = stack.wait(lambda: stack.run(run)["status"] == "CANCELED", "run ended")
    print(f"\nterminate: the run ended after {seconds:.1f} s")
    kept, before = stack.journaled(3), stack.asked(3)
    assert 10 <= kept < ROWS_PER_SHARD
    time.sleep(1)
    assert stack.asked(3) == before, "the run's process went on"

    again = launch_run(stack.address, "build_shards", "00003")
    stack.wait(lambda: stack.run(again)["status"] == "SUCCESS", "finished")
    assert verify(stack.layout.tfds_images(ShardId(3))).rows == ROWS_PER_SHARD
    assert sum(stack.asked(3).values()) <= ROWS_PER_SHARD + sum(before.values()) - kept


def test_a_run_whose_process_is_killed_is_retried_and_goes_on(stack):
    run = launch_run(stack.address, "build_shards", "00004")
    stack.wait(lambda: stack.journaled(4) >= 10, "download under way")
    (worker,) = stack.writers(4)
    os.kill(worker, signal.SIGKILL)
    kept, before = stack.journaled(4), stack.asked(4)
    seconds = stack.wait(lambda: stack.run(run)["status"] == "FAILURE", "run failed")
    print(f"\nkilled worker: its run failed after {seconds:.1f} s")
    stack.wait(lambda: done(stack.layout.tfds_images(ShardId(4))) is not None, "retry finished")
    assert verify(stack.layout.tfds_images(ShardId(4))).rows == ROWS_PER_SHARD
    assert sum(stack.asked(4).values()) <= ROWS_PER_SHARD + sum(before.values()) - kept
    retries = [found for found in runs(stack.address) if found["tags"].get("dagster/parent_run_id") == run]
    assert len(retries) == 1
