import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from embedding_inputs import WIDTH, cosines_of, metadata, pairs, place
from spoiling import vouch_anew

from laion_assets.errors import CorruptInput, CorruptParquet, MissingInput
from laion_assets.formats import parquet
from laion_assets.formats.digest_index import open_index
from laion_assets.layout import EmbeddingShardId, Layout
from laion_assets.quality.thresholds import Thresholds
from laion_assets.schema import embedding_join
from laion_assets.stages.embedding_index import index_embeddings
from laion_assets.stages.embedding_join import join_embeddings
from laion_assets.stages.embeddings import check_embeddings
from laion_assets.vector_places import VECTOR_PLACE, checksum_of, digest_of_shard, digest_of_text

SHARD = EmbeddingShardId(3)
LENIENT = Thresholds(cosine_far_share=0.5)


@pytest.fixture
def layout(tmp_path):
    return Layout(tmp_path / "data")


def join(layout, rows, *, spoil=None, **columns):
    """A joined shard; returns its vectors."""
    cosines = cosines_of(rows)
    images, texts = pairs(cosines)
    if spoil:
        spoil(images, texts)
    source = place(layout.root.parent / "release", SHARD.number, images, texts, metadata(cosines, **columns))
    check_embeddings(SHARD, layout, str(source), WIDTH, LENIENT)
    join_embeddings(SHARD, layout, LENIENT)
    return images, texts


def read(layout):
    with open_index(layout.embedding_index(SHARD).only, VECTOR_PLACE) as index:
        assert index.number == WIDTH
        return np.concatenate([*index.everything(), np.empty(0, VECTOR_PLACE)])


@pytest.mark.parametrize("rows", [1, 50, 23_000])
def test_each_record_leads_to_the_vectors_of_its_row(layout, rows):
    images, texts = join(layout, rows)
    manifest = index_embeddings(SHARD, layout)
    assert manifest.rows == rows
    assert manifest.counts == {"by_url": rows, "by_shard_and_key": 0, "bad_vectors": 0, "unfindable": 0}
    records = np.sort(read(layout), order="row")
    assert records["row"].tolist() == list(range(rows))
    assert records["shard_id"].tolist() == [12] * rows
    assert records["number"].tolist() == list(range(rows))
    data = layout.embedding_join(SHARD).only.read_bytes()
    for row in {*range(0, rows, 97), rows - 1}:
        record, vectors = records[row], [images[row].tobytes(), texts[row].tobytes()]
        assert [data[record[at] : record[at] + 2 * WIDTH] for at in ("image_at", "text_at")] == vectors
        assert record["checksum"] == checksum_of(*vectors)
        assert record["digest"].item() == digest_of_text(b"http://example.org/%d.jpg" % row)
        assert record["caption"].item() == digest_of_text(b"caption %d" % row)


def test_every_row_is_found_or_counted(layout):
    def spoil(images, texts):
        images[0] = 0
        texts[1] = np.nan

    urls = ["http://a", "http://a", None, "", None, None, "http://a", None]
    shards = [12, 12, 12, 12, None, 12, None, -1]
    keys = ["1", "1", "000000002", "000120003", "4", "no number", "no number", "7"]
    join(
        layout,
        8,
        spoil=spoil,
        url=pa.array(urls, pa.string()),
        shard_id=pa.array(shards, pa.int64()),
        image_path=pa.array(keys, pa.string()),
        key=pa.nulls(8, pa.int64()),
        caption=pa.nulls(8, pa.string()),
    )
    manifest = index_embeddings(SHARD, layout)
    assert manifest.counts == {"by_url": 1, "by_shard_and_key": 2, "bad_vectors": 2, "unfindable": 3}
    found = {record["row"]: record for record in read(layout)}
    assert set(found) == {2, 3, 6}
    assert {row: (record["shard_id"], record["number"]) for row, record in found.items()} == {
        2: (12, 2),
        3: (12, 120_003),
        6: (-1, -1),
    }
    assert found[2]["digest"].item() == found[3]["digest"].item() == digest_of_shard(12)
    assert found[6]["digest"].item() == digest_of_text(b"http://a")
    assert {record["caption"].item() for record in found.values()} == {digest_of_text(b"")}


def test_digests_are_the_same_everywhere():
    # BLAKE2b of 16 bytes (RFC 7693), by another implementation: printf %s TEXT | b2sum -l 128.
    assert digest_of_text(b"").hex() == "cae66941d9efbd404e4d88758ea67670"
    assert digest_of_text(b"12") != digest_of_shard(12)
    assert checksum_of(b"1234", b"56789") == 0xE3069283  # crc32c's check value


def test_what_is_done_is_not_done_again_and_a_shard_joined_anew_is(layout):
    join(layout, 10)
    first = index_embeddings(SHARD, layout)
    changed = layout.embedding_index(SHARD).only.stat().st_mtime_ns
    assert index_embeddings(SHARD, layout) == first
    assert layout.embedding_index(SHARD).only.stat().st_mtime_ns == changed
    join(layout, 12)
    assert index_embeddings(SHARD, layout).rows == 12


def test_what_is_missing_or_damaged_is_named(layout):
    with pytest.raises(MissingInput, match="materialize embedding_join first"):
        index_embeddings(SHARD, layout)
    join(layout, 30)
    path = layout.embedding_join(SHARD).only
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptInput, match=r"00003\.parquet: expected XXH3-128"):
        index_embeddings(SHARD, layout)


def test_vectors_that_are_not_stored_as_they_are_cannot_be_pointed_at(layout):
    join(layout, 30)
    output, schema = layout.embedding_join(SHARD), embedding_join(WIDTH)
    pq.write_table(parquet.read_table(output.only, schema), output.only, compression="zstd")
    vouch_anew(output)
    with pytest.raises(
        CorruptParquet, match=r"00003\.parquet: expected image_embedding as it is, found it in ZSTD"
    ):
        index_embeddings(SHARD, layout)
