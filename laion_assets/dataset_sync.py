"""Brings a published data set, or some of its shards, to a folder of a disk, where TFDS can read it.

A shard counts as here once its file, complete and compared with its checksum, has been renamed into place and
noted; so whatever ends a copy, the next one goes on from there. What tells TFDS of the shards comes last.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from laion_assets.errors import MissingInput, SettingsError
from laion_assets.formats import builds, tfds
from laion_assets.formats.durable import identity, make_folder, naming_storage_errors, write_durably
from laion_assets.formats.tfrecord import FRAMING_BYTES
from laion_assets.layout import DATASET_NAME, DATASET_VERSION, Layout, ShardId
from laion_assets.published_dataset import PublishedDataset, PublishedShard, copy_shard, read_dataset

_NOTES: Final = ".synced.jsonl"
_INFO: Final = tfds.METADATA_FILES[-1]


@dataclass(frozen=True, kw_only=True)
class SyncReport:
    """What a copy did.

    Attributes:
        folder: that TFDS reads.
        copied: shards that were copied.
        kept: shards that were here.
        bytes: that were copied.
        shards: how many of the data set's shards with examples are here now.
        shards_published: how many it has.
    """

    folder: Path
    copied: int
    kept: int
    bytes: int
    shards: int
    shards_published: int


Watch = Callable[[Sequence[PublishedShard]], Iterable[PublishedShard]]


def sync_dataset(
    config: tfds.Config,
    layout: Layout,
    target: Path,
    shards: Collection[ShardId] | None = None,
    watch: Watch = lambda work: work,
) -> SyncReport:
    """Copy what is not here yet, and tell TFDS of what is here then.

    Args:
        config: one of TFDS's configs.
        layout: where the data set is published.
        target: what TFDS is given as ``data_dir``.
        shards: which to copy; all by default. Those copied before stay, and are brought up to date.
        watch: is given the shards to copy, and hands them on.

    Raises:
        MissingInput: if the config is not published, or none of the shards is.
        CorruptInput: if a file is not the one that was published.
        SettingsError: if the target is the data root's own folder.
        StorageError: if the disk does not take it, or object storage does not answer.
    """
    folder = target / DATASET_NAME / config / DATASET_VERSION
    if folder.is_symlink() or folder.resolve() == layout.tfds_version(config).resolve():
        raise SettingsError(f"{folder} is where data sets are published: choose another folder")
    dataset = read_dataset(config, layout)
    with naming_storage_errors(f"the copy of {DATASET_NAME}/{config}", folder):
        make_folder(folder)
        notes = _Notes(folder)
        wanted = [
            shard
            for shard in dataset.shards
            if shards is None or shard.shard in shards or str(shard.shard) in notes.files
        ]
        if not wanted:
            raise MissingInput(f"none of these shards is in {DATASET_NAME}/{config} as it was published")
        missing = [shard for shard in wanted if not notes.has(shard)]
        for shard in watch(missing):
            draft = folder / f".{shard.file_name}.{os.getpid()}.draft"
            try:
                copy_shard(dataset, shard, draft)
                draft.replace(folder / shard.file_name)
            finally:
                draft.unlink(missing_ok=True)
            notes.note(shard)
        _tell(dataset, wanted, folder)
        tfds.write_default_config(
            target / DATASET_NAME / ".config" / "metadata.json", draft=folder / ".config.draft"
        )
        notes.keep_only(wanted)
    return SyncReport(
        folder=folder,
        copied=len(missing),
        kept=len(wanted) - len(missing),
        bytes=sum(shard.bytes for shard in missing),
        shards=len(wanted),
        shards_published=len(dataset.shards),
    )


class _Notes:
    """Which shard each file was when it was copied, and by what one knows that it is that still.

    A line for each; the last one of a shard counts. What is lost of them is copied again.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._path = folder, folder / _NOTES
        self.files: dict[str, dict[str, Any]] = {}
        lines = self._path.read_bytes().splitlines() if self._path.exists() else ()
        for line in lines:
            with suppress(ValueError):  # a line that a kill cut short
                noted = json.loads(line)
                self.files[noted["shard"]] = noted

    def has(self, shard: PublishedShard) -> bool:
        """Whether a shard is here, and under its name: a data set that grew gives it another."""
        noted = self.files.get(str(shard.shard))
        if noted is None or noted["data_version"] != shard.data_version:
            return False
        path = self._folder / noted["file"]
        try:
            if list(identity(path.stat())) != noted["identity"]:
                return False
            if path.name != shard.file_name:
                # Under both until TFDS is told.
                (self._folder / shard.file_name).unlink(missing_ok=True)
                builds.link_file(str(path), str(self._folder / shard.file_name))
                self.note(shard)
        except FileNotFoundError:
            return False
        return True

    def note(self, shard: PublishedShard) -> None:
        """Write down that a shard is here."""
        noted = {
            "shard": str(shard.shard),
            "file": shard.file_name,
            "data_version": shard.data_version,
            "identity": identity((self._folder / shard.file_name).stat()),
        }
        self.files[str(shard.shard)] = noted
        with self._path.open("ab") as file:
            # On a line of its own, whatever a kill has left.
            file.write(f"\n{json.dumps(noted)}\n".encode())

    def keep_only(self, shards: Iterable[PublishedShard]) -> None:
        """Remove files of shards that are elsewhere, or that the data set has no longer."""
        kept = {str(shard.shard): shard.file_name for shard in shards}
        self.files = {key: noted for key, noted in self.files.items() if key in kept}
        write_durably(self._path, "".join(f"{json.dumps(noted)}\n" for noted in self.files.values()).encode())
        names = set(kept.values())
        for path in self._folder.glob(f"{DATASET_NAME}-{tfds.SPLIT}.*-of-*"):
            if path.name not in names:
                path.unlink()


def _tell(dataset: PublishedDataset, shards: Sequence[PublishedShard], folder: Path) -> None:
    """Write what lies beside the shards; TFDS is told that those which are not here hold nothing."""
    for name, data in dataset.files.items():
        if name != _INFO:
            write_durably(folder / name, data)
    info = json.loads(dataset.files[_INFO])
    if len(shards) < len(dataset.shards):
        (split,) = info["splits"]
        lengths = [0] * len(split["shardLengths"])
        for shard in shards:
            lengths[shard.number] = shard.examples
        split["shardLengths"] = [str(length) for length in lengths]
        split["numBytes"] = str(_payload_bytes(dataset.layout, shards))
        write_durably(folder / _INFO, json.dumps(info, indent=2).encode())
    else:
        write_durably(folder / _INFO, dataset.files[_INFO])


def _payload_bytes(layout: Layout, shards: Iterable[PublishedShard]) -> int:
    """Bytes of the examples, as TFDS counts them; of ArrayRecord with what is around them."""
    frame = FRAMING_BYTES if layout.file_format == "tfrecord" else 0
    return sum(shard.bytes - frame * shard.examples for shard in shards)
