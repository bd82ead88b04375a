"""One way to publish a partition's files: whole and checksummed, or not at all.

The order is what makes it safe. Under a lease, files are written in a draft folder; they are synced,
the old manifest is removed, the files are renamed into place and the new manifest, which holds their
sha256, is written last. So a kill at any point leaves either the old partition, no partition, or the new
one: a file under its final name counts for nothing until a manifest vouches for it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from laion_assets import __version__
from laion_assets.errors import CorruptInput, CorruptManifest, MissingInput, ShardBusy
from laion_assets.layout import Output

_MANIFEST_FORMAT: Final = 1


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything a partition's bytes follow from; equal recipes need no second run.

    Attributes:
        code_version: version of the stage's code.
        settings: fingerprint of the settings that shape the bytes.
        inputs: name of each input -> its data version.
    """

    code_version: str
    settings: str = ""
    inputs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Tally:
    """What a stage did with a partition's rows.

    Attributes:
        rows: rows the partition holds.
        counts: what became of the rows, or was found in them, by name.
    """

    rows: int
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """Size in bytes and sha256 (hexadecimal) of one file."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What was published for one partition, and from what; every stage's report.

    Attributes:
        stage: name of the stage.
        partition: partition key.
        recipe: what the bytes follow from.
        files: file name -> size and checksum.
        rows: rows the partition holds.
        counts: what became of the rows, by name.
        seconds: wall-clock time of the run that wrote it.
        versions: versions of what wrote it.
    """

    stage: str
    partition: str
    recipe: Recipe
    files: Mapping[str, FileRecord]
    rows: int
    counts: Mapping[str, int]
    seconds: float
    versions: Mapping[str, str]

    @property
    def data_version(self) -> str:
        """Hexadecimal digest of the files' names and contents: equal bytes, equal version."""
        return fingerprint({name: record.sha256 for name, record in self.files.items()})

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(record.bytes for record in self.files.values())


def fingerprint(value: object) -> str:
    """Digest (32 hexadecimal digits) of a JSON-serializable value; equal values, equal digests."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def sha256_of(path: Path) -> str:
    """Hexadecimal sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Draft:
    """Files of a partition while they are being written."""

    def __init__(self, output: Output, folder: Path) -> None:
        self._output = output
        self._folder = folder

    def path(self, name: str) -> Path:
        """Where to write the file that will be published as ``name``."""
        return self._folder / self._output.path(name).name

    @property
    def only(self) -> Path:
        """Where to write the file, where the output has just one."""
        return self._folder / self._output.only.name

    def scratch(self, name: str) -> Path:
        """Where to write a file that is not published."""
        return self._folder / f"scratch-{name}"


def publish(
    output: Output,
    recipe: Recipe,
    write: Callable[[Draft], Tally],
    *,
    also_intact: Callable[[], bool] | None = None,
) -> Manifest:
    """Publish a partition, unless what is there already follows from the same recipe.

    Args:
        output: the files to publish.
        recipe: what their bytes follow from.
        write: writes every file of ``output`` into the draft it is given.
        also_intact: whether what ``write`` left elsewhere is still there; asked once everything else is.

    Returns:
        The manifest of what is published now.

    Raises:
        ShardBusy: if another process is writing this partition.
    """
    with _lease(output):
        existing = _intact(output)
        if existing is not None and existing.recipe == recipe and (also_intact is None or also_intact()):
            return existing
        started = time.monotonic()
        output.drafts.mkdir(parents=True, exist_ok=True)
        draft_folder = Path(tempfile.mkdtemp(prefix=f"{output.partition}-", dir=output.drafts))
        try:
            tally = write(Draft(output, draft_folder))
            return _commit(output, recipe, tally, draft_folder, started)
        finally:
            shutil.rmtree(draft_folder, ignore_errors=True)


def vouch(output: Output, recipe: Recipe, check: Callable[[], Tally]) -> Manifest:
    """Write the manifest of files that somebody else laid down under their final names.

    Args:
        output: the files, already in place.
        recipe: what they are taken to follow from.
        check: proves that they are whole and belong together, or raises.
    """
    with _lease(output):
        existing = _intact(output)
        if existing is not None and existing.recipe == recipe:
            return existing
        started = time.monotonic()
        tally = check()
        return _write_manifest(output, recipe, tally, output.folder, started)


