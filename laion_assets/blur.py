"""Blurs parts of a picture, such as faces, beyond recognition."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from PIL import Image, ImageDraw, ImageFilter

Box = tuple[float, float, float, float]
"""Left, upper, right and lower edge, relative to the picture's width and height: within 0 and 1."""

WHOLE: Final[Box] = (0.0, 0.0, 1.0, 1.0)

MOST_BOXES: Final = 1_000
"""With more, the whole picture is blurred."""

# Of the longest side of any box: how far beyond itself each box is blurred, and the blur's standard
# deviation (Yang et al., A Study of Face Obfuscation in ImageNet, 2022; img2dataset's blurrer.py).
_MARGIN: Final = 0.1
_SIGMA: Final = 0.1


def bound_boxes(boxes: Sequence[Sequence[float]]) -> list[Box]:
    """Boxes as :func:`blur` takes them, from anyone's: in doubt, more is blurred.

    One is cut to the picture, its edges are put in order, and an edge that is no number is the
    picture's. One without an area stays so: there is nothing to blur.

    Raises:
        ValueError: if a box lies outside the picture (it may be in pixels), or has not four edges.
    """
    if len(boxes) > MOST_BOXES:
        return [WHOLE]
    return [_bound(box) for box in boxes]


def _bound(box: Sequence[float]) -> Box:
    if len(box) != 4:
        raise ValueError("a box to blur has not four edges")
    x0, y0, x1, y1 = (
        edge if math.isnan(given) else float(given) for given, edge in zip(box, WHOLE, strict=True)
    )
    (x0, x1), (y0, y1) = sorted((x0, x1)), sorted((y0, y1))
    if x1 < 0 or y1 < 0 or x0 > 1 or y0 > 1:
        raise ValueError("a box to blur lies outside the picture")
    return max(x0, 0.0), max(y0, 0.0), min(x1, 1.0), min(y1, 1.0)


def blur(picture: Image.Image, boxes: Sequence[Box]) -> Image.Image:
    """A copy of an RGB picture with the boxes blurred, their edges soft.

    As img2dataset's blurrer, but nothing within a box shows through: there, the blurred picture is mixed
    with a mask that is blurred itself, so that a small box beside a large one stays recognizable; and
    the picture's last row and column are blurred like any others.
    """
    width, height = picture.size
    areas = [
        (math.floor(x0 * width), math.floor(y0 * height), math.ceil(x1 * width), math.ceil(y1 * height))
        for x0, y0, x1, y1 in boxes
        if x1 > x0 and y1 > y0
    ]
    if not areas:
        return picture.copy()
    sides = [max(right - left, lower - upper) for left, upper, right, lower in areas]
    softening = ImageFilter.GaussianBlur(_SIGMA * max(sides))
    mask = Image.new("L", picture.size)
    draw = ImageDraw.Draw(mask)
    for (left, upper, right, lower), side in zip(areas, sides, strict=True):
        margin = _MARGIN * side
        # Pillow fills the right and lower edge, too.
        draw.rectangle((left - margin, upper - margin, right + margin - 1, lower + margin - 1), fill=255)
    mask = mask.filter(softening)
    draw = ImageDraw.Draw(mask)
    for left, upper, right, lower in areas:
        draw.rectangle((left, upper, right - 1, lower - 1), fill=255)
    return Image.composite(picture.filter(softening), picture, mask)
