"""Jobs that a person launches from the UI: one branch over a range of shards, or the datasets."""

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from laion_assets.partitions import Axis
from laion_assets.pipeline import STAGES


def build_jobs() -> list[UnresolvedAssetJobDefinition]:
    """A job for each set of partitions, and one for what has none."""
    jobs = {
        "read_parts": (Axis.PART, "Read raw parts"),
        "build_shards": (Axis.SHARD, "Take image shards through the whole branch"),
        "build_embedding_shards": (Axis.EMBEDDING_SHARD, "Take embedding shards through the whole branch"),
    }
    selected = {
        name: dg.define_asset_job(
            name,
            selection=[
                stage.name for stage in STAGES if stage.axis is axis and stage.name != "image_embeddings"
            ],
            description=description,
        )
        for name, (axis, description) in jobs.items()
    }
    return [
        *selected.values(),
        dg.define_asset_job(
            "publish_datasets",
            selection=["laion400m_images", "laion400m_embeddings", "catalog", "dataset_report"],
            description="Publish what is there as TFDS datasets, with the catalog and the report",
        ),
    ]
