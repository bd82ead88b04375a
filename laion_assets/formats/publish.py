"""One way to publish a partition's files: whole and checksummed, or not at all.

The order is what makes it safe. Under a lease, files are written in a draft folder, and with them the
manifest, which holds their checksums; all are synced, the old manifest is removed, the files are renamed into
place and the new manifest last. So a kill at any point leaves either the old partition, no partition, or
the new one: a file under its final name counts for nothing until a manifest vouches for it.

And one way to read: what a stage reads is named to :func:`publish`, which keeps others from replacing it
meanwhile and lets nothing be published that was made of a file that is not, byte for byte, the one its
manifest vouches for. Each is verified before it is read; or, where it is large and its reader expects the
worst of it anyway, as pictures and their tars come from anywhere, while it is read, just once.
"""

from __future__ import annotations

import fcntl
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

import pyarrow as pa

from laion_assets import __version__
from laion_assets.errors import CorruptInput, CorruptManifest, MissingInput, ShardBusy
from laion_assets.formats.checksums import checksums_of, sha256_of, xxh3_128_of
from laion_assets.formats.durable import (
    identity,
    make_folder,
    naming_storage_errors,
    sync_file,
    sync_folder,
)
from laion_assets.formats.sealed import fingerprint, seal, unseal
from laion_assets.layout import Output

_MANIFEST_FORMAT: Final = 5
_READ_FORMATS: Final = (1, 2, 3, 4, _MANIFEST_FORMAT)


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
    """Size in bytes and checksums (hexadecimal) of one file, and whether it is a log of the run."""

    bytes: int
    is_log: bool = False  # what manifests of format 1 and 2 do not say
    blake3: str | None = None  # since format 5
    xxh3_128: str | None = None  # since format 4
    sha256: str | None = None  # until format 4

    @property
    def name(self) -> str:
        """The checksum that names the contents."""
        name = self.blake3 or self.sha256
        assert name is not None
        return name


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
        """Hexadecimal digest of the files' names and contents, logs aside: equal bytes, equal version."""
        return fingerprint({name: record.name for name, record in self.files.items() if not record.is_log})

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(record.bytes for record in self.files.values())

    @property
    def data_bytes(self) -> int:
        """Size of the files that are no logs: equal inputs, equal size."""
        return sum(record.bytes for record in self.files.values() if not record.is_log)


class Draft:
    """Files of a partition while they are being written."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self.noted: dict[Path, str] = {}
        """What :meth:`note_read` was told."""

    def note_read(self, path: Path, xxh3_128: str | None) -> None:
        """Tell the hexadecimal XXH3-128 of every byte of a file, taken of the very bytes that were used."""
        if xxh3_128 is not None:
            self.noted[path] = xxh3_128

    def path(self, name: str) -> Path:
        """Where to write the file that will be published as ``name``."""
        return self._output.draft / self._output.path(name).name

    @property
    def only(self) -> Path:
        """Where to write the file, where the output has just one."""
        return self._output.draft / self._output.only.name

    def scratch(self, name: str) -> Path:
        """Where to write a file that is not published."""
        return self._output.draft / f"scratch-{name}"

    @property
    def journal(self) -> Path:
        """Where to keep what must outlive a run that is killed; removed once the partition is published."""
        return self._output.journal


def publish(
    output: Output,
    recipe: Recipe,
    write: Callable[[Draft], Tally],
    *,
    reads: Sequence[Output] = (),
    digested: Sequence[Path] = (),
    also_intact: Callable[[], bool] | None = None,
    again: bool = False,
) -> Manifest:
    """Publish a partition, unless what is there already follows from the same recipe.

    Args:
        output: the files to publish.
        recipe: what their bytes follow from.
        write: writes every file of ``output`` into the draft it is given.
        reads: partitions that ``write`` reads whole; each has its data version among the recipe's inputs
            under its stage's name, or under that and its key where several of a stage are read. They are
            verified before ``write`` begins, and nobody replaces them until it ends.
        digested: files of those that are verified when ``write`` has ended, by the checksum that it noted
            (:meth:`Draft.note_read`) or else by reading them again. It meets bytes that nobody has vouched
            for, must bear any, and leave nothing behind but drafts.
        also_intact: whether what ``write`` left elsewhere is still there; asked once everything else is.
        again: publish it anew whatever is there; until ``write`` ends, that stays in place to be read.

    Returns:
        The manifest of what is published now.

    Raises:
        ShardBusy: if another process is writing this partition, or one of those read.
        CorruptInput: if a file that is read is not the one its manifest vouches for.
        StorageError: if the disk, its rights or the limits do not let it be written.
    """

    def existing() -> Manifest | None:
        if again:
            return None
        found = done(output)
        is_current = found is not None and found.recipe == recipe and (also_intact is None or also_intact())
        return found if is_current else None

    def make(started: float) -> Manifest:
        with ExitStack() as held:
            late, draft = [], Draft(output)
            for source in reads:
                held.enter_context(_lease(source, shared=True))
                for file in _files(source, recipe):
                    if file.path in digested:
                        late.append(file)
                    else:
                        _verify_once(file)
            try:
                tally = write(draft)
            except Exception:
                for file in late:
                    _verify(file)  # damage is why, if there is any
                raise
            for file in late:
                _verify_once(file, draft.noted.get(file.path))
            return _commit(output, recipe, tally, started, output.names)

    return _publish(output, existing, make)


def vouch(output: Output, recipe: Recipe, check: Callable[[], Tally]) -> Manifest:
    """Write the manifest of files that somebody else laid down under their final names.

    Args:
        output: the files, already in place.
        recipe: what they are taken to follow from.
        check: proves that they are whole and belong together, or raises.

    Raises:
        ShardBusy: if another process is writing this partition.
        StorageError: if the manifest cannot be written.
    """

    def existing() -> Manifest | None:
        found = done(output)
        return found if found is not None and found.recipe == recipe else None

    return _publish(output, existing, lambda started: _commit(output, recipe, check(), started, ()))


def withdraw(output: Output) -> None:
    """Remove a partition, its manifest first, so that at no time this vouches for what is gone.

    Raises:
        ShardBusy: if another process is writing or reading it.
    """
    with _lease(output):
        for path in (output.manifest, output.older_manifest):
            path.unlink(missing_ok=True)
        sync_folder(output.folder)
        for name in output.names:
            output.path(name).unlink(missing_ok=True)


def read_manifest(output: Output) -> Manifest | None:
    """The manifest of a partition, or None where it is not published.

    Raises:
        CorruptManifest: if there is one that cannot be read.
    """
    path = manifest_path(output)
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return _parse(unseal(data), output)
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptManifest(
            path,
            expected=f"a manifest of format {_MANIFEST_FORMAT}",
            found=f"{type(error).__name__}: {error}",
            remedy="Delete it to have the partition made again.",
        ) from error


def manifest_path(output: Output) -> Path:
    """Where a partition's manifest lies, if there is one: an older version may have written it."""
    return output.older_manifest if not output.manifest.exists() else output.manifest


