import base64
import io

import dagster as dg
import pytest
from dagster._serdes import serialize_value
from PIL import Image
from quality_inputs import SHARDS, shared_root

from laion_assets.defs.assembly import build_definitions
from laion_assets.defs.metadata import MOST_PICTURE_BYTES, columns_of, metadata_of, picture
from laion_assets.formats.publish import FileRecord, Manifest, Recipe, read_manifest
from laion_assets.outcomes import OUTCOME_PREFIX
from laion_assets.pipeline import STAGE_BY_NAME, STAGES
from laion_assets.published import output_of
from laion_assets.quality import overview, thumbnails
from laion_assets.schema import COUNTED
from laion_assets.settings import RecordSettings, Settings

# An event is this and some 600 bytes of Dagster's own.
MOST_BYTES_OF_FIGURES = 14_000
FULL = RecordSettings(overview=True, thumbnails=12)


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    return shared_root(tmp_path_factory)


def settings_of(layout, records=FULL):
    return Settings(data_root=layout.root, records=records)


def metadata(layout, stage, key, records=FULL):
    manifest = read_manifest(output_of(layout, stage, key))
    return metadata_of(STAGE_BY_NAME[stage], settings_of(layout, records), manifest)


def stored_bytes(found):
    return len(serialize_value(dg.AssetMaterialization("asset", metadata=found)))


def png_of(value):
    before, data = value.md_str.removesuffix(")").split("(data:image/png;base64,")
    assert before.startswith("![")
    return base64.b64decode(data, validate=True)


# -- of a stage -----------------------------------------------------------------------------------


