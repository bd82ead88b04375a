"""These tests read with TensorFlow what the project wrote without it."""

from __future__ import annotations

import importlib.util
import os

import pytest
from tfds_datasets import Dataset, publish_embeddings, publish_image_embeddings, publish_images

from laion_assets.layout import Layout


@pytest.fixture(scope="session", autouse=True)
def tensorflow() -> None:
    """Skip where TensorFlow is missing, but not in CI."""
    if importlib.util.find_spec("tensorflow") is not None:
        return
    message = "TensorFlow is missing: pip install 'laion_assets[verify]'"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The config ``images`` in TFRecords; only to be read."""
    return publish_images(Layout(tmp_path_factory.mktemp("images")))


@pytest.fixture(scope="session")
def embeddings(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The config ``embeddings`` in TFRecords; only to be read."""
    return publish_embeddings(Layout(tmp_path_factory.mktemp("embeddings")), 512)


@pytest.fixture(scope="session")
def image_embeddings(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The config ``image_embeddings`` in TFRecords; only to be read."""
    return publish_image_embeddings(Layout(tmp_path_factory.mktemp("image_embeddings")), 512)
