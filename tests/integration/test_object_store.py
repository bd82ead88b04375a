"""Two machines over one object store: what the first builds, the second has, and TFDS reads a copy of it."""

import json
import re
import shutil

import obstore
import one_host
import pytest
from demo_parts import write_part
from obstore.store import from_url

from laion_assets.defs.build import Request, build
from laion_assets.defs.instance import open_instance, prepare_home
from laion_assets.defs.recording import Watcher
from laion_assets.demo.web import DemoWeb
from laion_assets.settings import Settings

pytestmark = [
    pytest.mark.slow,
    # TensorFlow and TFDS warn of their own use of NumPy, Keras and pkg_resources on import.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

ROWS = 10
SETTINGS = f"""\
data_root = "{{machine}}/data"
dagster_home = "{{machine}}/dagster_home"
store = "{{store}}"
scratch_bytes = {{scratch_bytes}}
rows_per_shard = 4
[raw]
source = "raw"
[fetch]
allow_loopback = true
{one_host.SETTINGS}"""


@pytest.fixture
def web(tmp_path):
    """Pictures, and a list of them."""
    with DemoWeb() as web:
        (tmp_path / "raw").mkdir()
        write_part(tmp_path / "raw" / "part-0.parquet", web, ROWS)
        yield web


@pytest.fixture
def machine(tmp_path, store, monkeypatch):
    """Build on a machine: its name in, its settings and their file out."""

    def run(name, scratch_bytes=0):
        file = tmp_path / f"{name}.toml"
        file.write_text(SETTINGS.format(machine=name, store=store, scratch_bytes=scratch_bytes))
        settings = Settings.load(file)
        monkeypatch.setenv("DAGSTER_HOME", str(settings.dagster_home))
        with open_instance(prepare_home(settings.dagster_home)) as instance:
            done = build(settings, instance, Request(), Watcher())
        assert done.went_well, (done.failures, done.blocked, done.crashes)
        return file, settings

    return run


def objects(store):
    return {entry["path"]: entry["e_tag"] for page in obstore.list(from_url(store)) for entry in page}


def test_what_one_machine_built_another_has(web, machine, store, run_cli, tmp_path):
    _, first = machine("first")
    built = objects(store)
    shutil.rmtree(first.data_root)
    # So little room that nothing stays for the next stage.
    file, _ = machine("second", scratch_bytes=1)
    assert objects(store) == built
    status = run_cli("status", "--settings", file, cwd=tmp_path)
    assert status.returncode == 0, status.stderr
    counts = {
        cells[1]: cells[3:6]
        for line in status.stdout.splitlines()
        if len(cells := re.split(r"\s*│\s*", line)) > 6
    }
    assert counts["tfds_images"] == ["3", "0", "0"]
    assert all(found[1:] == ["0", "0"] for found in counts.values())
    for command in ("verify", "check"):
        result = run_cli(command, "--settings", file, cwd=tmp_path)
        assert result.returncode == 0, (command, result.stdout, result.stderr)
    target = tmp_path / "copy"
    some = run_cli("sync", target, "--shards", "00001..00002", "--settings", file, cwd=tmp_path)
    assert some.returncode == 0, some.stderr
    assert some.stdout.startswith("2 shards copied")
    assert read(target) == ROWS - 4
    assert "1 shards copied" in run_cli("sync", target, "--settings", file, cwd=tmp_path).stdout
    assert read(target) == ROWS
    wrong = run_cli("sync", target, "--dataset", "pictures", "--settings", file, cwd=tmp_path)
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert "known are images, embeddings, image_embeddings" in wrong.stderr


def read(data_dir):
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("tensorflow")
    examples = tfds.as_numpy(tfds.load("laion400m/images", split="train", data_dir=str(data_dir)))
    return len({json.dumps(example["caption"].decode()) for example in examples})
