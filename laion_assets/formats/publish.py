"""One way to publish a partition's files: whole and checksummed, or not at all.

The order is what makes it safe. Under a lease, files are written in a draft folder, and with them the
manifest, which holds their checksums; all are synced, the old manifest is removed, the files are renamed into
place and the new manifest last. So a kill at any point leaves either the old partition, no partition, or
the new one: a file under its final name counts for nothing until a manifest vouches for it.

Where the layout names object storage, that is what counts, and the folder has a copy of it. Files are put
there under names that their contents are part of, and then the manifest, which is refused if another worker
put one since this one looked: of two that make one partition, one wins, and the other takes what it made.
Leases hold only among the processes of one machine.

And one way to read: what a stage reads is named to :func:`publish`, which keeps others from replacing it
meanwhile and lets nothing be published that was made of a file that is not, byte for byte, the one its
manifest vouches for. Each is verified before it is read; or, where it is large and its reader expects the
worst of it anyway, as pictures and their tars come from anywhere, while it is read, just once.
"""

from __future__ import annotations

import platform
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple

import pyarrow as pa

from laion_assets import __version__
from laion_assets.errors import CorruptInput, MissingInput, ShardBusy
from laion_assets.formats import store_copy
from laion_assets.formats.checksums import checksums_of, sha256_of, xxh3_128_of
from laion_assets.formats.durable import (
    identity,
    make_folder,
    naming_storage_errors,
    sync_file,
    sync_folder,
)
from laion_assets.formats.lease import lease
from laion_assets.formats.manifest import (
    FileRecord,
    Manifest,
    Recipe,
    Tally,
    parse_manifest,
    write_manifest,
)
from laion_assets.formats.object_store import Version
from laion_assets.layout import Output

__all__ = ["Draft", "FileRecord", "Manifest", "Recipe", "Tally"]


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

    def is_current(found: Manifest) -> bool:
        return not again and found.recipe == recipe and (also_intact is None or also_intact())

    def make(started: float, replaced: Version | None) -> Manifest:
        bring_all(reads)
        with ExitStack() as held:
            late, draft = [], Draft(output)
            for source in reads:
                held.enter_context(lease(source, shared=True))
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
            return _commit(output, recipe, tally, started, output.names, replaced)

    return _publish(output, is_current, make)


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
    return _publish(
        output,
        lambda found: found.recipe == recipe,
        lambda started, replaced: _commit(output, recipe, check(), started, (), replaced),
    )


def withdraw(output: Output) -> None:
    """Remove a partition, its manifest first, so that at no time this vouches for what is gone.

    Raises:
        ShardBusy: if another process is writing or reading it.
    """
    with lease(output):
        if output.store:
            store_copy.withdraw(output)
        for path in output.manifests:
            path.unlink(missing_ok=True)
        sync_folder(output.folder)
        for name in output.names:
            output.path(name).unlink(missing_ok=True)


def read_manifest(output: Output) -> Manifest | None:
    """The manifest of a partition, or None where it is not published.

    Raises:
        CorruptManifest: if there is one that cannot be read.
        StoreUnavailable: if it is in object storage that does not answer.
    """
    return store_copy.stored_manifest(output) if output.store else read_copy(output)


def read_copy(output: Output) -> Manifest | None:
    """As :func:`read_manifest`, of the copy of what was in object storage when it was last looked at.

    Raises:
        CorruptManifest: if there is one that cannot be read.
    """
    for path in output.manifests:
        with suppress(FileNotFoundError, NotADirectoryError):
            return parse_manifest(path.read_bytes(), output, path)
    return None


def manifest_path(output: Output) -> Path:
    """Where a partition's manifest lies, if there is one: an older version may have written it."""
    *newer, oldest = output.manifests
    return next((path for path in newer if path.exists()), oldest)


def done(output: Output) -> Manifest | None:
    """The manifest of a partition that is done: a readable one, whose files have the recorded sizes."""
    try:
        manifest = read_manifest(output)
        return manifest and _checked(output, manifest)
    except CorruptInput:
        return None  # made again, which is the cure


def require(output: Output) -> Manifest:
    """The manifest of an input that must be there, its files having the recorded sizes.

    Of files in object storage nothing is asked, and none of them comes here; see :func:`bring`.

    Raises:
        MissingInput: if the partition is not published.
        CorruptInput: if a file is gone or has another size than its manifest says.
        StoreUnavailable: if it is in object storage that does not answer.
    """
    manifest = read_manifest(output)
    if manifest is None:
        raise MissingInput(f"{output} is not there yet: materialize {output.stage} first ({output.manifest})")
    return _checked(output, manifest)


def bring(output: Output, names: Collection[str] | None = None) -> Manifest:
    """As :func:`require`, and its files can be opened: those in object storage are fetched, if need be.

    Args:
        output: the partition.
        names: which of its files are needed; all by default.
    """
    return store_copy.bring(output, names) if output.store else require(output)


def bring_all(outputs: Iterable[Output], *, file: int | None = None) -> None:
    """As :func:`bring`, of many partitions; what is not in object storage is not looked at.

    Args:
        outputs: the partitions.
        file: which of their files is needed, by its place among the names; all by default.
    """
    store_copy.bring_all([output for output in outputs if output.store], file)


def read_ranges(
    output: Output, manifest: Manifest, name: str, starts: Sequence[int], lengths: Sequence[int]
) -> list[bytes]:
    """Parts of one of a partition's files; of one in object storage that is not here, these parts alone.

    Args:
        output: the partition.
        manifest: its manifest.
        name: of the file.
        starts: at which byte each part begins.
        lengths: how many bytes it has; fewer come where the file ends before.
    """
    return store_copy.read_ranges(output, manifest, name, starts, lengths)


