"""The shards that a data set is put together from: which are there, and what manifests say of them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from laion_assets.embedding_source import read_embedding_source
from laion_assets.errors import (
    CorruptManifest,
    CorruptParquet,
    MissingInput,
    PlanError,
    ShardBusy,
)
from laion_assets.formats import parquet, tfds
from laion_assets.formats.durable import identity, make_folder, sync_file
from laion_assets.formats.publish import Manifest, bring_all, read_manifest, require
from laion_assets.formats.sealed import fingerprint
from laion_assets.layout import MANIFEST_SUFFIX, EmbeddingShardId, Layout, ShardId, shard_key
from laion_assets.outcomes import OUTCOME_PREFIX
from laion_assets.published import manifests_of, output_of
from laion_assets.schema import COUNTED, KNOWN_SHARDS, SET_ASIDE_PREFIX, TAG_PREFIX, NsfwTag

# Stages that a shard of examples is made from -> what precedes the names of the counts taken from them; and
# None where only the recipe is.
_SOURCES: Final[Mapping[str, str | None]] = MappingProxyType(
    {
        "images": OUTCOME_PREFIX,
        "normalized_images": SET_ASIDE_PREFIX,
        "embeddings": None,
        "embedding_join": None,
        "normalized_embeddings": SET_ASIDE_PREFIX,
        "image_embeddings": None,
    }
)


class DatasetShard(NamedTuple):
    """What a data set has to know of a shard that is there, as in ``KNOWN_SHARDS``."""

    shard: int
    manifest_inode: int
    manifest_bytes: int
    manifest_changed_ns: int
    inode: int
    examples: int
    bytes: int
    payload_bytes: int
    data_version: str
    settings: str
    recipes: str
    sources: str
    counts: npt.NDArray[np.int64]  # in the order of COUNTED, -1 where nothing was counted

    def is_of(self, manifest: os.stat_result) -> bool:
        """Whether a manifest is the one that was read."""
        return identity(manifest) == (self.manifest_inode, self.manifest_bytes, self.manifest_changed_ns)

    def has(self, file: os.stat_result) -> bool:
        """Whether a file is the shard's own, under whatever name."""
        return (file.st_ino, file.st_size) == (self.inode, self.bytes)


def find_shards(
    config: tfds.Config, layout: Layout, shard_count: int, width: int
) -> Mapping[int, DatasetShard]:
    """Number of each shard that is there, ascending; a manifest that was read last time is not read again.

    Raises:
        MissingInput: if no shard is there, or one was written with another width.
        PlanError: if a shard is there whose number is beyond ``shard_count``.
        CorruptInput: if a shard's file is not the one its manifest vouches for.
        ShardBusy: if a shard is made again meanwhile.
    """
    folder, stage = layout.tfds_shard(config, ShardId(0)).folder, f"tfds_{config}"
    found = statuses(folder)
    keys = list(map(shard_key, range(shard_count)))
    names = {f"{key}{MANIFEST_SUFFIX}": number for number, key in enumerate(keys)}
    beyond = sorted(name for name in found.keys() - names.keys() if name.endswith(MANIFEST_SUFFIX))
    if beyond:
        raise PlanError(
            f"{folder / beyond[0]} is of a shard beyond the {shard_count} of {config}: put back what the "
            f"shard was made from, or delete it with its manifest to leave it out ({len(beyond)} in all)"
        )
    manifests = {number: found[name] for name, number in names.items() if name in found}
    if not manifests:
        raise MissingInput(f"no shard of {stage} is there yet in {folder}: materialize {stage} first")
    known, settings = _read_known(layout.known_shards(config)), tfds.settings_of(config, width)
    shards = {}
    for number, manifest in manifests.items():
        shard, file = known.get(number), found.get(f"{keys[number]}.{layout.file_format}")
        if shard is None or not shard.is_of(manifest) or file is None or not shard.has(file):
            shard = _look_at(layout, config, number)
        if shard.settings != settings:
            raise _another_width(stage, number, width)
        shards[number] = shard
    return shards


def find_stored_shards(
    config: tfds.Config, layout: Layout, shard_count: int, width: int
) -> tuple[Mapping[int, DatasetShard], Mapping[int, str]]:
    """As :func:`find_shards`, in object storage, by manifests alone; and the BLAKE3 of each shard's file."""
    stage = f"tfds_{config}"
    manifests = {ShardId.parse(key).number: manifest for key, manifest in manifests_of(layout, stage).items()}
    if beyond := [number for number in manifests if number >= shard_count]:
        raise PlanError(
            f"{stage} {ShardId(beyond[0])} is beyond the {shard_count} shards of {config}: put back what it "
            f"was made from, or delete its manifest in {layout.store} to leave it out ({len(beyond)} in all)"
        )
    if not manifests:
        raise MissingInput(f"no shard of {stage} is there yet in {layout.store}: materialize {stage} first")
    if config == "embeddings":
        bring_all(layout.embeddings(EmbeddingShardId(number)) for number in manifests)
    # By stage, since a request for each manifest would take long.
    read = cache(partial(manifests_of, layout))
    settings = tfds.settings_of(config, width)
    shards, digests = {}, {}
    for number, manifest in manifests.items():
        if manifest.recipe.settings != settings:
            raise _another_width(stage, number, width)
        (record,) = manifest.files.values()
        digests[number] = record.name
        chain = _chain(manifest, lambda stage, key: read(stage).get(key))
        shards[number] = _described(layout, manifest, chain, number)
    return shards, digests


def _another_width(stage: str, number: int, width: int) -> MissingInput:
    return MissingInput(
        f"{stage} {ShardId(number)} was not written with vectors of {width} elements: materialize it again"
    )


