"""A data set of 24 shards built on a Ray cluster of which a node is killed, and what came of it.

``make cluster-test`` runs this, alone in namespaces of its own. The daemon submits a backfill over the whole
graph, from the plan to the report; runs are Ray jobs on either worker, their shards Ray tasks on both.
"""

import hashlib
import json
import os
import sys
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import dagster as dg
import lab
import pytest
import throughput
import yaml
from dagster._core.storage.tags import PARENT_RUN_ID_TAG
from object_storage import serving_s3
from served_ui import address_of, backfill_status, free_port, launch_backfill, runs, start_ui

from benchmarks.orchestration_servers import serving_postgres
from laion_assets.dataset_sync import sync_dataset
from laion_assets.defs.instance import open_instance
from laion_assets.demo.dataset import make_demo
from laion_assets.demo.web import DemoWeb
from laion_assets.formats.object_store import list_folder
from laion_assets.formats.publish import verify
from laion_assets.formats.tfds import CONFIGS
from laion_assets.layout import Layout, ShardId
from laion_assets.partitions import Axis, find_partitions
from laion_assets.pipeline import STAGES, keys_of
from laion_assets.published import partitions_of, sample_output
from laion_assets.settings import RunSettings, Settings
from laion_assets.shard_work import make

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]

ROWS_PER_SHARD, SHARDS, BATCH = 25, 24, 12
WORKERS = {"one": 2, "two": 2}
# A node is killed once so many shards of each run have their pictures.
KILLED_AFTER = 2
# The parts and the plan are there before: Dagster reads the partitions as it loads the code.
GRAPH = [stage for stage in STAGES if stage.name not in ("raw_metadata", "shard_plan")]
BY_SHARD = [stage for stage in GRAPH if stage.axis is not Axis.NONE]
ENDS = ("COMPLETED_SUCCESS", "COMPLETED_FAILED", "COMPLETED", "FAILED", "CANCELED")
BUILD_S = 900

# The data root is each node's own.
SETTINGS = f"""\
batch_shards = {BATCH}
store = "{{store}}"
{{demo}}
[run]
workers = "ray"
cores_per_download = 1
"""
WEB_PORT = 8999
# The same web is on each node's loopback address.
WEB = f"""\
import threading
from laion_assets.demo.web import DemoWeb
with DemoWeb(port={WEB_PORT}):
    threading.Event().wait()
"""


