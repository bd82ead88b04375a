"""Where the vectors of one embedding shard lie, found by address or by shard and key.

Vectors of one image shard may be in any embedding shard, and every image shard asks every one of them: what
is looked through that often has to be small, and what is found in it read without what lies around it.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from laion_assets.errors import CorruptParquet
from laion_assets.formats import parquet
from laion_assets.formats.arrow import vectors_of
from laion_assets.formats.digest_index import write_index
from laion_assets.formats.parquet_values import value_offsets
from laion_assets.formats.publish import Draft, Manifest, Recipe, Tally, publish, require
from laion_assets.layout import EmbeddingShardId, Layout
from laion_assets.schema import VECTOR_COLUMNS, embedding_join
from laion_assets.vector_places import (
    SEARCHED,
    VECTOR_PLACE,
    as_digests,
    checksum_of,
    digest_of_shard,
    digest_of_text,
)
from laion_assets.vectors import rows_at_a_time

CODE_VERSION: Final = "1"

_Bytes = npt.NDArray[np.uint8]


def index_embeddings(shard: EmbeddingShardId, layout: Layout) -> Manifest:
    """Publish a record of each row of a joined shard from which a picture may take its vectors.

    Left out are rows with a vector that is zero or not finite (``bad_vectors``), and those that have neither
    an address nor both a shard and a key that is a number (``unfindable``); with the records by address
    (``by_url``) and by shard and key alone (``by_shard_and_key``) they are all the rows.

    Raises:
        MissingInput: if the shard is not joined yet.
        CorruptParquet: if the joined table is damaged, or does not hold its vectors as they are.
    """
    source = layout.embedding_join(shard)
    recipe = Recipe(code_version=CODE_VERSION, inputs={"embedding_join": require(source).data_version})

    def write(draft: Draft) -> Tally:
        width = parquet.vector_width(source.only)
        records, counts = _records(source.only, width)
        write_index(draft.only, records, number=width)
        return Tally(rows=len(records), counts=counts)

    return publish(layout.embedding_index(shard), recipe, write, reads=[source])


def _records(path: Path, width: int) -> tuple[npt.NDArray[np.void], dict[str, int]]:
    """The records of a joined table in the order of its rows, and what became of the rows."""
    offsets = [value_offsets(path, name) for name in VECTOR_COLUMNS]
    records = np.empty(len(offsets[0]), VECTOR_PLACE)
    counts = Counter(dict.fromkeys(("by_url", "by_shard_and_key", "bad_vectors", "unfindable"), 0))
    first = filled = 0
    with path.open("rb", buffering=0) as file:
        for batch in parquet.read_batches(
            path,
            embedding_join(width),
            batch_rows=rows_at_a_time(width),
            columns=[*SEARCHED, *VECTOR_COLUMNS],
        ):
            rows = np.arange(first, first + len(batch))
            vectors = [vectors_of(batch[name]).view(np.uint8) for name in VECTOR_COLUMNS]
            for name, places, read in zip(VECTOR_COLUMNS, offsets, vectors, strict=True):
                if not np.array_equal(_stored(file.fileno(), places[rows], 2 * width), read.reshape(-1)):
                    raise CorruptParquet(
                        path,
                        expected=f"{name} of rows {first} to {rows[-1]} where their pages say",
                        found="other bytes",
                        remedy="Delete its manifest to have it made again.",
                    )
            some, kept = _searched(batch, counts)
            some["row"] = rows[kept]
            some["image_at"], some["text_at"] = (places[rows[kept]] for places in offsets)
            images, texts = (map(bytes, read[kept]) for read in vectors)
            some["checksum"] = list(map(checksum_of, images, texts))
            records[filled : filled + len(some)] = some
            first, filled = first + len(batch), filled + len(some)
    return records[:filled], dict(counts)


def _searched(
    batch: pa.RecordBatch, counts: Counter[str]
) -> tuple[npt.NDArray[np.void], npt.NDArray[np.int64]]:
    """Records of the rows that can be found, with what they are found by; and these rows' places."""
    key = pc.if_else(pc.match_substring_regex(batch["key"], r"\A[0-9]{1,18}\z"), batch["key"], None)
    number = pc.fill_null(key.cast(pa.int64()), -1).to_numpy(zero_copy_only=False)
    shard_id = pc.fill_null(batch["shard_id"], -1).to_numpy(zero_copy_only=False)
    has_url = pc.fill_null(pc.not_equal(batch["url"], ""), False).to_numpy(zero_copy_only=False)
    bad = np.isnan(batch["cosine"].to_numpy(zero_copy_only=False))
    by_url = ~bad & has_url
    by_key = ~bad & ~has_url & (shard_id >= 0) & (number >= 0)
    counts["bad_vectors"] += int(bad.sum())
    counts["by_url"] += int(by_url.sum())
    counts["by_shard_and_key"] += int(by_key.sum())
    counts["unfindable"] += int((~bad & ~by_url & ~by_key).sum())
    kept = np.flatnonzero(by_url | by_key)
    taken = batch.select(["url", "caption"]).take(pa.array(kept))
    urls, captions = (
        pc.fill_null(taken[name], "").cast(pa.binary()).to_pylist() for name in ("url", "caption")
    )
    records = np.empty(len(kept), VECTOR_PLACE)
    records["shard_id"], records["number"] = shard_id[kept], number[kept]
    records["digest"] = as_digests(
        digest_of_text(url) if url else digest_of_shard(number)
        for url, number in zip(urls, records["shard_id"].tolist(), strict=True)
    )
    records["caption"] = as_digests(map(digest_of_text, captions))
    return records, kept


def _stored(descriptor: int, offsets: npt.NDArray[np.int64], size: int) -> _Bytes:
    """Bytes of values read from where they lie, those that follow each other in one piece."""
    runs = np.split(offsets, np.flatnonzero(np.diff(offsets) != size) + 1)
    pieces = [os.pread(descriptor, len(run) * size, int(run[0])) for run in runs if len(run)]
    return np.frombuffer(b"".join(pieces), np.uint8)
