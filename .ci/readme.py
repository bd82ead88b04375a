"""Runs every command and every program that the README shows, in its order."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# The caller has just run these two, and a test must not run all tests.
ALREADY_RUN = {"make demo", "make test"}


def main() -> None:
    """Run the README's blocks; the first that fails ends it."""
    blocks = re.findall(r"```(sh|python)\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    ran = 0
    for language, text in blocks:
        commands = text.strip().splitlines() if language == "sh" else [text]
        for command in commands:
            if command in ALREADY_RUN:
                continue
            print(f"--- {command.strip().splitlines()[0]}", flush=True)
            words = ["bash", "-c", command] if language == "sh" else [sys.executable, "-c", command]
            subprocess.run(words, cwd=ROOT, check=True, timeout=600)
            ran += 1
    serve_ui()
    print(f"{ran + 1} passed, 0 failed")


def serve_ui() -> None:
    """`make ui` answers on 127.0.0.1:3000 and ends when it is told to."""
    print("--- make ui", flush=True)
    process = subprocess.Popen(["make", "ui"], cwd=ROOT, start_new_session=True)
    try:
        for _ in range(180):
            try:
                with urllib.request.urlopen("http://127.0.0.1:3000/server_info", timeout=2) as answer:
                    assert answer.status == 200
                    return
            except (urllib.error.URLError, OSError):
                if process.poll() is not None:
                    raise SystemExit("make ui ended by itself") from None
                time.sleep(0.5)
        raise SystemExit("make ui did not answer within 90 s")
    finally:
        os.killpg(process.pid, signal.SIGINT)  # as Ctrl+C does
        process.wait(60)


main()
