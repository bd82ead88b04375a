"""What tests share: where real data lies, and what to do where a program is missing."""

import os
import shutil
from pathlib import Path

import pytest
from object_storage import proxying, serving_s3

SHARED_DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real photographs, rows and vectors; a user's machine does not have them."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"real data is not on this machine ({SHARED_DATA})")
    return SHARED_DATA


@pytest.fixture(scope="session")
def program():
    """Path of a program that a test needs: skipped where it is missing, but not in CI."""

    def find(*names: str, package: str) -> str:
        for name in names:
            if found := shutil.which(name):
                return found
        message = f"{names[0]} is missing; on Debian: apt-get install {package}"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)

    return find


@pytest.fixture(scope="session")
def s3():
    """A server of object storage, moto's, on 127.0.0.1."""
    with serving_s3() as server:
        yield server


@pytest.fixture
def store(s3, monkeypatch) -> str:
    """URL of an empty place in object storage, which the environment leads to."""
    for name, value in s3.environment().items():
        monkeypatch.setenv(name, value)
    return s3.new_store()


@pytest.fixture
def proxy(s3, monkeypatch):
    """A proxy before object storage, to which the environment leads."""
    with proxying(s3) as proxy:
        for name, value in proxy.environment().items():
            monkeypatch.setenv(name, value)
        yield proxy


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    """A developer's own settings must not leak into a test."""
    for name in list(os.environ):
        if name.startswith("LAION_") or name == "DAGSTER_HOME":
            monkeypatch.delenv(name)
