"""The vectors of one image shard's pictures, found in the embedding shards by key and by address.

The release's shard numbers are not a user's: they follow from how each sorted and cut the metadata. So a
shard number and key that agree prove nothing unless the address agrees too.

A shard's pictures may be in any embedding shard, in no order, and there are 410 of these with a million rows
each: they are looked up in the shards' indexes, one open at a time, and of the joined tables nothing is read
but the vectors themselves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from laion_assets.errors import CorruptInput, CorruptParquet, MissingInput, ShardBusy
from laion_assets.formats import parquet
from laion_assets.formats.digest_index import open_index
from laion_assets.formats.publish import (
    Draft,
    Manifest,
    Recipe,
    Tally,
    bring_all,
    publish,
    read_copy,
    read_ranges,
    require,
)
from laion_assets.formats.sealed import fingerprint
from laion_assets.layout import EmbeddingShardId, Layout, ShardId
from laion_assets.published import manifests_of, output_of
from laion_assets.schema import (
    EMBEDDING_WIDTH,
    NORMALIZED_IMAGES,
    VECTOR_COLUMNS,
    image_embeddings,
    vector_type,
)
from laion_assets.vector_places import VECTOR_PLACE, as_digests, checksum_of, digest_of_shard, digest_of_text
from laion_assets.vectors import rows_at_a_time

CODE_VERSION: Final = "2"

_BY_KEY: Final = "shard_and_key"
_BY_URL: Final = "url"


class _Place(NamedTuple):
    """A row of a joined embedding shard, and where its vectors are in the file."""

    shard: EmbeddingShardId
    row: int
    image_at: int
    text_at: int
    checksum: int


class _Way(NamedTuple):
    """What a sample and a row of metadata have in common, of texts the digest; None for what is no matter."""

    matched_by: str
    number: int | None = None
    url: bytes | None = None
    caption: bytes | None = None


@dataclass
class _Match:
    """The first place a way leads to, once there is one, and to how many it leads."""

    first: _Place | None = None
    places: int = 0

    def take(self, place: _Place) -> None:
        self.first = place if self.first is None else min(self.first, place)
        self.places += 1


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
    were looked through and are not there yet: neither joined, nor indexed since they were.

    Args:
        shard: the image shard.
        layout: where the files are.
        embedding_shards: those that exist; the ones not joined and indexed yet are passed over.
        width: elements of a vector.

    Raises:
        MissingInput: if the shard's normalized images are not there yet.
        CorruptParquet: if a table is damaged, or holds vectors of another width.
        CorruptIndex: if an index is damaged.
        ShardBusy: if an embedding shard is joined anew meanwhile.
    """
    versions = _indexed(layout, embedding_shards)
    recipe = Recipe(
        code_version=CODE_VERSION,
        settings=fingerprint(width),
        inputs={
            "normalized_images": require(layout.normalized_images(shard)).data_version,
            # It holds digests of all that decides, and checksums of the vectors.
            "embedding_index": fingerprint({str(found): version for found, version in versions.items()}),
        },
    )

    def write(draft: Draft) -> Tally:
        anew = ShardBusy(f"vectors for shard {shard} were joined anew meanwhile: run this again")
        bring_all(layout.embedding_index(found) for found in versions)
        try:
            taken, counts = _match(shard, layout, tuple(versions), width)
            _write(draft.only, taken, layout, width)
        except CorruptInput as error:
            # What was replaced since does not fit what was read before.
            if _indexed(layout, tuple(versions)) != versions:
                raise anew from error
            raise
        if _indexed(layout, tuple(versions)) != versions:
            raise anew
        counts["embedding_shards"] = len(versions)
        counts["embedding_shards_missing"] = len(set(embedding_shards)) - len(versions)
        return Tally(rows=len(taken), counts=counts)

    # The indexes and joined tables are too many to verify for each shard; what is read of them has checksums.
    return publish(layout.image_embeddings(shard), recipe, write, reads=[layout.normalized_images(shard)])


def _indexed(layout: Layout, embedding_shards: Sequence[EmbeddingShardId]) -> dict[EmbeddingShardId, str]:
    """Each embedding shard that is joined, and indexed since, in order -> data version of its index."""
    versions = {}
    there = (
        _look(layout, "embedding_join", embedding_shards),
        _look(layout, "embedding_index", embedding_shards),
    )
    for shard in sorted(set(embedding_shards)):
        joined, index = (manifests.get(str(shard)) for manifests in there)
        if joined is None or index is None:
            continue
        if index.recipe.inputs["embedding_join"] == joined.data_version:
            versions[shard] = index.data_version
    return versions


def _look(layout: Layout, stage: str, shards: Sequence[EmbeddingShardId]) -> dict[str, Manifest]:
    if layout.store:
        return manifests_of(layout, stage)  # there are hundreds, and a request for each would take long
    found = {}
    for shard in shards:
        with suppress(MissingInput):
            found[str(shard)] = require(output_of(layout, stage, str(shard)))
    return found


# -- which row a sample takes ---------------------------------------------------------------------


