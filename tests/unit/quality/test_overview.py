import dataclasses
import io

import pytest
from PIL import Image
from quality_inputs import HOSTILE
from test_plots import NOTHING, some

from laion_assets.outcomes import Outcome
from laion_assets.quality.overview import MOST_BYTES, draw_overview
from laion_assets.quality.plots import MISSING_COLOUR, NEUTRAL_COLOUR, SUCCESS_COLOUR
from laion_assets.schema import SIMILARITY_BINS


def drawn(statistics):
    png = draw_overview(statistics)
    assert len(png) <= MOST_BYTES
    with Image.open(io.BytesIO(png)) as picture:
        return picture.convert("RGB")


def pixels(picture, colour, box=None):
    wanted = tuple(int(colour[at : at + 2], 16) for at in (1, 3, 5))
    area = picture.crop(box) if box else picture
    return sum(count for count, found in area.getcolors(1 << 20) if found == wanted)


BAR = (0, 26, 640, 48)


def test_the_bar_is_as_long_as_the_rows_are_many():
    outcomes = {"success": 60, "http_4xx": 30, "set_aside": 10}
    picture = drawn(dataclasses.replace(NOTHING, rows=100, outcomes=outcomes))
    whole = 620 * 22
    assert pixels(picture, SUCCESS_COLOUR, BAR) == pytest.approx(0.6 * whole, rel=0.01)
    assert pixels(picture, MISSING_COLOUR, BAR) == pytest.approx(0.1 * whole, rel=0.02)


def test_a_single_example_is_seen_beside_thousands():
    similarity = [0] * SIMILARITY_BINS
    similarity[10], similarity[40] = 10_000, 1
    picture = drawn(dataclasses.replace(NOTHING, similarity=tuple(similarity)))
    assert pixels(picture, NEUTRAL_COLOUR) == 5 * 64 + 5


def test_equal_figures_are_equal_bytes():
    assert draw_overview(some(rows=276)) == draw_overview(some(rows=276))
    assert draw_overview(some(rows=276)) != draw_overview(NOTHING)


def test_the_largest_is_within_its_bytes():
    outcomes = {str(outcome): 10_000 + 37 * number for number, outcome in enumerate(Outcome)}
    bins = tuple(range(1, 17 * SIMILARITY_BINS, 17))
    drawn(
        some(
            rows=sum(outcomes.values()), similarity_missing=1_000_000, examples=10_000,
            long_sides=(1, 20, 300, 4000, 50, 600, 7, 80, 9),
        )
    )  # fmt: skip
    drawn(dataclasses.replace(NOTHING, rows=sum(outcomes.values()), outcomes=outcomes, similarity=bins))


@pytest.mark.parametrize("text", [HOSTILE, "日本語", "", "\n"])
def test_an_unforeseen_outcome_neither_breaks_it_nor_leaves_it(text):
    drawn(dataclasses.replace(NOTHING, rows=2, outcomes={"success": 1, text: 1}))


def test_nothing_can_be_drawn_too():
    assert drawn(NOTHING).size == (640, 196)