def verify(output: Output) -> Manifest:
    """As :func:`bring`, and every file's bytes are read and compared by their checksum.

    Raises:
        MissingInput: if the partition is not published.
        CorruptInput: if a file is not the one its manifest vouches for.
    """
    manifest = bring(output)
    for file in _files_of(output, manifest):
        _verify(file)
    return manifest


def verify_published(output: Output) -> Manifest:
    """As :func:`verify`, of what object storage holds, where the partition is there; no copy is kept."""
    return store_copy.verify_objects(output) if output.store else verify(output)


# -- how it is done ---------------------------------------------------------------------------------------


def _publish(
    output: Output,
    is_current: Callable[[Manifest], bool],
    make: Callable[[float, Version | None], Manifest],
) -> Manifest:
    # Looked at without the lease first: what is done stays readable while others read or write it.
    found, _ = _look(output)
    if found is not None and is_current(found):
        _tidy(output)
        return found
    with naming_storage_errors(output, output.folder):
        make_folder(output.folder)
        with lease(output):
            found, version = _look(output)
            if found is not None and is_current(found):
                return found
            if output.store and version is None and (kept := _kept_here(output, is_current)) is not None:
                return _send(output, kept, output.folder, (), None)
            started = time.monotonic()
            _make_draft(output.draft)
            try:
                manifest = make(started, version)
            finally:
                _remove_draft(output.draft)
            output.journal.unlink(missing_ok=True)
            return manifest


def _look(output: Output) -> tuple[Manifest | None, Version | None]:
    return store_copy.look(output) if output.store else (done(output), None)


def _kept_here(output: Output, is_current: Callable[[Manifest], bool]) -> Manifest | None:
    """What was published before there was an object storage, or what this lost, if it is as it should be."""
    here = replace(output, store="")
    with suppress(MissingInput, CorruptInput):
        if is_current(require(here)):
            manifest = verify(here)
            return manifest if all(record.blake3 for record in manifest.files.values()) else None
    return None


def _send(
    output: Output, manifest: Manifest, folder: Path, drafted: Sequence[str], replaced: Version | None
) -> Manifest:
    sent = store_copy.send(output, manifest, folder, replaced)
    if sent is manifest:
        store_copy.install(output, manifest, drafted)
    return sent


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


def _tidy(output: Output) -> None:
    """Remove what a run left that was killed after it had published."""
    if output.journal.exists() or output.draft.exists():
        # Whoever holds the lease does it at the end; what cannot be removed is in nobody's way.
        with suppress(ShardBusy, OSError), lease(output):
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
    if source.store:
        version, files = _looked_at_copy(source)
    else:
        paths = (manifest_path(source), *map(source.path, source.names))
        version, files = _looked_at(source, tuple(map(_identity, paths)))
    if recipe.inputs[str(source) if str(source) in recipe.inputs else source.stage] != version:
        raise ShardBusy(f"{source} was made again just now: run this again")
    return files


def _identity(path: Path) -> tuple[int, int, int] | None:
    # Older versions and img2dataset wrote fewer files than an output has names.
    with suppress(FileNotFoundError):
        return identity(path.stat())
    return None


@lru_cache(maxsize=256)
def _looked_at(
    source: Output, identities: tuple[tuple[int, int, int] | None, ...]
) -> tuple[str, list[_File]]:
    """Data version and files of a partition whose manifest and files are these."""
    del identities
    manifest = require(source)
    return manifest.data_version, _files_of(source, manifest)


def _looked_at_copy(source: Output) -> tuple[str, list[_File]]:
    # A copy is not replaced while it is leased.
    manifest = read_copy(source)
    if manifest is None:
        raise ShardBusy(f"{source} went away just now: run this again")
    if not all(source.path(name).exists() for name in manifest.files):
        bring(source)  # some were removed, to make room, before they were leased
    return manifest.data_version, _files_of(source, manifest)


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
        cure = f"delete {manifest_path(file.output)} to have the partition made again"
        raise CorruptInput(
            path,
            expected=f"{kind} {recorded}",
            found=found,
            remedy="The file changed after it was published: "
            + ("delete it, and it is fetched again." if file.output.store else f"restore it, or {cure}."),
        )


def _checked(output: Output, manifest: Manifest) -> Manifest:
    """The manifest, whose files have the recorded sizes; of those in object storage nothing is asked."""
    for name, record in manifest.files.items() if not output.store else ():
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
    return manifest


def _commit(
    output: Output,
    recipe: Recipe,
    tally: Tally,
    started: float,
    drafted: Sequence[str],
    replaced: Version | None,
) -> Manifest:
    """Put the drafted files and then the manifest in place; files that are not drafted are there already."""
    folder = output.draft if drafted else output.folder
    manifest = _describe(output, recipe, tally, folder, started)
    for name in drafted:
        sync_file(output.draft / name)
    if output.store:
        return _send(output, manifest, folder, drafted, replaced)
    draft = output.draft / output.manifest.name
    draft.write_bytes(write_manifest(manifest))
    sync_file(draft)
    if drafted:
        # A run that was killed may have removed the manifest of files that are there, and not synced that.
        is_replaced = any(path.exists() for path in (*output.manifests, *map(output.path, drafted)))
        if is_replaced:
            for path in output.manifests:
                path.unlink(missing_ok=True)
            sync_folder(output.folder)
        for name in drafted:
            (output.draft / name).replace(output.path(name))
        sync_folder(output.folder)
    draft.replace(output.manifest)
    for path in output.manifests[1:]:
        path.unlink(missing_ok=True)
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
                **checksums_of(folder / name),
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
