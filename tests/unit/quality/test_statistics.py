import pytest
from quality_inputs import HOSTILE, SHARDS, copy_root, shared_root

from laion_assets.errors import MissingInput
from laion_assets.layout import Layout, ShardId
from laion_assets.quality.statistics import (
    NONE,
    OTHERS,
    SIMILARITY_BINS,
    SIZE_LIMITS,
    dataset_statistics,
    shard_statistics,
)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    return shared_root(tmp_path_factory)


@pytest.fixture
def root(pristine, tmp_path):
    return copy_root(pristine, tmp_path)


def test_every_row_and_example_is_in_each_figure(pristine):
    found = shard_statistics(pristine, ShardId(0))
    assert found.outcomes == {"success": 16, "http_4xx": 2, "set_aside": 2}
    assert found.by_shard == {"00000": found.outcomes}
    assert (found.rows, found.examples, found.success_share) == (20, 16, 0.8)
    for counts in (found.nsfw, found.licenses, found.hosts):
        assert sum(counts.values()) == found.examples
    assert sum(found.similarity) + found.similarity_missing == found.examples
    assert found.similarity_missing == 1
    assert found.long_sides[SIZE_LIMITS.index(512)] == sum(found.long_sides) == found.examples
    assert found.picture_bytes > 16 * 100
    assert list(found.nsfw) == ["UNLIKELY", "UNSURE", "NSFW", "UNTAGGED"]
    assert set(found.hosts) == {f"host{number}.example.org" for number in range(3)}


def test_the_data_set_is_the_sum_of_its_shards(pristine):
    whole = dataset_statistics(pristine)
    shards = [shard_statistics(pristine, shard) for shard in SHARDS]
    assert whole.rows == sum(shard.rows for shard in shards)
    assert whole.examples == sum(shard.examples for shard in shards)
    assert list(whole.by_shard) == ["00000", "00001"]
    assert dict(whole.nsfw) == {tag: sum(shard.nsfw[tag] for shard in shards) for tag in whole.nsfw}


def test_without_shards_all_is_zero(tmp_path):
    found = dataset_statistics(Layout(tmp_path))
    assert (found.rows, found.examples, found.success_share, found.picture_bytes) == (0, 0, 0.0, 0)
    assert (sum(found.similarity), dict(found.hosts)) == (0, {})


def test_a_shard_that_is_not_there_is_named(pristine):
    with pytest.raises(MissingInput, match="images 00002"):
        shard_statistics(pristine, ShardId(2))


def test_an_unfinished_shard_is_left_out(root):
    root.layout.normalized_images(ShardId(1)).manifest.unlink()
    found = dataset_statistics(root.layout)
    assert (len(found.by_shard), found.examples) == (2, 16)


def test_values_at_the_edge_of_classes(root):
    output = root.layout.normalized_images(ShardId(0))
    # On the edge of a bin, beyond the last, and missing.
    similarities = [0.0, 0.02, 0.3, 1.0, 1.001, -1.0]
    sides = [1, 64, 65, 8192, 8193, 100_000]

    def change(rows):
        for row, similarity, side in zip(rows, similarities, sides, strict=False):
            row.update(similarity=similarity, original_width=side, original_height=1)
        return rows[:6]

    root.rewrite_table(output, output.names[0], change)
    found = shard_statistics(root.layout, ShardId(0))
    assert (found.similarity[0], found.similarity[1], found.similarity[15]) == (1, 1, 1)
    assert (found.similarity[SIMILARITY_BINS - 1], found.similarity_missing) == (2, 1)
    assert found.long_sides == (2, 1, 0, 0, 0, 0, 0, 1, 2)


def test_many_and_hostile_values_are_bounded_and_harmless(root):
    output = root.layout.normalized_images(ShardId(0))

    def change(rows):
        many = [rows[0] | {"license": f"{HOSTILE} {n % 40}", "url": f"http://h{n}.org/"} for n in range(60)]
        return [*many, rows[0] | {"license": "", "url": "not a url"}]

    root.rewrite_table(output, output.names[0], change)
    found = shard_statistics(root.layout, ShardId(0))
    for counts in (found.licenses, found.hosts):
        assert len(counts) <= 21
        assert sum(counts.values()) == 61
        assert all(name.isprintable() and len(name) <= 80 for name in counts)
    assert OTHERS in found.hosts


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://user:pa@ss@Example.ORG:8443/p?q#f", "example.org"),
        ("http://example.org", "example.org"),
        ("http://example.org?x@evil.org/", "example.org"),
        ("HTTPS://EXAMPLE.org#@x", "example.org"),
        ("nonsense", NONE),
    ],
)
def test_the_host_is_the_one_that_is_asked(root, url, host):
    output = root.layout.normalized_images(ShardId(0))
    root.rewrite_table(output, output.names[0], lambda rows: [rows[0] | {"url": url}])
    assert dict(shard_statistics(root.layout, ShardId(0)).hosts) == {host: 1}


def test_a_table_of_img2dataset_has_no_classes_of_outcomes(root):
    import pyarrow.parquet as pq

    def drop(path):
        pq.write_table(pq.read_table(path).drop_columns(["outcome", "http_status"]), path)

    root.rewrite(root.layout.images(ShardId(0)), "00000.parquet", drop)
    assert shard_statistics(root.layout, ShardId(0)).outcomes == {"success": 16, "other": 4}
    assert dataset_statistics(root.layout).by_shard["00001"]["http_4xx"] == 2
