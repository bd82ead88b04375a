"""What a manifest says of a partition's files, as a value and as bytes. Knows nothing of where they lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Final

from laion_assets.errors import CorruptManifest
from laion_assets.formats.sealed import fingerprint, seal, unseal
from laion_assets.layout import Output

_FORMAT: Final = 5
_READ_FORMATS: Final = (1, 2, 3, 4, _FORMAT)


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


def write_manifest(manifest: Manifest) -> bytes:
    """The manifest's file."""
    # Not asdict, which copies deeply and takes a millisecond.
    return seal(
        {
            "format": _FORMAT,
            **vars(manifest),
            "recipe": vars(manifest.recipe),
            "files": {name: vars(record) for name, record in manifest.files.items()},
            "data_version": manifest.data_version,
        }
    )


def parse_manifest(data: bytes, output: Output, place: Path | str) -> Manifest:
    """Read what :func:`write_manifest` wrote.

    Args:
        data: the file.
        output: whose manifest it must be.
        place: where it lies, for the message.

    Raises:
        CorruptManifest: if it is none, or another's.
    """
    try:
        return _parse(data, output)
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptManifest(
            place,
            expected=f"a manifest of format {_FORMAT}",
            found=f"{type(error).__name__}: {error}",
            remedy="Delete it to have the partition made again.",
        ) from error


# A part's is read for each of its shards.
@lru_cache(maxsize=16)
def _parse(data: bytes, output: Output) -> Manifest:
    document = unseal(data)
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
