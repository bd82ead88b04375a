"""The TFDS data sets: every shard that is there, under the names and the metadata that TFDS reads.

``<data_dir>/laion400m/<config>/1.0.0`` is a link to a folder that is built beside it, so that a reader finds
the data set as it was before or as it is now. The shards in it are hard links: a data set costs no second
copy, and a shard that is made again does not change under a reader. A shard keeps its number, unless the data
set is dense; those not there yet are recorded with length 0, which TFDS passes over.

So shards can be added to the build in use: until a new dataset_info.json takes the old one's place, in one
rename, no reader looks for them. Whatever else changes is built anew.
"""

from __future__ import annotations

import filecmp
import gc
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from laion_assets import provenance
from laion_assets.dataset_shards import (
    DatasetShard,
    find_shards,
    find_stored_shards,
    remember,
    statuses,
)
from laion_assets.errors import MissingInput, ShardBusy
from laion_assets.formats import builds, tfds
from laion_assets.formats.checksums import sha256_of
from laion_assets.formats.durable import make_folder, sync_folder
from laion_assets.formats.publish import Draft, Manifest, Recipe, Tally, publish
from laion_assets.formats.sealed import fingerprint
from laion_assets.layout import DATASET_NAME, DATASET_VERSION, MANIFEST_SUFFIX, Layout, ShardId, shard_key
from laion_assets.schema import EMBEDDING_WIDTH

CODE_VERSION: Final = "2"

# What lies beside the shards, in the order in which it is put there: dataset_info.json is the last.
_FILES: Final = (provenance.LICENSE_FILE, provenance.METADATA_FILE, *tfds.METADATA_FILES)
# Those of them that stay as they are when shards are added.
_CONSTANT_FILES: Final = [name for name in _FILES if name not in (provenance.METADATA_FILE, _FILES[-1])]