class Story:
    """What happened on the cluster.

    Attributes:
        settings: of the cluster's data root.
        home: Dagster's folder.
        nodes: the cluster's nodes by name.
        backfill: the backfill's status in the end.
        running: ids of the runs that went on when a node was killed.
        runs: every run, as GraphQL has it.
        published: (stage, shard) -> when its manifest was first seen, and which writing of it that was.
        replaced: those whose manifest was written again later.
        killed: name of the node that was killed.
        lost: ids of the runs whose own process was on it.
        at_s: when what happened, on ``time.time``'s clock.
    """

    def __init__(self, settings, home, nodes):
        self.settings, self.home, self.nodes = settings, home, nodes
        self.published, self.replaced, self.at_s = {}, set(), {}
        self.backfill, self.runs, self.killed, self.running, self.lost = "", [], "", set(), set()

    def look(self):
        """See what is published now."""
        for stage in (stage.name for stage in BY_SHARD):
            output = sample_output(self.settings.layout, stage)
            suffix = output.manifest.name.removeprefix(output.partition)
            for name, version in list_folder(output.store, output.place).items():
                if name.endswith(suffix):
                    key = name.removesuffix(suffix)
                    _, first = self.published.setdefault((stage, key), (time.time(), version))
                    if first != version:
                        self.replaced.add((stage, key))

    def is_in_the_middle(self):
        """Whether both runs over image shards have published pictures of some."""
        self.look()
        shards = [int(key) for stage, key in self.published if stage == "images"]
        halves = Counter(shard // BATCH for shard in shards)
        return min(halves[0], halves[1]) >= KILLED_AFTER

    def note(self, what):
        """Note the time at which something was first seen."""
        self.at_s.setdefault(what, time.time())


def start_node(node, cpus):
    """Start Ray and the web on a node."""
    lab.start_ray(node, cpus)
    node.start([sys.executable, "-c", WEB], "web.log")


def home_of(folder):
    """Dagster's folder, with the settings of deploy/ and quicker looks."""
    settings = yaml.safe_load((lab.ROOT / "deploy" / "dagster" / "ray.yaml").read_text())
    settings["run_monitoring"]["poll_interval_seconds"] = 5
    folder.mkdir()
    (folder / "dagster.yaml").write_text(yaml.safe_dump(settings))
    return folder


@contextmanager
def serving(settings_file, log):
    """Webserver, daemon and code server; their address."""
    port = free_port()
    ui = start_ui(settings_file, port, log)
    try:
        yield address_of(port)
    finally:
        ui.terminate()
        ui.wait(60)


def make_sources(folder, store):
    """The demo's data set with a plan; its settings' file."""
    rows = [ROWS_PER_SHARD * count for count in (SHARDS // 2 + 1, SHARDS // 2 - 1)]
    make_demo(folder, f"http://127.0.0.1:{WEB_PORT}", rows_per_part=rows, rows_per_shard=ROWS_PER_SHARD)
    settings_file = folder / "laion.toml"
    demo = settings_file.read_text().replace('data_root = "data"', f'data_root = "{lab.NODE_FOLDER}/data"')
    settings_file.write_text(SETTINGS.format(demo=demo, store=store))
    throughput.plan_shards(Settings.load(settings_file))
    return settings_file


def build_on(address, story):
    """Have the daemon build everything, and kill a node in the middle."""
    story.note("launched")
    backfill = launch_backfill(address, [stage.name for stage in GRAPH])
    lab.wait("some pictures of each run", story.is_in_the_middle, BUILD_S, every_s=0.5)
    # Beside tasks of both runs over image shards, a node has the own processes of some runs.
    drivers = {
        job["submission_id"].removeprefix("dagster-run-"): job["driver_info"]["node_ip_address"]
        for job in lab.jobs()
        if job["status"] == "RUNNING" and job["driver_info"]
    }
    of_runs = Counter(drivers.values())
    story.killed = min(
        (name for name, node in story.nodes.items() if node.address in of_runs),
        key=lambda name: of_runs[story.nodes[name].address],
    )
    node = story.nodes[story.killed]
    story.running = set(drivers)
    story.lost = {run for run, address in drivers.items() if address == node.address}
    story.note("killed")
    node.kill()
    story.look()

    def goes_on():
        story.look()
        if lab.nodes_up() == len(WORKERS):
            story.note("Ray noticed")
        story.runs = runs(address)
        if story.lost & {run["runId"] for run in story.runs if run["status"] == "FAILURE"}:
            story.note("its run was given up")
        if any(PARENT_RUN_ID_TAG in run["tags"] and run["startTime"] for run in story.runs):
            story.note("the run's retry started")
        if all(run["endTime"] for run in story.runs):
            story.backfill = backfill_status(address, backfill)
        return story.backfill in ENDS

    lab.wait("the end of the backfill", goes_on, BUILD_S, every_s=2)
    story.note("all was done")


@pytest.fixture(scope="module")
def story(tmp_path_factory, program):
    if not lab.is_alone():
        pytest.skip("it needs network and process namespaces of its own: make cluster-test")
    program("ip", package="iproute2")
    folder = tmp_path_factory.mktemp("cluster")
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        stack.enter_context(lab.network())
        s3 = stack.enter_context(serving_s3(lab.BRIDGE))
        postgres = stack.enter_context(serving_postgres(by_socket=True))
        assert postgres is not None, "on Debian: apt-get install postgresql"
        stack.enter_context(DemoWeb(port=WEB_PORT))  # for the machine alone
        for name, value in s3.environment().items():
            patch.setenv(name, value)
        settings_file = make_sources(folder, s3.new_store())
        home = home_of(folder / "home")
        for name, value in {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(lab.ROOT),
            "LAION_SETTINGS": str(settings_file),
            "DAGSTER_POSTGRES_URL": postgres,
            "DAGSTER_EVENT_BATCH_SIZE": "200",
            "DAGSTER_RAY_ADDRESS": lab.JOBS_ADDRESS,
            "RAY_USAGE_STATS_ENABLED": "0",
            # As in deploy/kubernetes/raycluster.yaml.
            "RAY_scheduler_spread_threshold": "0",
        }.items():
            patch.setenv(name, value)
        nodes = stack.enter_context(lab.cluster(folder / "nodes", list(WORKERS)))
        for name, node in nodes.items():
            start_node(node, WORKERS.get(name, 0))
            if name == "head":  # for which workers do not wait long
                lab.wait("Ray's head", lambda: lab.is_up([nodes["head"]]), every_s=1)
        lab.wait("a cluster of three nodes", lambda: lab.is_up(nodes.values()), every_s=1)
        patch.setenv("DAGSTER_HOME", str(home))
        told = Story(Settings.load(settings_file), home, nodes)
        with serving(settings_file, folder / "ui.log") as address:
            build_on(address, told)
        yield told


@pytest.fixture(scope="module")
def alone(story, tmp_path_factory):
    """Settings of the same data set, made by this machine alone."""
    folder = tmp_path_factory.mktemp("alone")
    settings = story.settings.model_copy(update={"data_root": folder, "store": "", "run": RunSettings()})
    throughput.plan_shards(settings)
    for stage in GRAPH:
        for key in keys_of(stage, find_partitions(settings)):
            make(stage.name, settings, key, follower=lambda *_: lambda _: None)
    return settings


def test_every_shard_is_there_and_recorded(story):
    assert story.backfill == "COMPLETED_SUCCESS"
    found = find_partitions(story.settings)
    assert len(found.shards) == SHARDS
    with open_instance(story.home) as instance:
        for stage in GRAPH:
            keys, recorded = keys_of(stage, found), dg.AssetKey(stage.name)
            # The catalog is of the machine that made it.
            if sample_output(story.settings.layout, stage.name).store:
                assert partitions_of(story.settings.layout, stage.name) == keys
            if stage.axis is Axis.NONE:
                assert instance.get_latest_materialization_event(recorded) is not None
            else:
                assert instance.get_materialized_partitions(recorded) == set(keys)


def test_a_run_was_lost_and_tried_again(story):
    print_story(story)
    given_up = {run["runId"] for run in story.runs if run["status"] == "FAILURE"}
    retried = {run["tags"].get(PARENT_RUN_ID_TAG) for run in story.runs} - {None}
    assert story.lost < story.running  # another's own process was on the other node
    assert story.lost == given_up == retried
    ended = [run for run in story.runs if run["runId"] not in story.lost]
    assert {run["status"] for run in ended} == {"SUCCESS"}


def test_nothing_is_made_twice(story):
    assert story.replaced == set()


def test_the_bytes_are_those_of_a_machine_alone(story, alone, tmp_path):
    for stage in BY_SHARD:
        for key in partitions_of(story.settings.layout, stage.name):
            there, here = (verify(stage.output(one.layout, key)) for one in (story.settings, alone))
            assert (stage.name, key, there.data_version) == (stage.name, key, here.data_version)
    for config in CONFIGS:
        there, here = (
            digests(sync_dataset(config, one.layout, tmp_path / name).folder)
            for name, one in {"there": story.settings, "here": alone}.items()
        )
        assert there == here
        assert len(there) > len(partitions_of(alone.layout, f"tfds_{config}")) > 0


def test_a_shard_that_kills_its_workers_is_given_up_and_the_others_are_not(story, tmp_path):
    output = tmp_path / "outcomes.json"
    lab.submit([sys.executable, Path(__file__).with_name("dying.py"), output], {})
    lab.wait("the outcomes", output.exists)
    found = json.loads(output.read_text())
    lost, refused = found.pop("00001"), found.pop("00002")
    assert found == {"00000": "made", "00003": "made"}
    assert lost[0] == "WorkerLost"
    assert "00001: 2 workers died" in lost[1]
    assert refused == ["MissingInput", "samples 00002 is not there yet"]


def test_throughput_beside_one_machine(story, tmp_path_factory):
    """The same work on one node without Ray, and as Ray tasks on one node and on two."""
    folder = tmp_path_factory.mktemp("throughput")
    settings_file = throughput.lay(folder, f"http://127.0.0.1:{WEB_PORT}")
    alone = next(node for name, node in story.nodes.items() if name not in ("head", story.killed))
    back = story.nodes[story.killed]

    def measure(name, workers, start):
        output = folder / f"{name}.json"
        environment = {
            "LAION_SETTINGS": str(settings_file),
            "LAION_DATA_ROOT": str(folder / name),
            "LAION_RUN__WORKERS": workers,
        }
        start([sys.executable, throughput.__file__, output], environment)
        lab.wait(f"the end of {name}", output.exists, BUILD_S)
        return json.loads(output.read_text())

    found = {"one machine": measure("alone", "here", partial(run_on, alone))}
    for number in (1, 2):
        if number == len(WORKERS):
            start_node(back, WORKERS[back.name])
            lab.wait("the node's return", lambda: lab.is_up(story.nodes.values()), every_s=1)
        before = sum(node.cpu_s() for node in story.nodes.values() if node.processes)
        one = measure(f"ray-{number}", "ray", lab.submit)
        one["cpu_s"] = sum(node.cpu_s() for node in story.nodes.values() if node.processes) - before
        found[f"Ray, {number} worker(s)"] = one
    print_throughput(found)
    versions = [
        [verify(layout.tfds_images(ShardId(shard))).data_version for shard in range(throughput.SHARDS)]
        for layout in (Layout(folder / name) for name in ("alone", "ray-1", "ray-2"))
    ]
    assert versions[0] == versions[1] == versions[2]


def print_story(story):
    """What the killed node cost, in seconds after the kill."""
    again_s = story.at_s["the run's retry started"]
    first = min(at_s for at_s, _ in story.published.values() if at_s > again_s)
    story.at_s["a shard of it was published"] = first
    killed_s = story.at_s["killed"]
    events = ", ".join(
        f"{what} after {at_s - killed_s:.0f} s" for what, at_s in story.at_s.items() if at_s > killed_s
    )
    print(
        f"\nThe node of {len(story.lost)} of {len(story.running)} runs was killed "
        f"{killed_s - story.at_s['launched']:.0f} s after the backfill was launched: {events}"
    )


def run_on(node, command, environment):
    node.start(command, "throughput.log", environment)


def print_throughput(found):
    """Shards a second beside those of one machine, and the CPU time that Ray takes."""
    figures = json.loads((lab.ROOT / "benchmarks" / "results" / "plan.json").read_text())["figures"]
    real_cpu_s = 10_000 * figures["core_s_per_url"]["value"]
    alone = found.pop("one machine")
    print(
        f"\none machine: {alone['shards'] / alone['seconds']:.2f} shards/s, "
        f"{alone['cpu_s'] / alone['shards']:.2f} CPU s a shard"
    )
    for name, one in found.items():
        extra = (one["cpu_s"] - alone["cpu_s"]) / one["shards"]
        print(
            f"{name}: {alone['seconds'] / one['seconds']:.2f} times as many; {extra:.2f} CPU s a shard more, "
            f"all that Ray does included, or {extra / real_cpu_s:.1%} of a real shard's {real_cpu_s:.0f}"
        )


def digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }
