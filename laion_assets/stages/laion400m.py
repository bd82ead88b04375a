"""The TFDS data sets: every shard that is there, under the names and the metadata that TFDS reads.

``<data_dir>/laion400m/<config>/1.0.0`` is a link to a folder that is built beside it and never changes
afterwards, so that a reader finds the data set as it was before or as it is now. The shards in it are hard
links: a data set costs no second copy, and a shard that is made again does not change under a reader.
A shard keeps its number; those not there yet are recorded with length 0, which TFDS passes over.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any, Final, NamedTuple

import pyarrow as pa

from laion_assets.errors import CorruptInput, CorruptParquet, MissingInput, PlanError, ShardBusy
from laion_assets.formats import parquet, tfds
from laion_assets.formats.checksums import sha256_of
from laion_assets.formats.durable import identity, make_folder, sync_file, sync_folder
from laion_assets.formats.publish import (
    Draft,
    Manifest,
    Recipe,
    Tally,
    publish,
    require,
)
from laion_assets.formats.sealed import fingerprint
from laion_assets.layout import (
    DATASET_NAME,
    DATASET_VERSION,
    MANIFEST_SUFFIX,
    Layout,
    Output,
    ShardId,
)
from laion_assets.schema import EMBEDDING_WIDTH, KNOWN_SHARDS

CODE_VERSION: Final = "1"

# Another file system, one without hard links, too many of them, or a file of another user's
# (Linux, fs.protected_hardlinks).
_NO_HARD_LINK: Final = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS})


def publish_dataset(
    config: tfds.Config, layout: Layout, *, shard_count: int, width: int = EMBEDDING_WIDTH
) -> Manifest:
    """Publish a config over every shard that is there, unless the data set holds just these already.

    The published record lists each shard with its examples and bytes, and the shards that are missing.
    Counts: ``examples``, ``shards_present``, ``shards_missing``.

    Args:
        config: ``images`` or ``embeddings``.
        layout: where its shards are and where the data set goes.
        shard_count: how many shards the data set has once all are there; the N of ``-of-N``.
        width: elements of a vector; of ``embeddings`` only.

    Raises:
        MissingInput: if no shard is there, or one was written with another width.
        PlanError: if a shard is there whose number is beyond ``shard_count``.
        CorruptInput: if a shard's file is not the one its manifest vouches for, or if something that is
            not this stage's is in the data set's place.
        ShardBusy: if a shard is made again meanwhile.
    """
    shards = _published_shards(config, layout, shard_count, width)
    _refuse_stranger(layout.tfds_version(config), layout.tfds_builds(config))
    dataset = _Dataset(config=config, layout=layout, shard_count=shard_count, width=width, shards=shards)
    return publish(layout.dataset(config), dataset.recipe, dataset.write, also_intact=dataset.is_intact)


class _Shard(NamedTuple):
    """What the data set has to know of a shard that is there, as in ``KNOWN_SHARDS``."""

    shard: int
    manifest_inode: int
    manifest_bytes: int
    manifest_changed_ns: int
    examples: int
    bytes: int
    payload_bytes: int
    data_version: str
    settings: str

    def is_of(self, manifest: os.stat_result) -> bool:
        """Whether a manifest is the one that was read."""
        return identity(manifest) == (self.manifest_inode, self.manifest_bytes, self.manifest_changed_ns)


def _published_shards(
    config: tfds.Config, layout: Layout, shard_count: int, width: int
) -> Mapping[int, _Shard]:
    """Number of each shard that is there, ascending; a manifest that was read last time is not read again."""
    folder, stage = layout.tfds_shard(config, ShardId(0)).folder, f"tfds_{config}"
    found = _statuses(folder)
    names = {f"{ShardId(number)}{MANIFEST_SUFFIX}": number for number in range(shard_count)}
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
        shard, file = known.get(number), found.get(f"{ShardId(number)}.{layout.file_format}")
        if shard is None or not shard.is_of(manifest) or file is None or file.st_size != shard.bytes:
            shard = _look_at(layout.tfds_shard(config, ShardId(number)), number)
        if shard.settings != settings:
            raise MissingInput(
                f"{stage} {ShardId(number)} was not written with vectors of {width} elements: materialize it "
                "again"
            )
        shards[number] = shard
    return shards


def _statuses(folder: Path) -> dict[str, os.stat_result]:
    """Name of each file in a folder -> its status; a file that goes meanwhile is not there."""
    statuses = {}
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                statuses[entry.name] = entry.stat()
    return statuses


def _look_at(output: Output, number: int) -> _Shard:
    """A shard by its manifest, whose files are there in the recorded sizes."""
    # Taken before it is read: if it is replaced meanwhile, this is not what is found in its place afterwards.
    try:
        status = output.manifest.stat()
    except FileNotFoundError:
        raise ShardBusy(f"{output} is being made again: run this again") from None
    manifest = require(output)
    inode, size, changed_ns = identity(status)
    return _Shard(
        shard=number,
        manifest_inode=inode,
        manifest_bytes=size,
        manifest_changed_ns=changed_ns,
        examples=manifest.counts["examples"],
        bytes=manifest.bytes,
        payload_bytes=manifest.counts["payload_bytes"],
        data_version=manifest.data_version,
        settings=manifest.recipe.settings,
    )


def _read_known(path: Path) -> Mapping[int, _Shard]:
    try:
        found = parquet.read_table(path, KNOWN_SHARDS)
    except (FileNotFoundError, CorruptParquet):
        return {}  # every manifest is read, which is the cure of both
    rows = zip(*(column.to_pylist() for column in found.columns), strict=True)
    return {shard.shard: shard for shard in map(_Shard._make, rows)}


def _write_known(path: Path, shards: Mapping[int, _Shard], *, draft: Path) -> None:
    columns = zip(*shards.values(), strict=True)
    parquet.write_table(draft, pa.table(list(columns), schema=KNOWN_SHARDS), KNOWN_SHARDS)
    sync_file(draft)
    make_folder(path.parent)
    draft.replace(path)


def _refuse_stranger(link: Path, builds: Path) -> None:
    if not os.path.lexists(link) or (link.is_symlink() and link.readlink().parent == Path(builds.name)):
        return
    raise CorruptInput(
        link,
        expected=f"nothing, or a link into {builds.name} beside it",
        found=f"a link to {link.readlink()}" if link.is_symlink() else "a folder or a file",
        remedy="It is not of this project's making: move it away.",
    )


@dataclass(frozen=True, kw_only=True)
class _Dataset:
    """One config over the shards that are there.

    Attributes:
        config: ``images`` or ``embeddings``.
        layout: where its shards are and where the data set goes.
        shard_count: how many shards the data set has once all are there.
        width: elements of a vector.
        shards: number of each shard that is there, ascending.
    """

    config: tfds.Config
    layout: Layout
    shard_count: int
    width: int
    shards: Mapping[int, _Shard]

    @cached_property
    def recipe(self) -> Recipe:
        # There can be tens of thousands of shards, so one fingerprint stands for all.
        versions = {str(ShardId(number)): shard.data_version for number, shard in self.shards.items()}
        settings = {
            "shard_count": self.shard_count,
            "width": self.width,
            "tensorflow-datasets": version("tensorflow-datasets"),
        }
        return Recipe(
            code_version=CODE_VERSION,
            settings=fingerprint(settings),
            inputs={f"tfds_{self.config}": fingerprint(versions)},
        )

    @property
    def examples(self) -> int:
        return sum(shard.examples for shard in self.shards.values())

    @property
    def payload_bytes(self) -> int:
        return sum(shard.payload_bytes for shard in self.shards.values())

    @property
    def _digest(self) -> str:
        return fingerprint(asdict(self.recipe))

    def write(self, draft: Draft) -> Tally:
        """Build the folder, point the link at it, and write the record."""
        link, builds = self.layout.tfds_version(self.config), self.layout.tfds_builds(self.config)
        before = link.readlink().name if link.is_symlink() else None
        make_folder(builds)
        _remove(folder for folder in builds.iterdir() if folder.name != before and not _is_finished(folder))
        build = self._make_build(builds)
        tfds.write_default_config(self.layout.tfds_default_config, draft=draft.scratch("default-config"))
        record = self._record(build)
        draft.only.write_text(json.dumps(record, sort_keys=True) + "\n", encoding="utf-8")
        _write_known(self.layout.known_shards(self.config), self.shards, draft=draft.scratch("known"))
        _point(link, build)
        # Whoever resolved the link earlier still reads the build before this one.
        _remove(folder for folder in builds.iterdir() if folder.name not in (before, build.name))
        counts = {
            "examples": self.examples,
            "shards_present": len(self.shards),
            "shards_missing": self.shard_count - len(self.shards),
        }
        return Tally(rows=self.examples, counts=counts)

    def is_intact(self) -> bool:
        """Whether the link leads to a build of these shards that has every file, of the recorded size."""
        link = self.layout.tfds_version(self.config)
        try:
            target = link.readlink()
            record = json.loads(self.layout.dataset(self.config).only.read_bytes())
            with os.scandir(link) as entries:
                sizes = {entry.name: entry.stat().st_size for entry in entries}
            metadata = {name: sha256_of(link / name) for name in tfds.METADATA_FILES}
        except (FileNotFoundError, ValueError):
            return False  # built again, which is the cure
        shards = {
            self._file_name(number): shard.bytes for number, shard in self.shards.items() if shard.examples
        }
        return (
            target.name.startswith(self._digest)
            and shards.items() <= sizes.items()
            and metadata == record.get("metadata")
            and tfds.names_default_config(self.layout.tfds_default_config)
        )

    def _file_name(self, shard: int) -> str:
        return tfds.shard_file_name(shard, self.shard_count, self.layout.file_format)

    def _make_build(self, builds: Path) -> Path:
        build = _new_folder(builds, self._digest)
        folder = self.layout.tfds_shard(self.config, ShardId(0)).folder
        for number, shard in self.shards.items():
            # A shard of no examples has no file there. (Text, since 80,000 paths take a second to make.)
            if shard.examples:
                source = f"{folder}/{ShardId(number)}.{self.layout.file_format}"
                _link(source, f"{build}/{self._file_name(number)}")
        # Asked after linking: a shard made again since has another manifest by now, or none.
        found = _statuses(folder)
        for number, shard in self.shards.items():
            status = found.get(f"{ShardId(number)}{MANIFEST_SUFFIX}")
            if status is None or not shard.is_of(status):
                raise ShardBusy(
                    f"tfds_{self.config} {ShardId(number)} was made again while the data set was put "
                    "together: run this again"
                )
        tfds.write_metadata(
            build,
            self.config,
            shard_lengths=[
                self.shards[number].examples if number in self.shards else 0
                for number in range(self.shard_count)
            ],
            payload_bytes=self.payload_bytes,
            width=self.width,
            file_format=self.layout.file_format,
        )
        sync_folder(build)
        return build

    def _record(self, build: Path) -> dict[str, Any]:
        return {
            "name": DATASET_NAME,
            "config": self.config,
            "version": DATASET_VERSION,
            "shard_count": self.shard_count,
            "examples": self.examples,
            "bytes": sum(shard.bytes for shard in self.shards.values() if shard.examples),
            "payload_bytes": self.payload_bytes,
            "metadata": {name: sha256_of(build / name) for name in tfds.METADATA_FILES},
            "shards": {
                str(ShardId(number)): {
                    "examples": shard.examples,
                    "bytes": shard.bytes,
                    "data_version": shard.data_version,
                }
                for number, shard in self.shards.items()
            },
            "shards_missing": [
                str(ShardId(number)) for number in range(self.shard_count) if number not in self.shards
            ],
        }


def _new_folder(builds: Path, digest: str) -> Path:
    """A folder of a name that was not there; one of the same shards may be, damaged or in use."""
    folder = next(folder for number in count() if not (folder := builds / f"{digest}-{number}").exists())
    folder.mkdir()
    return folder


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_HARD_LINK:
            raise
        with Path(source).open("rb") as file, Path(target).open("wb") as copy:
            shutil.copyfileobj(file, copy, 1 << 20)
            copy.flush()
            os.fsync(copy.fileno())


def _point(link: Path, build: Path) -> None:
    sync_folder(build.parent)
    draft = link.with_name(f".{link.name}.draft")
    draft.unlink(missing_ok=True)
    # Relative, so that the data root can be moved.
    draft.symlink_to(build.relative_to(link.parent))
    draft.replace(link)
    sync_folder(link.parent)


def _is_finished(build: Path) -> bool:
    """False for what a run that was killed has left."""
    return (build / tfds.METADATA_FILES[-1]).exists()


def _remove(folders: Iterable[Path]) -> None:
    for folder in list(folders):
        shutil.rmtree(folder, ignore_errors=True)  # what stays is removed next time