@contextmanager
def _not_collecting_garbage() -> Iterator[None]:
    """Keep Python from looking for cycles, again and again, among objects of each shard that are in none."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


# A fifth of the time, with tens of thousands of shards.
@_not_collecting_garbage()
def publish_dataset(
    config: tfds.Config, layout: Layout, *, shard_count: int, width: int = EMBEDDING_WIDTH
) -> Manifest:
    """Publish a config over every shard that is there, unless the data set holds just these already.

    In a dense layout, shards without examples are left out, and the others have files numbered from 0 without
    a gap. The published record lists each shard with its examples and bytes, and the shards that are missing.
    Counts: ``examples``, ``shards_present``, ``shards_missing``.

    Args:
        config: one of TFDS's configs.
        layout: where its shards are and where the data set goes.
        shard_count: how many shards the data set has once all are there; the N of ``-of-N``.
        width: elements of a vector, where the config has any.

    Raises:
        MissingInput: if no shard is there, or none that a dense data set has room for, or one was written
            with another width.
        PlanError: if a shard is there whose number is beyond ``shard_count``.
        CorruptInput: if a shard's file is not the one its manifest vouches for, or if something that is
            not this stage's is in the data set's place.
        ShardBusy: if a shard is made again meanwhile.
    """
    if layout.store:
        shards, digests = find_stored_shards(config, layout, shard_count, width)
    else:
        shards, digests = find_shards(config, layout, shard_count, width), {}
        builds.refuse_stranger(layout.tfds_version(config), layout.tfds_builds(config))
    if layout.dense and not any(shard.examples for shard in shards.values()):
        raise MissingInput(f"no shard of tfds_{config} that is there holds an example: materialize more")
    dataset = _Dataset(
        config=config,
        layout=layout,
        shard_count=shard_count,
        width=width,
        shards=shards,
        digests=digests,
        # Embeddings come in shards of their own.
        plan=provenance.plan_of(layout) if config != "embeddings" else None,
    )
    return publish(layout.dataset(config), dataset.recipe, dataset.write, also_intact=dataset.is_intact)


@dataclass(frozen=True, kw_only=True)
class _Dataset:
    """One config over the shards that are there.

    Attributes:
        config: one of TFDS's configs.
        layout: where its shards are and where the data set goes.
        shard_count: how many shards the data set has once all are there.
        width: elements of a vector.
        shards: number of each shard that is there, ascending.
        digests: BLAKE3 of each shard's file, in object storage.
        plan: what the shards' rows come from, for the metadata.
    """

    config: tfds.Config
    layout: Layout
    shard_count: int
    width: int
    shards: Mapping[int, DatasetShard]
    digests: Mapping[int, str]
    plan: Mapping[str, Any] | None

    @cached_property
    def keys(self) -> Mapping[int, str]:
        """Shard -> its partition key."""
        return {number: shard_key(number) for number in self.shards}

    @cached_property
    def numbers(self) -> Mapping[int, int]:
        """Shard -> number of its file."""
        examples = {number: shard.examples for number, shard in self.shards.items()}
        return tfds.file_numbers(examples, dense=self.layout.dense)

    @property
    def file_count(self) -> int:
        """The N of ``-of-N``."""
        return len(self.numbers) if self.layout.dense else self.shard_count

    @cached_property
    def files(self) -> Mapping[str, int]:
        """Name of each file of examples -> its shard; a shard of no examples has no file."""
        count, file_format = self.file_count, self.layout.file_format
        return {
            tfds.shard_file_name(number, count, file_format): shard
            for shard, number in self.numbers.items()
            if self.shards[shard].examples
        }

    @cached_property
    def recipe(self) -> Recipe:
        # There can be tens of thousands of shards, so one fingerprint stands for all.
        versions = {self.keys[number]: shard.data_version for number, shard in self.shards.items()}
        settings = {
            "shard_count": self.shard_count,
            "width": self.width,
            "dense": self.layout.dense,
            "tensorflow-datasets": version("tensorflow-datasets"),
        }
        return Recipe(
            code_version=CODE_VERSION,
            settings=fingerprint(settings),
            inputs={f"tfds_{self.config}": fingerprint(versions), "plan": fingerprint(self.plan)},
        )

    @property
    def examples(self) -> int:
        return sum(shard.examples for shard in self.shards.values())

    @property
    def payload_bytes(self) -> int:
        return sum(shard.payload_bytes for shard in self.shards.values())

    @property
    def _data_version(self) -> str:
        return self.recipe.inputs[f"tfds_{self.config}"]

    def write(self, draft: Draft) -> Tally:
        """Write the record, and put together what TFDS reads, unless that is left to who copies it."""
        drafted = self._draft_files(draft.scratch("files"))
        draft.only.write_text(json.dumps(self._record(drafted), sort_keys=True) + "\n", encoding="utf-8")
        if not self.layout.store:
            self._put_together(draft, drafted)
        counts = {
            "examples": self.examples,
            "shards_present": len(self.shards),
            "shards_missing": self.shard_count - len(self.shards),
        }
        return Tally(rows=self.examples, counts=counts)

    def _put_together(self, draft: Draft, drafted: Path) -> None:
        """Bring the build in use up to date, or make another and point the link at it."""
        link, folder = self.layout.tfds_version(self.config), self.layout.tfds_builds(self.config)
        current = folder / link.readlink().name if link.is_symlink() else None
        make_folder(folder)
        builds.remove(build for build in folder.iterdir() if build != current and not _is_finished(build))
        known = self.layout.known_shards(self.config)
        remember(known, self.shards.values(), draft=draft.scratch("known"))
        tfds.write_default_config(self.layout.tfds_default_config, draft=draft.scratch("default-config"))
        if current is not None and self._only_adds_to(current, drafted):
            build = current
            self._fill(build, drafted)
        else:
            build = builds.new_build(folder, fingerprint(asdict(self.recipe)))
            self._fill(build, drafted)
            builds.point(link, build)
        # Whoever resolved the link earlier still reads the build before this one.
        builds.remove(other for other in folder.iterdir() if other not in (current, build))

    def is_intact(self) -> bool:
        """Whether the link leads to a build of these shards that has every file, of the recorded size."""
        if self.layout.store:
            return True
        link = self.layout.tfds_version(self.config)
        try:
            record = json.loads(self.layout.dataset(self.config).only.read_bytes())
            # metadata.json tells of the shards' bytes: one of the same size and other bytes is noticed.
            metadata = {name: sha256_of(link / name) for name in _FILES}
        except (FileNotFoundError, ValueError):
            return False  # built again, which is the cure
        found = statuses(link)
        return (
            all(
                name in found and found[name].st_size == self.shards[shard].bytes
                for name, shard in self.files.items()
            )
            and metadata == record.get("metadata")
            and tfds.names_default_config(self.layout.tfds_default_config)
        )

    def _draft_files(self, folder: Path) -> Path:
        """Write what lies beside the shards."""
        folder.mkdir()
        lengths = [0] * self.file_count
        for shard, number in self.numbers.items():
            lengths[number] = self.shards[shard].examples
        tfds.write_metadata(
            folder,
            self.config,
            shard_lengths=lengths,
            payload_bytes=self.payload_bytes,
            width=self.width,
            file_format=self.layout.file_format,
        )
        document = provenance.metadata(
            self.config,
            self.layout,
            self.shards,
            shard_count=self.shard_count,
            plan=self.plan,
            data_version=self._data_version,
        )
        provenance.write_provenance(folder, document)
        return folder

    def _only_adds_to(self, build: Path, drafted: Path) -> bool:
        """Whether a build lacks nothing but shards: what is in it stays where it is, and as it is."""
        same, _, _ = filecmp.cmpfiles(build, drafted, _CONSTANT_FILES, shallow=False)
        folder = self.layout.tfds_shard(self.config, ShardId(0)).folder
        # Inodes are of one file system. A shard that was copied from another has one of its own.
        if same != _CONSTANT_FILES or build.stat().st_dev != folder.stat().st_dev:
            return False
        inodes = {name: self.shards[shard].inode for name, shard in self.files.items()}
        with os.scandir(build) as entries:
            return all(inodes.get(entry.name) == entry.inode() or entry.name in _FILES for entry in entries)

    def _fill(self, build: Path, drafted: Path) -> None:
        """Link the shards that a build lacks, then put in the files that tell of them, in their order."""
        folder = self.layout.tfds_shard(self.config, ShardId(0)).folder
        # Text, since 80,000 paths take a second to make.
        there = set(os.listdir(build))  # noqa: PTH208
        added = [(name, shard) for name, shard in self.files.items() if name not in there]
        for name, shard in added:
            builds.link_file(f"{folder}/{self.keys[shard]}.{self.layout.file_format}", f"{build}/{name}")
        # Asked after linking: a shard made again since has another manifest by now, or none.
        for _, shard in added:
            if not self._is_as_found(f"{folder}/{self.keys[shard]}{MANIFEST_SUFFIX}", shard):
                raise ShardBusy(
                    f"tfds_{self.config} {self.keys[shard]} was made again while the data set was put "
                    "together: run this again"
                )
        sync_folder(build)
        for name in _FILES:
            if name not in there or name not in _CONSTANT_FILES:
                (drafted / name).replace(build / name)
        sync_folder(build)

    def _is_as_found(self, manifest: str, shard: int) -> bool:
        with suppress(FileNotFoundError):
            return self.shards[shard].is_of(os.stat(manifest))  # noqa: PTH116
        return False

    def _record(self, drafted: Path) -> dict[str, Any]:
        record = self._record_of_shards(drafted)
        if self.layout.store:
            # What lies beside the shards, and which objects these are, whatever is made again later.
            record["files"] = {name: (drafted / name).read_text(encoding="utf-8") for name in _FILES}
            for number, digest in self.digests.items():
                record["shards"][self.keys[number]]["blake3"] = digest
        return record

    def _record_of_shards(self, drafted: Path) -> dict[str, Any]:
        return {
            "name": DATASET_NAME,
            "config": self.config,
            "version": DATASET_VERSION,
            "shard_count": self.shard_count,
            "examples": self.examples,
            "bytes": sum(shard.bytes for shard in self.shards.values() if shard.examples),
            "payload_bytes": self.payload_bytes,
            "metadata": {name: sha256_of(drafted / name) for name in _FILES},
            "shards": {
                self.keys[number]: {
                    "examples": shard.examples,
                    "bytes": shard.bytes,
                    "data_version": shard.data_version,
                }
                for number, shard in self.shards.items()
            },
            "shards_missing": [
                shard_key(number) for number in range(self.shard_count) if number not in self.shards
            ],
        }


def _is_finished(build: Path) -> bool:
    """False for what a run that was killed has left."""
    return (build / tfds.METADATA_FILES[-1]).exists()
