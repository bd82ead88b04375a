import io
import json
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageDraw

from laion_assets.image import FORMATS, ImagePolicy, Stored, Undecodable, check_and_resize
from laion_assets.outcomes import Outcome

PHOTOS = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "photos"
SMALL = ImagePolicy(size=64)


def encoded(picture, kind="JPEG", **options):
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def noise(width=92, height=70, channels=3):
    rng = np.random.default_rng(7)
    return Image.fromarray(rng.integers(0, 255, (height, width, channels), np.uint8).squeeze())


def quarters(width=160, height=96):
    """Red, green, blue and grey quarters, so that every turn and flip shows."""
    picture = Image.new("RGB", (width, height), (128, 128, 128))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 0, width // 2 - 1, height // 2 - 1), (220, 20, 20))
    draw.rectangle((width // 2, 0, width, height // 2 - 1), (20, 200, 20))
    draw.rectangle((0, height // 2, width // 2 - 1, height), (20, 20, 220))
    return picture


def stored(body, policy=SMALL):
    found = check_and_resize(body, policy)
    assert isinstance(found, Stored), found
    with Image.open(io.BytesIO(found.encoded)) as picture:
        assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (found.width, found.height))
        picture.load()
        return found, picture.copy()


def refused(body, policy=SMALL):
    found = check_and_resize(body, policy)
    assert isinstance(found, Undecodable), found
    assert found.message.isascii()
    assert found.message.isprintable()
    assert len(found.message) <= 200
    return found.outcome


def differs(picture, other):
    return np.abs(np.asarray(picture, np.int16) - np.asarray(other, np.int16)).mean()


# -- formats and modes ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
def test_each_format_becomes_a_three_channel_jpeg(kind):
    found, picture = stored(encoded(quarters(), kind))
    assert (found.width, found.height, found.original_width, found.original_height) == (107, 64, 160, 96)
    assert differs(picture, quarters().resize((107, 64))) < 8


@pytest.mark.parametrize("kind", ["TIFF", "PPM", "ICO", "TGA", "JPEG2000", "AVIF"])
def test_other_formats_are_no_images(kind):
    assert refused(encoded(quarters(), kind)) is Outcome.NOT_AN_IMAGE


@pytest.mark.parametrize(
    "body",
    [b"", b"<!DOCTYPE html><p>gone", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.7", b"\x00" * 9],
)
def test_what_is_no_picture_is_none(body):
    assert refused(body) is Outcome.NOT_AN_IMAGE


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("L", "JPEG"), ("1", "PNG"), ("L", "PNG"), ("P", "PNG"), ("P", "GIF"), ("LA", "PNG"), ("RGBA", "PNG"),
     ("RGBA", "WEBP"), ("CMYK", "JPEG"), ("I;16", "PNG"), ("1", "BMP"), ("RGB", "BMP")],
)  # fmt: skip
@pytest.mark.parametrize("resize", ["no", "keep_ratio", "border", "center_crop"])
def test_every_mode_gives_rgb_whatever_the_resizing(mode, kind, resize):
    picture = quarters().convert(mode) if mode != "I;16" else Image.fromarray(np.zeros((96, 160), np.uint16))
    found, _ = stored(encoded(picture, kind), SMALL.model_copy(update={"mode": resize}))
    sizes = {"no": (160, 96), "keep_ratio": (107, 64), "border": (64, 64), "center_crop": (64, 64)}
    assert (found.width, found.height) == sizes[resize]
    assert (found.original_width, found.original_height) == (160, 96)


def test_transparency_is_laid_on_white():
    picture = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    picture.paste((255, 0, 0, 255), (20, 0, 40, 40))
    for kind in ("PNG", "WEBP"):
        _, found = stored(encoded(picture, kind))
        assert min(found.getpixel((5, 20))) > 245
        red, green, blue = found.getpixel((35, 20))
        assert red > 240
        assert green < 20
        assert blue < 20


def test_a_transparent_palette_entry_or_colour_is_white():
    palette = quarters().quantize(8)
    _, found = stored(encoded(palette, "PNG", transparency=palette.getpixel((0, 0))))
    assert min(found.getpixel((5, 5))) > 240
    _, found = stored(encoded(Image.new("RGB", (40, 40), (1, 2, 3)), "PNG", transparency=(1, 2, 3)))
    assert min(found.getpixel((20, 20))) > 245
    _, found = stored(encoded(Image.new("L", (40, 40), 7), "PNG", transparency=7))
    assert min(found.getpixel((20, 20))) > 245


def test_16_bit_grey_keeps_its_high_bytes():
    ramp = np.tile(np.linspace(0, 65535, 256).astype(np.uint16), (32, 1))
    _, found = stored(encoded(Image.fromarray(ramp), "PNG"))
    grey = np.asarray(found.convert("L"), np.int16)
    assert np.abs(grey - (ramp >> 8)).max() <= 4


def test_cmyk_comes_out_in_its_colours():
    for options in ({}, {"quality": 100, "subsampling": 0}):
        _, found = stored(
            encoded(Image.new("RGB", (64, 64), (200, 30, 60)).convert("CMYK"), "JPEG", **options)
        )
        assert np.abs(np.array(found.getpixel((30, 30))) - (200, 30, 60)).max() < 12


def test_the_first_frame_counts():
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue", "green")]
    for kind in ("GIF", "WEBP", "PNG"):
        _, found = stored(encoded(frames[0], kind, save_all=True, append_images=frames[1:]))
        assert found.getpixel((20, 20))[0] > 240
        assert found.getpixel((20, 20))[2] < 20


# -- orientation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("resize", ["no", "keep_ratio", "center_crop"])
def test_pictures_are_held_upright(orientation, resize):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    body = encoded(quarters(), "JPEG", exif=exif, quality=95)
    found, picture = stored(body, SMALL.model_copy(update={"mode": resize}))
    with Image.open(io.BytesIO(body)) as source:
        upright = ImageOps.exif_transpose(source)
    assert (found.original_width, found.original_height) == upright.size
    assert picture.getexif().get(0x0112, 1) == 1
    if resize == "center_crop":
        upright = ImageOps.fit(upright, (64, 64))
    assert differs(picture, upright.resize(picture.size, Image.Resampling.BICUBIC)) < 6
    assert json.loads(found.exif)["Image Orientation"] == str(orientation)


# -- resizing -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "only_if_bigger", "size", "expected"),
    [
        ("no", True, (300, 200), (300, 200)),
        ("no", False, (30, 20), (30, 20)),
        ("keep_ratio", True, (300, 200), (96, 64)),
        ("keep_ratio", True, (300, 50), (300, 50)),
        ("keep_ratio", False, (300, 32), (600, 64)),
        ("center_crop", True, (300, 200), (64, 64)),
        ("center_crop", True, (65, 64), (65, 64)),
        ("center_crop", False, (30, 20), (64, 64)),
        ("border", True, (300, 200), (64, 64)),
        ("border", True, (64, 20), (64, 20)),
        ("border", False, (30, 20), (64, 64)),
        ("keep_ratio", True, (2000, 65), (1969, 64)),
    ],
)
def test_sizes_are_img2dataset_s(mode, only_if_bigger, size, expected):
    policy = ImagePolicy(size=64, mode=mode, only_if_bigger=only_if_bigger)
    found, _ = stored(encoded(Image.new("RGB", size, "red"), "PNG"), policy)
    assert (found.width, found.height) == expected
    assert (found.original_width, found.original_height) == size


def test_a_border_is_white_and_the_picture_in_its_middle():
    found, picture = stored(
        encoded(Image.new("RGB", (128, 32), "red")), SMALL.model_copy(update={"mode": "border"})
    )
    assert (found.width, found.height) == (64, 64)
    assert min(picture.getpixel((32, 4))) > 245
    assert min(picture.getpixel((32, 60))) > 245
    assert picture.getpixel((32, 32))[0] > 240
    assert picture.getpixel((32, 32))[1] < 20


def test_without_resizing_a_clean_jpeg_is_kept_and_anything_else_encoded():
    policy = ImagePolicy(mode="no")
    clean = encoded(quarters(), quality=60)
    assert check_and_resize(clean, policy).encoded == clean
    exif = Image.Exif()
    exif[0x0112] = 6
    for body in (
        encoded(quarters().convert("L")),
        encoded(quarters(), exif=exif),
        encoded(quarters(), "PNG"),
    ):
        found, _ = stored(body, policy)
        assert found.encoded != body
    assert refused(clean[:-40], policy) is Outcome.UNDECODABLE


def test_a_resized_picture_carries_nothing_along():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x010E] = "secret"
    body = encoded(quarters(), exif=exif, icc_profile=profile, comment=b"secret comment")
    for policy in (SMALL, ImagePolicy(size=512)):
        found, picture = stored(body, policy)
        assert b"secret" not in found.encoded
        assert not {"exif", "icc_profile", "comment"} & picture.info.keys()


