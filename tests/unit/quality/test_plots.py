import dataclasses
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from quality_inputs import HOSTILE

from laion_assets.quality.plots import draw_plots, draw_runs, join_plots
from laion_assets.quality.runs import Cost, Runs
from laion_assets.quality.statistics import SIZE_LIMITS, Statistics
from laion_assets.schema import SIMILARITY_BINS

NOTHING = Statistics(
    rows=0,
    outcomes={},
    by_shard={},
    examples=0,
    set_aside={},
    similarity=(0,) * SIMILARITY_BINS,
    similarity_missing=0,
    nsfw={},
    long_sides=(0,) * (len(SIZE_LIMITS) + 1),
    licenses={},
    domains={},
    picture_bytes=0,
)


def some(shards=3, **changes):
    by_shard = {f"{n:05d}": {"success": 70 + n % 7, "http_4xx": 20, "set_aside": 2} for n in range(shards)}
    return dataclasses.replace(
        NOTHING,
        by_shard=by_shard,
        outcomes={"success": 210, "http_4xx": 60, "set_aside": 6},
        similarity=tuple(range(SIMILARITY_BINS)),
        nsfw={"UNLIKELY": 200, "NSFW": 10},
        licenses={"?": 200, "": 10},
        domains={"example.org": (276, 210), "(others)": (9, 3)},
        **changes,
    )


def decoded(png):
    with Image.open(io.BytesIO(png)) as picture:
        picture.load()
        return picture.convert("L")


def test_every_plot_is_a_picture_with_something_on_it():
    plots = draw_plots(some(set_aside={"wrong_size": 1}))
    assert set(plots) == {
        "Outcomes by shard", "Success by shard", "Similarity", "Sizes",
        "NSFW tags", "Licences", "Success by domain", "Set aside",
    }  # fmt: skip
    for title, png in plots.items():
        picture = decoded(png)
        assert picture.width == 880, title
        darkest, lightest = picture.getextrema()
        assert darkest < 60
        assert lightest == 255


def test_equal_figures_are_equal_bytes():
    assert draw_plots(some()) == draw_plots(some())
    assert draw_plots(some())["Similarity"] != draw_plots(NOTHING)["Similarity"]


def test_nothing_can_be_drawn_too():
    assert set(draw_plots(NOTHING)) == {"Outcomes by shard", "Success by shard", "Similarity", "Sizes"}


@pytest.mark.parametrize(
    "text",
    [HOSTILE, "$\\frac{a$ and $b$", "日本語 العربية 🙂", "_legend", "", "a\nb", "%s {0}"],
)
def test_foreign_text_neither_breaks_nor_formats_a_plot(text):
    # A warning, such as that of a character the font lacks, would fail this test.
    outcomes = {"success": 1, text: 1}
    counts = {text: 5}
    found = draw_plots(
        dataclasses.replace(
            some(),
            licenses=counts,
            domains={text: (6, 5)},
            set_aside=counts,
            outcomes=outcomes,
            by_shard={"00000": outcomes},
        )
    )
    assert {decoded(png).width for png in found.values()} == {880}


def test_forty_thousand_shards_share_bars():
    assert decoded(draw_plots(some(41_455))["Outcomes by shard"]).width == 880


def runs_of(shards):
    cost = Cost(rows=100, seconds=2.5, bytes=3_000_000)
    keys = [f"{number:05d}" for number in range(shards)]
    return Runs(
        costs={
            "samples": dict.fromkeys(keys, cost),
            "images": dict.fromkeys(keys[:1], cost),
            "duplicates": {},
        },
        downloaded={"2024-02-29": 100, "unknown": 3},
    )


def test_what_the_runs_took_is_drawn():
    plots = draw_runs(runs_of(3))
    assert set(plots) == {
        "Rows by the day of their download (UTC)", "Seconds a shard, by stage", "Megabytes a shard, by stage",
    }  # fmt: skip
    assert {decoded(png).width for png in plots.values()} == {880}
    assert draw_runs(runs_of(3)) == plots
    assert draw_runs(Runs(costs={}, downloaded={})) == {}


def test_plots_are_joined_in_few_bytes():
    plots = draw_plots(some(41_455)) | draw_runs(runs_of(2_000))
    sheet = join_plots(plots)
    assert len(sheet) < 200_000
    picture = decoded(sheet)
    assert picture.width == 880
    assert picture.height > sum(decoded(png).height for png in plots.values())
    assert decoded(join_plots({})).size == (1, 1)


def test_no_state_is_left_in_the_process():
    code = (
        "import sys, laion_assets.quality.contact_sheet, test_plots;"
        "assert 'matplotlib' not in sys.modules;"
        "test_plots.draw_plots(test_plots.some());"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    paths = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": paths})
