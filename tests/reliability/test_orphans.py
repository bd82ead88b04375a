"""A process whose parent was killed ends too, and runs that nobody executes any more are told from others."""

import multiprocessing
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.utils import make_new_run_id

from laion_assets.defs.instance import open_instance, prepare_home
from laion_assets.defs.workers import BUILD_TAG, attended, fail_orphans, is_attended
from laion_assets.settings import RunSettings
from laion_assets.shard_work import end_with_parent, map_shards

SPAWN = multiprocessing.get_context("spawn")
START_S = 60.0
END_S = 10.0
NAME = "build-of-a-test"


# -- what runs in other processes -------------------------------------------------------------------------


def write_on(path):
    """As a step process does, write until somebody ends it; a test that fails leaves it a minute."""
    end_with_parent()
    end = time.monotonic() + 60
    with path.open("a") as file:
        while time.monotonic() < end:
            file.write(f"{os.getpid()}\n")
            file.flush()
            time.sleep(0.005)


def start_writer(path):
    writer = SPAWN.Process(target=write_on, args=(path,))
    writer.start()
    writer.join()


def hand_out(path):
    """As a run does whose shards are worked on in other processes."""
    for _ in map_shards(partial(write_shard, path), ["00000"], RunSettings(workers="processes", cores=1)):
        pass


def write_shard(path, _):
    write_on(path)


def attend(home, name, ready):
    with attended(home, name):
        ready.set()
        time.sleep(60)


# -- what is seen of them ---------------------------------------------------------------------------------


def wait_until(holds, within):
    begun = time.monotonic()
    while not holds():
        assert time.monotonic() - begun < within, f"it took more than {within:g} s"
        time.sleep(0.005)
    return time.monotonic() - begun


def writer_of(path):
    """Id of the process that writes, once it does."""
    wait_until(lambda: path.exists() and "\n" in path.read_text(), START_S)
    return int(path.read_text().split("\n")[0])


def is_alive(pid):
    """Whether a process runs; one that ended and was not waited for does not."""
    status = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout
    return bool(status.strip()) and not status.startswith("Z")


@contextmanager
def attending(home, name):
    """A process that attends a build, for the block to kill."""
    ready = SPAWN.Event()
    process = SPAWN.Process(target=attend, args=(home, name, ready))
    process.start()
    try:
        assert ready.wait(START_S)
        yield process
    finally:
        process.kill()
        process.join()


@pytest.fixture
def instance(tmp_path, monkeypatch):
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    with open_instance(prepare_home(tmp_path / "home")) as opened:
        yield opened


def add_run(instance, status=dg.DagsterRunStatus.STARTED, **tags):
    run = dg.DagsterRun(job_name="a_job", run_id=make_new_run_id(), status=status, tags=tags)
    return instance.add_run(run)


# -- processes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [start_writer, hand_out])
def test_a_process_ends_with_the_one_that_started_it(tmp_path, start):
    path = tmp_path / "written"
    parent = SPAWN.Process(target=start, args=(path,))
    parent.start()
    writer = writer_of(path)
    parent.kill()
    seconds = wait_until(lambda: not is_alive(writer), END_S)
    size = path.stat().st_size
    time.sleep(0.2)
    assert path.stat().st_size == size
    parent.join()
    print(f"\nwrote no more {seconds:.3f} s after its parent was killed")


def test_a_process_that_a_person_started_is_left_alone(tmp_path):
    path = tmp_path / "written"
    shell = [sys.executable, "-c", "import subprocess, sys; subprocess.run(sys.argv[1:])"]
    with subprocess.Popen([*shell, sys.executable, __file__, path]) as parent:
        writer = writer_of(path)
        parent.kill()
    try:
        size = path.stat().st_size
        time.sleep(1)
        assert is_alive(writer)
        assert path.stat().st_size > size
    finally:
        os.kill(writer, 9)


# -- records ----------------------------------------------------------------------------------------------


def test_what_a_live_process_executes_is_attended(tmp_path, instance):
    run = add_run(instance)
    build = add_run(instance, **{BUILD_TAG: NAME})
    home = Path(instance.root_directory)
    assert not is_attended(home, run)
    assert not is_attended(home, build)
    with attended(home, run.run_id):
        assert is_attended(home, run)
        assert not is_attended(home, build)
    assert not is_attended(home, run)
    with attending(home, NAME) as process:
        assert is_attended(home, build)
        process.kill()
        process.join()
        assert not is_attended(home, build)
        assert not is_attended(home, build)


@pytest.mark.parametrize(
    "status",
    [
        # Created and not yet started, in which a build may be killed too.
        dg.DagsterRunStatus.NOT_STARTED,
        dg.DagsterRunStatus.STARTING,
        dg.DagsterRunStatus.STARTED,
        dg.DagsterRunStatus.CANCELING,
    ],
)
def test_runs_of_a_killed_build_are_failed_and_no_others(instance, status):
    home = Path(instance.root_directory)
    alone = add_run(instance, status)
    with attending(home, NAME) as killed, attending(home, "another") as alive:
        orphan = add_run(instance, status, **{BUILD_TAG: NAME})
        living = add_run(instance, status, **{BUILD_TAG: "another"})
        fail_orphans(instance, home)
        assert instance.get_run_by_id(orphan.run_id).status is status
        killed.kill()
        killed.join()
        fail_orphans(instance, home)
        assert instance.get_run_by_id(orphan.run_id).status is dg.DagsterRunStatus.FAILURE
        assert instance.get_run_by_id(living.run_id).status is status
        # Dagster's daemon asks after the runs that it launched.
        assert instance.get_run_by_id(alone.run_id).status is status
        assert alive.is_alive()


if __name__ == "__main__":
    write_on(Path(sys.argv[1]))
