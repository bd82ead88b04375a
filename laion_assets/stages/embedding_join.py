"""Vectors and metadata of one embedding shard in one table, and the proof that they belong together.

Row n of the three files is one picture, which nothing in the files says. The proof is the similarity that
the metadata records: it is the cosine of the row's two vectors, so it must come out again. What it cannot
show is that one file of vectors stands in the place of the other, which changes no cosine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from laion_assets.embedding_source import EmbeddingSource, MetadataSource, VectorSource, read_embedding_source
from laion_assets.errors import CorruptInput, MisalignedEmbeddings, SourceUnavailable
from laion_assets.formats import npy, parquet, parquet_chunks
from laion_assets.formats.checksums import xxh3_128_of
from laion_assets.formats.publish import Draft, Manifest, Recipe, Tally, publish, require
from laion_assets.formats.sealed import fingerprint
from laion_assets.layout import EmbeddingShardId, Layout
from laion_assets.quality.thresholds import Thresholds
from laion_assets.schema import VECTOR_COLUMNS, embedding_join
from laion_assets.vectors import BLOCK_ROWS, as_float16, cosines, rows_at_a_time

CODE_VERSION: Final = "1"

_TEXTS: Final = ("url", "caption", "NSFW", "LICENSE")
_SIZES: Final = ("original_height", "original_width")
_COLUMNS: Final = (*_TEXTS, *_SIZES, "similarity", "shard_id", "key", "image_path")

_INT32_MAX: Final = 2**31 - 1
_EXACT_IN_FLOAT64: Final = 2**53

# Where fewer rows have a similarity to compare with, a few dirty values would decide over the shard.
_PROVABLE_SHARE: Final = 0.01


def join_embeddings(shard: EmbeddingShardId, layout: Layout, thresholds: Thresholds) -> Manifest:
    """Publish one table of a shard's vectors and metadata, in float16 and in the order of its files.

    The cosine of a row is NaN where one of its vectors is zero or not finite. A shard of which less than
    1 % of the rows have a similarity between 0 and 1 cannot be proven aligned: all its rows are counted as
    ``rows_unproven``.

    Args:
        shard: the embedding shard.
        layout: where its files are.
        thresholds: the limits named ``cosine_...``.

    Raises:
        MissingInput: if the shard was not checked yet.
        SourceUnavailable: if a source file cannot be read.
        CorruptInput: if a source file is not the one that was checked.
        CorruptParquet: if the metadata is damaged, or a column is of a type that cannot be meant.
        MisalignedEmbeddings: if vectors and metadata do not belong together.
    """
    recipe = Recipe(
        code_version=CODE_VERSION,
        # They decide whether there is a table at all.
        settings=fingerprint(
            [thresholds.cosine_median_difference, thresholds.cosine_far, thresholds.cosine_far_share]
        ),
        inputs={"embeddings": require(layout.embeddings(shard)).data_version},
    )

    def write(draft: Draft) -> Tally:
        source = read_embedding_source(layout, shard)
        counts, differences = _join(shard, source, draft.only)
        counts |= _prove_alignment(source, differences, thresholds)
        return Tally(rows=source.rows, counts=counts)

    return publish(layout.embedding_join(shard), recipe, write, reads=[layout.embeddings(shard)])


def _join(
    shard: EmbeddingShardId, source: EmbeddingSource, destination: Path
) -> tuple[dict[str, int], npt.NDArray[np.float32]]:
    """Write the table.

    Returns:
        Counts, and |cosine - similarity| of each row that has both.
    """
    schema = embedding_join(source.width)
    encoded = pa.schema([field for field in schema if field.name not in VECTOR_COLUMNS])
    counts = Counter({"bad_vectors": 0})
    differences = [np.empty(0, np.float32)]
    for file in source.files:
        _check_size(shard, file)
    _check_bytes(shard, source.metadata, xxh3_128_of(Path(source.metadata.path)))
    image_digest, text_digest = xxhash.xxh3_128(), xxhash.xxh3_128()
    with (
        npy.open_reader(Path(source.image_vectors.path), width=source.width, digest=image_digest) as images,
        npy.open_reader(Path(source.text_vectors.path), width=source.width, digest=text_digest) as texts,
        # A shard of a million rows is 2 GB, and the others of the batch are joined before any is read again.
        parquet_chunks.open_writer(destination, schema, cached=False) as writer,
    ):
        batch_rows = rows_at_a_time(source.width)
        room = _Pairs.of(batch_rows, source.width)
        for metadata in _read_metadata(Path(source.metadata.path), batch_rows, counts):
            found = _read_pairs(images, texts, room.first(len(metadata)))
            counts["bad_vectors"] += int(np.count_nonzero(found.bad))
            differences.append(_differences(found.cosine, metadata["similarity"]))
            joined = metadata.append_column("cosine", pa.array(found.cosine))
            table = pa.table([joined[name] for name in encoded.names], schema=encoded)
            vectors = map(parquet_chunks.stored_vectors, (found.images, found.texts))
            writer.write(table, dict(zip(VECTOR_COLUMNS, vectors, strict=True)))
        _check_bytes(shard, source.image_vectors, image_digest.hexdigest())
        _check_bytes(shard, source.text_vectors, text_digest.hexdigest())
    return dict(counts), np.concatenate(differences)


class _Pairs(NamedTuple):
    """Vectors of some rows, float16 (rows, width) each, their cosines, and whether either has none."""

    images: npt.NDArray[np.float16]
    texts: npt.NDArray[np.float16]
    cosine: npt.NDArray[np.float32]
    bad: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, rows: int, width: int) -> _Pairs:
        """Room for so many."""
        images, texts = (np.empty((rows, width), "<f2") for _ in range(2))
        return cls(images, texts, np.empty(rows, np.float32), np.empty(rows, np.bool_))

    def first(self, rows: int) -> _Pairs:
        """So many of them."""
        return _Pairs(self.images[:rows], self.texts[:rows], self.cosine[:rows], self.bad[:rows])


def _read_pairs(images: npy.VectorReader, texts: npy.VectorReader, found: _Pairs) -> _Pairs:
    """Fill what there is room for; it serves one batch after another, for new memory takes time to clear."""
    rows = len(found.bad)
    # Few at a time, which are still in a core's cache when they are computed with.
    for start in range(0, rows, BLOCK_ROWS):
        block = slice(start, min(start + BLOCK_ROWS, rows))
        for reader, vectors in ((images, found.images[block]), (texts, found.texts[block])):
            if reader.dtype == vectors.dtype:
                reader.read_into(vectors)
            else:
                vectors[...] = as_float16(reader.read(len(vectors)))
        found.cosine[block], found.bad[block] = cosines(found.images[block], found.texts[block])
    return found


# -- the metadata ---------------------------------------------------------------------------------


def _read_metadata(path: Path, batch_rows: int, counts: Counter[str]) -> Iterator[pa.RecordBatch]:
    """The metadata in the joined table's columns; those that the file lacks are null."""
    with parquet.open_reader(path) as reader:
        names = [name for name in _COLUMNS if name in reader.schema_arrow.names]
        for batch in parquet.batches(path, reader, batch_rows=batch_rows, columns=names):
            found = dict(zip(batch.schema.names, batch.columns, strict=True))
            # Casts are made while the reader is open, so that one that fails is said to be the file's.
            yield _canonical({name: found.get(name, pa.nulls(len(batch))) for name in _COLUMNS}, counts)


