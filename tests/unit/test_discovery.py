import os

import numpy as np
import pyarrow.parquet as pq
import pytest
from embedding_inputs import cosines_of, metadata, pairs, place

from laion_assets.discovery import NO_IDENTITY, discover
from laion_assets.errors import SettingsError
from laion_assets.partitions import find_partitions
from laion_assets.pipeline import STAGE_BY_NAME
from laion_assets.schema import RAW
from laion_assets.settings import Settings

WIDTH = 16


@pytest.fixture
def settings(tmp_path):
    for folder in ("raw", "embeddings", "data/images"):
        (tmp_path / folder).mkdir(parents=True)
    return Settings(
        data_root="data",
        rows_per_shard=10,
        raw={"source": "raw"},
        embeddings={"source": "embeddings", "width": WIDTH},
    ).relative_to(tmp_path)


def put_part(tmp_path, name="part-0", rows=15):
    path = tmp_path / "raw" / f"{name}.parquet"
    pq.write_table(RAW.empty_table().from_pylist([{}] * rows, schema=RAW), path)
    return path


def put_vectors(tmp_path, number=0, seed=0):
    cosines = cosines_of(20, seed=seed)
    place(tmp_path / "embeddings", number, *pairs(cosines, width=WIDTH, seed=seed), metadata(cosines))


def lay_down(tmp_path, shard="00007"):
    for suffix in (".tar", ".parquet", "_stats.json"):
        (tmp_path / "data" / "images" / f"{shard}{suffix}").touch()


def look(settings):
    return discover(settings, find_partitions(settings))


def take_in(settings, stage, key):
    STAGE_BY_NAME[stage].run(settings, key)


def test_nothing_is_new_where_nothing_is(settings):
    found = look(settings)
    assert (found.parts, found.embedding_shards, found.unplanned, found.unbuilt) == ({}, {}, (), ())
    assert not any(found.lost.values())


def test_a_part_is_new_until_read_then_unplanned_until_planned_then_its_shards_are_unbuilt(
    settings, tmp_path
):
    put_part(tmp_path)
    assert set(look(settings).parts) == {"part-0"}
    take_in(settings, "raw_metadata", "part-0")
    found = look(settings)
    assert (found.parts, found.unplanned, found.unbuilt) == ({}, ("part-0",), ())
    take_in(settings, "shard_plan", "shard_plan")
    found = look(settings)
    assert (found.unplanned, found.unbuilt) == ((), ("00000", "00001"))
    assert not any(found.lost.values())


def test_the_identity_of_a_part_that_grows_changes_and_a_url_has_none(settings, tmp_path):
    put_part(tmp_path)
    first = look(settings).parts["part-0"]
    put_part(tmp_path, rows=16)
    assert look(settings).parts["part-0"] not in (first, NO_IDENTITY)
    remote = {"source": "https://example.org/part-1.parquet"}
    elsewhere = settings.model_copy(update={"raw": settings.raw.model_validate(remote)})
    assert look(elsewhere).parts == {"part-1": NO_IDENTITY}


def test_a_part_that_is_gone_or_changed_is_lost(settings, tmp_path):
    paths = {name: put_part(tmp_path, name) for name in ("part-0", "part-1", "part-2")}
    for part in paths:
        take_in(settings, "raw_metadata", part)
    take_in(settings, "shard_plan", "shard_plan")
    put_part(tmp_path, "part-1", rows=30)
    paths["part-2"].unlink()
    # Another mode, but the same file: it is younger than what was made of it, and not changed.
    paths["part-0"].chmod(0o600)
    assert look(settings).lost["raw_metadata"] == ("part-2", "part-1")


def test_vectors_are_new_once_all_three_files_are_there(settings, tmp_path):
    put_vectors(tmp_path)
    held_back = (tmp_path / "embeddings/metadata/metadata_0.parquet").rename(tmp_path / "later")
    assert look(settings).embedding_shards == {}
    held_back.rename(tmp_path / "embeddings/metadata/metadata_0.parquet")
    assert set(look(settings).embedding_shards) == {"00000"}
    take_in(settings, "embeddings", "00000")
    found = look(settings)
    assert (found.embedding_shards, found.lost["embeddings"]) == ({}, ())


def test_vectors_that_changed_are_lost_and_new_and_those_gone_are_lost(settings, tmp_path):
    for number in range(3):
        put_vectors(tmp_path, number)
        take_in(settings, "embeddings", f"{number:05d}")
    path = tmp_path / "embeddings/img_emb/img_emb_1.npy"
    np.save(path, np.load(path)[::-1])
    (tmp_path / "embeddings/text_emb/text_emb_2.npy").unlink()
    found = look(settings)
    assert set(found.embedding_shards) == {"00001"}
    assert found.lost["embeddings"] == ("00001", "00002")


def test_shards_laid_down_are_unplanned_once_whole_and_lost_when_gone(settings, tmp_path):
    lay_down(tmp_path)
    tar = tmp_path / "data/images/00007.tar"
    tar.unlink()
    assert look(settings).unplanned == ()
    tar.touch()
    assert look(settings).unplanned == ("00007",)
    take_in(settings, "shard_plan", "shard_plan")
    found = look(settings)
    assert (found.unplanned, found.unbuilt, found.lost["images"]) == ((), ("00007",), ())
    tar.unlink()
    assert look(settings).lost["images"] == ("00007",)


@pytest.mark.parametrize("suffix", [".manifest", ".manifest.json"])
def test_published_pictures_without_their_files_are_lost(settings, tmp_path, suffix):
    lay_down(tmp_path, "00003")
    take_in(settings, "shard_plan", "shard_plan")
    (tmp_path / f"data/images/00003{suffix}").touch()
    assert look(settings).lost["images"] == ()
    (tmp_path / "data/images/00003_stats.json").unlink()
    assert look(settings).lost["images"] == ("00003",)


def test_a_source_that_is_not_there_is_an_error(settings, tmp_path):
    os.rmdir(tmp_path / "raw")  # noqa: PTH106
    with pytest.raises(SettingsError, match=r"raw\.source"):
        look(settings)
