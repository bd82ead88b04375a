import base64
import html
import io
import json
import re

import pytest
from PIL import Image
from quality_inputs import HOSTILE, SHARDS, copy_root, shared_root

from laion_assets.formats.publish import read_manifest
from laion_assets.layout import Layout, ShardId
from laion_assets.quality.checks import evaluate, rules_of
from laion_assets.quality.thresholds import Thresholds
from laion_assets.stages.dataset_report import write_dataset_report


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    return shared_root(tmp_path_factory)


@pytest.fixture
def root(pristine, tmp_path):
    return copy_root(pristine, tmp_path)


def page_of(layout):
    return layout.dataset_report().path("report.html").read_text(encoding="utf-8")


def figures_of(layout):
    return json.loads(layout.dataset_report().path("report.json").read_text())


def test_the_figures_are_those_of_the_manifests(pristine):
    found = figures_of(pristine)
    images = [read_manifest(pristine.images(shard)) for shard in SHARDS]
    assert found["stages"]["images"] == {
        "partitions": 2, "rows": 40, "bytes": sum(manifest.data_bytes for manifest in images),
    }  # fmt: skip
    assert found["stages"]["embedding_join"]["rows"] == 30
    assert found["statistics"]["rows"] == 40
    examples = sum(read_manifest(pristine.tfds_images(shard)).rows for shard in SHARDS)
    assert found["statistics"]["examples"] == examples


def test_the_page_stands_alone_and_shows_pictures(pristine):
    page = page_of(pristine)
    pictures = re.findall(r'<img alt="([^"]+)" src="data:image/png;base64,([^"]+)">', page)
    assert len(pictures) == page.count("<img") >= 8
    assert "Pictures of shard 00000" in [alt for alt, _ in pictures]
    for _, data in pictures:
        with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as picture:
            picture.load()
            assert picture.width > 500
    assert not re.search(r'(src|href)\s*=\s*(?!"data:image/png)', page)
    assert "40" in page


def test_equal_roots_are_equal_bytes(pristine, root):
    before = read_manifest(pristine.dataset_report())
    root.layout.dataset_report().manifest.unlink()
    assert write_dataset_report(root.layout).files == before.files


def test_it_is_written_again_only_when_something_changed(root):
    first = write_dataset_report(root.layout)
    assert write_dataset_report(root.layout) == first
    root.layout.images(ShardId(1)).manifest.unlink()
    second = write_dataset_report(root.layout)
    assert second.rows == 20
    assert second.recipe != first.recipe


def test_a_manifest_is_read_once(root, opened):
    manifest = root.layout.samples(ShardId(2)).manifest  # of no picture that is shown
    root.layout.dataset_report().manifest.unlink()
    opened.clear()
    write_dataset_report(root.layout)
    assert opened.count(str(manifest)) == 1


def test_text_of_the_data_set_is_never_markup(root):
    table = root.layout.normalized_images(ShardId(0))
    root.rewrite_table(table, table.names[0], lambda rows: rows[0].update(license=HOSTILE, nsfw=HOSTILE))
    output = root.layout.images(ShardId(0))
    url = f"http://{HOSTILE}/"
    name = f"outcome:{HOSTILE}"
    root.rewrite_table(output, "00000.parquet", lambda rows: rows[0].update(url=url), **{name: 1})
    root.rewrite_json(output, "00000_stats.json", lambda stats: stats.update(end_time=HOSTILE))
    write_dataset_report(root.layout)
    page = page_of(root.layout)
    assert "<script" not in page
    assert html.escape("<script>alert(1)</script>") in page
    assert "\x00" not in page
    assert "\u202e" not in page
    for rule in rules_of("dataset_report"):
        assert evaluate(rule, root.layout, Thresholds(), "dataset_report").passed


def test_a_root_without_anything_has_a_report(tmp_path):
    layout = Layout(tmp_path)
    assert write_dataset_report(layout).rows == 0
    assert "<h1>" in page_of(layout)
    assert figures_of(layout)["stages"]["images"]["partitions"] == 0


@pytest.mark.parametrize(
    "markup",
    [
        "<script>1</script>",
        '<a href="http://example.org">x</a>',
        "<img src=//example.org/x.png>",
        '<img src="data:image/svg+xml;base64,AA">',
        "<p onclick=alert(1)>",
        '<meta http-equiv="refresh" content="0;url=http://example.org">',
        '<link rel="stylesheet" href="#">',
        "<form>",
        '<a href=" javascript:alert(1)">x</a>',
    ],
)
def test_the_rule_sees_what_runs_or_asks(root, markup):
    output = root.layout.dataset_report()
    root.rewrite(
        output, "report.html", lambda path: path.write_text(path.read_text().replace("<h1>", f"{markup}<h1>"))
    )
    (rule,) = [rule for rule in rules_of("dataset_report") if rule.name == "page_is_inert"]
    verdict = evaluate(rule, root.layout, Thresholds(), "dataset_report")
    assert (verdict.passed, verdict.offending) == (False, 1)
