"""What a stage does to files while it runs."""

from collections.abc import Callable, Iterator

import pytest
from file_changes import watch


@pytest.fixture
def on_change() -> Iterator[Callable[[Callable[[str], None] | None], None]]:
    """Sets what is called just before each change of the file system."""
    yield lambda callback: setattr(watch, "on_change", callback)
    watch.on_change = None


@pytest.fixture
def opened() -> Iterator[list[str]]:
    """Every path that is opened."""
    watch.opened = []
    yield watch.opened
    watch.opened = None