def _canonical(found: dict[str, pa.Array], counts: Counter[str]) -> pa.RecordBatch:
    texts = {name: found[name].cast(pa.string()) for name in (*_TEXTS, "image_path")}
    for text in texts.values():
        text.validate(full=True)  # UTF-8, which readers of the joined table rely on
    path = texts.pop("image_path")
    key = found["key"]
    key = key.cast(pa.string()) if _is_text(key) else _whole_numbers(key).cast(pa.string())
    key.validate(full=True)
    # img2dataset's key as text, zeros and all, is in image_path; the column key may hold the bare number.
    is_key = pc.match_substring_regex(path, "^[0-9]+$")
    key = pc.coalesce(pc.if_else(is_key, path, pa.scalar(None, pa.string())), key, path)
    counts["key:null -> ''"] += key.null_count
    columns = {
        **texts,
        "key": pc.fill_null(key, ""),
        "shard_id": _whole_numbers(found["shard_id"]),
        "similarity": found["similarity"].cast(pa.float64()),
    }
    for name in _SIZES:
        size = _whole_numbers(found[name])
        fits = pc.and_(pc.greater_equal(size, 0), pc.less_equal(size, _INT32_MAX))
        columns[name] = pc.if_else(fits, size, pa.scalar(None, pa.int64())).cast(pa.int32())
        counts[f"{name}:no size -> null"] += columns[name].null_count - found[name].null_count
    return pa.record_batch(columns)