def done(output: Output) -> Manifest | None:
    """The manifest of a partition that is done: a readable one, whose files have the recorded sizes."""
    try:
        return require(output)
    except (MissingInput, CorruptInput):
        return None  # made again, which is the cure of both


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
    """As :func:`require`, and every file's bytes are read and compared by their checksum.

    Raises:
        MissingInput: if the partition is not published.
        CorruptInput: if a file is not the one its manifest vouches for.
    """
    manifest = require(output)
    for file in _files_of(output, manifest):
        _verify(file)
    return manifest


# -- how it is done ---------------------------------------------------------------------------------------


def _publish(
    output: Output, existing: Callable[[], Manifest | None], make: Callable[[float], Manifest]
) -> Manifest:
    # Looked at without the lease first: what is done stays readable while others read or write it.
    if found := existing():
        _tidy(output)
        return found
    with naming_storage_errors(output, output.folder):
        make_folder(output.folder)
        with _lease(output):
            if found := existing():
                return found
            started = time.monotonic()
            _make_draft(output.draft)
            try:
                manifest = make(started)
            finally:
                _remove_draft(output.draft)
            output.journal.unlink(missing_ok=True)
            return manifest


def _make_draft(draft: Path) -> None:
    try:
        draft.mkdir(parents=True)
    except FileExistsError:
        shutil.rmtree(draft)  # of a run that was killed: we hold its lease
        draft.mkdir()


def _remove_draft(draft: Path) -> None:
    try:
        draft.rmdir()  # empty once everything is in place
    except OSError:
        shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def _lease(output: Output, *, shared: bool = False) -> Iterator[None]:
    """Hold a partition: to write it, or, shared with others, to read it."""
    with _open_lease(output.lease) as file:
        try:
            # The kernel releases the lock when its holder dies, so no lease is ever stale.
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ShardBusy(
                f"{output} is being {'written' if shared else 'written or read'} by another process: wait "
                "for it to end, then run this again"
            ) from None
        yield


def _open_lease(lease: Path) -> IO[str]:
    # NFS shares a lock only of what is open for reading, and gives it alone only of what is open for writing.
    try:
        return lease.open("a+")
    except FileNotFoundError:
        lease.parent.mkdir(parents=True, exist_ok=True)
        return lease.open("a+")


