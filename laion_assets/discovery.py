"""What lies in the sources and is not taken in yet, and what was taken in and is gone or changed since.

Cheap enough for every minute: a listing of each folder and a look at each source file, however many shards
there are. A manifest is read only where a source file is younger than it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from laion_assets.formats.publish import read_manifest
from laion_assets.formats.sealed import fingerprint
from laion_assets.layout import Layout, Output, ShardId, shard_key
from laion_assets.partitions import Partitions, read_plan
from laion_assets.plan import ShardPlan, names_in, placed_among
from laion_assets.published import manifest_suffixes, partitions_of
from laion_assets.settings import Settings
from laion_assets.stages import embeddings, raw_metadata

NO_IDENTITY: Final = ""
"""Of what cannot arrive in pieces: a shard of the plan, or a URL, which is not asked."""


@dataclass(frozen=True, kw_only=True)
class Discovery:
    """What is new, and what is lost.

    Attributes:
        parts: parts of the raw source that are not read yet -> identity of their files.
        embedding_shards: embedding shards not checked yet, or not since their files changed, all three of
            which are there -> identity of the files.
        unplanned: parts that are read, and shards laid down as images, that the plan lacks.
        unbuilt: shards of the plan that are no examples yet.
        lost: stage -> partitions that were taken in, and whose files are gone or, of a source, changed.
    """

    parts: Mapping[str, str]
    embedding_shards: Mapping[str, str]
    unplanned: tuple[str, ...]
    unbuilt: tuple[str, ...]
    lost: Mapping[str, tuple[str, ...]]


def discover(settings: Settings, found: Partitions) -> Discovery:
    """Look at every source, and at what is published of it.

    Args:
        settings: where the sources are.
        found: the partitions that there are.

    Raises:
        SettingsError: if a source is named that is not there.
        SourceUnavailable: if a file goes away while it is looked at.
        CorruptManifest: if the plan, or a manifest that is needed, cannot be read.
    """
    layout = settings.layout
    plan = read_plan(settings)
    files = settings.raw_files()
    read = set(partitions_of(layout, "raw_metadata"))
    planned = {entry.part for entry in plan.entries}
    laid_down, lost_images = _look_at_images(layout, plan, set(found.shards))
    new_embeddings, lost_embeddings = _look_at_embeddings(settings)
    built = set(partitions_of(layout, "tfds_images"))
    return Discovery(
        parts={part: _identity(location) for part, location in files.items() if part not in read},
        embedding_shards=new_embeddings,
        unplanned=(*(part for part in files if part in read - planned), *laid_down),
        unbuilt=tuple(shard for shard in found.shards if shard not in built),
        lost={
            "raw_metadata": (
                *sorted((read | planned) - files.keys()),
                *(part for part in files if part in read and _part_changed(layout, part, files[part])),
            ),
            "images": lost_images,
            "embeddings": lost_embeddings,
        },
    )


def _identity(location: str) -> str:
    return NO_IDENTITY if "://" in location else raw_metadata.identity_of(location)


def _part_changed(layout: Layout, part: str, location: str) -> bool:
    output = layout.raw_metadata(part)
    if "://" in location or not _is_younger([Path(location)], output):
        return False
    manifest = read_manifest(output)
    return manifest is not None and manifest.recipe.inputs.get("source") != raw_metadata.identity_of(location)


def _is_younger(sources: Iterable[Path], output: Output) -> bool:
    """Whether a source changed, or was put in its place, after it was taken in."""
    taken_in = output.manifest.stat().st_mtime_ns
    statuses = [source.stat() for source in sources]
    return any(max(status.st_mtime_ns, status.st_ctime_ns) > taken_in for status in statuses)


def _look_at_images(layout: Layout, plan: ShardPlan, known: set[str]) -> tuple[list[str], tuple[str, ...]]:
    """Whole shards laid down that the plan lacks; those planned as such, or published, that lack files."""
    if layout.store:
        # The folder has copies of some shards; what is laid down in it, a build on this machine takes in.
        return [], ()
    names = set(names_in(layout.images_folder))
    sample = layout.placed_images(ShardId(0))
    suffixes = [name.removeprefix(sample.partition) for name in sample.names]

    def is_whole(shard: str) -> bool:
        return all(shard + suffix in names for suffix in suffixes)

    tables = map(shard_key, placed_among(names))
    expected = set(map(shard_key, plan.placed))
    for suffix in manifest_suffixes(layout, "images"):
        expected |= {name.removesuffix(suffix) for name in names if name.endswith(suffix)}
    return (
        [shard for shard in tables if shard not in known and is_whole(shard)],
        tuple(sorted(shard for shard in expected if not is_whole(shard))),
    )


def _look_at_embeddings(settings: Settings) -> tuple[dict[str, str], tuple[str, ...]]:
    """Whole shards that are to be checked, with their identity; and those checked that are no longer so."""
    layout = settings.layout
    checked = set(partitions_of(layout, "embeddings"))
    new: dict[str, str] = {}
    there = set()
    for shard, sources in embeddings.find_embedding_shards(settings.embeddings.source).items():
        paths: dict[str, Path] = asdict(sources)
        if not all(path.exists() for path in paths.values()):
            continue
        output = layout.embeddings(shard)
        is_known = str(shard) in checked
        if is_known and not _is_younger(paths.values(), output):
            there.add(str(shard))
            continue
        identities = {name: embeddings.identity_of(path) for name, path in paths.items()}
        manifest = read_manifest(output) if is_known else None
        if manifest is not None and manifest.recipe.inputs == identities:
            there.add(str(shard))
        else:
            new[str(shard)] = fingerprint(identities)
    return new, tuple(sorted(checked - there))
