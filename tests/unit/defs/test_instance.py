import multiprocessing

from laion_assets.defs.instance import open_instance, prepare_home

SPAWN = multiprocessing.get_context("spawn")
START_S = 120.0


def prepare_several(folder, together):
    for number in range(3):
        together.wait(START_S)
        prepare_home(folder / f"{number}")


def test_builds_that_begin_at_once_on_a_fresh_folder_take_turns(tmp_path, monkeypatch):
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))  # which preparing sets, restored at the end
    together = SPAWN.Barrier(2)
    processes = [SPAWN.Process(target=prepare_several, args=(tmp_path, together)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(START_S)
    assert [process.exitcode for process in processes] == [0, 0]
    for number in range(3):
        assert (tmp_path / f"{number}" / "dagster.yaml").exists()
        with open_instance(tmp_path / f"{number}") as instance:
            assert instance.get_run_records() == []
