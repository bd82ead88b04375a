"""A TFDS data set as it was last published: its files, whether they are whole, and copies of them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import blake3

from laion_assets.errors import CorruptInput
from laion_assets.formats import object_store, tfds
from laion_assets.formats.checksums import checksums_of, sha256_of
from laion_assets.formats.publish import done, verify
from laion_assets.formats.sealed import fingerprint
from laion_assets.layout import OBJECTS_FOLDER, Layout, Output, ShardId

_PIECE_BYTES: Final = 1 << 20


class PublishedShard(NamedTuple):
    """A shard of examples in a data set as it was last published.

    Attributes:
        shard: the shard.
        file_name: of its file in the folder that TFDS reads.
        number: that TFDS gives it.
        examples: how many it holds, one at least.
        bytes: size of its file.
        data_version: of the file, by the name that it has in its stage.
        key: of the object that the file is, in object storage; "" elsewhere.
    """

    shard: ShardId
    file_name: str
    number: int
    examples: int
    bytes: int
    data_version: str
    key: str


class PublishedDataset(NamedTuple):
    """A data set as it was last published.

    Attributes:
        config: one of TFDS's configs.
        layout: where it is.
        record: what was written of it.
        shards: those that hold examples.
        files: name -> bytes of what lies beside them, as TFDS reads it.
    """

    config: tfds.Config
    layout: Layout
    record: Mapping[str, Any]
    shards: Sequence[PublishedShard]
    files: Mapping[str, bytes]


def read_dataset(config: tfds.Config, layout: Layout) -> PublishedDataset:
    """The record of a config's last publication.

    Raises:
        MissingInput: if the config is not published.
        CorruptInput: if the record, or a file that lies beside the shards, is not the one that was published.
    """
    output = layout.dataset(config)
    verify(output)
    record = json.loads(output.only.read_bytes())
    found = {ShardId.parse(key): shard for key, shard in record["shards"].items()}
    examples = {shard.number: described["examples"] for shard, described in sorted(found.items())}
    numbers = tfds.file_numbers(examples, dense=layout.dense)
    count = len(numbers) if layout.dense else record["shard_count"]
    shards = []
    for shard, described in sorted(found.items()):
        if described["examples"]:
            source, number = layout.tfds_shard(config, shard), numbers[shard.number]
            shards.append(
                PublishedShard(
                    shard=shard,
                    file_name=tfds.shard_file_name(number, count, layout.file_format),
                    number=number,
                    examples=described["examples"],
                    bytes=described["bytes"],
                    data_version=described["data_version"],
                    key=source.object_key(source.only.name, described["blake3"]) if layout.store else "",
                )
            )
    return PublishedDataset(config, layout, record, shards, _files(config, layout, record))


def _files(config: tfds.Config, layout: Layout, record: Mapping[str, Any]) -> dict[str, bytes]:
    if layout.store:
        return {name: text.encode() for name, text in record["files"].items()}
    folder = layout.tfds_version(config)
    return {
        name: (folder / name).read_bytes() for name in record.get("metadata", ()) if (folder / name).exists()
    }


def copy_shard(dataset: PublishedDataset, shard: PublishedShard, path: Path) -> None:
    """Copy a shard's file, compare it with what was published, and sync it.

    Raises:
        CorruptInput: if it is gone, or another.
        StoreUnavailable: if it is in object storage that does not answer.
    """
    layout = dataset.layout
    source = layout.tfds_version(dataset.config) / shard.file_name
    place = f"{layout.store}/{shard.key}" if layout.store else str(source)
    digest, size = blake3.blake3(), 0
    try:
        with path.open("wb") as file:
            found = (
                object_store.pieces(layout.store, shard.key, shard.bytes) if layout.store else _read(source)
            )
            for piece in found:
                digest.update(piece)
                size += len(piece)
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
    except FileNotFoundError:
        raise _not_as_published(place, f"shard {shard.shard}", "nothing") from None
    name = layout.tfds_shard(dataset.config, shard.shard).only.name
    # sha256 named contents until 0.1.0.
    digests = (digest.hexdigest(), *(() if layout.store else (sha256_of(path),)))
    if shard.data_version not in [fingerprint({name: digest}) for digest in digests]:
        expected = f"shard {shard.shard} of version {shard.data_version} in {shard.bytes} bytes"
        raise _not_as_published(place, expected, f"{size} other bytes")


def _read(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from iter(partial(file.read, _PIECE_BYTES), b"")


def _not_as_published(place: str, expected: str, found: str) -> CorruptInput:
    return CorruptInput(
        place,
        expected=f"{expected}, as it was published",
        found=found,
        remedy="Materialize the data set again.",
    )


def verify_dataset(config: tfds.Config, layout: Layout) -> None:
    """Compare the files that TFDS reads, shards and metadata, with the record of the last publication.

    A shard that is a link to the file of its stage, as it was then, is not read: it is as whole as that one.

    Raises:
        MissingInput: if the config is not published.
        CorruptInput: if the record, or a file, is not the one that was published.
    """
    dataset, folder = read_dataset(config, layout), layout.tfds_version(config)
    if layout.store:
        _verify_stored(dataset)
        return
    for name, sha256 in dataset.record.get("metadata", {}).items():  # which 0.1.0 did not record
        path = folder / name
        _check_published(path, path.is_file() and sha256_of(path) == sha256, f"sha256 {sha256}")
    default = layout.tfds_default_config
    _check_published(default, tfds.names_default_config(default), "the default config's name")
    for shard in dataset.shards:
        path, source = folder / shard.file_name, layout.tfds_shard(config, shard.shard)
        expected = f"shard {shard.shard} of version {shard.data_version}"
        _check_published(path, _is_shard(path, source, shard.data_version), expected)


def _verify_stored(dataset: PublishedDataset) -> None:
    """That each shard's object is there; what the manifests name was compared with them."""
    layout, sizes = dataset.layout, stored_sizes(dataset.config, dataset.layout)
    for shard in dataset.shards:
        if sizes.get(shard.key) != shard.bytes:
            found = f"{sizes.get(shard.key, 'no')} bytes"
            raise _not_as_published(f"{layout.store}/{shard.key}", f"{shard.bytes} bytes", found)


def stored_sizes(config: tfds.Config, layout: Layout) -> dict[str, int]:
    """Key of each object that is, or was, a shard of a config -> its size in bytes."""
    place = layout.tfds_shard(config, ShardId(0)).place
    listed = object_store.list_all(layout.store, f"{place}/{OBJECTS_FOLDER}")
    return {key: found.bytes for key, found in listed.items()}


def _is_shard(path: Path, source: Output, version: str) -> bool:
    """Whether a file has the contents that a shard had when it was published."""
    if not path.is_file():
        return False
    manifest = done(source)
    if manifest is not None and manifest.data_version == version and path.samefile(source.only):
        return True
    names = (checksums_of(path)["blake3"], sha256_of(path))  # sha256 named contents until 0.1.0
    return version in [fingerprint({source.only.name: name}) for name in names]


def _check_published(path: Path, is_as_published: bool, expected: str) -> None:
    if not is_as_published:
        raise _not_as_published(str(path), expected, "another file" if path.exists() else "no file")
