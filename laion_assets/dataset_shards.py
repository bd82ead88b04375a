"""The shards that a data set is put together from: which are there, and what manifests say of them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from laion_assets.embedding_source import read_embedding_source
from laion_assets.errors import (
    CorruptInput,
    CorruptManifest,
    CorruptParquet,
    MissingInput,
    PlanError,
    ShardBusy,
)
from laion_assets.formats import parquet, tfds
from laion_assets.formats.checksums import checksums_of, sha256_of
from laion_assets.formats.durable import identity, make_folder, sync_file
from laion_assets.formats.publish import Manifest, done, read_manifest, require, verify
from laion_assets.formats.sealed import fingerprint
from laion_assets.layout import MANIFEST_SUFFIX, EmbeddingShardId, Layout, Output, ShardId
from laion_assets.outcomes import OUTCOME_PREFIX
from laion_assets.published import output_of
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
    keys = [str(ShardId(number)) for number in range(shard_count)]
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
            raise MissingInput(
                f"{stage} {ShardId(number)} was not written with vectors of {width} elements: materialize it "
                "again"
            )
        shards[number] = shard
    return shards


def statuses(folder: Path) -> dict[str, os.stat_result]:
    """Name of each file in a folder -> its status; a file that goes meanwhile is not there."""
    found = {}
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            try:
                found[entry.name] = entry.stat()
            except FileNotFoundError:  # suppress costs a tenth of a second
                continue
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


def verify_dataset(config: tfds.Config, layout: Layout) -> None:
    """Compare the files that TFDS reads, shards and metadata, with the record of the last publication.

    A shard that is a link to the file of its stage, as it was then, is not read: it is as whole as that one.

    Raises:
        MissingInput: if the config is not published.
        CorruptInput: if the record, or a file, is not the one that was published.
    """
    output = layout.dataset(config)
    verify(output)
    record, folder = json.loads(output.only.read_bytes()), layout.tfds_version(config)
    for name, sha256 in record.get("metadata", {}).items():  # which 0.1.0 did not record
        path = folder / name
        _check_published(path, path.is_file() and sha256_of(path) == sha256, f"sha256 {sha256}")
    default = layout.tfds_default_config
    _check_published(default, tfds.names_default_config(default), "the default config's name")
    shards = {ShardId.parse(key): shard for key, shard in record["shards"].items()}
    examples = {shard.number: found["examples"] for shard, found in sorted(shards.items())}
    numbers = tfds.file_numbers(examples, dense=layout.dense)
    count = len(numbers) if layout.dense else record["shard_count"]
    for shard, found in shards.items():
        if found["examples"]:
            path = folder / tfds.shard_file_name(numbers[shard.number], count, layout.file_format)
            version, source = found["data_version"], layout.tfds_shard(config, shard)
            _check_published(path, _is_shard(path, source, version), f"shard {shard} of version {version}")


def _is_shard(path: Path, source: Output, version: str) -> bool:
    """Whether a file has the contents that a shard had when it was published."""
    if not path.is_file():
        return False
    manifest = done(source)
    if manifest is not None and manifest.data_version == version and path.samefile(source.only):
        return True
    names = (checksums_of(path).blake3, sha256_of(path))  # sha256 named contents until 0.1.0
    return version in [fingerprint({source.only.name: name}) for name in names]


def _check_published(path: Path, is_as_published: bool, expected: str) -> None:
    if not is_as_published:
        raise CorruptInput(
            path,
            expected=f"{expected}, as it was published",
            found="another file" if path.exists() else "no file",
            remedy="Materialize the data set again.",
        )


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
    manifest_inode, manifest_bytes, changed_ns = identity(status)
    chain = _chain(layout, manifest)
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


def _chain(layout: Layout, manifest: Manifest) -> dict[str, Manifest]:
    """A shard's manifest and those of what it was made from; one that was made again since is left out."""
    found, unseen = {manifest.stage: manifest}, [manifest]
    while unseen:
        for stage, data_version in unseen.pop().recipe.inputs.items():
            if stage not in _SOURCES or stage in found:
                continue
            source = None
            with suppress(CorruptManifest):  # which stops its own stage, and need not stop this one
                source = read_manifest(output_of(layout, stage, manifest.partition))
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
