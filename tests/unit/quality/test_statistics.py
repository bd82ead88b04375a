import pytest
from quality_inputs import HOSTILE, SHARDS, copy_root, shared_root

from laion_assets.errors import MissingInput
from laion_assets.layout import Layout, ShardId
from laion_assets.quality.statistics import (
    NONE,
    OTHERS,
    SIZE_LIMITS,
    dataset_statistics,
    shard_statistics,
)
from laion_assets.schema import SIMILARITY_BINS


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
    for counts in (found.nsfw, found.licenses):
        assert sum(counts.values()) == found.examples
    assert sum(found.similarity) + found.similarity_missing == found.examples
    assert found.similarity_missing == 1
    assert found.long_sides[SIZE_LIMITS.index(512)] == sum(found.long_sides) == found.examples
    assert found.picture_bytes > 16 * 100
    assert list(found.nsfw) == ["UNLIKELY", "UNSURE", "NSFW", "UNTAGGED"]


def test_the_data_set_is_the_sum_of_its_shards(pristine):
    whole = dataset_statistics(pristine)
    shards = [shard_statistics(pristine, shard) for shard in SHARDS]
    assert whole.rows == sum(shard.rows for shard in shards)
    assert whole.examples == sum(shard.examples for shard in shards)
    assert list(whole.by_shard) == ["00000", "00001"]
    assert dict(whole.nsfw) == {tag: sum(shard.nsfw[tag] for shard in shards) for tag in whole.nsfw}
    for name in ("similarity", "long_sides"):
        parts = [getattr(shard, name) for shard in shards]
        assert getattr(whole, name) == tuple(map(sum, zip(*parts, strict=True)))
    assert whole.picture_bytes == sum(shard.picture_bytes for shard in shards)
    # Rows that were set aside were not asked for; every host is one domain's.
    assert whole.domains == {"example.org": (38, whole.outcomes["success"])}


def test_without_shards_all_is_zero(tmp_path):
    found = dataset_statistics(Layout(tmp_path))
    assert (found.rows, found.examples, found.success_share, found.picture_bytes) == (0, 0, 0.0, 0)
    assert (sum(found.similarity), dict(found.domains), dict(found.licenses)) == (0, {}, {})


def test_a_shard_that_is_not_there_is_named(pristine):
    with pytest.raises(MissingInput, match="images 00002"):
        shard_statistics(pristine, ShardId(2))


def test_an_unfinished_shard_is_left_out(root):
    root.layout.normalized_images(ShardId(1)).manifest.unlink()
    found = dataset_statistics(root.layout)
    assert (len(found.by_shard), found.examples) == (2, 16)


@pytest.mark.parametrize("count", [lambda layout: shard_statistics(layout, ShardId(0)), dataset_statistics])
def test_values_at_the_edge_of_classes(root, count):
    output = root.layout.normalized_images(ShardId(0))
    # On the edge of a bin, beyond the last, and missing.
    similarities = [0.0, 0.02, 0.3, 1.0, 1.001, -1.0]
    sides = [1, 64, 65, 8192, 8193, 100_000]

    def change(rows):
        for row, similarity, side in zip(rows, similarities, sides, strict=False):
            row.update(similarity=similarity, original_width=side, original_height=1)
        return rows[:6]

    root.rewrite_table(output, output.names[0], change)
    root.layout.normalized_images(ShardId(1)).manifest.unlink()
    found = count(root.layout)
    assert (found.similarity[0], found.similarity[1], found.similarity[15]) == (1, 1, 1)
    assert (found.similarity[SIMILARITY_BINS - 1], found.similarity_missing) == (2, 1)
    assert found.long_sides == (2, 1, 0, 0, 0, 0, 0, 1, 2)


def test_many_and_hostile_values_are_bounded_and_harmless(root):
    output = root.layout.normalized_images(ShardId(0))

    def change(rows):
        many = [rows[0] | {"license": f"{n % 40} {HOSTILE}"} for n in range(60)]
        return [*many, rows[0] | {"license": ""}]

    root.rewrite_table(output, output.names[0], change)
    root.layout.normalized_images(ShardId(1)).manifest.unlink()
    for found in (shard_statistics(root.layout, ShardId(0)), dataset_statistics(root.layout)):
        assert len(found.licenses) == 21
        assert sum(found.licenses.values()) == 61
        assert all(name.isprintable() and len(name) <= 80 for name in found.licenses)
        assert OTHERS in found.licenses


def of_urls(root, urls):
    """The data set's figures, its first shard being of rows with these URLs, and the other gone."""

    def change(rows):
        return [rows[0] | {"url": url, "key": f"{number:07d}"} for number, url in enumerate(urls)]

    root.rewrite_table(root.layout.images(ShardId(0)), "00000.parquet", change)
    root.layout.images(ShardId(1)).manifest.unlink()
    return dataset_statistics(root.layout)


def test_many_domains_are_bounded_and_what_is_left_is_counted(root):
    found = of_urls(root, [f"http://{n % 2}.h{n // 2}.org/" for n in range(60)]).domains
    assert len(found) == 21
    assert found["h0.org"] == (2, 2)
    assert found[OTHERS] == (20, 20)


@pytest.mark.parametrize(
    ("url", "domain"),
    [
        ("https://user:pa@ss@www.Example.ORG:8443/p?q#f", "example.org"),
        ("http://example.org", "example.org"),
        ("http://a.b.example.co.uk/", "example.co.uk"),
        ("http://example.org?x@evil.org/", "example.org"),
        ("HTTPS://EXAMPLE.org#@x", "example.org"),
        ("http://192.0.2.1:80/x", "192.0.2.1"),
        ("http://[2001:db8::1]/x", "[2001:db8::1]"),
        ("http://co.uk/", "co.uk"),
        ("http://..", ".."),
        ("http://b\u00fccher.example/", "b\u00fccher.example"),
        ("http://\u202egnp.\x00example/", "\\u202egnp.\\x00example"),
        ("http://" + "a." * 5_000 + "example.org/", "example.org"),
        ("nonsense", NONE),
        (None, NONE),
    ],
)
def test_the_domain_is_the_one_that_is_asked(root, url, domain):
    assert of_urls(root, [url]).domains == {domain: (1, 1)}


def test_a_table_of_img2dataset_has_no_classes_of_outcomes(root):
    import pyarrow.parquet as pq

    def drop(path):
        pq.write_table(pq.read_table(path).drop_columns(["outcome", "http_status"]), path)

    # Manifests of older versions count no outcomes.
    none = dict.fromkeys(("outcome:success", "outcome:http_4xx", "outcome:set_aside"), 0)
    root.rewrite(root.layout.images(ShardId(0)), "00000.parquet", drop, **none)
    assert shard_statistics(root.layout, ShardId(0)).outcomes == {"success": 16, "other": 4}
    whole = dataset_statistics(root.layout)
    assert whole.by_shard["00001"]["http_4xx"] == 2
    # Without an outcome a row that was set aside cannot be told from one that was asked for.
    assert whole.domains["example.org"] == (39, whole.outcomes["success"])
