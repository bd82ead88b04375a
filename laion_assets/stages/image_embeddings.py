"""The vectors of one image shard's pictures, found in the embedding shards by key and by address.

The release's shard numbers are not a user's: they follow from how each sorted and cut the metadata. So a
shard number and key that agree prove nothing unless the address agrees too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from laion_assets.errors import ShardBusy
from laion_assets.formats import parquet
from laion_assets.formats.publish import Draft, Manifest, Recipe, Tally, publish, read_manifest, require
from laion_assets.formats.sealed import fingerprint
from laion_assets.layout import EmbeddingShardId, Layout, ShardId
from laion_assets.schema import EMBEDDING_WIDTH, NORMALIZED_IMAGES, embedding_join, image_embeddings
from laion_assets.vectors import rows_at_a_time

CODE_VERSION: Final = "1"

# Rows of metadata looked at together; the shard's addresses are hashed once for each such batch.
_BATCH_ROWS: Final = 131_072
_SCANNED: Final = ("shard_id", "key", "url", "caption", "cosine")
_VECTORS: Final = ("image_embedding", "text_embedding")

_BY_KEY: Final = "shard_and_key"
_BY_URL: Final = "url"


class _Place(NamedTuple):
    """A row of a joined embedding shard."""

    shard: EmbeddingShardId
    row: int


class _Way(NamedTuple):
    """What a sample and a row of metadata have in common; None for what does not matter."""

    matched_by: str
    number: int | None = None
    url: str | None = None
    caption: str | None = None


@dataclass
class _Match:
    """The first place a way leads to, once there is one, and to how many it leads."""

    first: _Place | None = None
    places: int = 0


@dataclass(frozen=True, kw_only=True)
class _Taken:
    """The place a sample takes its vectors from."""

    key: str
    matched_by: str
    place: _Place


def join_image_embeddings(
    shard: ShardId,
    layout: Layout,
    embedding_shards: Sequence[EmbeddingShardId],
    width: int = EMBEDDING_WIDTH,
) -> Manifest:
    """Publish the vectors of one image shard's pictures, in key order.

    A sample takes the vectors of a row that names its shard and key and has its address, else of one that
    names its shard and key and no address, else of one with its address and caption, else of one with its
    address. Of several such rows it takes the first, by embedding shard and row. Rows with a vector that is
    zero or not finite are passed over.

    Counts: ``samples``, which is ``matched_by_shard_and_key + matched_by_url + unmatched``; of those matched
    by URL, how many have another caption (``caption_differs``: the text vector is of that one); of all
    matched, how many could have taken another row as well (``duplicates``); and how many embedding shards
    were looked through and are not there yet.

    Args:
        shard: the image shard.
        layout: where the files are.
        embedding_shards: those that exist; the ones not joined yet are passed over.
        width: elements of a vector.

    Raises:
        MissingInput: if the shard's normalized images are not there yet.
        CorruptParquet: if a table is damaged, or holds vectors of another width.
        ShardBusy: if an embedding shard is joined anew meanwhile.
    """
    versions = _published(layout, embedding_shards)
    recipe = Recipe(
        code_version=CODE_VERSION,
        settings=fingerprint(width),
        inputs={
            "normalized_images": require(layout.normalized_images(shard)).data_version,
            "embedding_join": fingerprint({str(found): version for found, version in versions.items()}),
        },
    )

    def write(draft: Draft) -> Tally:
        taken, counts = _match(shard, layout, versions, width)
        _write(draft.only, taken, layout, width)
        if _published(layout, tuple(versions)) != versions:
            raise ShardBusy(f"vectors for shard {shard} were joined anew meanwhile: run this again")
        counts["embedding_shards"] = len(versions)
        counts["embedding_shards_missing"] = len(set(embedding_shards)) - len(versions)
        return Tally(rows=len(taken), counts=counts)

    # The joined tables are too many to verify for each shard; their pages carry checksums, which are.
    return publish(layout.image_embeddings(shard), recipe, write, reads=[layout.normalized_images(shard)])


def _published(layout: Layout, embedding_shards: Sequence[EmbeddingShardId]) -> dict[EmbeddingShardId, str]:
    """Each embedding shard that is joined, in order -> its data version."""
    return {
        shard: require(layout.embedding_join(shard)).data_version
        for shard in sorted(set(embedding_shards))
        if read_manifest(layout.embedding_join(shard)) is not None
    }


# -- which row a sample takes ---------------------------------------------------------------------


def _match(
    shard: ShardId, layout: Layout, embedding_shards: Iterable[EmbeddingShardId], width: int
) -> tuple[list[_Taken], dict[str, int]]:
    """What each sample takes, in key order, and counts."""
    samples = parquet.read_table(
        layout.normalized_table(shard), NORMALIZED_IMAGES, columns=["key", "url", "caption"]
    ).sort_by("key")
    shard_digits = len(str(shard))
    ways = {
        sample["key"]: _ways(int(sample["key"][shard_digits:]), sample["url"], sample["caption"])
        for sample in samples.to_pylist()
    }
    row_digits = max((len(key) - shard_digits for key in ways), default=0)
    matches = {way: _Match() for found in ways.values() for way in found}
    urls = pc.unique(samples["url"].combine_chunks())
    for found in embedding_shards:
        for candidate in _candidates(layout.embedding_join(found).only, width, shard, urls):
            place = _Place(found, candidate["row"])
            for way in _ways_to(candidate, shard, row_digits):
                if match := matches.get(way):
                    match.first = match.first or place
                    match.places += 1
    return _choose(ways, matches)


def _choose(
    ways: dict[str, tuple[_Way, ...]], matches: dict[_Way, _Match]
) -> tuple[list[_Taken], dict[str, int]]:
    names = (*(f"matched_by_{name}" for name in (_BY_KEY, _BY_URL)), "unmatched")
    counts = Counter(dict.fromkeys((*names, "duplicates", "caption_differs"), 0))
    counts["samples"] = len(ways)
    taken: list[_Taken] = []
    for key, tried in ways.items():
        for way in tried:
            match = matches[way]
            if match.first is None:
                continue
            taken.append(_Taken(key=key, matched_by=way.matched_by, place=match.first))
            counts[f"matched_by_{way.matched_by}"] += 1
            counts["duplicates"] += match.places > 1
            counts["caption_differs"] += way.matched_by == _BY_URL and way.caption is None
            break
        else:
            counts["unmatched"] += 1
    return taken, dict(counts)


def _ways(number: int, url: str, caption: str) -> tuple[_Way, ...]:
    """The ways to a sample, the surest first."""
    return (
        _Way(_BY_KEY, number=number, url=url),
        _Way(_BY_KEY, number=number),
        _Way(_BY_URL, url=url, caption=caption),
        _Way(_BY_URL, url=url),
    )


def _ways_to(row: dict[str, Any], shard: ShardId, row_digits: int) -> Iterator[_Way]:
    """The ways by which a row of metadata leads to a sample of this shard."""
    url = row["url"] or None
    if row["shard_id"] == shard.number:
        number = _row_number(row["key"], shard, row_digits)
        if number is not None:
            yield _Way(_BY_KEY, number=number, url=url)
    if url is not None:
        # The samples' captions are normalized: null is ''.
        yield _Way(_BY_URL, url=url, caption=row["caption"] or "")
        yield _Way(_BY_URL, url=url)


def _row_number(key: str, shard: ShardId, row_digits: int) -> int | None:
    """Row that a key names, be it local to the shard (``33``, ``000000033``) or global (``000120033``)."""
    if not (key.isascii() and key.isdigit() and len(key) <= 18):
        return None
    rows = 10**row_digits
    number = int(key)
    if number >= rows:
        number -= shard.number * rows
    return number if 0 <= number < rows else None


def _candidates(path: Path, width: int, shard: ShardId, urls: pa.Array) -> Iterator[dict[str, Any]]:
    """The rows of a joined table that may be a sample's, in order, each with its ``row``."""
    first = 0
    for batch in parquet.read_batches(path, embedding_join(width), batch_rows=_BATCH_ROWS, columns=_SCANNED):
        numbers = pa.array(np.arange(first, first + len(batch)))
        first += len(batch)
        is_ours = pc.fill_null(pc.equal(batch["shard_id"], shard.number), False)
        may_be = pc.or_(is_ours, pc.is_in(batch["url"], value_set=urls))
        may_be = pc.and_(may_be, pc.invert(pc.is_nan(batch["cosine"])))
        yield from batch.append_column("row", numbers).filter(may_be).to_pylist()


