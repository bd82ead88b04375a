"""What this machine has of what object storage holds: manifests, and those files that are needed here.

The store's manifest is what counts. A manifest in the folder is a copy of it, and a file in the folder is of
that manifest: a copy of another version is removed before the manifest changes. Files come when they are
asked for, are compared by their checksum as they arrive, and are renamed into place.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import get_ident
from typing import Any, Final

import xxhash

from laion_assets.errors import CorruptInput, CorruptManifest, MissingInput, ShardBusy
from laion_assets.formats import object_store
from laion_assets.formats.checksums import xxh3_128_of
from laion_assets.formats.durable import (
    make_folder,
    naming_storage_errors,
    sync_folder,
    write_durably,
)
from laion_assets.formats.lease import copying, lease
from laion_assets.formats.manifest import FileRecord, Manifest, parse_manifest, write_manifest
from laion_assets.formats.object_store import StoredObject, Version
from laion_assets.layout import Output

_FILES_AT_A_TIME: Final = 8


def stored_manifest(output: Output) -> Manifest | None:
    """The manifest that the store has now, in one request; None where there is none.

    Raises:
        CorruptManifest: if there is one that cannot be read.
        StoreUnavailable: if the store does not answer.
    """
    found = object_store.read(output.store, output.manifest_key)
    return None if found is None else _parse(output, found)


def look(output: Output) -> tuple[Manifest | None, Version | None]:
    """The manifest that the store has, if it can be read, and which writing of the object it is."""
    found = object_store.read(output.store, output.manifest_key)
    if found is None:
        return None, None
    try:
        return _parse(output, found), found.version
    except CorruptManifest:
        return None, found.version  # made again, which is the cure


def send(output: Output, manifest: Manifest, folder: Path, replaced: Version | None) -> Manifest:
    """Put every file, then the manifest, which is refused if another was put since one looked.

    Args:
        output: the partition.
        manifest: of its files.
        folder: where they are.
        replaced: the version of the manifest that was there; None where there was none.

    Returns:
        The manifest that the store has now: this one, or another worker's.

    Raises:
        ShardBusy: if another's was there and is gone.
        StoreUnavailable: if the store does not answer.
    """
    for name, record in manifest.files.items():
        object_store.put_file(output.store, output.object_key(name, record.name), folder / name)
    if object_store.put(output.store, output.manifest_key, write_manifest(manifest), replaced):
        return manifest
    winner = stored_manifest(output)
    if winner is None:
        raise ShardBusy(f"{output} was withdrawn while it was made: run this again")
    return winner


def install(output: Output, manifest: Manifest, drafted: Sequence[str]) -> None:
    """Make files that are in the store the copy of it; the caller holds the partition's lease.

    Args:
        output: the partition.
        manifest: what the store has now.
        drafted: files that are still in the draft folder; the others are in place.
    """
    data = write_manifest(manifest)
    with copying(output):
        if drafted and local_manifest(output) != data:
            remove_files(output)
        write_durably(output.manifest, data)
        for name in drafted:
            (output.draft / name).replace(output.path(name))
        sync_folder(output.folder)


def bring(output: Output, names: Collection[str] | None = None) -> Manifest:
    """The store's manifest, once its files are here as well.

    Args:
        output: the partition.
        names: which of its files are needed; all by default.

    Raises:
        MissingInput: if the partition is not published.
        CorruptInput: if an object is gone, or is not the one that the manifest vouches for.
        ShardBusy: if another version is here that is being read or written.
        StoreUnavailable: if the store does not answer.
    """
    found = object_store.read(output.store, output.manifest_key)
    if found is None:
        place = _name(output, output.manifest_key)
        raise MissingInput(f"{output} is not there yet: materialize {output.stage} first ({place})")
    manifest = _parse(output, found)
    wanted = {name: manifest.files[name] for name in names or manifest.files if name in manifest.files}
    if not _is_here(output, found.data, wanted):
        with naming_storage_errors(output, output.folder):
            make_folder(output.folder)
            with copying(output):
                adopt(output, found)
                for name, record in wanted.items():
                    _bring_file(output, name, record)
    with suppress(FileNotFoundError):
        os.utime(output.copy_lock)  # by which copies are told that were not used for long
    return manifest


def bring_all(outputs: Sequence[Output], file: int | None = None) -> None:
    """As :func:`bring`, of many partitions, several at a time; of one of their names, or of all."""
    if not outputs:
        return
    with ThreadPoolExecutor(_FILES_AT_A_TIME) as pool:
        for _ in pool.map(
            lambda output: bring(output, None if file is None else [output.names[file]]), outputs
        ):
            pass


def read_ranges(
    output: Output, manifest: Manifest, name: str, starts: Sequence[int], lengths: Sequence[int]
) -> list[bytes]:
    """Parts of one file: of the copy that is here, or else of the object, and nothing else of it.

    They are as long as is asked for, unless the file ends before; nobody has compared a checksum.
    """
    record = manifest.files[name]
    if not output.store or _is_here(output, write_manifest(manifest), {name: record}):
        with output.path(name).open("rb", buffering=0) as file:
            return [os.pread(file.fileno(), length, at) for at, length in zip(starts, lengths, strict=True)]
    key = output.object_key(name, record.name)
    try:
        return object_store.read_ranges(output.store, key, starts, lengths)
    except FileNotFoundError:
        raise _gone(output, key) from None


def verify_objects(output: Output) -> Manifest:
    """Read every object of a partition and compare it with its checksum; nothing of it is kept.

    Raises:
        MissingInput: if the partition is not published.
        CorruptInput: if an object is gone, or is not the one that the manifest vouches for.
    """
    manifest = stored_manifest(output)
    if manifest is None:
        raise MissingInput(f"{output} is not in {output.store}")
    for name, record in manifest.files.items():
        with Path(os.devnull).open("wb") as nowhere:
            _copy(output, name, record, nowhere)
    return manifest


def withdraw(output: Output) -> None:
    """Remove a partition's manifest from the store; its objects are then nobody's."""
    object_store.delete(output.store, [output.manifest_key])


# -- the copy -----------------------------------------------------------------------------------------------


def _is_here(output: Output, manifest: bytes, wanted: Mapping[str, FileRecord]) -> bool:
    """Whether the copy is of this manifest, and has these files."""
    return local_manifest(output) == manifest and all(
        _size(output.path(name)) == record.bytes for name, record in wanted.items()
    )


def local_manifest(output: Output) -> bytes | None:
    """The copy of a partition's manifest."""
    try:
        return output.manifest.read_bytes()
    except FileNotFoundError:
        return None


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def adopt(output: Output, found: StoredObject) -> None:
    """Make the copy one of this manifest, removing files of another; the caller holds the copy.

    Raises:
        ShardBusy: if these are being read or written.
        CorruptInput: if there is a file of unknown origin.
    """
    local = local_manifest(output)
    if local == found.data:
        return
    there = [name for name in output.names if output.path(name).exists()]
    if local is None:
        records = _parse(output, found).files
        for name in there:
            _refuse_stranger(output, name, records.get(name))
    elif there:
        with lease(output):
            remove_files(output)
    write_durably(output.manifest, found.data)
    # As old as the original, by which one tells that a source is younger.
    os.utime(output.manifest, (found.modified, found.modified))


