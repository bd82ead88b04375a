"""Pictures that can be told in one phrase, and a reader that tells the phrase from the pixels alone.

That is what lets a demo prove itself: whoever mixes up captions and pictures anywhere between the raw
metadata and the finished data set is found out by looking.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

NUMBER_WORDS: Final = ("one", "two", "three", "four", "five", "six")
SHAPES: Final = ("circle", "square", "triangle")

# sRGB, far enough apart (120 or more) that neither JPEG nor resizing takes one for another. No grey and no
# orange: the seam between two other colours looks like them.
PALETTE: Final = {
    "red": (208, 30, 36),
    "green": (34, 142, 58),
    "blue": (36, 66, 200),
    "yellow": (248, 212, 40),
    "black": (22, 22, 26),
    "white": (246, 246, 242),
    "pink": (244, 124, 190),
    "turquoise": (48, 198, 204),
}

MIN_SIDE: Final = 60
"""Pixels below which six shapes are too small to be told apart."""

_PHRASE: Final = re.compile(
    rf"\s*(?P<number>{'|'.join(NUMBER_WORDS)}) (?P<colour>{'|'.join(PALETTE)}) "
    rf"(?P<shape>{'|'.join(SHAPES)})(?P<plural>s?) on a (?P<background>{'|'.join(PALETTE)}) square\b"
)

# Shares of its bounding box that a triangle (1/2), a circle (pi/4) and a square (1) fill; the limits lie
# half-way, so that worn edges and tips do no harm.
_TRIANGLE_BELOW: Final = 0.65
_CIRCLE_BELOW: Final = 0.89

# Shapes of one picture differ by at most 4 in area; anything far below is a speck that compression left.
_SPECK: Final = 0.1


@dataclass(frozen=True, order=True)
class Scene:
    """What one picture shows: ``count`` equal shapes of one colour on a plain background.

    Attributes:
        count: 1 to 6.
        shape: one of :data:`SHAPES`.
        colour: one of :data:`PALETTE`.
        background: another of :data:`PALETTE`; the whole picture is the "square" of the caption.

    Raises:
        ValueError: if a field is none of these.
    """

    count: int
    shape: str
    colour: str
    background: str

    def __post_init__(self) -> None:
        if not 1 <= self.count <= len(NUMBER_WORDS):
            raise ValueError(f"{self.count} shapes: expected 1 to {len(NUMBER_WORDS)}")
        if self.shape not in SHAPES:
            raise ValueError(f"shape {self.shape!r}: expected one of {', '.join(SHAPES)}")
        for colour in (self.colour, self.background):
            if colour not in PALETTE:
                raise ValueError(f"colour {colour!r}: expected one of {', '.join(PALETTE)}")
        if self.colour == self.background:
            raise ValueError(f"{self.colour} on {self.background} cannot be seen")

    @property
    def caption(self) -> str:
        """The phrase: ``three red circles on a blue square``."""
        plural = "s" if self.count > 1 else ""
        number = NUMBER_WORDS[self.count - 1]
        return f"{number} {self.colour} {self.shape}{plural} on a {self.background} square"

    @classmethod
    def parse(cls, caption: str) -> Self | None:
        """The scene that a caption begins with, whatever follows; None if it begins otherwise."""
        found = _PHRASE.match(caption)
        if found is None:
            return None
        count = NUMBER_WORDS.index(found["number"]) + 1
        if (count > 1) != bool(found["plural"]) or found["colour"] == found["background"]:
            return None
        return cls(count, found["shape"], found["colour"], found["background"])

    @classmethod
    def every(cls) -> Iterator[Self]:
        """Each scene there is, in a fixed order."""
        for count in range(1, len(NUMBER_WORDS) + 1):
            for shape in SHAPES:
                for colour in PALETTE:
                    for background in PALETTE:
                        if colour != background:
                            yield cls(count, shape, colour, background)


def paint(scene: Scene, *, seed: int, width: int, height: int) -> Image.Image:
    """Draw a scene; equal arguments give equal pixels.

    The picture is cut into cells, and each shape lies at a random place in a cell of its own, so shapes
    touch neither each other nor the edge.

    Args:
        scene: what to draw.
        seed: settles places and sizes.
        width: of the picture in pixels, at least :data:`MIN_SIDE`.
        height: of the picture in pixels, at least :data:`MIN_SIDE`.

    Returns:
        An RGB picture.

    Raises:
        ValueError: if the picture would be too small.
    """
    if min(width, height) < MIN_SIDE:
        raise ValueError(f"{width} x {height} pixels: expected sides of at least {MIN_SIDE}")
    # Drawn at twice the size and reduced, which smooths the edges as a photograph's are.
    mask = Image.new("L", (2 * width, 2 * height), 0)
    draw = ImageDraw.Draw(mask)
    for left, top, side in _places(scene.count, seed, width, height):
        _draw_shape(draw, scene.shape, 2 * left, 2 * top, 2 * side)
    picture = Image.new("RGB", (width, height), PALETTE[scene.background])
    picture.paste(PALETTE[scene.colour], mask=mask.reduce(2))
    return picture


def _places(count: int, seed: int, width: int, height: int) -> Iterator[tuple[float, float, float]]:
    """Left, top and side of the box of each shape, in pixels."""
    rng = np.random.default_rng(seed)
    grids = [(columns, -(-count // columns)) for columns in range(1, count + 1)]
    columns, rows = max(grids, key=lambda grid: min(width / grid[0], height / grid[1]))
    cell_width, cell_height = width / columns, height / rows
    margin = max(2.0, 0.07 * min(cell_width, cell_height))
    largest = min(cell_width, cell_height) - 2 * margin
    for cell in rng.permutation(columns * rows)[:count].tolist():
        side = largest * rng.uniform(0.55, 1.0)
        left = cell % columns * cell_width + margin
        top = cell // columns * cell_height + margin
        yield (
            left + rng.uniform(0.0, cell_width - 2 * margin - side),
            top + rng.uniform(0.0, cell_height - 2 * margin - side),
            side,
        )


def _draw_shape(draw: ImageDraw.ImageDraw, shape: str, left: float, top: float, side: float) -> None:
    right, bottom = left + side, top + side
    match shape:
        case "circle":
            draw.ellipse((left, top, right, bottom), fill=255)
        case "square":
            draw.rectangle((left, top, right, bottom), fill=255)
        case _:
            draw.polygon([(left, bottom), (left + side / 2, top), (right, bottom)], fill=255)


def read_scene(pixels: npt.NDArray[np.uint8]) -> Scene:
    """Tell a scene from its pixels and nothing else, after whatever lossy coding and resizing.

    Args:
        pixels: uint8 of shape (height, width, 3).

    Raises:
        ValueError: if the array is not of that kind, or shows no scene.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or min(pixels.shape[:2]) < 3:
        raise ValueError(
            f"expected uint8 pixels of shape (height, width, 3), found {pixels.dtype} {pixels.shape}"
        )
    names = tuple(PALETTE)
    nearest = _nearest_colour(pixels)
    border = np.concatenate([nearest[0], nearest[-1], nearest[:, 0], nearest[:, -1]])
    background = int(np.bincount(border).argmax())
    others = np.bincount(nearest.reshape(-1), minlength=len(names))
    others[background] = 0
    if not others.any():
        raise ValueError(f"nothing but {names[background]}")
    colour = int(others.argmax())
    blobs = _blobs(_towards(pixels, names[background], names[colour]))
    if not blobs:
        raise ValueError(f"no shape on {names[background]}")
    largest = max(area for area, _ in blobs)
    fills = [area / box for area, box in blobs if area > _SPECK * largest]
    fill = float(np.median(fills))
    shape = "triangle" if fill < _TRIANGLE_BELOW else "circle" if fill < _CIRCLE_BELOW else "square"
    return Scene(len(fills), shape, names[colour], names[background])


