"""These tests read with TensorFlow what the project wrote without it."""

from __future__ import annotations

import importlib.util
import os

import pytest


@pytest.fixture(scope="session", autouse=True)
def tensorflow() -> None:
    """Skip where TensorFlow is missing, but not in CI."""
    if importlib.util.find_spec("tensorflow") is not None:
        return
    message = "TensorFlow is missing: pip install 'laion_assets[verify]'"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)
