"""Copies that go once they take more room than they may."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from laion_assets.formats.lease import lease
from laion_assets.formats.publish import Recipe, Tally, bring, publish
from laion_assets.layout import ShardId
from laion_assets.scratch import trim_copies
from laion_assets.settings import Settings

RECIPE = Recipe(code_version="1")


@pytest.fixture
def settings(tmp_path, store) -> Settings:
    """Three shards of 1000 bytes, last used in the order 1, 2, 0."""
    settings = Settings(data_root=tmp_path / "data", store=store, scratch_bytes=2000)
    for number in range(3):
        output = settings.layout.images(ShardId(number))

        def write(draft, output=output):
            for name in output.names:
                draft.path(name).write_bytes(bytes(250))
            return Tally(rows=1)

        publish(output, RECIPE, write)
    for used, number in enumerate((1, 2, 0)):
        output = settings.layout.images(ShardId(number))
        for path in (output.copy_lock, *map(output.path, output.names)):
            os.utime(path, (used, used))
    return settings


def files(settings: Settings, number: int) -> list[Path]:
    output = settings.layout.images(ShardId(number))
    return [path for path in map(output.path, output.names) if path.exists()]


def test_what_was_not_used_for_longest_goes(settings):
    assert trim_copies(settings) == 1000
    assert [len(files(settings, number)) for number in range(3)] == [4, 0, 4]
    assert trim_copies(settings) == 0
    bring(settings.layout.images(ShardId(2)))
    assert trim_copies(settings.model_copy(update={"scratch_bytes": 1999})) == 1000
    assert [len(files(settings, number)) for number in range(3)] == [0, 0, 4]


def test_what_went_comes_back(settings):
    trim_copies(settings)
    output = settings.layout.images(ShardId(1))
    bring(output)
    assert [path.read_bytes() for path in files(settings, 1)] == [bytes(250)] * 4


def test_what_is_read_stays(settings):
    with lease(settings.layout.images(ShardId(1)), shared=True):
        assert trim_copies(settings) == 1000
    assert [len(files(settings, number)) for number in range(3)] == [4, 4, 0]


def test_files_that_nothing_vouches_for_stay(settings):
    strange = settings.layout.images_folder / "00009.tar"
    strange.write_bytes(bytes(5000))
    trim_copies(settings.model_copy(update={"scratch_bytes": 1}))
    assert strange.exists()


def test_without_a_limit_everything_stays(settings):
    assert trim_copies(settings.model_copy(update={"scratch_bytes": 0})) == 0
    assert trim_copies(settings.model_copy(update={"store": "", "scratch_bytes": 1})) == 0
    assert [len(files(settings, number)) for number in range(3)] == [4, 4, 4]