def _tidy(output: Output) -> None:
    """Remove what a run left that was killed after it had published."""
    if output.journal.exists() or output.draft.exists():
        # Whoever holds the lease does it at the end; what cannot be removed is in nobody's way.
        with suppress(ShardBusy, OSError), _lease(output):
            output.journal.unlink(missing_ok=True)
            shutil.rmtree(output.draft, ignore_errors=True)


class _File(NamedTuple):
    """A file that a manifest vouches for, and which one it was."""

    output: Output
    path: Path
    record: FileRecord
    identity: tuple[int, int, int]


def _files_of(output: Output, manifest: Manifest) -> list[_File]:
    """The manifest's files, since older versions and img2dataset wrote fewer than the output has names."""
    paths = {output.path(name): record for name, record in manifest.files.items()}
    return [_File(output, path, record, identity(path.stat())) for path, record in paths.items()]


def _files(source: Output, recipe: Recipe) -> list[_File]:
    """The files of an input, once it is seen to be the one that the recipe was written for."""
    manifest = require(source)
    if recipe.inputs[str(source) if str(source) in recipe.inputs else source.stage] != manifest.data_version:
        raise ShardBusy(f"{source} was made again just now: run this again")
    return _files_of(source, manifest)


# A part is read for each of its shards, and a tar by two stages: what this process has verified, and what is
# the same file still, is not read through again.
_verified: set[_File] = set()
_MOST_VERIFIED: Final = 1_024


def _verify_once(file: _File, noted: str | None = None) -> None:
    """As :func:`_verify`, unless that was done; or by the checksum that was noted when it was read."""
    if noted is not None or file not in _verified:
        _verify(file, noted)
    if len(_verified) >= _MOST_VERIFIED:
        _verified.clear()
    _verified.add(file)


def _verify(file: _File, noted: str | None = None) -> None:
    record, path = file.record, file.path
    kind, recorded, found = (
        ("XXH3-128", record.xxh3_128, noted or xxh3_128_of(path))
        if record.xxh3_128 is not None
        else ("sha256", record.sha256, sha256_of(path))
    )
    if found != recorded:
        raise CorruptInput(
            path,
            expected=f"{kind} {recorded}",
            found=found,
            remedy="The file changed after it was published: restore it, or delete "
            f"{manifest_path(file.output)} to have the partition made again.",
        )


def _check_size(output: Output, name: str, record: FileRecord) -> None:
    path = output.path(name)
    try:
        found = f"{path.stat().st_size} bytes"
    except FileNotFoundError:
        found = "no file"
    if found != f"{record.bytes} bytes":
        raise CorruptInput(
            path,
            expected=f"{record.bytes} bytes",
            found=found,
            remedy=f"Materialize {output} again.",
        )


def _commit(output: Output, recipe: Recipe, tally: Tally, started: float, drafted: Sequence[str]) -> Manifest:
    """Put the drafted files and then the manifest in place; files that are not drafted are there already."""
    manifest = _describe(output, recipe, tally, output.draft if drafted else output.folder, started)
    # Not asdict, which copies deeply and takes a millisecond.
    document = {
        "format": _MANIFEST_FORMAT,
        **vars(manifest),
        "recipe": vars(recipe),
        "files": {name: vars(record) for name, record in manifest.files.items()},
        "data_version": manifest.data_version,
    }
    draft = output.draft / output.manifest.name
    draft.write_bytes(seal(document))
    for name in (*drafted, draft.name):
        sync_file(output.draft / name)
    if drafted:
        manifests = (output.manifest, output.older_manifest)
        # A run that was killed may have removed the manifest of files that are there, and not synced that.
        is_replaced = any(path.exists() for path in (*manifests, *map(output.path, drafted)))
        for path in manifests:
            path.unlink(missing_ok=True)
        if is_replaced:
            sync_folder(output.folder)
        for name in drafted:
            (output.draft / name).replace(output.path(name))
        sync_folder(output.folder)
    draft.replace(output.manifest)
    if output.older_manifest != output.manifest:
        output.older_manifest.unlink(missing_ok=True)
    sync_folder(output.folder)
    return manifest


def _describe(output: Output, recipe: Recipe, tally: Tally, folder: Path, started: float) -> Manifest:
    return Manifest(
        stage=output.stage,
        partition=output.partition,
        recipe=recipe,
        files={
            name: FileRecord(
                bytes=(folder / name).stat().st_size,
                is_log=name in output.logs,
                **vars(checksums_of(folder / name)),
            )
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


def _parse(document: dict[str, Any], output: Output) -> Manifest:
    if document["format"] not in _READ_FORMATS:
        raise ValueError(f"format {document['format']!r}")
    if (document["stage"], document["partition"]) != (output.stage, output.partition):
        raise ValueError(f"the manifest of {document['stage']} {document['partition']}")
    if unknown := sorted(document["files"].keys() - set(output.names)):
        raise ValueError(f"the manifest of {unknown[0]}, too")
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
