import re
import resource
import shutil

import duckdb
import pytest
from quality_inputs import PART, SHARDS, copy_root, shared_root

from laion_assets.errors import StorageError
from laion_assets.formats.publish import done, read_manifest
from laion_assets.layout import Layout, ShardId
from laion_assets.stages.catalog import write_catalog
from laion_assets.stages.normalized_images import normalize_images

VIEWS = {
    "raw_metadata", "duplicates", "samples", "images", "normalized_images", "normalized_images_set_aside",
    "embedding_join",
    "normalized_embeddings", "normalized_embeddings_set_aside", "image_embeddings", "image_requests",
    "shards",
}  # fmt: skip


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    return shared_root(tmp_path_factory)


@pytest.fixture
def layout(pristine, tmp_path):
    # A folder whose name means something to SQL, and to patterns of file names.
    return copy_root(pristine, tmp_path / "it's [a] *root").layout


def ask(layout, query):
    with duckdb.connect(str(layout.catalog().only), read_only=True) as catalog:
        return catalog.execute(query).fetchall()


def count(layout, view, where="true"):
    return ask(layout, f"SELECT count(*) FROM {view} WHERE {where}")[0][0]


def test_every_view_holds_what_its_stage_published(layout):
    write_catalog(layout)
    assert {name for (name,) in ask(layout, "SHOW TABLES")} == VIEWS | {"example_queries"}
    assert count(layout, "raw_metadata", f"part = '{PART}'") == 50
    assert ask(layout, "SELECT shard, count(*) FROM samples GROUP BY ALL ORDER BY ALL") == [
        ("00000", 20), ("00001", 20), ("00002", 10),
    ]  # fmt: skip
    assert ask(layout, "SELECT part, rows, url_null FROM duplicates") == [(PART, 50, 1), (None, 50, 1)]
    assert count(layout, "images") == 40
    assert count(layout, "normalized_images") == read_rows(layout, layout.normalized_images)
    assert count(layout, "normalized_images_set_aside") == 0
    assert count(layout, "image_embeddings") == read_rows(layout, layout.image_embeddings)
    assert count(layout, "embedding_join", "embedding_shard = '00000'") == 30
    assert count(layout, "normalized_embeddings") == 30


def read_rows(layout, output):
    return sum(read_manifest(output(shard)).rows for shard in SHARDS)


def test_manifests_are_a_table(layout):
    write_catalog(layout)
    found = ask(layout, "SELECT partition, rows, bytes, counts['success'] FROM shards WHERE stage = 'images'")
    manifest = read_manifest(layout.images(ShardId(0)))
    assert ("00000", 20, manifest.bytes, 16) in found
    assert len(found) == 2
    stages = {stage for (stage,) in ask(layout, "SELECT DISTINCT stage FROM shards")}
    assert {"raw_metadata", "shard_plan", "tfds_images", "laion400m_images", "embeddings"} <= stages


def test_every_example_query_runs_and_finds_something(layout):
    write_catalog(layout)
    queries = ask(layout, "SELECT question, query FROM example_queries")
    assert len(queries) >= 5
    empty = []
    for question, query in queries:
        if not ask(layout, query):
            empty.append(question)
    assert empty == ["The pictures that are stored more than once."]


def test_every_view_and_column_is_described(layout):
    write_catalog(layout)
    views = ask(layout, "SELECT view_name, comment FROM duckdb_views() WHERE NOT internal")
    assert {name for name, comment in views if comment} == VIEWS
    columns = ask(
        layout, "SELECT table_name, column_name FROM duckdb_columns() WHERE NOT internal AND comment IS NULL"
    )
    assert columns == []


def test_a_root_without_anything_has_a_catalog(tmp_path):
    layout = Layout(tmp_path / "data")
    assert write_catalog(layout).rows == 0
    for view in VIEWS:
        assert count(layout, view) == 0
    for _, query in ask(layout, "SELECT * FROM example_queries"):
        assert ask(layout, query) == []
    assert [name for name, *_ in ask(layout, "DESCRIBE images")][:4] == ["shard", "caption", "url", "NSFW"]


def test_views_show_what_is_published_and_nothing_else(layout):
    write_catalog(layout)
    layout.samples(ShardId(1)).manifest.unlink()
    assert count(layout, "samples") == 30
    folder = layout.samples(ShardId(0)).folder
    shutil.copyfile(layout.samples(ShardId(0)).only, folder / "00009.parquet")
    assert count(layout, "samples") == 30


def test_a_shard_added_later_is_in_the_views_at_once(layout):
    aside = layout.root.parent / "aside"
    output = layout.normalized_images(ShardId(1))
    output.manifest.rename(aside)
    write_catalog(layout)
    before = count(layout, "normalized_images")
    normalize_images(ShardId(1), layout)
    assert count(layout, "normalized_images") > before
    assert count(layout, "shards", "stage = 'normalized_images'") == 2


def test_it_is_written_again_only_when_something_changed(layout, tmp_path):
    first = write_catalog(layout)
    assert write_catalog(layout) == first
    layout.samples(ShardId(2)).manifest.unlink()
    second = write_catalog(layout)
    assert second.recipe != first.recipe
    # Its paths are absolute, so a root that was moved gets another.
    moved = Layout(tmp_path / "moved")
    layout.root.rename(moved.root)
    third = write_catalog(moved)
    assert third.recipe != second.recipe
    assert count(moved, "samples") == 40


def test_shards_that_img2dataset_made_show_beside_ours(pristine, tmp_path):
    import pyarrow.parquet as pq

    root = copy_root(pristine, tmp_path)

    def as_img2dataset(path):
        table = pq.read_table(path).drop_columns(["outcome", "http_status", "exif"])
        pq.write_table(table.select(table.column_names[::-1]), path)

    for shard in SHARDS:
        root.rewrite(root.layout.images(shard), f"{shard}.parquet", as_img2dataset)
        write_catalog(root.layout)
        assert count(root.layout, "images") == 40
        assert count(root.layout, "images", f"shard = '{shard}' AND outcome IS NULL") == 20
    assert ask(root.layout, "SELECT DISTINCT status FROM images ORDER BY ALL") == [
        ("failed_to_download",), ("success",),
    ]  # fmt: skip


@pytest.mark.parametrize("kilobytes", [8, 16, 32, 64, 128, 256, 512])
def test_a_catalog_that_could_not_be_written_whole_is_not_published(layout, kilobytes):
    # DuckDB closes a database whose last write failed without a word, and it is empty then.
    layout.catalog().manifest.unlink()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (kilobytes << 10, limits[1]))
    try:
        write_catalog(layout)
    except StorageError:
        assert done(layout.catalog()) is None
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    write_catalog(layout)
    assert {name for (name,) in ask(layout, "SHOW TABLES")} == VIEWS | {"example_queries"}


def test_the_documented_queries_are_those_of_the_catalog(layout, request):
    text = (request.config.rootpath / "docs" / "catalog.md").read_text()
    documented = re.findall(r"\n\n([^\n]+)\n\n```sql\n(.*?)\n```", text, re.DOTALL)
    write_catalog(layout)
    assert documented == ask(layout, "SELECT question, query FROM example_queries")