def test_equal_bytes_give_equal_pictures():
    body = encoded(noise(400, 300))
    assert check_and_resize(body, SMALL) == check_and_resize(body, SMALL)


# -- what must not be decoded ---------------------------------------------------------------------


def png(width, height, data=b"", kind=2):
    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(10_000, 8_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)])
def test_too_many_pixels_are_refused_before_decoding(size):
    assert refused(png(*size)) is Outcome.TOO_MANY_PIXELS


def test_the_limit_is_the_policy_s():
    body = encoded(Image.new("RGB", (100, 100)))
    assert isinstance(check_and_resize(body, ImagePolicy(max_pixels=10_000)), Stored)
    assert refused(body, ImagePolicy(max_pixels=9_999)) is Outcome.TOO_MANY_PIXELS


def test_a_line_is_not_enlarged_into_a_wall():
    body = encoded(Image.new("L", (1, 60_000)), "PNG")
    policy = ImagePolicy(size=256, only_if_bigger=False)
    assert refused(body, policy) is Outcome.UNDECODABLE
    body = encoded(Image.new("L", (20, 5_000)), "PNG")
    assert (
        refused(body, ImagePolicy(size=256, only_if_bigger=False, max_pixels=1_000_000))
        is Outcome.TOO_MANY_PIXELS
    )


