"""Work handed to other processes: what comes back, what a worker's death costs, and what is left running."""

import multiprocessing
import os
import pickle
import signal
import sys
from collections import Counter
from functools import partial

import pytest

from laion_assets.errors import (
    CorruptInput,
    CorruptTar,
    LaionAssetsError,
    MissingInput,
    SettingsError,
    WorkerLost,
)
from laion_assets.formats.publish import FileRecord, Manifest, Recipe
from laion_assets.pipeline import STAGE_BY_NAME
from laion_assets.settings import RunSettings, Settings
from laion_assets.shard_work import cores_of, make, map_shards, settings_of_workers

HERE = RunSettings()
PROCESSES = RunSettings(workers="processes", cores=2, retries=1)
KEYS = ["00000", "00001", "00002", "00003"]


# -- what runs in other processes -------------------------------------------------------------------------


def work(folder, key):
    """Its key and process; refuses, crashes or dies as the key's file in the folder says."""
    with (folder / f"{key}.begun").open("a") as begun:
        begun.write(f"{os.getpid()}\n")
    fate = folder / key
    if fate.exists():
        match fate.read_text():
            case "refuse":
                raise CorruptTar(fate, expected="a tar", found="none", remedy="Look.")
            case "no room":
                raise OSError(28, "No space left on device", str(fate))
            case "crash":
                raise RuntimeError("nobody foresaw this")
            case "die once":
                fate.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "wait":
                signal.pause()
    return key, os.getpid()


def wait_for(folder, key):
    """The process that has begun with a key."""
    while not (path := folder / f"{key}.begun").exists() or not (text := path.read_text()):
        os.sched_yield()
    return int(text)