def remove_files(output: Output) -> None:
    """Remove what is here of a partition's files."""
    for name in output.names:
        output.path(name).unlink(missing_ok=True)
    sync_folder(output.folder)


def _bring_file(output: Output, name: str, record: FileRecord) -> None:
    path = output.path(name)
    if path.exists():
        _refuse_stranger(output, name, record)
        return
    draft = path.with_name(f".{name}.{os.getpid()}.{get_ident()}.draft")
    try:
        with draft.open("wb") as file:
            _copy(output, name, record, file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _refuse_stranger(output: Output, name: str, record: FileRecord | None) -> None:
    path = output.path(name)
    if record is None or _size(path) != record.bytes or xxh3_128_of(path) != record.xxh3_128:
        raise CorruptInput(
            path,
            expected=f"the file that {output.store} has, or none",
            found="another file",
            remedy="Nothing here says where it is from: move it away.",
        )


def _copy(output: Output, name: str, record: FileRecord, file: Any) -> None:  # noqa: ANN401 (what is written to)
    key = output.object_key(name, record.name)
    digest = xxhash.xxh3_128()
    size = 0
    try:
        for piece in object_store.pieces(output.store, key, record.bytes):
            digest.update(piece)
            size += len(piece)
            file.write(piece)
    except FileNotFoundError:
        raise _gone(output, key) from None
    found = (size, digest.hexdigest())
    if found != (record.bytes, record.xxh3_128):
        raise CorruptInput(
            _name(output, key),
            expected=f"{record.bytes} bytes with XXH3-128 {record.xxh3_128}",
            found=f"{size} bytes with {found[1]}",
            remedy=_remedy(output),
        )


def _gone(output: Output, key: str) -> CorruptInput:
    return CorruptInput(_name(output, key), expected="an object", found="none", remedy=_remedy(output))


def _remedy(output: Output) -> str:
    manifest = _name(output, output.manifest_key)
    return f"It changed after it was published: restore it, or delete {manifest} to have it made again."


def _name(output: Output, key: str) -> str:
    return f"{output.store}/{key}"


def _parse(output: Output, found: StoredObject) -> Manifest:
    return parse_manifest(found.data, output, _name(output, output.manifest_key))
