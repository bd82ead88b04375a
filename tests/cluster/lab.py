"""Machines of a test's own: network and process namespaces with a bridge between them, and Ray on each.

It takes a process that is alone in its network and process namespaces, as ``make cluster-test`` starts it:
when that ends, however it does, the kernel ends everything in them. A node's processes are in namespaces of
its own in turn, so that killing the first of them with -9 kills all of them at once.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import psutil

ROOT: Final = Path(__file__).resolve().parents[2]
BRIDGE: Final = "10.77.0.1"
HEAD: Final = "10.77.0.2"
RAY_ADDRESS: Final = f"{HEAD}:6379"
JOBS_ADDRESS: Final = f"http://{HEAD}:8265"
_START_S: Final = 180.0
_OBJECT_STORE_BYTES: Final = 80_000_000  # Ray takes no less than 75 MB
NODE_FOLDER: Final = Path("/run/node")
"""Where a node's own files are, on each."""


class Node:
    """A machine with Ray on it.

    Attributes:
        name: of its network namespace and its folder.
        address: of its network interface.
        folder: its own files, which it finds at NODE_FOLDER.
        core: the core that all its processes share.
    """

    def __init__(self, name: str, address: str, folder: Path, core: str) -> None:
        self.name, self.address, self.folder, self.core = name, address, folder, core
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(
        self, command: Sequence[object], log: str, environment: Mapping[str, str] = MappingProxyType({})
    ) -> subprocess.Popen[bytes]:
        """Start a command there, in a process namespace of its own; the process around it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        inside = f'mkdir -p {NODE_FOLDER} && mount --bind "$0" {NODE_FOLDER} && exec "$@"'
        enter = ["ip", "netns", "exec", self.name]
        unshare = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", inside]
        words = ["taskset", "--cpu-list", self.core, *enter, *unshare, str(self.folder), *map(str, command)]
        with (self.folder / log).open("wb") as output:
            process = subprocess.Popen(
                words,
                env={**os.environ, "RAY_TMPDIR": str(NODE_FOLDER), **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                cwd=ROOT,
            )
        self.processes.append(process)
        return process

    def kill(self) -> None:
        """Kill everything that runs there with -9."""
        for process in self.processes:
            process.send_signal(
                signal.SIGKILL
            )  # which takes the first process within along, and it all others
        for process in self.processes:
            process.wait()
        self.processes.clear()

    def check(self) -> None:
        """What was started first here, which is Ray, has not ended; an AssertionError otherwise."""
        log = (self.folder / "ray.log").read_text(errors="replace")[-2_000:]
        assert self.processes[0].poll() is None, f"Ray has ended on node {self.name}: {log}"

    def cpu_s(self) -> float:
        """CPU seconds that what was started first here, which is Ray, and all it started took."""
        total = 0.0
        first = psutil.Process(self.processes[0].pid)
        for process in (first, *first.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system + times.children_user + times.children_system
        return total


def is_alone() -> bool:
    """Whether this process has network and process namespaces of its own."""
    routes = Path("/proc/net/route").read_text().splitlines()[1:]
    return os.getpid() == 1 and not routes


@contextmanager
def network() -> Iterator[None]:
    """A bridge for the nodes, with this process at BRIDGE."""
    _run("mount", "-t", "tmpfs", "tmpfs", "/run")  # where ip keeps names of namespaces
    _run("ip", "link", "set", "lo", "up")
    _run("ip", "link", "add", "bridge0", "type", "bridge")
    _run("ip", "address", "add", f"{BRIDGE}/24", "dev", "bridge0")
    _run("ip", "link", "set", "bridge0", "up")
    yield
    _run("ip", "link", "delete", "bridge0")


@contextmanager
def node(name: str, address: str, folder: Path, core: str) -> Iterator[Node]:
    """A machine on the bridge; all its processes have ended after the block."""
    _run("ip", "netns", "add", name)
    _run("ip", "link", "add", f"to-{name}", "type", "veth", "peer", "name", "eth0", "netns", name)
    _run("ip", "link", "set", f"to-{name}", "master", "bridge0", "up")
    for words in (("address", "add", f"{address}/24", "dev", "eth0"), ("link", "set", "eth0", "up")):
        _run("ip", "-n", name, *words)
    _run("ip", "-n", name, "link", "set", "lo", "up")
    _run("ip", "-n", name, "route", "add", "default", "via", BRIDGE)
    found = Node(name, address, folder, core)
    try:
        yield found
    finally:
        found.kill()
        _run("ip", "netns", "delete", name)


def start_ray(machine: Node, cpus: int) -> None:
    """Start Ray on a node: the cluster's head if it has HEAD's address, else a worker of it."""
    role = (
        ["--head", "--port=6379", "--dashboard-host=0.0.0.0", "--include-dashboard=true"]
        if machine.address == HEAD
        else [f"--address={RAY_ADDRESS}"]
    )
    command = [Path(sys.executable).with_name("ray"), "start", "--block", *role, f"--num-cpus={cpus}"]
    command += [f"--node-ip-address={machine.address}", f"--object-store-memory={_OBJECT_STORE_BYTES}"]
    command += ["--disable-usage-stats"]
    machine.start(command, "ray.log")


def jobs() -> list[dict[str, Any]]:
    """Ray's jobs, as its head's server has them."""
    with urllib.request.urlopen(f"{JOBS_ADDRESS}/api/jobs/", timeout=30) as response:
        return list(json.load(response))


def nodes_up() -> int:
    """How many nodes Ray takes for living; none as long as its head's server does not answer."""
    try:
        with urllib.request.urlopen(f"{JOBS_ADDRESS}/nodes?view=summary", timeout=30) as response:
            found = json.load(response)["data"]["summary"]
    except OSError:
        return 0
    return sum(node["raylet"].get("state") == "ALIVE" for node in found)


def is_up(nodes: Iterable[Node]) -> bool:
    """Whether Ray takes these nodes, and no others, for living."""
    running = list(nodes)
    for machine in running:
        machine.check()
    return nodes_up() == len(running)


def submit(command: Sequence[object], environment: Mapping[str, str]) -> None:
    """Submit a command as a job of Ray's."""
    job = {
        "entrypoint": " ".join(map(str, command)),
        "entrypoint_num_cpus": 0.1,
        "runtime_env": {"env_vars": dict(environment)},
    }
    request = urllib.request.Request(
        f"{JOBS_ADDRESS}/api/jobs/", json.dumps(job).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        assert response.status == 200


def wait(
    what: str, happens: Callable[[], object], limit_s: float = _START_S, *, every_s: float = 0.2
) -> None:
    """Until ``happens`` returns something true; an AssertionError if it does not in time."""
    deadline = time.monotonic() + limit_s
    while not happens():
        assert time.monotonic() < deadline, f"{what} did not happen within {limit_s:.0f} s"
        time.sleep(every_s)


@contextmanager
def cluster(folder: Path, workers: Sequence[str]) -> Iterator[dict[str, Node]]:
    """Machines for a head, and for workers of these names, which share out the cores among them."""
    cores = sorted(map(str, os.sched_getaffinity(0)))
    with ExitStack() as stack:
        nodes = {"head": stack.enter_context(node("head", HEAD, folder / "head", ",".join(cores)))}
        for number, name in enumerate(workers):
            place = f"10.77.0.{11 + number}", folder / name, cores[number % len(cores)]
            nodes[name] = stack.enter_context(node(name, *place))
        yield nodes


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
