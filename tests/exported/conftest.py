"""These tests read exports with the libraries that they are for, without a network."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from offline_libraries import offline_libraries
from tfds_datasets import Dataset, publish_embeddings, publish_image_embeddings, publish_images

from laion_assets.layout import Layout
from laion_assets.stages.export import export

WIDTH = 24


@pytest.fixture(scope="session", autouse=True)
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with offline_libraries(tmp_path_factory.mktemp("hugging_face")):
        yield


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*address: object) -> None:
        raise AssertionError(f"a connection to {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@dataclass(frozen=True)
class Exported:
    """An export of all configs over the shards of ``tfds_datasets``, and what went into each."""

    layout: Layout
    datasets: dict[str, Dataset]

    @property
    def folder(self) -> str:
        return str(self.layout.export_folder)

    @property
    def croissant(self) -> Path:
        return self.layout.export_folder / "croissant.json"


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Only to be read."""
    layout = Layout(tmp_path_factory.mktemp("exported"))
    found: dict[str, Any] = {
        "image_embeddings": publish_image_embeddings(layout, WIDTH),
        "images": publish_images(layout),
        "embeddings": publish_embeddings(layout, WIDTH),
    }
    export(layout, width=WIDTH)
    return Exported(layout, found)
