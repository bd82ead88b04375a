"""Which partitions of a stage object storage has, and which of their files are here: all at a glance.

A stage has tens of thousands of them, so their manifests are listed, and only those that are new are read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from threading import get_ident
from typing import Any, Final

from laion_assets.errors import ShardBusy
from laion_assets.formats import object_store
from laion_assets.formats.durable import identity, make_folder, write_durably
from laion_assets.formats.lease import copying, lease
from laion_assets.formats.object_store import StoredObject, Version
from laion_assets.formats.store_copy import adopt, local_manifest, remove_files
from laion_assets.layout import Output

_VERSIONS: Final = ".store_versions.json"


def refresh(output: Output) -> list[str]:
    """Bring the copies of all manifests of an output's stage up to date; of most, by listing alone.

    Returns:
        The keys of the partitions that the store has.
    """
    listed = {
        name: version
        for name, version in object_store.list_folder(output.store, output.place).items()
        if name.endswith(output.manifest_suffix)
    }
    index = output.folder / _VERSIONS
    known = _read_versions(index)
    new = {
        name: version
        for name, version in listed.items()
        if not _is_known(index.parent / name, version, known)
    }
    if new:
        make_folder(output.folder)
        places = {f"{output.place}/{name}": name for name in new}
        for key, found in object_store.read_all(output.store, list(places)):
            name = places[key]
            if found is not None and _adopt_listed(output, name, found):
                known[name] = _entry(index.parent / name, found.version)
        write_durably(index, json.dumps(known).encode())
    return [name.removesuffix(output.manifest_suffix) for name in listed]


def changed_at(output: Output) -> int:
    """When, in nanoseconds, :func:`refresh` last found something new among an output's stage."""
    try:
        return (output.folder / _VERSIONS).stat().st_mtime_ns
    except FileNotFoundError:
        return 0


@dataclass(frozen=True, kw_only=True)
class Copy:
    """The files of one partition that are here: their bytes, and when they were last used (nanoseconds)."""

    output: Output
    bytes: int
    used_ns: int


def copies(output: Output) -> list[Copy]:
    """What is here of the partitions of an output's stage, manifests aside."""
    try:
        with os.scandir(output.folder) as entries:
            names = {entry.name: entry for entry in entries if not entry.name.startswith(".")}
    except FileNotFoundError:
        return []
    found: dict[str, list[os.DirEntry[str]]] = {}
    for name, entry in names.items():
        if not name.endswith(output.manifest_suffix):
            key = name.split(".")[0]
            # img2dataset's statistics are 00042_stats.json.
            key = key if key + output.manifest_suffix in names else key.rpartition("_")[0]
            if key + output.manifest_suffix in names:
                found.setdefault(key, []).append(entry)
    return [_copy_of(output, key, entries) for key, entries in found.items()]


def _copy_of(output: Output, key: str, entries: Sequence[os.DirEntry[str]]) -> Copy:
    one = replace(output, partition=key, names=tuple(sorted(entry.name for entry in entries)))
    statuses = [entry.stat() for entry in entries]
    times = [status.st_mtime_ns for status in statuses]
    with suppress(FileNotFoundError):
        times.append(one.copy_lock.stat().st_mtime_ns)
    return Copy(output=one, bytes=sum(status.st_size for status in statuses), used_ns=max(times))


def drop(copy: Copy) -> bool:
    """Remove the files of a partition that are here, unless it is being read or written; whether they are."""
    with suppress(ShardBusy), lease(copy.output), copying(copy.output):
        remove_files(copy.output)
        return True
    return False


# -- copies of manifests, and which versions they are of --------------------------------------------------


def _adopt_listed(output: Output, name: str, found: StoredObject) -> bool:
    """As :func:`adopt`, of the partition whose manifest has a name; not while somebody is at work on it."""
    path = output.folder / name
    if any((output.folder / file).exists() for file in _files_named_in(found.data)):
        return _adopt_newer(output, name, found)
    draft = path.with_name(f".{name}.{os.getpid()}.{get_ident()}.draft")
    draft.write_bytes(found.data)
    os.utime(draft, (found.modified, found.modified))
    try:
        os.link(draft, path)
    except FileExistsError:
        is_new = False
    else:
        is_new = True  # as most are, and nobody can have copied a file of them
    finally:
        draft.unlink()
    return is_new or _adopt_newer(output, name, found)


def _adopt_newer(output: Output, name: str, found: StoredObject) -> bool:
    partition = name.removesuffix(output.manifest_suffix)
    names = _files_named_in(local_manifest(replace(output, partition=partition)) or b"") | _files_named_in(
        found.data
    )
    copy = replace(output, partition=partition, names=tuple(sorted(names)))
    try:
        with copying(copy):
            adopt(copy, found)
    except ShardBusy:
        return False
    return True


def _files_named_in(manifest: bytes) -> set[str]:
    try:
        return set(json.loads(manifest)["files"])
    except (ValueError, KeyError, TypeError):
        return set()


def _read_versions(path: Path) -> dict[str, list[Any]]:
    try:
        found: dict[str, list[Any]] = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}  # every manifest is asked for, which is the cure
    return found


def _entry(path: Path, version: Version) -> list[Any]:
    # A listing of S3 says no version.
    return [version.e_tag, *identity(path.stat())]


def _is_known(path: Path, version: Version, known: Mapping[str, list[Any]]) -> bool:
    """Whether the copy of a manifest is of this version, by what was noted of both."""
    try:
        return version.e_tag is not None and known.get(path.name) == _entry(path, version)
    except FileNotFoundError:
        return False
