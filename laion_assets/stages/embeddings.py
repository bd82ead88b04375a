"""The three source files of each embedding shard: found, checked, and left where they are."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from laion_assets.embedding_source import EmbeddingSource, MetadataSource, VectorSource
from laion_assets.errors import (
    CorruptNpy,
    CorruptParquet,
    MisalignedEmbeddings,
    MissingInput,
    SettingsError,
    SourceUnavailable,
)
from laion_assets.formats import npy, parquet
from laion_assets.formats.checksums import Digest, source_checksums_of
from laion_assets.formats.publish import Draft, Manifest, Recipe, Tally, publish
from laion_assets.formats.sealed import fingerprint
from laion_assets.layout import EmbeddingShardId, Layout
from laion_assets.quality.thresholds import Thresholds
from laion_assets.vectors import BLOCK_ROWS, as_float16, is_bad, norms

CODE_VERSION: Final = "3"

# The two layouts in the wild, folders of image vectors, text vectors and metadata: what clip-retrieval's
# inference writes, and how the LAION-400M release was uploaded.
_FOLDERS: Final = (("img_emb", "text_emb", "metadata"), ("images", "texts", "metadata"))

# Names around the number N, which is written with or without leading zeros.
_NAMES: Final = (("img_emb_", ".npy"), ("text_emb_", ".npy"), ("metadata_", ".parquet"))

# With none of these, nothing says which picture a row is of.
_NAMING_COLUMNS: Final = ("url", "key", "image_path")


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Where the three files of one embedding shard lie, or belong if they are not there.

    Attributes:
        image_vectors: ``img_emb_N.npy``.
        text_vectors: ``text_emb_N.npy``.
        metadata: ``metadata_N.parquet``.
    """

    image_vectors: Path
    text_vectors: Path
    metadata: Path


def find_embedding_shards(source: str | None) -> dict[EmbeddingShardId, Sources]:
    """Every embedding shard of which at least one file is there, in order of their numbers.

    Args:
        source: the folder, with ``img_emb/``, ``text_emb/`` and ``metadata/``, or ``images/``, ``texts/``
            and ``metadata/``; None for no embeddings.

    Raises:
        SettingsError: if there is no such folder, or it does not say which files belong together.
    """
    if source is None:
        return {}
    root = Path(source)
    if not root.is_dir():
        raise SettingsError(f"[embeddings] source {source!r}: no such folder on this machine")
    layouts = [[root / name for name in names] for names in _FOLDERS]
    # Both have a folder metadata/, so only the vectors tell which layout it is.
    in_use = [folders for folders in layouts if _digits(folders[0], 0) or _digits(folders[1], 1)]
    if len(in_use) > 1:
        raise SettingsError(
            f"[embeddings] source {source!r} has vectors in {in_use[0][0].name}/ and in "
            f"{in_use[1][0].name}/: keep those of one layout"
        )
    folders = in_use[0] if in_use else layouts[0]
    found = [_digits(folder, kind) for kind, folder in enumerate(folders)]
    return {
        EmbeddingShardId(number): Sources(
            **dict(zip(Sources.__dataclass_fields__, _paths(folders, found, number), strict=True))
        )
        for number in sorted(set().union(*found))
    }


def check_embeddings(
    shard: EmbeddingShardId, layout: Layout, source: str | None, width: int, thresholds: Thresholds
) -> Manifest:
    """Publish where the files of one embedding shard lie, their sha256, and that they were checked.

    A vector that is not finite or is zero is a bad row, which a later stage sets aside; many bad rows, or
    many whose norm is not 1, are a bad shard. A source file is looked at again when its path, size or time
    of change differs.

    Args:
        shard: the embedding shard.
        layout: where the record is published.
        source: folder of the files, as for :func:`find_embedding_shards`.
        width: elements that each vector must have.
        thresholds: ``norm_tolerance`` of each norm, and ``cosine_far_share`` of the rows that may be wrong.

    Raises:
        SettingsError: if no source is set.
        MissingInput: if a file of the shard is not there.
        SourceUnavailable: if a file cannot be read, or changes while it is.
        CorruptNpy, CorruptParquet: if a file is not what it must be.
        MisalignedEmbeddings: if the three have different numbers of rows.
    """
    sources = _sources_of(shard, source)
    paths: dict[str, Path] = asdict(sources)
    recipe = Recipe(
        code_version=CODE_VERSION,
        settings=fingerprint([width, thresholds.norm_tolerance, thresholds.cosine_far_share]),
        inputs={name: identity_of(path) for name, path in paths.items()},
    )

    def write(draft: Draft) -> Tally:
        record, counts = _check(sources, width, thresholds)
        for name, path in paths.items():
            if identity_of(path) != recipe.inputs[name]:
                raise SourceUnavailable(
                    f"{path} changed while it was checked: run this again once it is whole"
                )
        draft.only.write_bytes(record.to_json())
        return Tally(rows=record.rows, counts=counts)

    return publish(layout.embeddings(shard), recipe, write)


def _digits(folder: Path, kind: int) -> dict[int, str]:
    """Number of each file of one kind -> the number as its name writes it."""
    prefix, suffix = _NAMES[kind]
    pattern = re.compile(rf"{prefix}([0-9]{{1,9}}){re.escape(suffix)}")
    found: dict[int, str] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        match = pattern.fullmatch(path.name)
        if match is None or not path.is_file():
            continue
        number = int(match[1])
        if number in found:
            raise SettingsError(
                f"{folder} has two files of number {number}, {prefix}{found[number]}{suffix} and "
                f"{path.name}: keep one"
            )
        found[number] = match[1]
    return found