def _match(
    shard: ShardId, layout: Layout, embedding_shards: Sequence[EmbeddingShardId], width: int
) -> tuple[list[_Taken], dict[str, int]]:
    """What each sample takes, in key order, and counts."""
    samples = parquet.read_table(
        layout.normalized_table(shard), NORMALIZED_IMAGES, columns=["key", "url", "caption"]
    ).sort_by("key")
    shard_digits = len(str(shard))
    ways = {
        sample["key"]: _ways(
            int(sample["key"][shard_digits:]),
            digest_of_text(sample["url"].encode()),
            digest_of_text(sample["caption"].encode()),
        )
        for sample in samples.to_pylist()
    }
    row_digits = max((len(key) - shard_digits for key in ways), default=0)
    matches = {way: _Match() for found in ways.values() for way in found}
    without_url = digest_of_shard(shard.number)
    wanted = {way.url for way in matches if way.url is not None} | {without_url}
    digests = as_digests(wanted)
    for found in embedding_shards:
        for digest, caption, shard_id, key, *place in _candidates(layout, found, width, digests):
            url = None if digest == without_url else digest
            number = _row_number(key, shard, row_digits) if shard_id == shard.number else None
            for way in _ways_to(number, url, caption):
                if match := matches.get(way):
                    match.take(_Place(found, *place))
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


def _ways(number: int, url: bytes, caption: bytes) -> tuple[_Way, ...]:
    """The ways to a sample, the surest first."""
    return (
        _Way(_BY_KEY, number=number, url=url),
        _Way(_BY_KEY, number=number),
        _Way(_BY_URL, url=url, caption=caption),
        _Way(_BY_URL, url=url),
    )


def _ways_to(number: int | None, url: bytes | None, caption: bytes) -> Iterator[_Way]:
    """The ways by which a row leads to a sample.

    Args:
        number: row of the image shard that it names, if it names one.
        url: digest of its address, if it has one.
        caption: digest of its caption, null being '', as it is for samples.
    """
    if number is not None:
        yield _Way(_BY_KEY, number=number, url=url)
    if url is not None:
        yield _Way(_BY_URL, url=url, caption=caption)
        yield _Way(_BY_URL, url=url)


def _row_number(number: int, shard: ShardId, row_digits: int) -> int | None:
    """Row that a key names, be it local to the shard (33) or global (120033 of shard 12)."""
    rows = 10**row_digits
    if number >= rows:
        number -= shard.number * rows
    return number if 0 <= number < rows else None


def _candidates(
    layout: Layout, shard: EmbeddingShardId, width: int, digests: npt.NDArray[np.void]
) -> Iterator[tuple[Any, ...]]:
    """The records of an index that may be a sample's, each as a tuple of its fields."""
    with open_index(layout.embedding_index(shard).only, VECTOR_PLACE) as index:
        if index.number != width:
            raise CorruptParquet(
                layout.embedding_join(shard).only,
                expected=f"vectors of type {vector_type(width)}",
                found=str(vector_type(index.number)),
                remedy="Set embeddings.width in laion.toml to what the release has, or join it again.",
            )
        for records in index.find(digests):
            yield from records.tolist()


# -- their vectors --------------------------------------------------------------------------------


def _write(destination: Path, taken: Sequence[_Taken], layout: Layout, width: int) -> None:
    schema = image_embeddings(width)
    columns = {
        "key": pa.array([row.key for row in taken], pa.string()),
        "matched_by": pa.array([row.matched_by for row in taken], pa.string()),
        "embedding_shard": pa.array([str(row.place.shard) for row in taken], pa.string()),
        **dict(zip(VECTOR_COLUMNS, _read(layout, [row.place for row in taken], width), strict=True)),
    }
    with parquet.open_writer(destination, schema) as writer:
        writer.write_table(
            pa.table([columns[name] for name in schema.names], schema=schema),
            row_group_size=rows_at_a_time(width),
        )


def _read(layout: Layout, places: Sequence[_Place], width: int) -> tuple[pa.Array, pa.Array]:
    """Vectors of pictures and of texts at these places, read in the order in which they lie there."""
    size = 2 * width
    images, texts = [b""] * len(places), [b""] * len(places)
    order = sorted(range(len(places)), key=places.__getitem__)
    for shard, group in groupby(order, key=lambda index: places[index].shard):
        output, rows = layout.embedding_join(shard), list(group)
        starts = [at for index in rows for at in (places[index].image_at, places[index].text_at)]
        manifest = read_copy(output)
        if manifest is None:
            raise CorruptParquet(
                output.only, expected="a joined shard", found="none", remedy="Run this again."
            )
        vectors = read_ranges(output, manifest, output.only.name, starts, [size] * len(starts))
        for index, image, text in zip(rows, vectors[::2], vectors[1::2], strict=True):
            place = places[index]
            if checksum_of(image, text) != place.checksum:
                raise CorruptParquet(
                    output.only,
                    expected=f"the vectors of row {place.row} that were indexed",
                    found="other bytes",
                    remedy="Delete its manifest to have it made again.",
                )
            images[index], texts[index] = image, text
    return pa.array(images, vector_type(width)), pa.array(texts, vector_type(width))
