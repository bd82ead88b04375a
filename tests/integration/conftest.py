"""The demo, built once for all tests that look at it, and a builder for data of a test's own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from laion_assets.defs.build import Request, build
from laion_assets.defs.instance import open_instance, prepare_home
from laion_assets.defs.recording import Watcher
from laion_assets.published import retryable_shards
from laion_assets.settings import Settings

# Read at import, before the fixture that clears the environment.
_BUILT_DEMO = os.environ.get("LAION_DEMO")


def _run(*arguments, cwd, **variables):
    """Run the command line as a user would, without a developer's settings; wide enough for tables."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LAION_", "DAGSTER_"))}
    return subprocess.run(
        [sys.executable, "-m", "laion_assets", *map(str, arguments)],
        cwd=cwd,
        env=kept | {"COLUMNS": "200"} | variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )


@pytest.fixture(scope="session")
def run_cli():
    """The command line: arguments and working folder in, finished process out."""
    return _run


@pytest.fixture(scope="session")
def demo(tmp_path_factory) -> Path:
    """Folder of the finished demo: the one that LAION_DEMO names, else one built now."""
    if _BUILT_DEMO is not None:
        return Path(_BUILT_DEMO).absolute()
    folder = tmp_path_factory.mktemp("demo") / ".demo"
    result = _run("demo", "--folder", folder, cwd=folder.parent)
    assert result.returncode == 0, result.stdout + result.stderr
    (folder / "printed.txt").write_text(result.stdout)
    return folder


@pytest.fixture
def cli(demo):
    """Run the command line on the demo."""

    def run(*arguments):
        command, *rest = arguments
        return _run(command, *rest, "--settings", demo / "laion.toml", cwd=demo.parent)

    return run


@pytest.fixture
def build_all(tmp_path, monkeypatch):
    """Build everything below ``tmp_path / 'laion.toml'`` through Dagster, in this process."""

    def run(text: str, watcher=None, *, retry_failed=False, **request):
        (tmp_path / "laion.toml").write_text(text)
        settings = Settings.load(tmp_path / "laion.toml")
        if retry_failed:
            request["retry_failed"] = retryable_shards(settings.layout)
        monkeypatch.setenv("DAGSTER_HOME", str(settings.dagster_home))
        with open_instance(prepare_home(settings.dagster_home)) as instance:
            return settings, build(settings, instance, Request(**request), watcher or Watcher())

    return run
