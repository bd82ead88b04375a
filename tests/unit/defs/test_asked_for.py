"""What a build makes only if it is asked for: pictures with their vectors."""

import dagster as dg
import pytest
from quality_inputs import SHARDS, WIDTH, copy_root, shared_root

from laion_assets.defs.assembly import build_definitions
from laion_assets.defs.build import Request, pending
from laion_assets.defs.status import stage_statuses
from laion_assets.partitions import find_partitions
from laion_assets.pipeline import STAGE_BY_NAME, keys_of
from laion_assets.settings import Settings

ASKED_FOR = {"tfds_image_embeddings", "laion400m_image_embeddings"}


@pytest.fixture
def settings(tmp_path_factory, tmp_path):
    pristine = shared_root(tmp_path_factory)
    source = str(pristine.root.parent / "embeddings")

    def settings_with(asked, **others):
        layout = copy_root(pristine, tmp_path / str(asked)).layout
        embeddings = {"source": source, "width": WIDTH}
        return Settings(
            data_root=layout.root, tfds={"image_embeddings": asked}, **{"embeddings": embeddings} | others
        )

    return settings_with


@pytest.fixture
def instance():
    with dg.DagsterInstance.ephemeral() as found:
        yield found


@pytest.mark.parametrize("asked", [True, False])
def test_a_build_makes_it_only_then(settings, instance, asked):
    stages = set(pending(settings(asked), instance, Request()))
    assert {"image_embeddings", "laion400m_images", "laion400m_embeddings", "catalog"} <= stages
    assert stages & ASKED_FOR == (ASKED_FOR if asked else set())


@pytest.mark.parametrize("asked", [True, False])
def test_the_job_publishes_it_only_then_and_the_graph_has_it_always(settings, asked):
    definitions = build_definitions(settings(asked))
    job = definitions.resolve_job_def("publish_datasets")
    published = {key.to_user_string() for key in job.asset_layer.executable_asset_keys}
    assert ("laion400m_image_embeddings" in published) is asked
    assert published >= {"laion400m_images", "laion400m_embeddings", "catalog", "dataset_report"}
    every = {key.to_user_string() for key in definitions.resolve_asset_graph().get_all_asset_keys()}
    assert every >= ASKED_FOR


@pytest.mark.parametrize("asked", [True, False])
def test_its_shards_are_missed_only_then_and_counted_always(settings, instance, asked):
    statuses = {status.stage: status for status in stage_statuses(settings(asked), instance)}
    found = statuses["tfds_image_embeddings"]
    # Of the plan's three shards, two are built.
    assert (found.done, found.missing, found.failed) == (len(SHARDS), int(asked), 0)
    assert found.rows > 0
    assert statuses["tfds_images"].missing == 1


def test_without_vectors_there_is_nothing_to_make(settings):
    found = find_partitions(settings(True, embeddings={}))
    assert found.shards
    for name in ASKED_FOR:
        assert keys_of(STAGE_BY_NAME[name], found) == ()


def test_without_pictures_there_is_nothing_to_make(settings, tmp_path):
    there = settings(True)
    found = find_partitions(there.model_copy(update={"data_root": tmp_path / "none"}))
    assert found.embedding_shards
    for name in ASKED_FOR:
        assert keys_of(STAGE_BY_NAME[name], found) == ()
