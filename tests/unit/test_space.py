import numpy as np
import pytest
from export_inputs import write_images
from quality_inputs import PART, SHARDS, VECTORS, WIDTH, shared_root

from laion_assets.errors import DiskFull
from laion_assets.formats.durable import free_bytes
from laion_assets.formats.publish import read_manifest
from laion_assets.formats.sealed import seal, unseal
from laion_assets.layout import ShardId
from laion_assets.settings import Settings
from laion_assets.space import check_room, check_room_for_export, estimate


@pytest.fixture
def built(tmp_path_factory):
    return Settings(data_root=shared_root(tmp_path_factory).root)


def test_what_is_built_tells_what_the_rest_will_take(built):
    sizes = [read_manifest(built.layout.images(shard)).bytes for shard in SHARDS]
    assert estimate(built, {"images": 10}) == int(10 * sum(sizes) / len(sizes))
    assert estimate(built, {"raw_metadata": 2}) == 2 * read_manifest(built.layout.raw_metadata(PART)).bytes
    vectors = read_manifest(built.layout.tfds_embeddings(VECTORS)).bytes
    assert (
        estimate(built, {"images": 10, "tfds_embeddings": 3}) == estimate(built, {"images": 10}) + 3 * vectors
    )
    assert estimate(built, {"images": 0}) == 0


def test_before_anything_is_built_the_formats_tell(tmp_path):
    settings = Settings(data_root=tmp_path / "none", rows_per_shard=10_000)
    # The release: 41,455 shards are 8 TB of pictures at most, and tens of GB of text.
    pictures = estimate(settings, {"images": 41_455, "tfds_images": 41_455})
    assert 5e12 < pictures < 2e13
    assert estimate(settings, {"samples": 41_455, "normalized_images": 41_455}) < pictures / 50


def test_vectors_that_are_not_joined_yet_are_looked_at(tmp_path):
    for name in ("img_emb", "text_emb"):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / f"{name}_0.npy", np.zeros((1000, WIDTH), np.float16))
    settings = Settings(data_root=tmp_path / "none", embeddings={"source": str(tmp_path), "width": WIDTH})
    joined = estimate(settings, {"embedding_join": 1})
    assert 1000 * WIDTH * 4 < joined < 1000 * (WIDTH * 4 + 500)
    assert estimate(settings, {"tfds_embeddings": 1}) == pytest.approx(joined + 1000 * WIDTH * 4, rel=0.01)


def test_raw_files_are_looked_at(tmp_path):
    (tmp_path / "part-0.parquet").write_bytes(bytes(5_000))
    settings = Settings(data_root=tmp_path / "none", raw={"source": (str(tmp_path / "part-0.parquet"),)})
    assert estimate(settings, {"raw_metadata": 1}) == 5_000


def test_what_does_not_fit_is_refused_with_figures_unless_told_otherwise(tmp_path):
    settings = Settings(data_root=tmp_path, rows_per_shard=1_000_000)
    shards = free_bytes(tmp_path) // 10**10
    check_room(settings, {"images": 0})
    with pytest.raises(DiskFull, match=r"about [0-9,]+ bytes will be written to .* [0-9,]+ are free"):
        check_room(settings, {"images": shards + 10})
    check_room(settings.model_copy(update={"check_space": False}), {"images": shards + 10})


def test_an_export_that_does_not_fit_is_refused_unless_told_otherwise(tmp_path):
    settings = Settings(data_root=tmp_path)
    write_images(settings.layout, 0)
    shards = {"images": [ShardId(0)]}
    check_room_for_export(settings, shards)
    built = settings.layout.tfds_images(ShardId(0))
    with built.only.open("r+b") as file:  # larger than the disk, of which it takes nothing
        file.truncate(free_bytes(tmp_path) + (1 << 30))
    document = unseal(built.manifest.read_bytes())
    document["files"][built.only.name]["bytes"] = built.only.stat().st_size
    built.manifest.write_bytes(seal(document))
    with pytest.raises(DiskFull, match=r"about [0-9,]+ bytes will be written to .* [0-9,]+ are free"):
        check_room_for_export(settings, shards)
    check_room_for_export(settings.model_copy(update={"check_space": False}), shards)
    check_room_for_export(settings, {"embeddings": []})
