import pytest

from laion_assets.formats import tfds
from laion_assets.lineage import COLUMN_ORIGINS, NEW
from laion_assets.pipeline import STAGE_BY_NAME, STAGES
from laion_assets.schema import EMBEDDINGS_FEATURES, IMAGE_EMBEDDINGS_FEATURES, IMAGES_FEATURES

TABLES = [stage for stage in STAGES if stage.columns is not None]


def test_every_table_is_accounted_for():
    assert set(COLUMN_ORIGINS) == {stage.name for stage in TABLES}


@pytest.mark.parametrize("stage", TABLES, ids=lambda stage: stage.name)
def test_every_column_is_made_of_columns_that_are_there_or_is_new(stage):
    origins = COLUMN_ORIGINS[stage.name]
    assert set(origins) == set(stage.columns.names)
    for column, found in origins.items():
        for name, made_of in found:
            assert name in stage.inputs, (column, name)
            assert made_of in STAGE_BY_NAME[name].columns.names, (column, name, made_of)


def ancestors(stage, column):
    """Every column that a column is made of, through all stages."""
    found = set()
    for origin in COLUMN_ORIGINS[stage][column]:
        found |= {origin} | ancestors(*origin)
    return found


@pytest.mark.parametrize(
    ("feature", "column"),
    [
        ("url", "URL"),
        ("caption", "TEXT"),
        ("nsfw", "NSFW"),
        ("license", "LICENSE"),
        ("similarity", "similarity"),
    ],
)
def test_features_lead_back_to_the_raw_file(feature, column):
    for dataset in ("laion400m_images", "laion400m_image_embeddings"):
        assert ("raw_metadata", column) in ancestors(dataset, feature)
    assert ("embedding_join", column if column.isupper() and column in ("NSFW", "LICENSE") else feature) in (
        ancestors("laion400m_embeddings", feature)
    )


def test_vectors_lead_back_to_the_joined_table():
    for dataset in ("laion400m_embeddings", "laion400m_image_embeddings"):
        for name in ("image_embedding", "text_embedding"):
            assert ("embedding_join", name) in ancestors(dataset, name)
    assert COLUMN_ORIGINS["embedding_join"]["image_embedding"] == NEW


@pytest.mark.parametrize(
    ("config", "columns"),
    [
        ("images", IMAGES_FEATURES),
        ("embeddings", EMBEDDINGS_FEATURES),
        ("image_embeddings", IMAGE_EMBEDDINGS_FEATURES),
    ],
)
def test_the_features_are_those_of_the_datasets(config, columns):
    assert set(columns.names) == set(tfds.features(config))
