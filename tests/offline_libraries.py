"""Hugging Face's datasets and mlcroissant, without a network and away from a user's caches."""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def offline_libraries(cache: Path) -> Iterator[None]:
    """Import them; skip where one is missing, but not in CI.

    Args:
        cache: folder for what they keep; the first one counts for the whole process.
    """
    for name in ("datasets", "mlcroissant"):
        if importlib.util.find_spec(name) is None:
            message = f"{name} is missing: pip install 'laion_assets[verify]'"
            if os.environ.get("CI") == "true":
                pytest.fail(message)
            pytest.skip(message)
    with pytest.MonkeyPatch.context() as patch:
        # They look at these when they are imported.
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):
            patch.setenv(name, "1")
        patch.setenv("HF_HOME", str(cache))
        import datasets

        assert datasets.config.HF_HUB_OFFLINE
        datasets.disable_progress_bars()
        yield
