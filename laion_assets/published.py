"""What is published below a data root: the files and manifests of every stage."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from types import MappingProxyType
from typing import Final

from laion_assets.formats import store_listing
from laion_assets.formats.publish import Manifest, done, read_copy, read_manifest
from laion_assets.formats.sealed import fingerprint
from laion_assets.layout import EmbeddingShardId, Layout, Output, ShardId
from laion_assets.outcomes import count_passing

# In the order of flow. The last two describe the others.
_OUTPUTS: Final[Mapping[str, Callable[[Layout, str], Output]]] = MappingProxyType(
    {
        "raw_metadata": Layout.raw_metadata,
        "shard_plan": lambda layout, _: layout.shard_plan(),
        "duplicates": lambda layout, _: layout.duplicates(),
        "samples": lambda layout, key: layout.samples(ShardId.parse(key)),
        "images": lambda layout, key: layout.images(ShardId.parse(key)),
        "normalized_images": lambda layout, key: layout.normalized_images(ShardId.parse(key)),
        "tfds_images": lambda layout, key: layout.tfds_images(ShardId.parse(key)),
        "laion400m_images": lambda layout, _: layout.dataset("images"),
        "embeddings": lambda layout, key: layout.embeddings(EmbeddingShardId.parse(key)),
        "embedding_join": lambda layout, key: layout.embedding_join(EmbeddingShardId.parse(key)),
        "embedding_index": lambda layout, key: layout.embedding_index(EmbeddingShardId.parse(key)),
        "normalized_embeddings": lambda layout, key: layout.normalized_embeddings(
            EmbeddingShardId.parse(key)
        ),
        "tfds_embeddings": lambda layout, key: layout.tfds_embeddings(EmbeddingShardId.parse(key)),
        "laion400m_embeddings": lambda layout, _: layout.dataset("embeddings"),
        "image_embeddings": lambda layout, key: layout.image_embeddings(ShardId.parse(key)),
        "tfds_image_embeddings": lambda layout, key: layout.tfds_image_embeddings(ShardId.parse(key)),
        "laion400m_image_embeddings": lambda layout, _: layout.dataset("image_embeddings"),
        "catalog": lambda layout, _: layout.catalog(),
        "dataset_report": lambda layout, _: layout.dataset_report(),
    }
)

STAGE_NAMES: Final = tuple(_OUTPUTS)
DATA_STAGES: Final = tuple(name for name in STAGE_NAMES if name not in ("catalog", "dataset_report"))
"""The stages that hold data, in flow order."""

Manifests = Mapping[str, Mapping[str, Manifest]]
"""Stage -> partition -> manifest."""

_UNPARTITIONED: Final = frozenset(
    {
        "shard_plan",
        "duplicates",
        "laion400m_images",
        "laion400m_embeddings",
        "laion400m_image_embeddings",
        "catalog",
        "dataset_report",
    }
)
_ANY_PARTITION: Final = "00000"


def output_of(layout: Layout, stage: str, partition: str) -> Output:
    """The files of one partition of a stage."""
    return _OUTPUTS[stage](layout, partition)


def sample_output(layout: Layout, stage: str) -> Output:
    """The files of a partition that need not exist, to learn a stage's folder and file names from."""
    return output_of(layout, stage, _ANY_PARTITION)


def partitions_of(layout: Layout, stage: str) -> tuple[str, ...]:
    """Keys of a stage's published partitions, ascending."""
    if stage in _UNPARTITIONED:
        return (stage,) if is_published(output_of(layout, stage, stage)) else ()
    return partitions_beside(sample_output(layout, stage))


def changed_at(layout: Layout, stage: str) -> int:
    """When, in nanoseconds, a partition of a stage was last published or withdrawn, as is known here."""
    output = sample_output(layout, stage)
    return store_listing.changed_at(output) if output.store else output.folder.stat().st_mtime_ns


def is_published(output: Output) -> bool:
    """Whether a partition has a manifest; where that is in object storage, it is asked for."""
    return (read_manifest(output) is not None) if output.store else output.manifest.exists()


