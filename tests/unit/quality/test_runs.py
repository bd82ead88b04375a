import json

import pytest
from quality_inputs import SHARDS, copy_root, shared_root

from laion_assets.formats.publish import read_manifest
from laion_assets.layout import Layout
from laion_assets.quality.runs import UNKNOWN_DAY, runs_of


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    return shared_root(tmp_path_factory)


def say(root, shard, **stats):
    output = root.layout.images(shard)
    root.rewrite_json(output, f"{shard}_stats.json", lambda document: document.update(stats))


def test_costs_are_those_of_the_manifests(pristine):
    found = runs_of(pristine)
    manifest = read_manifest(pristine.images(SHARDS[0]))
    cost = found.costs["images"]["00000"]
    assert (cost.rows, cost.seconds, cost.bytes) == (20, manifest.seconds, manifest.bytes)
    assert list(found.costs["samples"]) == ["00000", "00001", "00002"]
    # The root's pictures were never downloaded.
    assert found.downloaded == {UNKNOWN_DAY: 40}


def test_the_day_is_the_one_on_which_the_download_ended(pristine, tmp_path):
    root = copy_root(pristine, tmp_path)
    say(root, SHARDS[0], start_time=1_709_251_190.0, end_time=1_709_251_200.5)
    assert runs_of(root.layout).downloaded == {"2024-03-01": 20, UNKNOWN_DAY: 20}
    say(root, SHARDS[1], end_time=1_709_251_199.9)
    assert list(runs_of(root.layout).downloaded.items()) == [("2024-02-29", 20), ("2024-03-01", 20)]


@pytest.mark.parametrize("ended", ["yesterday", None, [], 1e300, -1e300, float("nan"), {"a": 1}])
def test_what_others_wrote_may_be_anything(pristine, tmp_path, ended):
    root = copy_root(pristine, tmp_path)
    say(root, SHARDS[0], end_time=ended)
    assert runs_of(root.layout).downloaded == {UNKNOWN_DAY: 40}


def test_statistics_that_are_no_json_are_of_no_day(pristine, tmp_path):
    root = copy_root(pristine, tmp_path)
    name = f"{SHARDS[0]}_stats.json"
    for data in (b"{", b"[]", b"\xff", json.dumps([1] * 10).encode()):
        root.rewrite(root.layout.images(SHARDS[0]), name, lambda path, data=data: path.write_bytes(data))
        assert runs_of(root.layout).downloaded == {UNKNOWN_DAY: 40}


def test_without_anything_nothing_was_run(tmp_path):
    found = runs_of(Layout(tmp_path))
    assert found.downloaded == {}
    assert not any(found.costs.values())
