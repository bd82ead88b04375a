"""Dagster's webserver, daemon and code server as the command line serves them, and its GraphQL."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
START_S = 180


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def start_ui(settings_file: Path, port: int, log: Path) -> subprocess.Popen[bytes]:
    """Start ``laion-assets ui`` in a session of its own, as a script's background job, until it answers."""
    # To which the shell gives no ears for SIGINT.
    command = ["sh", "-c", 'trap "" INT; exec "$@"', "sh"]
    command += [sys.executable, "-m", "laion_assets", "ui", "--port", str(port)]
    command += ["--settings", str(settings_file), "--workspace", "workspace.yaml"]
    with log.open("ab") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, cwd=ROOT, start_new_session=True)
    deadline = time.monotonic() + START_S
    while not answers(address_of(port)):
        if process.poll() is not None or time.monotonic() > deadline:
            process.terminate()  # or it would outlive the test that waits for it
            process.wait(START_S)
            raise AssertionError(log.read_text())
        time.sleep(0.2)
    return process


def address_of(port: int) -> str:
    """Where the UI is."""
    return f"http://127.0.0.1:{port}"


def answers(address: str) -> bool:
    """Whether the webserver is up."""
    try:
        with urllib.request.urlopen(f"{address}/server_info", timeout=2) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def ask(address: str, query: str, **variables: Any) -> Any:
    """Answer to a GraphQL query or mutation."""
    body = json.dumps({"query": query, "variables": variables}).encode()
    request = urllib.request.Request(f"{address}/graphql", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as response:
        answer = json.load(response)
    assert "errors" not in answer, answer["errors"]
    return answer["data"]


def launch_backfill(address: str, stages: list[str], partitions: list[str] | None = None) -> str:
    """Launch a backfill as the UI does, over all partitions if none is named; its id."""
    over = {"allPartitions": True} if partitions is None else {"partitionNames": partitions}
    launched = ask(
        address,
        "mutation($params: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $params)"
        " { ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }",
        params={"assetSelection": [{"path": [name]} for name in stages], **over},
    )["launchPartitionBackfill"]
    assert "backfillId" in launched, launched
    return str(launched["backfillId"])


def launch_job_backfill(address: str, job: str, partitions: list[str]) -> str:
    """Launch a backfill of a job as the UI does; its id."""
    repository = {"repositoryLocationName": "laion_assets", "repositoryName": "__repository__"}
    launched = ask(
        address,
        "mutation($params: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $params)"
        " { ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }",
        params={
            "selector": {"partitionSetName": f"{job}_partition_set", "repositorySelector": repository},
            "partitionNames": partitions,
        },
    )["launchPartitionBackfill"]
    assert "backfillId" in launched, launched
    return str(launched["backfillId"])


def launch_run(address: str, job: str, partition: str) -> str:
    """Launch a job over one partition as the UI does; the run's id."""
    launched = ask(
        address,
        "mutation($params: ExecutionParams!) { launchRun(executionParams: $params)"
        " { __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }",
        params={
            "selector": {
                "repositoryLocationName": "laion_assets",
                "repositoryName": "__repository__",
                "jobName": job,
            },
            "runConfigData": {},
            "executionMetadata": {"tags": [{"key": "dagster/partition", "value": partition}]},
        },
    )["launchRun"]
    assert "run" in launched, launched
    return str(launched["run"]["runId"])


def backfill_status(address: str, backfill: str) -> str:
    """Status of a backfill, in Dagster's words."""
    query = (
        "query($id: String!) { partitionBackfillOrError(backfillId: $id)"
        " { ... on PartitionBackfill { status } } }"
    )
    return str(ask(address, query, id=backfill)["partitionBackfillOrError"]["status"])


def runs(address: str) -> list[dict[str, Any]]:
    """Every run, newest first: id, job, status, tags."""
    query = (
        "{ runsOrError { ... on Runs { results"
        " { runId jobName status startTime endTime tags { key value } } } } }"
    )
    return [
        {**run, "tags": {tag["key"]: tag["value"] for tag in run["tags"]}}
        for run in ask(address, query)["runsOrError"]["results"]
    ]