def _paths(folders: list[Path], found: list[dict[int, str]], number: int) -> list[Path]:
    """The three files of one number; one that is missing is named as those are that are there."""
    digits = next(kind[number] for kind in found if number in kind)
    return [
        folder / f"{prefix}{kind.get(number, digits)}{suffix}"
        for folder, kind, (prefix, suffix) in zip(folders, found, _NAMES, strict=True)
    ]


def _sources_of(shard: EmbeddingShardId, source: str | None) -> Sources:
    if source is None:
        raise SettingsError(
            "[embeddings] source is not set: name the folder of img_emb/, text_emb/, metadata/"
        )
    sources = find_embedding_shards(source).get(shard)
    if sources is None:
        raise MissingInput(f"no file of embedding shard {shard} is in {source}: put its three files there")
    paths = (sources.image_vectors, sources.text_vectors, sources.metadata)
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise MissingInput(f"embedding shard {shard} lacks {' and '.join(missing)}: put it there")
    return sources


def identity_of(path: Path) -> str:
    """Cheap proof that a file is the one read before: where it is, its size and time of change.

    Raises:
        SourceUnavailable: if it cannot be looked at.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise SourceUnavailable(f"{path} cannot be read: {error.strerror}") from error
    return fingerprint([str(path), status.st_size, status.st_mtime_ns])


def _check(sources: Sources, width: int, thresholds: Thresholds) -> tuple[EmbeddingSource, dict[str, int]]:
    columns, metadata_rows = _look_at_metadata(sources.metadata)
    of_images, of_texts = Digest("sha256"), Digest("sha256")
    with (
        npy.open_reader(sources.image_vectors, width=width, digest=of_images) as images,
        npy.open_reader(sources.text_vectors, width=width, digest=of_texts) as texts,
    ):
        if not images.rows == texts.rows == metadata_rows:
            raise MisalignedEmbeddings(
                sources.metadata,
                expected=f"as many rows as {images.path} and {texts.path} have vectors",
                found=f"{metadata_rows} rows, {images.rows} and {texts.rows} vectors",
                remedy="Fetch the three files of this number again, from one release.",
            )
        counts = _check_norms(images, texts, thresholds)
        record = EmbeddingSource(
            rows=metadata_rows,
            width=width,
            image_vectors=_vector_source(images, of_images),
            text_vectors=_vector_source(texts, of_texts),
            metadata=MetadataSource(
                path=str(sources.metadata),
                size_bytes=sources.metadata.stat().st_size,
                columns=columns,
                **source_checksums_of(sources.metadata),
            ),
        )
    return record, counts


def _look_at_metadata(path: Path) -> tuple[tuple[str, ...], int]:
    """Names of the columns, and the number of rows."""
    with parquet.open_reader(path) as reader:
        columns = tuple(reader.schema_arrow.names)
        rows: int = reader.metadata.num_rows
    twice = [name for name, count in Counter(columns).items() if count > 1]
    if twice or not set(columns) & set(_NAMING_COLUMNS):
        raise CorruptParquet(
            path,
            expected=f"columns of different names, one of them of {', '.join(_NAMING_COLUMNS)}",
            found=f"{', '.join(columns)[:300]!r}",
            remedy="Fetch the metadata again, or rename its columns as LAION-400M's embeddings name them.",
        )
    return columns, rows


def _check_norms(images: npy.VectorReader, texts: npy.VectorReader, thresholds: Thresholds) -> dict[str, int]:
    """Read all vectors of both files and count those that are bad, and those whose norm is not 1."""
    counts = Counter({"bad_image_vectors": 0, "bad_text_vectors": 0, "norm_off": 0, "bad_rows": 0})
    wrong = {images.path: 0, texts.path: 0}
    wrong_rows = 0
    for _ in range(0, images.rows, BLOCK_ROWS):
        bad_images, off_images = _judge(images.read(BLOCK_ROWS), thresholds)
        bad_texts, off_texts = _judge(texts.read(BLOCK_ROWS), thresholds)
        bad, off = bad_images | bad_texts, off_images | off_texts
        counts["bad_image_vectors"] += _count(bad_images)
        counts["bad_text_vectors"] += _count(bad_texts)
        counts["bad_rows"] += _count(bad)
        counts["norm_off"] += _count(off & ~bad)
        wrong[images.path] += _count(bad_images | off_images)
        wrong[texts.path] += _count(bad_texts | off_texts)
        wrong_rows += _count(bad | off)
    if wrong_rows > thresholds.cosine_far_share * images.rows:
        worst = max(wrong, key=wrong.__getitem__)
        raise CorruptNpy(
            worst,
            expected=f"vectors of norm 1 ± {thresholds.norm_tolerance:g} in all but "
            f"{thresholds.cosine_far_share:.1%} of the rows",
            found=f"{wrong[worst]} others of {images.rows} here, and {wrong_rows} rows with one here or in "
            f"its pair, {counts['bad_rows']} of them zero or not finite",
            remedy="Fetch the file again, or normalize its vectors to length 1.",
        )
    return dict(counts)


def _judge(
    vectors: npt.NDArray[Any], thresholds: Thresholds
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Which vectors are bad, and which of the others have a norm that is not 1."""
    found = norms(as_float16(vectors))
    bad = is_bad(found)
    with np.errstate(invalid="ignore"):
        return bad, ~bad & (np.abs(found - 1) > thresholds.norm_tolerance)


def _count(flags: npt.NDArray[np.bool_]) -> int:
    return int(np.count_nonzero(flags))


def _vector_source(reader: npy.VectorReader, digest: Digest) -> VectorSource:
    return VectorSource(
        path=str(reader.path),
        size_bytes=reader.size_bytes,
        dtype=reader.dtype.name,
        **digest.checksums,
    )