def statuses(folder: Path) -> dict[str, os.stat_result]:
    """Name of each file in a folder -> its status; a file that goes meanwhile is not there."""
    found: dict[str, os.stat_result] = {}
    try:
        opened = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return found
    try:
        with os.scandir(opened) as entries:  # not by its path, which takes a tenth longer
            for entry in entries:
                try:
                    found[entry.name] = entry.stat()
                except FileNotFoundError:  # suppress costs a tenth of a second
                    continue
    finally:
        os.close(opened)
    return found


def remember(path: Path, shards: Iterable[DatasetShard], *, draft: Path) -> None:
    """Write down what was read, for the next time; it may be lost."""
    *columns, counts = zip(*shards, strict=True)
    table = pa.table([*columns, *np.stack(counts).T], schema=KNOWN_SHARDS)
    parquet.write_table(draft, table, KNOWN_SHARDS)
    sync_file(draft)
    make_folder(path.parent)
    draft.replace(path)


def add_up(shards: Iterable[DatasetShard]) -> tuple[dict[str, dict[str, int]], dict[str, int]]:
    """Sums of what manifests count: kind -> name -> rows; and kind -> how many shards were counted so."""
    counts = np.stack([shard.counts for shard in shards])
    totals: dict[str, dict[str, int]] = {}
    counted = {}
    for name, column in zip(COUNTED, counts.T, strict=True):
        found = column[column >= 0]
        if len(found):
            kind, _, what = name.partition(":")
            totals.setdefault(kind, {})[what] = int(found.sum())
            counted[kind] = len(found)
    return totals, counted


def _look_at(layout: Layout, config: tfds.Config, number: int) -> DatasetShard:
    """A shard by its manifest, whose files are there in the recorded sizes."""
    output = layout.tfds_shard(config, ShardId(number))
    try:
        # Taken before it is read: if it is replaced meanwhile, this is not what is found in its place
        # afterwards.
        status = output.manifest.stat()
        manifest = require(output)
        inode = output.only.stat().st_ino
    except FileNotFoundError:
        raise ShardBusy(f"{output} is being made again: run this again") from None
    chain = _chain(manifest, lambda stage, key: read_manifest(output_of(layout, stage, key)))
    return _described(layout, manifest, chain, number, identity(status), inode)


def _described(
    layout: Layout,
    manifest: Manifest,
    chain: Mapping[str, Manifest],
    number: int,
    manifest_identity: tuple[int, int, int] = (0, 0, 0),
    inode: int = 0,
) -> DatasetShard:
    """What a data set has to know of a shard; which files there are is no matter in object storage."""
    manifest_inode, manifest_bytes, changed_ns = manifest_identity
    return DatasetShard(
        shard=number,
        manifest_inode=manifest_inode,
        manifest_bytes=manifest_bytes,
        manifest_changed_ns=changed_ns,
        inode=inode,
        examples=manifest.counts["examples"],
        bytes=manifest.bytes,
        payload_bytes=manifest.counts["payload_bytes"],
        data_version=manifest.data_version,
        settings=manifest.recipe.settings,
        recipes=fingerprint(
            {stage: [found.recipe.code_version, found.recipe.settings] for stage, found in chain.items()}
        ),
        sources=_source_files(layout, number) if "embeddings" in chain else "",
        counts=_counts(manifest, chain),
    )


def _chain(manifest: Manifest, read: Callable[[str, str], Manifest | None]) -> dict[str, Manifest]:
    """A shard's manifest and those of what it was made from; one that was made again since is left out."""
    found, unseen = {manifest.stage: manifest}, [manifest]
    while unseen:
        for stage, data_version in unseen.pop().recipe.inputs.items():
            if stage not in _SOURCES or stage in found:
                continue
            source = None
            with suppress(CorruptManifest):  # which stops its own stage, and need not stop this one
                source = read(stage, manifest.partition)
            if source is not None and source.data_version == data_version:
                found[stage] = source
                unseen.append(source)
    return found


def _counts(manifest: Manifest, chain: Mapping[str, Manifest]) -> npt.NDArray[np.int64]:
    found: dict[str, int] = {}
    for stage, source in chain.items():
        prefix = TAG_PREFIX if source is manifest else _SOURCES[stage]
        # Versions until 0.1.0 counted no tags, which are all there where they are counted.
        if prefix is not None and not (
            prefix == TAG_PREFIX and f"{prefix}{NsfwTag.NSFW}" not in source.counts
        ):
            found |= {name: source.counts.get(name, 0) for name in COUNTED if name.startswith(prefix)}
    return np.array([found.get(name, -1) for name in COUNTED], np.int64)


def _source_files(layout: Layout, number: int) -> str:
    """The three files of an embedding shard, as JSON; by their names, since where they lie is nobody's."""
    files = read_embedding_source(layout, EmbeddingShardId(number)).files
    return json.dumps(
        [{"name": Path(file.path).name, "bytes": file.size_bytes, "sha256": file.sha256} for file in files]
    )


def _read_known(path: Path) -> Mapping[int, DatasetShard]:
    try:
        found = parquet.read_table(path, KNOWN_SHARDS)
    except (FileNotFoundError, CorruptParquet):
        return {}  # every manifest is read, which is the cure of both
    columns, counts = found.columns[: -len(COUNTED)], found.columns[-len(COUNTED) :]
    rows = zip(
        *(column.to_pylist() for column in columns),
        np.column_stack([column.to_numpy() for column in counts]),
        strict=True,
    )
    return {shard.shard: shard for shard in map(DatasetShard._make, rows)}
