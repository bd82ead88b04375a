"""What a raw part was read from: recorded when the part is published, read when it is planned."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from urllib.parse import urlsplit, urlunsplit

from laion_assets.errors import CorruptManifest
from laion_assets.formats.publish import bring
from laion_assets.formats.sealed import seal, unseal
from laion_assets.layout import Layout


@dataclass(frozen=True, kw_only=True)
class RawSource:
    """A raw file.

    Attributes:
        location: path or URL, without user, password and query.
        size_bytes: its size.
        sha256: of its bytes, hexadecimal.
        source_schema: the name of the column mapping it was read with.
    """

    location: str
    size_bytes: int
    sha256: str
    source_schema: str

    def to_json(self) -> bytes:
        """The record's file; equal sources, equal bytes."""
        return seal(asdict(self))


def read_source(layout: Layout, part: str) -> RawSource:
    """Read the record of a published part.

    Raises:
        CorruptManifest: if the record is not one.
    """
    path, output = layout.raw_source(part), layout.raw_metadata(part)
    if output.store:
        bring(output, [path.name])
    try:
        return RawSource(**unseal(path.read_bytes()))
    except (TypeError, ValueError) as error:
        raise CorruptManifest(
            path,
            expected="the record of a raw file",
            found=f"{type(error).__name__}: {error}",
            remedy=f"Materialize raw_metadata {part} again.",
        ) from error


def without_secrets(location: str) -> str:
    """A location that may be shown: a URL loses its user, password, query and fragment."""
    if "://" not in location:
        return location
    parts = urlsplit(location)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
