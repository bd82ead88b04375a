"""Rules of the embeddings: their source files, the join, the normalized tables, the image shards' vectors."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from laion_assets.embedding_source import EmbeddingSource, read_embedding_source
from laion_assets.errors import CorruptParquet, SourceUnavailable
from laion_assets.formats import npy, parquet
from laion_assets.formats.arrow import vectors_of
from laion_assets.formats.publish import require
from laion_assets.normalization import SIMILARITY_TOLERANCE
from laion_assets.quality.row_stream import RowStream, stored_rows
from laion_assets.quality.rules.images import NSFW_SQL, SIMILARITY_SQL, URL_SQL
from laion_assets.quality.rules.rule import Offences, Query, Rule, Subject, Verdict
from laion_assets.quality.thresholds import Thresholds
from laion_assets.schema import (
    NORMALIZED_EMBEDDINGS,
    NORMALIZED_IMAGES,
    VECTOR_COLUMNS,
    embedding_join,
    image_embeddings,
)
from laion_assets.vectors import as_float16, cosines, is_bad, norms

_ROWS_AT_A_TIME: Final = 4096

# The recorded cosine and ours are sums in float32 of the same products.
_COSINE_ROUNDING: Final = 1e-3


# -- embeddings -----------------------------------------------------------------------------------


def _source_files(subject: Subject) -> Verdict:
    source = read_embedding_source(subject.layout, subject.embedding_shard)
    offences = Offences()
    for file in source.files:
        path = Path(file.path)
        if not path.is_file():
            offences.add(path.name, "is not where it was when it was checked")
        elif path.stat().st_size != file.size_bytes:
            offences.add(path.name, f"{path.stat().st_size} bytes, {file.size_bytes} when it was checked")
    if not offences.count:
        _check_rows(source, offences)
    return offences.verdict(rows=len(source.files), figures={"vectors": source.rows, "width": source.width})


def _check_rows(source: EmbeddingSource, offences: Offences) -> None:
    with parquet.open_reader(Path(source.metadata.path)) as reader:
        found = {source.metadata.path: reader.metadata.num_rows}
    for file in (source.image_vectors, source.text_vectors):
        with npy.open_reader(Path(file.path), width=source.width) as vectors:
            found[file.path] = vectors.rows
    for path, rows in found.items():
        if rows != source.rows:
            offences.add(Path(path).name, f"{rows} rows, not {source.rows}")


def _source_vectors(subject: Subject) -> Verdict:
    source = read_embedding_source(subject.layout, subject.embedding_shard)
    offences = Offences()
    off = 0
    for file in (source.image_vectors, source.text_vectors):
        path = Path(file.path)
        try:
            with npy.open_reader(path, width=source.width) as vectors:
                for first in range(0, vectors.rows, _ROWS_AT_A_TIME):
                    found = norms(as_float16(vectors.read(_ROWS_AT_A_TIME)))
                    off += _judge(found, path.name, first, subject, offences)
        except SourceUnavailable:
            # The one file outside of the data root: its owner may have taken it away after the join.
            offences.add(path.name, "cannot be opened", count=source.rows)
    rows = 2 * source.rows
    return offences.verdict(
        rows=rows,
        allowed_share=subject.thresholds.bad_vector_share,
        figures={"share": offences.count / rows if rows else 0.0, "norm_off": off},
    )


def _judge(
    found: npt.NDArray[np.float32], name: str, first: int, subject: Subject, offences: Offences
) -> int:
    """Record the vectors whose norm is not 1; how many of them have a norm at all."""
    bad = is_bad(found)
    with np.errstate(invalid="ignore"):
        wrong = bad | (np.abs(found - 1) > subject.thresholds.norm_tolerance)
    for row in np.flatnonzero(wrong).tolist():
        offences.add(f"{name} row {first + row}", f"norm {found[row]:g}")
    return int(np.count_nonzero(wrong & ~bad))


# -- embedding_join -------------------------------------------------------------------------------


class Vectors(NamedTuple):
    """Some rows of a table: what else was asked for, and both vectors as arrays (rows, width)."""

    rows: pa.RecordBatch
    images: npt.NDArray[np.float16]
    texts: npt.NDArray[np.float16]


def read_vectors(
    path: Path, schema_of_width: Callable[[int], pa.Schema], columns: Sequence[str]
) -> Iterator[Vectors]:
    """Rows of a table with vectors, a batch at a time; their width is what the file says.

    Args:
        path: the table.
        schema_of_width: the table's schema for vectors of a width.
        columns: columns to read besides the vectors.

    Raises:
        CorruptParquet: if the file is damaged or was declared otherwise.
    """
    width = parquet.vector_width(path)
    names = [*columns, *VECTOR_COLUMNS]
    for batch in parquet.read_batches(
        path, schema_of_width(width), batch_rows=_ROWS_AT_A_TIME, columns=names
    ):
        yield Vectors(batch, *(vectors_of(batch[name]) for name in VECTOR_COLUMNS))


def _join_rows(subject: Subject) -> Verdict:
    path = subject.layout.embedding_join(subject.embedding_shard).only
    with parquet.open_reader(path) as reader:
        found = reader.metadata.num_rows
    expected = {
        "the manifest": require(subject.layout.embedding_join(subject.embedding_shard)).rows,
        "the source": read_embedding_source(subject.layout, subject.embedding_shard).rows,
    }
    offences = Offences()
    for name, rows in expected.items():
        if rows != found:
            offences.add(path.name, f"{found} rows; {name} has {rows}")
    return offences.verdict(rows=found)


def _cosines_match(subject: Subject) -> Verdict:
    """The best test of alignment: vectors of another row have another cosine."""
    path = subject.layout.embedding_join(subject.embedding_shard).only
    compared = CosineComparison(subject.thresholds)
    rows = 0
    for found in read_vectors(path, embedding_join, ("key", "similarity", "cosine")):
        cosine, bad = cosines(found.images, found.texts)
        similarity = found.rows["similarity"].cast(pa.float64()).to_numpy(zero_copy_only=False)
        compared.add(found.rows["key"], similarity, cosine, bad)
        with np.errstate(invalid="ignore"):
            recorded = found.rows["cosine"].to_numpy(zero_copy_only=False)
            # With ~, so that a NaN on one side only counts too.
            stale = np.flatnonzero(~bad & ~(np.abs(recorded - cosine) <= _COSINE_ROUNDING))
        if len(stale):
            row = int(stale[0])
            raise CorruptParquet(
                path,
                expected=f"cosine {cosine[row]:.4f} at row {rows + row}, as its vectors have",
                found=f"{recorded[row]:.4f}",
                remedy="Delete its manifest to have it made again.",
            )
        rows += len(cosine)
    return compared.verdict()


class CosineComparison:
    """Cosines held against the similarities that were recorded, of which a few may be far off."""

    def __init__(self, limits: Thresholds) -> None:
        self._limits = limits
        self._offences = Offences()
        self._differences = [np.empty(0)]
        self._rows = 0

    def add(
        self,
        keys: Sequence[object],
        similarity: npt.NDArray[np.float64],
        cosine: npt.NDArray[np.float32],
        bad: npt.NDArray[np.bool_],
    ) -> None:
        """Compare rows; those without a similarity, or without a cosine (``bad``), are passed over."""
        with np.errstate(invalid="ignore"):
            usable = ~bad & (similarity >= 0) & (similarity <= 1 + SIMILARITY_TOLERANCE)
            difference = np.abs(cosine.astype(np.float64) - similarity)
            off = np.flatnonzero(usable & (difference > self._limits.cosine_far))
        for row in off.tolist():
            self._offences.add(keys[row], f"cosine {cosine[row]:.4f}, similarity {similarity[row]:.4f}")
        self._differences.append(difference[usable])
        self._rows += len(cosine)

    def verdict(self) -> Verdict:
        """Whether vectors and similarities belong together."""
        differences = np.concatenate(self._differences)
        compared = len(differences)
        median = float(np.median(differences)) if compared else 0.0
        share = self._offences.count / compared if compared else 0.0
        limits = self._limits
        return Verdict(
            passed=median <= limits.cosine_median_difference and share <= limits.cosine_far_share,
            offending=self._offences.count,
            rows=self._rows,
            examples=self._offences.examples,
            figures={
                "compared": compared,
                "median_difference": round(median, 6),
                "far_share": round(share, 6),
            },
        )


# -- normalized_embeddings ------------------------------------------------------------------------


def _normalized_rows(subject: Subject, columns: Sequence[str]) -> RowStream:
    path = subject.layout.normalized_embeddings_table(subject.embedding_shard)
    return stored_rows(path, NORMALIZED_EMBEDDINGS, columns)


def _joined_accounted_for(subject: Subject) -> Verdict:
    shard = subject.embedding_shard
    output = subject.layout.normalized_embeddings(shard)
    table, aside = (output.path(name) for name in output.names)
    examples = parquet.read_table(table, NORMALIZED_EMBEDDINGS, columns=["row", "key"])
    with parquet.open_reader(aside) as reader:
        set_aside = reader.metadata.num_rows
    path = subject.layout.embedding_join(shard).only
    joined = parquet.read_table(path, embedding_join(parquet.vector_width(path)), columns=["key", "cosine"])
    offences = Offences()
    if examples.num_rows + set_aside != joined.num_rows:
        detail = f"{examples.num_rows} examples and {set_aside} set aside of {joined.num_rows} rows"
        offences.add(shard, detail)
    _check_pairing(examples, joined, offences)
    figures = {"rows": joined.num_rows, "examples": examples.num_rows, "set_aside": set_aside}
    return offences.verdict(rows=joined.num_rows, figures=figures)


def _check_pairing(examples: pa.Table, joined: pa.Table, offences: Offences) -> None:
    rows = examples["row"].to_numpy()
    keys = examples["key"].combine_chunks()
    inside = (rows >= 0) & (rows < joined.num_rows)
    for at in np.flatnonzero(~inside).tolist():
        offences.add(keys[at], f"row {rows[at]} of {joined.num_rows}")
    for at in np.flatnonzero(np.diff(rows) < 1).tolist():
        offences.add(keys[at + 1], f"row {rows[at + 1]} after row {rows[at]}")
    named = joined.take(pa.array(np.where(inside, rows, 0))) if joined.num_rows else joined
    if not len(named):
        return
    for at in pc.indices_nonzero(pc.not_equal(keys, named["key"].combine_chunks())).to_pylist():
        if inside[at]:
            offences.add(keys[at], f"the vectors of row {rows[at]} have key {named['key'][at]}")
    unusable = ~np.isfinite(named["cosine"].to_numpy())
    for at in np.flatnonzero(unusable & inside).tolist():
        offences.add(keys[at], f"the vectors of row {rows[at]} have no direction")


# -- image_embeddings -----------------------------------------------------------------------------


def _image_vector_keys(subject: Subject) -> Verdict:
    path = subject.layout.image_embeddings(subject.shard).only
    table = parquet.read_table(
        path, image_embeddings(parquet.vector_width(path)), columns=["key", "matched_by", "embedding_shard"]
    )
    examples = parquet.read_table(
        subject.layout.normalized_table(subject.shard), NORMALIZED_IMAGES, columns=["key"]
    )
    known = set(examples["key"].to_pylist())
    offences = Offences()
    seen: set[str] = set()
    for row in table.to_pylist():
        if row["key"] in seen:
            offences.add(row["key"], "there twice")
        if row["key"] not in known:
            offences.add(row["key"], "no example of the shard")
        if row["matched_by"] not in ("shard_and_key", "url"):
            offences.add(row["key"], f"matched by {row['matched_by']}")
        if not re.fullmatch(r"[0-9]{5,9}", row["embedding_shard"]):
            offences.add(row["key"], f"from embedding shard {row['embedding_shard']}")
        seen.add(row["key"])
    figures = {
        "examples": len(known),
        "match_share": len(seen & known) / len(known) if known else 0.0,
        "matched_by_url": pc.sum(pc.equal(table["matched_by"], "url"), min_count=0).as_py(),
    }
    return offences.verdict(rows=table.num_rows, figures=figures)


def _image_vectors(subject: Subject) -> Verdict:
    path = subject.layout.image_embeddings(subject.shard).only
    offences = Offences()
    rows = off = 0
    for found in read_vectors(path, image_embeddings, ("key",)):
        for name, vectors in (("image", found.images), ("text", found.texts)):
            off += _judge(norms(vectors), name, rows, subject, offences)
        rows += len(found.images)
    return offences.verdict(
        rows=2 * rows,
        allowed_share=subject.thresholds.bad_vector_share,
        figures={"share": offences.count / (2 * rows) if rows else 0.0, "norm_off": off},
    )


EMBEDDING_RULES: Final = (
    Rule(
        name="files_are_those_checked",
        stage="embeddings",
        blocking=True,
        description="The three files are where they were, have their sizes, and as many vectors as rows.",
        check=_source_files,
    ),
    Rule(
        name="vectors_are_of_length_one",
        stage="embeddings",
        blocking=False,
        description="Nearly all vectors of the source are finite and of length 1.",
        check=_source_vectors,
    ),
    Rule(
        name="rows_are_the_sources",
        stage="embedding_join",
        blocking=True,
        description="There is one row for each row of the source.",
        check=_join_rows,
        needs=("embeddings",),
    ),
    Rule(
        name="cosines_match_similarities",
        stage="embedding_join",
        blocking=True,
        description="The cosine of each row's vectors is its similarity: so they belong together.",
        check=_cosines_match,
    ),
    Rule(
        name="nsfw_is_one_of_four_tags",
        stage="normalized_embeddings",
        blocking=True,
        description="Every tag is a label of the TFDS feature.",
        check=Query(read=_normalized_rows, columns=("key", "nsfw"), sql=NSFW_SQL),
    ),
    Rule(
        name="similarity_is_a_cosine_or_missing",
        stage="normalized_embeddings",
        blocking=True,
        description="Every similarity is between 0 and 1, or exactly -1.0.",
        check=Query(read=_normalized_rows, columns=("key", "similarity"), sql=SIMILARITY_SQL),
    ),
    Rule(
        name="url_is_there",
        stage="normalized_embeddings",
        blocking=True,
        description="Every example has a URL.",
        check=Query(read=_normalized_rows, columns=("key", "url"), sql=URL_SQL),
    ),
    Rule(
        name="rows_are_accounted_for",
        stage="normalized_embeddings",
        blocking=True,
        description="Every joined row is an example or set aside, and an example's vectors have its key.",
        check=_joined_accounted_for,
        needs=("embedding_join",),
    ),
    Rule(
        name="keys_are_of_the_shard",
        stage="image_embeddings",
        blocking=True,
        description="Every vector is of one example of the shard, and no example has two.",
        check=_image_vector_keys,
        needs=("normalized_images",),
    ),
    Rule(
        name="vectors_are_of_length_one",
        stage="image_embeddings",
        blocking=False,
        description="Nearly all vectors are finite and of length 1.",
        check=_image_vectors,
    ),
)
