"""A painted scene as the bytes of an image file, and as the path that says how to make them again."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Self

import numpy as np
from PIL import Image

from laion_assets.demo.scenes import MIN_SIDE, Scene, paint

_MAX_SIDE: Final = 4096
_ORIENTATION: Final = 0x0112  # EXIF tag; 6 asks the viewer to turn the picture clockwise by a quarter
_PATH: Final = re.compile(
    r"(?P<seed>[0-9]{1,9})/(?P<width>[0-9]{1,4})x(?P<height>[0-9]{1,4})/(?P<slug>[a-z-]+)\.(?P<encoding>[a-z.]+)"
)


class Encoding(StrEnum):
    """How a picture is encoded; the end of its path."""

    JPEG = "jpg"
    ROTATED_JPEG = "rotated.jpg"
    """Stored on its side, with the EXIF orientation that sets it upright."""
    PNG = "png"
    ALPHA_PNG = "alpha.png"
    """A white background is transparent here, and black to whoever drops the alpha channel."""
    WEBP = "webp"
    GIF = "gif"
    """Animated: the second frame shows another scene."""

    @property
    def content_type(self) -> str:
        """Media type to serve it as."""
        suffix = self.rpartition(".")[2]
        return "image/jpeg" if suffix == "jpg" else f"image/{suffix}"


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture of the demo's web.

    Attributes:
        scene: what it shows.
        seed: settles where and how large the shapes are.
        width: in pixels, as shown (EXIF orientation applied).
        height: in pixels, as shown.
        encoding: how it is encoded.
    """

    scene: Scene
    seed: int
    width: int
    height: int
    encoding: Encoding

    @property
    def path(self) -> str:
        """Everything about the picture: ``17/320x240/three-red-circles-on-a-blue-square.jpg``."""
        slug = self.scene.caption.replace(" ", "-")
        return f"{self.seed}/{self.width}x{self.height}/{slug}.{self.encoding}"

    @classmethod
    def parse(cls, path: str) -> Self | None:
        """The picture that a path describes; None if it describes none."""
        found = _PATH.fullmatch(path)
        if found is None:
            return None
        phrase = found["slug"].replace("-", " ")
        scene = Scene.parse(phrase)
        width, height = int(found["width"]), int(found["height"])
        if (
            scene is None
            or scene.caption != phrase
            or found["encoding"] not in set(Encoding)
            or min(width, height) < MIN_SIDE
            or max(width, height) > _MAX_SIDE
        ):
            return None
        encoding = Encoding(found["encoding"])
        return cls(scene=scene, seed=int(found["seed"]), width=width, height=height, encoding=encoding)

    def encode(self, encoding: Encoding | None = None) -> bytes:
        """The picture's file; equal pictures, equal bytes.

        Args:
            encoding: another encoding than the picture's own.
        """
        picture = paint(self.scene, seed=self.seed, width=self.width, height=self.height)
        file = io.BytesIO()
        match encoding or self.encoding:
            case Encoding.JPEG:
                picture.save(file, "JPEG", quality=90)
            case Encoding.ROTATED_JPEG:
                exif = Image.Exif()
                exif[_ORIENTATION] = 6
                picture.transpose(Image.Transpose.ROTATE_90).save(file, "JPEG", quality=90, exif=exif)
            case Encoding.PNG:
                picture.save(file, "PNG", compress_level=1)
            case Encoding.ALPHA_PNG:
                _with_alpha(picture, self.scene).save(file, "PNG", compress_level=1)
            case Encoding.WEBP:
                picture.save(file, "WEBP", quality=90, method=0)
            case Encoding.GIF:
                swapped = Scene(self.scene.count, self.scene.shape, self.scene.background, self.scene.colour)
                second = paint(swapped, seed=self.seed + 1, width=self.width, height=self.height)
                picture.save(file, "GIF", save_all=True, append_images=[second], duration=500, loop=0)
        return file.getvalue()


def _with_alpha(picture: Image.Image, scene: Scene) -> Image.Image:
    pixels = np.asarray(picture.convert("RGBA")).copy()
    if scene.background == "white":
        pixels[(pixels == pixels[0, 0]).all(axis=2)] = 0
    return Image.fromarray(pixels)