def _whole_numbers(values: pa.Array) -> pa.Array:
    """Numbers as int64; null where they are not whole.

    pandas writes a column of whole numbers with a gap as float64, and the gap as NaN.
    """
    if _is_text(values):
        is_number = pc.match_substring_regex(values, "^[0-9]{1,18}$")
        values = pc.if_else(is_number, values, pa.scalar(None, values.type))
    elif pa.types.is_floating(values.type):
        values = values.cast(pa.float64())
        is_whole = pc.and_(pc.equal(pc.floor(values), values), pc.less(pc.abs(values), _EXACT_IN_FLOAT64))
        values = pc.if_else(is_whole, values, pa.scalar(None, pa.float64()))
    return values.cast(pa.int64())


def _is_text(values: pa.Array) -> bool:
    return bool(pa.types.is_string(values.type) or pa.types.is_large_string(values.type))


# -- the proofs -----------------------------------------------------------------------------------


def _differences(cosine: npt.NDArray[np.float32], similarity: pa.Array) -> npt.NDArray[np.float32]:
    recorded = similarity.to_numpy(zero_copy_only=False)  # null becomes NaN, which no comparison admits
    comparable = (recorded >= 0) & (recorded <= 1) & ~np.isnan(cosine)
    found: npt.NDArray[np.float32] = np.abs(cosine[comparable] - recorded[comparable]).astype(np.float32)
    return found


def _prove_alignment(
    source: EmbeddingSource, differences: npt.NDArray[np.float32], thresholds: Thresholds
) -> dict[str, int]:
    comparable = len(differences)
    off = int(np.count_nonzero(differences > thresholds.cosine_far))
    counts = {"rows_compared": comparable, "rows_off": off, "rows_unproven": 0}
    if comparable < max(1, _PROVABLE_SHARE * source.rows):
        return {**counts, "rows_unproven": source.rows}
    median = float(np.median(differences))
    # One row off is a bad row even where it is a large share of a small shard.
    if median > thresholds.cosine_median_difference or off > max(1, thresholds.cosine_far_share * comparable):
        raise MisalignedEmbeddings(
            source.metadata.path,
            expected=f"the similarities of {source.image_vectors.path} and {source.text_vectors.path}: "
            f"a median difference of at most {thresholds.cosine_median_difference:g}, and at most "
            f"{thresholds.cosine_far_share:.1%} of the rows off by more than {thresholds.cosine_far:g}",
            found=f"a median difference of {median:.3f}, and {off} of {comparable} rows off",
            remedy="Vectors and metadata are not of the same rows in the same order: fetch all three again.",
        )
    return counts


def _check_size(shard: EmbeddingShardId, file: VectorSource | MetadataSource) -> None:
    try:
        size = Path(file.path).stat().st_size
    except OSError as error:
        raise SourceUnavailable(f"{file.path} cannot be read: {error.strerror}") from error
    if size != file.size_bytes:
        raise _changed(shard, file, f"{file.size_bytes} bytes", f"{size} bytes")


def _check_bytes(shard: EmbeddingShardId, file: VectorSource | MetadataSource, found: str) -> None:
    if found != file.xxh3_128:
        raise _changed(shard, file, f"XXH3-128 {file.xxh3_128}", found)


def _changed(
    shard: EmbeddingShardId, file: VectorSource | MetadataSource, expected: str, found: str
) -> CorruptInput:
    return CorruptInput(
        file.path,
        expected=f"{expected}, as when it was checked",
        found=found,
        remedy=f"Materialize embeddings {shard} again.",
    )