def _nearest_colour(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.intp]:
    """Index of the palette's nearest colour for each pixel: int of shape (height, width)."""
    colours = np.array(list(PALETTE.values()), np.float32)
    # Squared distance less the pixel's own square, which is the same for every colour.
    distances = (colours**2).sum(axis=1) - 2 * (pixels.astype(np.float32) @ colours.T)
    nearest: npt.NDArray[np.intp] = distances.argmin(axis=2)
    return nearest


def _towards(pixels: npt.NDArray[np.uint8], background: str, colour: str) -> npt.NDArray[np.bool_]:
    """Which pixels lie nearer the colour than the background on the line between the two.

    A seam's pixels are mixtures of both, and may be nearest to a third colour; on the line they are not.
    """
    start = np.array(PALETTE[background], np.float32)
    line = np.array(PALETTE[colour], np.float32) - start
    along: npt.NDArray[np.bool_] = (pixels.astype(np.float32) - start) @ line > 0.5 * (line @ line)
    return along


def _blobs(mask: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Area and bounding box's area, in pixels, of each connected (4-neighbour) blob.

    Rows are cut into runs; runs of neighbouring rows that share a column are one blob.
    """
    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    runs = np.column_stack([*np.nonzero(edges == 1), np.nonzero(edges == -1)[1]]).tolist()
    parents = list(range(len(runs)))

    def root(run: int) -> int:
        while parents[run] != run:
            run = parents[run]
        return run

    above: list[int] = []
    current: list[int] = []
    row = -1
    for index, (y, start, stop) in enumerate(runs):
        if y != row:
            above, current, row = (current if y == row + 1 else []), [], y
        for other in above:
            if runs[other][1] < stop and start < runs[other][2]:
                parents[root(index)] = root(other)
        current.append(index)

    members: dict[int, list[list[int]]] = {}
    for index, run in enumerate(runs):
        members.setdefault(root(index), []).append(run)
    return [_measure(blob) for blob in members.values()]


def _measure(blob: list[list[int]]) -> tuple[int, int]:
    rows = blob[-1][0] - blob[0][0] + 1
    columns = max(stop for _, _, stop in blob) - min(start for _, start, _ in blob)
    return sum(stop - start for _, start, stop in blob), rows * columns
