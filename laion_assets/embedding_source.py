"""What an embedding shard was checked from: recorded when it is checked, read when it is joined."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from laion_assets.errors import CorruptManifest
from laion_assets.formats.publish import bring
from laion_assets.formats.sealed import seal, unseal
from laion_assets.layout import EmbeddingShardId, Layout


@dataclass(frozen=True, kw_only=True)
class VectorSource:
    """A file of vectors.

    Attributes:
        path: where it lies.
        size_bytes: its size.
        sha256: of its bytes, hexadecimal.
        xxh3_128: as that, for the one who only asks whether it is the same file still.
        dtype: ``float16`` or ``float32``.
    """

    path: str
    size_bytes: int
    sha256: str
    xxh3_128: str
    dtype: str


@dataclass(frozen=True, kw_only=True)
class MetadataSource:
    """A Parquet file of metadata.

    Attributes:
        path: where it lies.
        size_bytes: its size.
        sha256: of its bytes, hexadecimal.
        xxh3_128: as that, for the one who only asks whether it is the same file still.
        columns: the names of its columns, in order.
    """

    path: str
    size_bytes: int
    sha256: str
    xxh3_128: str
    columns: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class EmbeddingSource:
    """The three files of one embedding shard, which stay where they are.

    Attributes:
        rows: rows of each of the three.
        width: elements of a vector.
        image_vectors: vectors of the pictures.
        text_vectors: vectors of the captions.
        metadata: what the rows are about.
    """

    rows: int
    width: int
    image_vectors: VectorSource
    text_vectors: VectorSource
    metadata: MetadataSource

    def to_json(self) -> bytes:
        """The record's file; equal sources, equal bytes."""
        return seal(asdict(self))

    @property
    def files(self) -> tuple[VectorSource | MetadataSource, ...]:
        """All three."""
        return self.image_vectors, self.text_vectors, self.metadata


def read_embedding_source(layout: Layout, shard: EmbeddingShardId) -> EmbeddingSource:
    """Read the record of a published embedding shard.

    Raises:
        CorruptManifest: if the record is not one.
    """
    output = layout.embeddings(shard)
    path: Path = output.only
    if output.store:
        bring(output)
    try:
        document = unseal(path.read_bytes())
        metadata = document["metadata"]
        return EmbeddingSource(
            rows=int(document["rows"]),
            width=int(document["width"]),
            image_vectors=VectorSource(**document["image_vectors"]),
            text_vectors=VectorSource(**document["text_vectors"]),
            metadata=MetadataSource(**{**metadata, "columns": tuple(metadata["columns"])}),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptManifest(
            path,
            expected="the record of an embedding shard's three files",
            found=f"{type(error).__name__}: {error}",
            remedy=f"Materialize embeddings {shard} again.",
        ) from error