def test_columns_and_their_origins_are_in_the_definition(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    graph = build_definitions(Settings.load()).resolve_asset_graph()
    node = graph.get(dg.AssetKey("tfds_images"))
    lineage = node.metadata["dagster/column_lineage"].deps_by_column
    assert lineage["url"] == [
        dg.TableColumnDep(asset_key=dg.AssetKey("normalized_images"), column_name="url")
    ]
    described = {column.name: column.description for column in node.metadata["dagster/column_schema"].columns}
    assert described["nsfw"].endswith(" ← normalized_images.nsfw")
    # A column of no other is described without an arrow, and a stage of such columns has no lineage.
    assert set(columns_of(STAGE_BY_NAME["raw_metadata"])) == {"dagster/column_schema"}
    assert not columns_of(STAGE_BY_NAME["shard_plan"])


# -- of a partition -------------------------------------------------------------------------------


def test_figures_are_numbers_that_can_be_plotted(layout):
    found = metadata(layout, "images", "00000")
    manifest = read_manifest(layout.images(SHARDS[0]))
    assert found["dagster/row_count"] == dg.MetadataValue.int(20)
    assert found["success"] == dg.MetadataValue.int(16)
    # Of the 18 that were asked for.
    assert found["success share"] == dg.MetadataValue.float(0.888889)
    assert found["bytes"] == dg.MetadataValue.int(manifest.bytes)
    assert found["seconds"] == dg.MetadataValue.float(manifest.seconds)
    assert isinstance(found["bytes per row"], dg.FloatMetadataValue)
    assert found["counts"].value == dict(manifest.counts)
    assert found["files"].value["00000.tar"]["bytes"] == manifest.files["00000.tar"].bytes


def test_a_stage_that_took_no_time_or_has_no_rows_has_no_rates():
    nothing = Manifest(
        stage="images", partition="00000", recipe=Recipe(code_version="1"),
        files={}, rows=0, counts={}, seconds=0.0, versions={},
    )  # fmt: skip
    found = metadata_of(STAGE_BY_NAME["images"], Settings(), nothing)
    assert set(found) == {"dagster/row_count", "bytes", "seconds", "counts", "files"}


def test_no_event_holds_more_bytes_than_is_said():
    # Every name that there is, with more rows than a part has, and as many foreign tags as are named.
    tags = {f"nsfw:'{number:02d}{'x' * 38}' -> UNTAGGED": 10**9 for number in range(20)}
    counts = dict.fromkeys(COUNTED, 10**9) | tags
    counts |= dict.fromkeys(
        ("success", "failed", "set_aside", "examples", "unmatched", "bytes_downloaded"), 10**13
    )
    record = FileRecord(bytes=10**13, blake3="f" * 64, xxh3_128="f" * 32)
    largest = Manifest(
        stage="images", partition="p" * 200, recipe=Recipe(code_version="1"),
        files={f"{'p' * 200}{number}": record for number in range(5)},
        rows=10**9, counts=counts, seconds=0.001, versions={},
    )  # fmt: skip
    found = metadata_of(STAGE_BY_NAME["images"], Settings(), largest)
    assert stored_bytes(found) < MOST_BYTES_OF_FIGURES


def test_every_stage_is_told_of_in_few_bytes(layout):
    for stage in STAGES:
        key = {"raw_metadata": "part-a"}.get(stage.name, "00000" if stage.axis.value else stage.name)
        output = output_of(layout, stage.name, key)
        key = key if read_manifest(output) is not None else stage.name
        found = metadata(layout, stage.name, key)
        pictures = {
            name: value for name, value in found.items() if isinstance(value, dg.MarkdownMetadataValue)
        }
        figures = {name: value for name, value in found.items() if name not in pictures}
        assert stored_bytes(figures) < 3_500, stage.name
        assert bool(pictures) == (stage.pictures is not None)


# -- pictures -------------------------------------------------------------------------------------


def test_pictures_are_of_few_bytes_and_as_many_as_are_asked_for(layout):
    found = metadata(layout, "normalized_images", "00000")
    for title, most in (("overview", overview.MOST_BYTES), ("pictures", 12 * thumbnails.MOST_BYTES_EACH)):
        png = png_of(found[title])
        assert len(png) <= most
        with Image.open(io.BytesIO(png)) as shown:
            shown.load()
            assert shown.format == "PNG"
    by_default = metadata(layout, "normalized_images", "00000", RecordSettings())
    assert [name for name, value in by_default.items() if isinstance(value, dg.MarkdownMetadataValue)] == [
        "overview"
    ]
    none = metadata(layout, "normalized_images", "00000", RecordSettings(overview=False))
    assert not [name for name, value in none.items() if isinstance(value, dg.MarkdownMetadataValue)]


def test_the_report_shows_its_plots(layout):
    found = metadata(layout, "dataset_report", "dataset_report")
    output = layout.dataset_report()
    assert png_of(found["data set"]) == output.path("report.png").read_bytes()
    assert png_of(found["runs"]) == output.path("runs.png").read_bytes()


@pytest.mark.parametrize(
    ("title", "png"),
    [
        ("overview", b"<svg onload=alert(1)>"),
        ("overview", b"\xff\xd8\xff\xe0 a JPEG"),
        ("overview", b""),
        ("](x) ![", b"\x89PNG\r\n\x1a\n"),
        ("<img src=x>", b"\x89PNG\r\n\x1a\n"),
        ("", b"\x89PNG\r\n\x1a\n"),
        ("overview", b"\x89PNG\r\n\x1a\n" + b"x" * MOST_PICTURE_BYTES),
    ],
)
def test_nothing_else_becomes_markup(title, png):
    with pytest.raises(ValueError, match=r"event may hold|not a PNG"):
        picture(title, png)


def test_no_figure_is_markup_whatever_a_manifest_says():
    hostile = "![x](https://example.org)<script>"
    manifest = Manifest(
        stage="images", partition="00000", recipe=Recipe(code_version="1"), files={},
        rows=1, counts={f"{OUTCOME_PREFIX}{hostile}": 1}, seconds=1.0, versions={},
    )  # fmt: skip
    found = metadata_of(STAGE_BY_NAME["images"], Settings(), manifest)
    assert hostile in next(iter(found["counts"].value))
    numbers = (dg.IntMetadataValue, dg.FloatMetadataValue, dg.JsonMetadataValue)
    assert all(isinstance(value, numbers) for value in found.values())