def read_manifest(output: Output) -> Manifest | None:
    """The manifest of a partition, or None where it is not published.

    Raises:
        CorruptManifest: if there is one that cannot be read.
    """
    try:
        text = output.manifest.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    try:
        return _parse(json.loads(text))
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptManifest(
            output.manifest,
            expected=f"a manifest of format {_MANIFEST_FORMAT}",
            found=f"{type(error).__name__}: {error}",
            remedy="Delete it to have the partition made again.",
        ) from error


def require(output: Output) -> Manifest:
    """The manifest of an input that must be there, its files having the recorded sizes.

    Raises:
        MissingInput: if the partition is not published.
        CorruptInput: if a file is gone or has another size than its manifest says.
    """
    manifest = read_manifest(output)
    if manifest is None:
        raise MissingInput(f"{output} is not there yet: materialize {output.stage} first ({output.manifest})")
    for name, record in manifest.files.items():
        _check_size(output, name, record)
    return manifest


def verify(output: Output) -> Manifest:
    """As :func:`require`, and every file's sha256 is computed and compared.

    Raises:
        MissingInput: if the partition is not published.
        CorruptInput: if a file is not the one its manifest vouches for.
    """
    manifest = require(output)
    for name, record in manifest.files.items():
        found = sha256_of(output.path(name))
        if found != record.sha256:
            raise CorruptInput(
                output.path(name),
                expected=f"sha256 {record.sha256}",
                found=found,
                remedy=f"The file changed after it was published: delete {output.manifest} to make it again.",
            )
    return manifest


def write_durably(path: Path, data: bytes) -> None:
    """Write a small file so that it is there whole, or not at all, whatever happens."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    with draft.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _lease(output: Output) -> Iterator[None]:
    output.lease.parent.mkdir(parents=True, exist_ok=True)
    with output.lease.open("a") as file:
        try:
            # The kernel releases the lock when its holder dies, so no lease is ever stale.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ShardBusy(
                f"{output} is being written by another process: wait for it to end, then run this again"
            ) from None
        yield


def _intact(output: Output) -> Manifest | None:
    """The manifest, if there is a readable one and its files have the recorded sizes."""
    try:
        return require(output)
    except (MissingInput, CorruptInput):
        return None  # made again, which is the cure of both


def _check_size(output: Output, name: str, record: FileRecord) -> None:
    path = output.path(name)
    found = f"{path.stat().st_size} bytes" if path.exists() else "no file"
    if found != f"{record.bytes} bytes":
        raise CorruptInput(
            path,
            expected=f"{record.bytes} bytes",
            found=found,
            remedy=f"Materialize {output} again.",
        )


def _commit(output: Output, recipe: Recipe, tally: Tally, draft_folder: Path, started: float) -> Manifest:
    for name in output.names:
        with (draft_folder / name).open("rb") as file:
            os.fsync(file.fileno())
    output.manifest.unlink(missing_ok=True)
    sync_folder(output.folder)
    for name in output.names:
        (draft_folder / name).replace(output.path(name))
    sync_folder(output.folder)
    return _write_manifest(output, recipe, tally, output.folder, started)


def _write_manifest(output: Output, recipe: Recipe, tally: Tally, folder: Path, started: float) -> Manifest:
    manifest = Manifest(
        stage=output.stage,
        partition=output.partition,
        recipe=recipe,
        files={
            name: FileRecord(bytes=(folder / name).stat().st_size, sha256=sha256_of(folder / name))
            for name in output.names
        },
        rows=tally.rows,
        counts=dict(sorted(tally.counts.items())),
        seconds=round(time.monotonic() - started, 3),
        versions={
            "laion_assets": __version__,
            "python": platform.python_version(),
            "pyarrow": pa.__version__,
        },
    )
    document = {"format": _MANIFEST_FORMAT, **asdict(manifest), "data_version": manifest.data_version}
    write_durably(output.manifest, json.dumps(document, indent=1, sort_keys=True).encode() + b"\n")
    return manifest


def _parse(document: dict[str, Any]) -> Manifest:
    if document["format"] != _MANIFEST_FORMAT:
        raise ValueError(f"format {document['format']!r}")
    return Manifest(
        stage=document["stage"],
        partition=document["partition"],
        recipe=Recipe(**document["recipe"]),
        files={name: FileRecord(**record) for name, record in document["files"].items()},
        rows=document["rows"],
        counts=document["counts"],
        seconds=document["seconds"],
        versions=document["versions"],
    )
