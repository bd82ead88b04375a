"""Jobs that a person launches from the UI: one branch over a range of shards, or the datasets."""

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from laion_assets.pipeline import EMBEDDINGS, IMAGES, PARTS, PUBLICATION, is_asked_for
from laion_assets.settings import Settings

_JOBS = {
    "read_parts": (PARTS, "Read raw parts"),
    "build_shards": (IMAGES, "Take image shards through the whole branch"),
    "build_embedding_shards": (EMBEDDINGS, "Take embedding shards through the whole branch"),
    "publish_datasets": (
        PUBLICATION,
        "Publish what is there as TFDS datasets, with the catalog and the report",
    ),
}


def build_jobs(settings: Settings) -> list[UnresolvedAssetJobDefinition]:
    """A job for each chain of stages that share their partitions, and one for what has none."""
    return [
        dg.define_asset_job(
            name,
            selection=[stage for stage in chain if is_asked_for(stage, settings)],
            description=description,
        )
        for name, (chain, description) in _JOBS.items()
    ]