def test_a_side_that_no_jpeg_has_is_refused():
    assert refused(encoded(Image.new("L", (66_000, 10)), "PNG")) is Outcome.UNDECODABLE


def test_a_jpeg_of_many_scans_is_refused():
    body = encoded(noise(), progressive=True)
    scans = body.count(b"\xff\xda")
    assert scans > 3
    assert isinstance(check_and_resize(body, ImagePolicy(max_jpeg_scans=scans)), Stored)
    assert refused(body, ImagePolicy(max_jpeg_scans=scans - 1)) is Outcome.UNDECODABLE


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
@pytest.mark.parametrize("resize", ["no", "keep_ratio"])
def test_a_truncated_picture_is_refused(kind, resize):
    for options in ({}, {"progressive": True}) if kind == "JPEG" else ({},):
        body = encoded(noise(), kind, **options)
        lengths = {len(body) * tenth // 10 for tenth in range(1, 10)} | {
            len(body) - cut for cut in (1, 2, 5, 13, 40)
        }
        for length in lengths:
            policy = SMALL.model_copy(update={"mode": resize})
            assert refused(body[:length], policy) in (Outcome.UNDECODABLE, Outcome.NOT_AN_IMAGE), length


def test_a_gif_may_end_after_its_first_frame_and_not_before():
    frames = [noise(), noise().rotate(90)]
    body = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    one = encoded(frames[0], "GIF")
    assert refused(one[: len(one) // 2]) is Outcome.UNDECODABLE
    assert isinstance(check_and_resize(body[: len(one) + 200], SMALL), Stored)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda body: body[:-12],
        lambda body: body.replace(b"IEND", b"IDOT"),
        lambda body: body[:60] + bytes([body[60] ^ 1]) + body[61:],
        lambda body: body[:-30] + b"\0" * 18 + body[-12:],
        lambda body: body.replace(b"IDAT", b"iDAT", 1),
        lambda body: body[:8] + b"\xff\xff\xff\xff" + body[12:],
        lambda body: body[:8],
    ],
)
def test_a_damaged_png_is_refused(spoil):
    assert refused(spoil(encoded(noise(), "PNG"))) is Outcome.UNDECODABLE


