"""Where a data set comes from, in two files beside its shards: LICENSE and metadata.json.

The names are TFDS's own (tensorflow_datasets, core/constants.py), which shows the second as
``builder.info.metadata``. The official class writes neither, and registers no checksums of what it downloads;
what it does write stays as it writes it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from laion_assets import __version__
from laion_assets.dataset_shards import DatasetShard, add_up
from laion_assets.errors import CorruptManifest, MissingInput
from laion_assets.formats import tfds
from laion_assets.formats.durable import sync_file
from laion_assets.layout import DATASET_NAME, DATASET_VERSION, Layout, shard_key
from laion_assets.plan import PlanEntry, ShardPlan
from laion_assets.raw_source import read_source

LICENSE_FILE: Final = "LICENSE"
METADATA_FILE: Final = "metadata.json"

_FORMAT: Final = 1

LICENSE: Final = """\
What LAION made: addresses, captions, tags, similarities and CLIP vectors
-------------------------------------------------------------------------
LAION released the metadata of LAION-400M under the Creative Commons Attribution 4.0 International licence
(CC BY 4.0, https://creativecommons.org/licenses/by/4.0/). Whoever passes it on has to name its source: LAION,
LAION-400M, https://laion.ai/blog/laion-400-open-dataset/. Rows that come from another list come under that
list's licence.

What others made: pictures
--------------------------
That licence does not cover the pictures. Each one is still its maker's, under the copyright and the terms
that hold where it was found, at the address in the feature "url"; to have downloaded it gives no right to use
or to publish it. The feature "license" repeats what LAION found beside the picture. It is a hint, which
nobody has verified, and grants nothing.
"""


def plan_of(layout: Layout) -> dict[str, Any] | None:
    """The shard plan, and where its parts come from; None where there is no plan."""
    try:
        plan = ShardPlan.load(layout)
    except MissingInput:
        return None
    return {
        "rows_per_shard": plan.rows_per_shard,
        "parts": [asdict(entry) | _origin(layout, entry) for entry in plan.entries],
        "shards_made_elsewhere": len(plan.placed),
    }


def metadata(
    config: tfds.Config,
    layout: Layout,
    shards: Mapping[int, DatasetShard],
    *,
    shard_count: int,
    plan: Mapping[str, Any] | None,
    data_version: str,
) -> dict[str, Any]:
    """What metadata.json says. Nothing in it is of this machine or of the time.

    Args:
        config: one of TFDS's configs.
        layout: whether the data set is dense.
        shards: number of each shard that is there, ascending.
        shard_count: how many shards the data set has once all are there.
        plan: see :func:`plan_of`.
        data_version: of all shards together.
    """
    examples = {number: shard.examples for number, shard in shards.items()}
    counts, counted = add_up(shards.values())
    document = {
        "format": _FORMAT,
        "name": DATASET_NAME,
        "config": config,
        "version": DATASET_VERSION,
        "data_version": data_version,
        "examples": sum(examples.values()),
        "shards": {
            "planned": shard_count,
            "present": len(shards),
            "without_examples": sum(not found for found in examples.values()),
        },
        # Over the shards whose inputs are still those that they were made from.
        "counts": counts,
        "shards_not_counted": {kind: len(shards) - counted[kind] for kind in counts},
        # One, if all shards were made with the same code and settings from their images on.
        "shards_by_recipe": Counter(shard.recipes for shard in shards.values()),
        "plan": plan,
        "source_files": {
            shard_key(number): json.loads(shard.sources) for number, shard in shards.items() if shard.sources
        },
        "versions": {
            "laion_assets": __version__,
            "pyarrow": pa.__version__,
            "tensorflow-datasets": version("tensorflow-datasets"),
        },
    }
    if layout.dense:
        document["shard_of_number"] = list(tfds.file_numbers(examples, dense=True))
    return document


def write_provenance(folder: Path, document: Mapping[str, Any]) -> None:
    """Write both files, and sync them."""
    text = json.dumps(document, indent=1, sort_keys=True) + "\n"
    for name, content in ((LICENSE_FILE, LICENSE), (METADATA_FILE, text)):
        (folder / name).write_text(content, encoding="utf-8")
        sync_file(folder / name)


def _origin(layout: Layout, entry: PlanEntry) -> dict[str, Any]:
    """URL and size in bytes of a part's raw file; none of a file of this machine, or one since replaced."""
    with suppress(FileNotFoundError, MissingInput, CorruptManifest):
        source = read_source(layout, entry.part)
        if source.sha256 == entry.sha256:
            url = source.location if "://" in source.location else None
            return {"url": url, "bytes": source.size_bytes, "source_schema": source.source_schema}
    return {"url": None, "bytes": None, "source_schema": None}
