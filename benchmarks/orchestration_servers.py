"""Dagster's webserver and daemon as ``laion-assets ui`` runs them, and PostgreSQL; on 127.0.0.1 alone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import psutil

from benchmarks.measuring import TICKS, Failed, family

REPOSITORY: Final = Path(__file__).resolve().parents[1]
_START_S: Final = 300.0
_END_S: Final = 30.0
_ANSWER_S: Final = 300.0
_USER: Final = "postgres"
# What their command lines have in them.
_PROCESSES: Final = {"webserver": "dagster_webserver", "daemon": "dagster._daemon"}


class Ui:
    """A running ``laion-assets ui``.

    Args:
        process: the command.
        port: of the webserver.
    """

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self._process, self._address = process, f"http://127.0.0.1:{port}"

    def ask(self, query: str, variables: Mapping[str, object] | None = None) -> dict[str, Any]:
        """Answer to a GraphQL query.

        Raises:
            Failed: if it is an error, or none comes.
        """
        body = json.dumps({"query": query, "variables": variables or {}}).encode()
        request = urllib.request.Request(
            f"{self._address}/graphql", body, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=_ANSWER_S) as response:
                answer: dict[str, Any] = json.load(response)
        except OSError as error:
            raise Failed(f"the webserver did not answer {query[:60]!r}: {error}") from error
        if "errors" in answer:
            raise Failed(f"{query[:60]!r}: {str(answer['errors'])[:2_000]}")
        data: dict[str, Any] = answer["data"]
        return data

    def wait(self, what: str, happens: Callable[[], object], limit_s: float) -> None:
        """Until ``happens`` returns something true.

        Raises:
            Failed: if it does not come in time.
        """
        deadline = time.monotonic() + limit_s
        while not happens():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise Failed(f"{what} did not happen within {limit_s:.0f} s")
            time.sleep(0.1)

    def is_up(self) -> bool:
        """Whether the webserver answers."""
        try:
            with urllib.request.urlopen(f"{self._address}/server_info", timeout=2) as response:
                return bool(response.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def cpu_s(self) -> float:
        """CPU seconds that all of its processes have used, runs that ended included."""
        return sum(family(self._process.pid).values()) / TICKS

    def resident_bytes(self) -> dict[str, int]:
        """Webserver and daemon -> resident set size of its process."""
        found = {}
        for one in family(self._process.pid):
            try:
                command, size = " ".join(psutil.Process(one).cmdline()), psutil.Process(one).memory_info().rss
            except psutil.NoSuchProcess:
                continue
            for name, mark in _PROCESSES.items():
                if mark in command:
                    found[name] = max(found.get(name, 0), size)
        return found


@contextmanager
def serving_ui(settings_file: Path, environment: Mapping[str, str], log: Path) -> Iterator[Ui]:
    """Run ``laion-assets ui`` while the block runs; every process it started has ended after it.

    Raises:
        Failed: if it does not come up.
    """
    ours = ["laion_assets", "ui", "--settings", str(settings_file), "--workspace", "workspace.yaml"]
    with _serving(ours, environment, log) as ui:
        yield ui


@contextmanager
def serving_plain(environment: Mapping[str, str], log: Path) -> Iterator[Ui]:
    """As :func:`serving_ui`, with Dagster's own command and :mod:`benchmarks.plain_dagster`.

    Raises:
        Failed: if it does not come up.
    """
    with _serving(["dagster", "dev", "-m", "benchmarks.plain_dagster"], environment, log) as ui:
        yield ui


@contextmanager
def _serving(arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> Iterator[Ui]:
    port = free_port()
    command = [sys.executable, "-m", *arguments, "--port", str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        ui = Ui(process, port)
        try:
            ui.wait("the webserver's first answer", ui.is_up, _START_S)
        except Failed as error:
            raise Failed(f"{error}; the log ends:\n{log.read_text(errors='replace')[-2_000:]}") from error
        yield ui
    finally:
        started = [psutil.Process(one) for one in family(process.pid) if psutil.pid_exists(one)]
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
        _, left = psutil.wait_procs([one for one in started if one.pid != process.pid], timeout=5)
        for one in left:
            one.kill()


@contextmanager
def serving_postgres(*, by_socket: bool = False) -> Iterator[str | None]:
    """Address of a PostgreSQL server that runs while the block does; None where it is not installed.

    Args:
        by_socket: name its Unix socket, which other network namespaces reach, too.
    """
    programs = _postgres_programs()
    if programs is None:
        yield None
        return
    # It refuses to run as root; a folder of its own is one that its user can reach.
    user = _USER if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="bench-postgres-") as name:
        if user:
            shutil.chown(name, user, user)
        data, port = Path(name) / "data", free_port()
        run: dict[str, Any] = {"user": user, "group": user, "extra_groups": []} if user else {}
        made = subprocess.run(
            [programs / "initdb", "-D", data, "-A", "trust", "-U", "dagster", "-E", "UTF8"],
            cwd=name, capture_output=True, text=True, check=False, **run,
        )  # fmt: skip
        if made.returncode:
            raise Failed(f"initdb ended with {made.returncode}: {made.stderr[-1_000:]}")
        (REPOSITORY / ".bench").mkdir(exist_ok=True)
        command = [programs / "postgres", "-D", data, "-h", "127.0.0.1", "-p", str(port), "-k", name]
        with (REPOSITORY / ".bench" / "postgres.log").open("wb") as log:
            server = subprocess.Popen(command, cwd=name, stdout=log, stderr=log, **run)
        try:
            deadline = time.monotonic() + _END_S
            ready = [programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]
            while subprocess.run(ready, check=False).returncode:
                if server.poll() is not None or time.monotonic() > deadline:
                    raise Failed("PostgreSQL did not start: .bench/postgres.log")
                time.sleep(0.1)
            host, query = ("", f"?host={name}&port={port}") if by_socket else (f"127.0.0.1:{port}", "")
            yield f"postgresql+psycopg2://dagster@{host}/postgres{query}"
        finally:
            server.send_signal(signal.SIGINT)  # without waiting for those connected
            server.wait(_END_S)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _postgres_programs() -> Path | None:
    """Folder of PostgreSQL's newest programs; Debian does not put them on the PATH."""
    found = [Path(one).parent for one in (shutil.which("initdb"),) if one]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    return found[-1] if found and find_spec("dagster_postgres") else None