def partitions_beside(output: Output) -> tuple[str, ...]:
    """Keys of the published partitions of an output's stage, ascending."""
    # A shard number may outgrow five digits.
    return tuple(sorted(set(_keys(output)), key=lambda key: (len(key), key)))


def some_partitions(layout: Layout, stage: str, most: int) -> tuple[str, ...]:
    """Keys of at most so many of a stage's published partitions, whichever come first to hand."""
    return tuple(islice(_keys(sample_output(layout, stage)), most))


def manifest_suffixes(layout: Layout, stage: str) -> tuple[str, ...]:
    """What a stage's manifests end with: the present suffix, and an older one if there was another."""
    return _suffixes(sample_output(layout, stage))


def _suffixes(output: Output) -> tuple[str, ...]:
    names = [path.name for path in output.manifests]
    return tuple(name.removeprefix(output.partition) for name in names)


def _keys(output: Output) -> Iterator[str]:
    """Keys of the manifests of an output's stage, in no order."""
    suffixes = _suffixes(output)
    if output.store:
        yield from store_listing.refresh(output)
        return
    if not output.folder.is_dir():
        return
    with os.scandir(output.folder) as entries:
        for entry in entries:
            for suffix in suffixes:
                if entry.name.endswith(suffix):
                    yield entry.name.removesuffix(suffix)


def whole_partitions(layout: Layout, stage: str) -> frozenset[str]:
    """Keys of a stage's partitions that have a manifest and every file, of whatever size.

    One look at the folder, since tens of thousands of manifests take many seconds to read; only where a log
    is missing, which older versions and img2dataset did not write, the manifest is asked.
    """
    keys = partitions_of(layout, stage)
    if sample_output(layout, stage).store:
        return frozenset(keys)  # files are put before manifests
    folder = sample_output(layout, stage).folder
    names = {path.name for path in folder.iterdir()} if keys else set()

    def is_whole(key: str) -> bool:
        output = output_of(layout, stage, key)
        missing = set(output.names) - names
        return not missing or (missing <= set(output.logs) and done(output) is not None)

    return frozenset(filter(is_whole, keys))


def manifests_of(layout: Layout, stage: str) -> dict[str, Manifest]:
    """Partition -> manifest of everything that a stage has published, ascending.

    Raises:
        CorruptManifest: if a manifest cannot be read.
    """
    keys = partitions_of(layout, stage)
    if stage in _UNPARTITIONED:
        found = {key: read_manifest(output_of(layout, stage, key)) for key in keys}
    else:  # of object storage, they were copied when their names were listed
        found = {key: read_copy(output_of(layout, stage, key)) for key in keys}
    # One may have been withdrawn since the folder was listed.
    return {key: manifest for key, manifest in found.items() if manifest is not None}


def done_partitions(layout: Layout, stage: str, keys: Sequence[str]) -> dict[str, Manifest]:
    """Partition -> manifest of those of the keys that are done, as :func:`publish.done` has it."""
    if sample_output(layout, stage).store and len(keys) > 1:
        there = manifests_of(layout, stage)
        return {key: there[key] for key in keys if key in there}
    found = {key: done(output_of(layout, stage, key)) for key in keys}
    return {key: manifest for key, manifest in found.items() if manifest is not None}


def retryable_shards(layout: Layout) -> frozenset[str]:
    """Shards with rows whose download failed for the moment; reads every manifest."""
    return frozenset(
        key for key, manifest in manifests_of(layout, "images").items() if count_passing(manifest.counts)
    )


def manifests_of_everything(layout: Layout) -> Manifests:
    """As :func:`manifests_of`, of every stage that holds data."""
    return {stage: manifests_of(layout, stage) for stage in DATA_STAGES}


def version_of(manifests: Manifests) -> str:
    """Digest of the data version of every partition."""
    return fingerprint(
        {
            stage: {key: manifest.data_version for key, manifest in found.items()}
            for stage, found in manifests.items()
        }
    )


def version_of_everything(layout: Layout) -> str:
    """Digest of the data version of every published partition of every stage that holds data."""
    return version_of(manifests_of_everything(layout))
