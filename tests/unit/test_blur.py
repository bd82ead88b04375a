import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from laion_assets.blur import MOST_BOXES, WHOLE, blur, bound_boxes


def noise(width=120, height=90):
    return Image.fromarray(np.random.default_rng(7).integers(0, 255, (height, width, 3), np.uint8))


def changed(picture, boxes):
    return (np.asarray(blur(picture, boxes)) != np.asarray(picture)).any(axis=2)


def test_a_box_is_blurred_and_what_is_far_from_it_stays():
    picture = noise()
    box = (0.25, 0.2, 0.5, 0.6)  # 30 to 60 of 120, 18 to 54 of 90
    pixels = np.asarray(blur(picture, [box]), np.float32)
    assert pixels[18:54, 30:60].std() < np.asarray(picture, np.float32).std() / 8
    where = changed(picture, [box])
    assert where[18:54, 30:60].mean() > 0.95
    # A tenth of the longer side around it, and as far as its soft edge fades.
    assert not where[:, 80:].any()
    assert not where[75:].any()


def test_a_small_box_beside_a_large_one_is_blurred_as_much():
    picture = noise(400, 300)
    pixels = np.asarray(blur(picture, [(0.0, 0.0, 0.5, 1.0), (0.9, 0.9, 0.93, 0.94)]), np.float32)
    assert pixels[270:282, 360:372].std() < 8


def test_a_box_at_the_edge_reaches_the_last_row_and_column():
    assert changed(noise(), [(0.8, 0.8, 1.0, 1.0)])[89, 100:].mean() > 0.9


def test_without_boxes_or_with_empty_ones_nothing_changes():
    assert not changed(noise(), []).any()
    assert not changed(noise(), [(0.2, 0.2, 0.2, 0.9), (1.0, 0.0, 1.0, 1.0)]).any()
    assert changed(noise(), [(0.2, 0.2, 0.2001, 0.9)]).any()


def test_equal_boxes_give_equal_pictures():
    boxes = [(0.1, 0.1, 0.4, 0.9), (0.6, 0.3, 0.9, 0.5)]
    assert blur(noise(), boxes).tobytes() == blur(noise(), boxes).tobytes()


def test_odd_boxes_blur_rather_more_than_less():
    assert bound_boxes([(0.6, 0.9, 0.2, 0.1)]) == [(0.2, 0.1, 0.6, 0.9)]
    assert bound_boxes([(-0.5, 0.2, 1.5, math.inf)]) == [(0.0, 0.2, 1.0, 1.0)]
    assert bound_boxes([(math.nan, 0.2, 0.3, 0.4)]) == [(0.0, 0.2, 0.3, 0.4)]
    assert bound_boxes([(math.nan,) * 4]) == [WHOLE]
    assert bound_boxes([(0.1, 0.1, 0.2, 0.2)] * MOST_BOXES) != [WHOLE]
    assert bound_boxes([(0.1, 0.1, 0.2, 0.2)] * (MOST_BOXES + 1)) == [WHOLE]


@pytest.mark.parametrize("box", [(100, 120, 180, 200), (-3, 0, -1, 1), (math.inf, 0, math.inf, 1)])
def test_a_box_outside_the_picture_is_an_error(box):
    with pytest.raises(ValueError, match="a box to blur lies outside the picture"):
        bound_boxes([(0.1, 0.1, 0.2, 0.2), box])


@pytest.mark.parametrize("box", [(), (0.1, 0.2, 0.3), (0.1,) * 5])
def test_a_box_has_four_edges(box):
    with pytest.raises(ValueError, match="four edges"):
        bound_boxes([box])


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.tuples(*[st.floats(width=64)] * 4), max_size=5),
    st.integers(1, 40),
    st.integers(1, 40),
)
def test_any_numbers_are_blurred_or_an_error(boxes, width, height):
    try:
        bounded = bound_boxes(boxes)
    except ValueError:
        return
    assert all(0 <= x0 <= x1 <= 1 and 0 <= y0 <= y1 <= 1 for x0, y0, x1, y1 in bounded)
    assert bound_boxes(bounded) == bounded
    assert blur(noise(width, height), bounded).size == (width, height)