def lives(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


# -- the tests --------------------------------------------------------------------------------------------


def test_work_here_is_done_in_this_process_in_order(tmp_path):
    found = list(map_shards(partial(work, tmp_path), KEYS, HERE))
    assert found == [(key, (key, os.getpid())) for key in KEYS]


@pytest.mark.parametrize("run", [HERE, PROCESSES])
def test_one_that_refuses_takes_only_itself_down(run, tmp_path):
    (tmp_path / KEYS[1]).write_text("refuse")
    (tmp_path / KEYS[2]).write_text("no room")
    found = dict(map_shards(partial(work, tmp_path), KEYS, run))
    assert found.keys() == set(KEYS)
    assert isinstance(found[KEYS[1]], CorruptTar)
    assert (found[KEYS[1]].found, found[KEYS[1]].path) == ("none", tmp_path / KEYS[1])
    assert (found[KEYS[2]].errno, found[KEYS[2]].filename) == (28, str(tmp_path / KEYS[2]))
    assert {key: found[key][0] for key in (KEYS[0], KEYS[3])} == {KEYS[0]: KEYS[0], KEYS[3]: KEYS[3]}


def test_as_many_processes_as_there_are_cores_share_the_work(tmp_path):
    found = dict(map_shards(partial(work, tmp_path), KEYS, PROCESSES))
    processes = {process for _, process in found.values()}
    assert os.getpid() not in processes
    assert len(processes) == 2
    found = dict(map_shards(partial(work, tmp_path), KEYS, PROCESSES, cores_each=2))
    assert len({process for _, process in found.values()}) == 1
    assert multiprocessing.active_children() == []


def test_a_worker_that_dies_is_replaced_and_its_shard_begun_anew(tmp_path):
    (tmp_path / KEYS[0]).write_text("die once")
    found = dict(map_shards(partial(work, tmp_path), KEYS, PROCESSES))
    assert {key: name for key, (name, _) in found.items()} == {key: key for key in KEYS}
    begun = Counter({key: len((tmp_path / f"{key}.begun").read_text().splitlines()) for key in KEYS})
    assert begun == {KEYS[0]: 2, KEYS[1]: 1, KEYS[2]: 1, KEYS[3]: 1}


def test_a_shard_that_kills_every_worker_is_given_up_by_name_and_the_others_are_not(tmp_path):
    (tmp_path / KEYS[0]).write_text("die")
    found = dict(map_shards(partial(work, tmp_path), KEYS, PROCESSES))
    assert isinstance(found[KEYS[0]], WorkerLost)
    assert "00000: 2 workers died" in str(found[KEYS[0]])
    assert "exit code -9" in str(found[KEYS[0]])
    assert all(found[key][0] == key for key in KEYS[1:])


def test_an_error_that_nobody_foresaw_is_raised_with_where_it_came_from(tmp_path):
    (tmp_path / KEYS[0]).write_text("crash")
    (tmp_path / KEYS[1]).write_text("wait")
    with pytest.raises(RuntimeError, match="nobody foresaw this") as raised:
        list(map_shards(partial(work, tmp_path), KEYS[:2], PROCESSES))
    assert "in work" in "".join(raised.value.__notes__)
    assert multiprocessing.active_children() == []


def test_closing_ends_what_is_at_work(tmp_path):
    (tmp_path / KEYS[1]).write_text("wait")
    outcomes = map_shards(partial(work, tmp_path), KEYS[:2], PROCESSES)
    assert next(outcomes)[0] == KEYS[0]
    waiting = wait_for(tmp_path, KEYS[1])
    assert lives(waiting)
    outcomes.close()
    assert not lives(waiting)


def test_a_download_leaves_cores_to_the_others_unless_a_user_says_how_many():
    images, samples = STAGE_BY_NAME["images"], STAGE_BY_NAME["samples"]
    settings = Settings(run=PROCESSES)
    assert (cores_of(images, settings), cores_of(samples, settings)) == (4, 1)
    assert settings_of_workers(settings).image.workers == 3
    chosen = Settings(run=PROCESSES, image={"workers": 7})
    assert settings_of_workers(chosen) == chosen
    assert settings_of_workers(Settings()) == Settings()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::ResourceWarning")  # Ray's
def test_without_a_ray_cluster_one_is_told_so(monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with pytest.raises(SettingsError, match="no Ray cluster is found"):
        list(map_shards(str, KEYS, RunSettings(workers="ray")))


# -- what crosses from one process to another -------------------------------------------------------------


def kinds_of(kind):
    yield kind
    for one in kind.__subclasses__():
        yield from kinds_of(one)


def make_error(kind):
    if issubclass(kind, CorruptInput):
        return kind("/data/x.tar", expected="1 byte", found="0", remedy="Delete it.")
    return kind("what happened")


@pytest.mark.parametrize("kind", list(kinds_of(LaionAssetsError)))
def test_every_error_crosses_whole(kind):
    error = make_error(kind)
    crossed = pickle.loads(pickle.dumps(error))
    assert type(crossed) is type(error)
    assert (str(crossed), vars(crossed)) == (str(error), vars(error))


def test_settings_and_manifests_cross_whole(tmp_path):
    path = tmp_path / "laion.toml"
    path.write_text('rows_per_shard = 7\n[raw]\nsource = "raw"\n[run]\nworkers = "ray"\n')
    settings = Settings.load(path)
    assert pickle.loads(pickle.dumps(settings)) == settings
    assert type(settings) is Settings
    manifest = Manifest(
        stage="samples",
        partition=KEYS[0],
        recipe=Recipe(code_version="1", inputs={"raw_metadata": "ab"}),
        files={"00000.parquet": FileRecord(bytes=1, blake3="cd", xxh3_128="ef")},
        rows=1,
        counts={"rows": 1},
        seconds=0.1,
        versions={"python": sys.version},
    )
    assert pickle.loads(pickle.dumps(manifest)) == manifest


def test_a_stage_is_made_in_a_worker_with_the_settings_of_the_run(tmp_path):
    settings = Settings(data_root=tmp_path, run=PROCESSES)
    ((key, refusal),) = map_shards(partial(make, "normalized_images", settings), KEYS[:1], settings.run)
    assert key == KEYS[0]
    assert isinstance(refusal, MissingInput)
    assert str(tmp_path) in str(refusal)