def test_a_png_with_too_little_data_is_refused():
    assert refused(png(50, 50, zlib.compress(b"\0" * 500))) is Outcome.UNDECODABLE


@settings(deadline=None, max_examples=50)
@given(st.sampled_from(FORMATS), st.integers(0, 2**32))
def test_mutated_pictures_are_pictures_or_refused(kind, seed):
    rng = random.Random(seed)
    body = bytearray(encoded(noise(40, 30), kind))
    for _ in range(rng.randint(1, 12)):
        body[rng.randrange(len(body))] = rng.randrange(256)
    policy = ImagePolicy(size=16, max_pixels=1_000_000)
    found = check_and_resize(bytes(body), policy)
    if isinstance(found, Stored):
        stored(bytes(body), policy)
    else:
        refused(bytes(body), policy)


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from([b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\x20\0\0\0WEBPVP8 ", b"GIF89a", b"BM"]),
    st.binary(),
)
def test_a_good_beginning_is_not_enough(start, rest):
    assert refused(start + rest) in (Outcome.UNDECODABLE, Outcome.NOT_AN_IMAGE, Outcome.TOO_MANY_PIXELS)


# -- EXIF -----------------------------------------------------------------------------------------


def test_exif_is_kept_as_text():
    exif = Image.Exif()
    exif[0x010F] = "Maker\0"
    exif[0x011A] = 72.0
    exif.get_ifd(0x8769)[0x829A] = 0.5
    exif.get_ifd(0x8769)[0x927C] = b"maker note" * 100
    found, _ = stored(encoded(quarters(), exif=exif))
    tags = json.loads(found.exif)
    assert tags["Image Make"] == "Maker"
    assert tags["EXIF ExposureTime"] == "0.5"
    assert not any("MakerNote" in name for name in tags)
    assert all(isinstance(value, str) for value in tags.values())


def test_endless_exif_is_bounded():
    exif = Image.Exif()
    for tag in range(0xC000, 0xC000 + 400):
        exif[tag] = "x" * 120
    exif[0x010F] = "y" * 2000
    found, _ = stored(encoded(quarters(), exif=exif))
    assert len(json.loads(found.exif)) <= 100
    assert len(found.exif) < 40_000


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01" * 60]
)
def test_damaged_exif_does_not_spoil_a_picture(exif):
    found, _ = stored(encoded(quarters(), exif=exif))
    assert isinstance(json.loads(found.exif), dict)


# -- real photographs -----------------------------------------------------------------------------


def test_real_photographs_come_out_as_a_full_decode_would_have_them():
    if not PHOTOS.is_dir():
        pytest.skip(f"{PHOTOS} is not there")
    paths = sorted(path for path in PHOTOS.rglob("*") if path.suffix in (".jpg", ".png"))
    assert len(paths) >= 38
    for path in paths:
        found, picture = stored(path.read_bytes(), ImagePolicy())
        with Image.open(path) as source:
            full = source.convert("RGB")
        assert (found.original_width, found.original_height) == full.size
        assert min(picture.size) == 256
        careful = full.resize(picture.size, Image.Resampling.LANCZOS)
        assert differs(picture, careful) < 5, path