# -- their vectors --------------------------------------------------------------------------------


def _write(destination: Path, taken: Sequence[_Taken], layout: Layout, width: int) -> None:
    schema = image_embeddings(width)
    places = sorted({row.place for row in taken})
    at = {place: index for index, place in enumerate(places)}
    vectors = pa.concat_tables(
        [pa.schema([schema.field(name) for name in _VECTORS]).empty_table(), *_read(layout, places)]
    ).take(pa.array([at[row.place] for row in taken], pa.int64()))
    columns = {
        "key": pa.array([row.key for row in taken], pa.string()),
        "matched_by": pa.array([row.matched_by for row in taken], pa.string()),
        "embedding_shard": pa.array([str(row.place.shard) for row in taken], pa.string()),
        **{name: vectors[name] for name in _VECTORS},
    }
    with parquet.open_writer(destination, schema, as_is=_VECTORS) as writer:
        writer.write_table(
            pa.table([columns[name] for name in schema.names], schema=schema),
            row_group_size=rows_at_a_time(width),
        )


def _read(layout: Layout, places: Sequence[_Place]) -> Iterator[pa.Table]:
    """Vectors of these places, in their order, which is that of embedding shards and rows."""
    rows: dict[EmbeddingShardId, list[int]] = {}
    for place in places:
        rows.setdefault(place.shard, []).append(place.row)
    for shard, wanted in rows.items():
        with parquet.open_reader(layout.embedding_join(shard).only) as reader:
            yield from _read_rows(reader, np.array(wanted))


def _read_rows(reader: Any, wanted: np.ndarray[Any, np.dtype[np.int64]]) -> Iterator[pa.Table]:  # noqa: ANN401 (pyarrow has no types)
    """Vectors of ascending rows, of which only the row groups that hold them are read."""
    ends = np.cumsum([reader.metadata.row_group(group).num_rows for group in range(reader.num_row_groups)])
    groups = np.searchsorted(ends, wanted, side="right")
    for group in np.unique(groups):
        first = ends[group] - reader.metadata.row_group(int(group)).num_rows
        found = reader.read_row_group(int(group), columns=list(_VECTORS))
        yield found.take(pa.array(wanted[groups == group] - first))
