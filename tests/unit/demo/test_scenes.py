import io
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from laion_assets.demo.scenes import MIN_SIDE, NUMBER_WORDS, PALETTE, SHAPES, Scene, paint, read_scene

scenes = st.sampled_from(list(Scene.every()))


def test_palette_is_well_separated() -> None:
    colours = np.array(list(PALETTE.values()), float)
    distances = np.linalg.norm(colours[:, None] - colours[None], axis=2)
    assert distances[~np.eye(len(colours), dtype=bool)].min() > 120


def test_captions_are_in_english() -> None:
    assert Scene(3, "circle", "red", "blue").caption == "three red circles on a blue square"
    assert Scene(1, "circle", "red", "blue").caption == "one red circle on a blue square"


def test_every_scene_is_there_once_and_has_a_caption_of_its_own() -> None:
    every = list(Scene.every())
    expected = len(NUMBER_WORDS) * len(SHAPES) * len(PALETTE) * (len(PALETTE) - 1)
    assert len({scene.caption for scene in every}) == len(every) == expected
    assert all(Scene.parse(scene.caption) == scene for scene in every)


@pytest.mark.parametrize(
    ("count", "shape", "colour", "background"),
    [
        (0, "circle", "red", "blue"),
        (7, "circle", "red", "blue"),
        (1, "hexagon", "red", "blue"),
        (1, "circle", "grey", "blue"),
        (1, "circle", "red", ""),
        (1, "circle", "red", "red"),
    ],
)
def test_no_other_scene_can_be_had(count: int, shape: str, colour: str, background: str) -> None:
    with pytest.raises(ValueError, match=r"expected|cannot be seen"):
        Scene(count, shape, colour, background)


@given(scenes, st.text(max_size=30).filter(lambda text: not text[:1].isalnum() and text[:1] != "_"))
@settings(deadline=None, max_examples=50)
def test_the_phrase_is_found_whatever_follows(scene: Scene, dirt: str) -> None:
    assert Scene.parse(scene.caption + dirt) == scene
    assert Scene.parse("\n " + scene.caption + dirt) == scene


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "two",
        "Photo of one red circle on a blue square",
        "one red circles on a blue square",
        "two red circle on a blue square",
        "one red circle on a red square",
        "seven red circles on a blue square",
        "one grey circle on a blue square",
        "one red circle on a blue squares",
        "one red circle on a blue squareroot",
        "onered circle on a blue square",
        "one red  circle on a blue square",
        "one red circle on a blue",
    ],
)
def test_any_other_phrase_is_none(caption: str) -> None:
    assert Scene.parse(caption) is None


def test_equal_arguments_give_equal_pixels_and_seeds_differ() -> None:
    scene = Scene(4, "square", "pink", "black")
    first, again, other = (paint(scene, seed=seed, width=200, height=150) for seed in (5, 5, 6))
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != other.tobytes()
    assert (first.size, first.mode) == ((200, 150), "RGB")


def test_too_small_a_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 60"):
        paint(Scene(6, "circle", "red", "blue"), seed=1, width=MIN_SIDE - 1, height=200)


@given(scenes, st.integers(0, 10**9), st.integers(MIN_SIDE, 500), st.integers(MIN_SIDE, 500))
@settings(deadline=None, max_examples=50)
def test_shapes_touch_neither_the_edge_nor_each_other(
    scene: Scene, seed: int, width: int, height: int
) -> None:
    pixels = np.asarray(paint(scene, seed=seed, width=width, height=height))
    empty = (pixels == PALETTE[scene.background]).all(axis=2)
    assert all(edge.all() for edge in (empty[0], empty[-1], empty[:, 0], empty[:, -1]))
    assert read_scene(pixels) == scene


def recode(picture: Image.Image, kind: str, quality: int) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, kind, quality=quality)
    return Image.open(file).convert("RGB")


@given(
    scene=scenes,
    seed=st.integers(0, 10**9),
    long=st.integers(120, 700),
    aspect=st.floats(9 / 16, 1.0),  # the narrowest that the demo makes
    upright=st.booleans(),
    kind=st.sampled_from(["JPEG", "PNG", "WEBP", "GIF"]),
    quality=st.sampled_from([80, 90, 95]),
    side=st.sampled_from([None, 128, 256, 300]),
    filter_=st.sampled_from(
        [Image.Resampling.BOX, Image.Resampling.HAMMING, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS]
    ),
)
@settings(deadline=None, max_examples=150)
def test_a_scene_is_read_back_after_coding_and_resizing(
    scene: Scene,
    seed: int,
    long: int,
    aspect: float,
    upright: bool,
    kind: str,
    quality: int,
    side: int | None,
    filter_: Image.Resampling,
) -> None:
    short = max(MIN_SIDE, round(long * aspect))
    width, height = (short, long) if upright else (long, short)
    served = recode(paint(scene, seed=seed, width=width, height=height), kind, quality)
    if side is not None:
        scale = side / short
        served = served.resize((round(width * scale), round(height * scale)), filter_)
    assert read_scene(np.asarray(recode(served, "JPEG", 95))) == scene


@pytest.mark.slow
def test_every_scene_is_read_back() -> None:
    for seed, scene in enumerate(Scene.every()):
        picture = paint(scene, seed=seed, width=160, height=120)
        enlarged = recode(picture, "JPEG", 90).resize((341, 256), Image.Resampling.BICUBIC)
        assert read_scene(np.asarray(recode(enlarged, "JPEG", 95))) == scene


def test_specks_are_not_counted() -> None:
    scene = Scene(2, "circle", "red", "blue")
    pixels = np.asarray(paint(scene, seed=1, width=256, height=256)).copy()
    pixels[3:6, 3:6] = PALETTE["red"]
    assert read_scene(pixels) == scene


def test_shapes_that_touch_at_a_corner_only_are_two() -> None:
    pixels = np.full((60, 60, 3), PALETTE["white"], np.uint8)
    pixels[10:20, 10:20] = PALETTE["black"]
    pixels[20:30, 20:30] = PALETTE["black"]
    assert read_scene(pixels) == Scene(2, "square", "black", "white")


def test_arms_that_meet_further_down_are_one_shape() -> None:
    pixels = np.full((60, 60, 3), PALETTE["white"], np.uint8)
    for left in (10, 20, 30, 40):  # a comb, whose teeth are joined by the last row only
        pixels[10:40, left : left + 5] = PALETTE["black"]
    pixels[40:45, 10:45] = PALETTE["black"]
    assert read_scene(pixels).count == 1


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((10, 10), np.uint8),
        np.zeros((10, 10, 4), np.uint8),
        np.zeros((10, 10, 3), np.float32),
        np.zeros((0, 10, 3), np.uint8),
        np.zeros((1, 1, 3), np.uint8),
        np.full((50, 50, 3), 255, np.uint8),
    ],
)
def test_what_shows_no_scene_is_refused(pixels: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"expected uint8|nothing but"):
        read_scene(pixels)


@given(st.integers(0, 2**32 - 1), st.integers(3, 40), st.integers(3, 40))
@settings(deadline=None, max_examples=50)
def test_noise_is_read_as_something_or_refused_and_never_crashes(seed: int, height: int, width: int) -> None:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    with suppress(ValueError):
        assert isinstance(read_scene(noise), Scene)
