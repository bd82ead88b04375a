import pytest
from hypothesis import given
from hypothesis import strategies as st

from laion_assets.errors import SettingsError
from laion_assets.layout import EmbeddingShardId, Layout, ShardId, part_id


@given(st.integers(0, 999_999_999))
def test_shard_id_round_trips_through_its_key(number):
    assert ShardId.parse(str(ShardId(number))) == ShardId(number)


@pytest.mark.parametrize("text", ["", "1", "0001", "-0001", "0000x", "000001", "00001 ", "٠٠٠٠١", "1e5"])
def test_what_is_no_key_is_refused(text):
    with pytest.raises(SettingsError, match="is not a shard"):
        ShardId.parse(text)


def test_part_is_named_by_its_file_up_to_the_first_dot():
    name = "part-00000-5b54c5d5-bbcf-484d-a2ce-0d6f73df1a36-c000.snappy.parquet"
    assert part_id(name) == "part-00000-5b54c5d5-bbcf-484d-a2ce-0d6f73df1a36-c000"


@pytest.mark.parametrize("name", ["", ".a.parquet", "../x.parquet", "a b.parquet", "a" * 300, "ä.parquet"])
def test_part_that_could_not_be_a_file_name_is_refused(name):
    with pytest.raises(SettingsError, match="raw file"):
        part_id(name)


def test_each_kind_of_data_set_has_folders_of_its_own(tmp_path):
    layouts = [
        Layout(tmp_path, form, dense) for form in ("tfrecord", "array_record") for dense in (False, True)
    ]
    folders = [(layout.tfds_data_dir, layout.dataset("images").folder) for layout in layouts]
    assert folders[:2] == [
        (tmp_path / "tfds", tmp_path / "published"),
        (tmp_path / "tfds_dense", tmp_path / "published_dense"),
    ]
    assert len({folder for pair in folders for folder in pair}) == 8
    assert layouts[0].tfds_images(ShardId(0)) == layouts[1].tfds_images(ShardId(0))


def test_outputs_of_all_stages_never_share_a_file(tmp_path):
    layout, shard = Layout(tmp_path), ShardId(7)
    outputs = [
        layout.raw_metadata("p"),
        layout.shard_plan(),
        layout.duplicates(),
        layout.samples(shard),
        layout.images(shard),
        layout.normalized_images(shard),
        layout.tfds_images(shard),
        layout.embedding_index(EmbeddingShardId(7)),
        layout.image_embeddings(shard),
        layout.tfds_image_embeddings(shard),
        layout.dataset("images"),
        layout.dataset("embeddings"),
        layout.dataset("image_embeddings"),
        layout.catalog(),
        layout.dataset_report(),
    ]
    paths = [path for output in outputs for path in (*map(output.path, output.names), output.manifest)]
    assert len(paths) == len(set(paths))
    assert all(path.is_relative_to(tmp_path) for path in paths)
    with pytest.raises(ValueError, match="has no file"):
        layout.samples(shard).path("../x")
