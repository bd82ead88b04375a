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
from pydantic import ValidationError

from laion_assets.image import FORMATS, Stored, Undecodable, check_and_resize
from laion_assets.image_policy import ImagePolicy
from laion_assets.outcomes import Outcome

PHOTOS = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "photos"
SMALL = ImagePolicy(size=64)
PILLOW_FORMAT = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}
MODES = ("no", "border", "keep_ratio", "keep_ratio_largest", "center_crop")


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


def stored(body, policy=SMALL, boxes=()):
    found = check_and_resize(body, policy, boxes)
    assert isinstance(found, Stored), found
    with Image.open(io.BytesIO(found.encoded)) as picture:
        assert picture.format == PILLOW_FORMAT[policy.format]
        assert (picture.mode, picture.size) == ("RGB", (found.width, found.height))
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
@pytest.mark.parametrize("resize", MODES)
def test_every_mode_gives_rgb_whatever_the_resizing(mode, kind, resize):
    picture = quarters().convert(mode) if mode != "I;16" else Image.fromarray(np.zeros((96, 160), np.uint16))
    found, _ = stored(encoded(picture, kind), SMALL.model_copy(update={"mode": resize}))
    sizes = {"no": (160, 96), "keep_ratio": (107, 64), "keep_ratio_largest": (64, 38)}
    sizes |= dict.fromkeys(("border", "center_crop"), (64, 64))
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


def test_ycck_as_adobe_writes_it_comes_out_in_its_colours():
    cmyk = Image.new("RGB", (64, 64), (200, 30, 60)).convert("CMYK")
    *inks, key = cmyk.split()
    # Adobe stores the inks inverted, and of those the first three as YCbCr of what is left of the light,
    # which is the ink (libjpeg's jccolor.c, cmyk_ycck_convert). Pillow inverts what it writes once more.
    ycc = Image.merge("RGB", inks).convert("YCbCr").split()
    stored_inks = [band.point(lambda value: 255 - value) for band in ycc]
    body = encoded(Image.merge("CMYK", [*stored_inks, key]), "JPEG", quality=100, subsampling=0)
    at = body.index(b"Adobe") + 11
    assert body[at] == 0  # the transform, which Pillow does not do
    _, found = stored(body[:at] + b"\x02" + body[at + 1 :])
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
        ("keep_ratio_largest", True, (300, 200), (64, 43)),
        ("keep_ratio_largest", True, (64, 20), (64, 20)),
        ("keep_ratio_largest", False, (32, 20), (64, 40)),
        ("keep_ratio", True, (2000, 65), (1969, 64)),
    ],
)
def test_sizes_are_img2dataset_s(mode, only_if_bigger, size, expected):
    policy = ImagePolicy(size=64, mode=mode, only_if_bigger=only_if_bigger)
    found, _ = stored(encoded(Image.new("RGB", size, "red"), "PNG"), policy)
    assert (found.width, found.height) == expected
    assert (found.original_width, found.original_height) == size


@settings(deadline=None, max_examples=150)
@given(
    st.integers(1, 300),
    st.integers(1, 300),
    st.sampled_from(MODES),
    st.integers(1, 200),
    st.booleans(),
    st.sampled_from([1, 6]),
)
def test_any_size_follows_the_definition_of_its_mode(width, height, mode, size, only_if_bigger, turned):
    exif = Image.Exif()
    exif[0x0112] = turned
    policy = ImagePolicy(size=size, mode=mode, only_if_bigger=only_if_bigger)
    found, _ = stored(encoded(Image.new("1", (width, height)), "PNG", exif=exif), policy)
    upright = (width, height) if turned == 1 else (height, width)
    assert (found.original_width, found.original_height) == upright
    (short, new_short), (long, new_long) = sorted(
        zip(upright, (found.width, found.height), strict=True), key=lambda pair: pair[0]
    )
    counts = long if mode in ("border", "keep_ratio_largest") else short
    if mode == "no" or (only_if_bigger and counts <= size):
        assert (found.width, found.height) == upright
    elif mode in ("border", "center_crop"):
        assert (found.width, found.height) == (size, size)
    else:
        kept, other, new_other = (
            (new_short, long, new_long) if mode == "keep_ratio" else (new_long, short, new_short)
        )
        if width != height:
            assert kept == size
        # The other side keeps the ratio to half a pixel, and is never nothing.
        assert abs(new_other * counts - other * size) * 2 <= counts * 1.000001 or new_other == 1


def test_the_smallest_side_and_the_largest_ratio_are_img2dataset_s():
    body = encoded(Image.new("RGB", (90, 30), "red"), "PNG")
    assert isinstance(check_and_resize(body, ImagePolicy(min_size=30, max_aspect_ratio=3)), Stored)
    assert check_and_resize(body, ImagePolicy(min_size=31)) == Undecodable(
        outcome=Outcome.TOO_SMALL, message="image too small"
    )
    assert check_and_resize(body, ImagePolicy(max_aspect_ratio=2.99)) == Undecodable(
        outcome=Outcome.ASPECT_RATIO, message="aspect ratio too large"
    )
    assert check_and_resize(body, ImagePolicy(max_pixels=2699)) == Undecodable(
        outcome=Outcome.TOO_MANY_PIXELS, message="image area too large"
    )
    assert ImagePolicy(max_aspect_ratio=float("inf")) == ImagePolicy()


# -- stored formats -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
def test_each_format_is_stored_in_each(kind):
    body = encoded(quarters(), kind)
    for policy in (
        ImagePolicy(size=64, format="png", quality=9),
        ImagePolicy(size=64, format="webp", quality=90),
        ImagePolicy(mode="no", format="png", quality=0),
        ImagePolicy(mode="no", format="webp"),
    ):
        found, picture = stored(body, policy)
        assert (found.width, found.height) == ((107, 64) if policy.mode == "keep_ratio" else (160, 96))
        assert differs(picture, quarters().resize(picture.size)) < 8


def test_quality_is_what_the_format_takes_for_it():
    sent = Image.blend(quarters(92, 70), noise(92, 70), 0.2)
    body = encoded(sent, "BMP")
    pictures, lengths = {}, {}
    for kind, low, high in (("jpg", 20, 95), ("webp", 20, 95), ("png", 9, 0)):
        for quality in (low, high):
            found, pictures[kind, quality] = stored(body, ImagePolicy(size=64, format=kind, quality=quality))
            lengths[kind, quality] = len(found.encoded)
        assert lengths[kind, low] < lengths[kind, high]
    assert pictures["png", 0].tobytes() == pictures["png", 9].tobytes()
    policy = ImagePolicy(mode="no", format="png", quality=6)
    assert stored(body, policy)[1].tobytes() == sent.tobytes()
    for kind, quality in (("png", 10), ("png", 95), ("jpg", 0), ("webp", 0), ("jpg", 101)):
        with pytest.raises(ValidationError, match="quality"):
            ImagePolicy(format=kind, quality=quality)


def test_a_side_that_no_webp_has_is_refused():
    body = encoded(Image.new("L", (16_384, 3)), "PNG")
    assert refused(body, ImagePolicy(format="webp")) is Outcome.UNDECODABLE
    found, _ = stored(body, ImagePolicy(format="png", quality=6))
    assert found.width == 16_384


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_without_resizing_a_picture_of_the_format_is_kept_and_anything_else_encoded(kind):
    policy = ImagePolicy(mode="no", format=kind, quality=7)
    clean = encoded(noise(), PILLOW_FORMAT[kind])
    assert check_and_resize(clean, policy).encoded == clean
    frames = {"save_all": True, "append_images": [noise().rotate(90)]}
    clear = noise()
    clear.putalpha(77)
    exif = Image.Exif()
    exif[0x0112] = 6
    bodies = [
        encoded(clear, PILLOW_FORMAT[kind]),
        encoded(noise(), PILLOW_FORMAT[kind], **frames),
        encoded(noise(), PILLOW_FORMAT[kind], exif=exif),
        encoded(noise(), "JPEG"),
    ]
    if kind == "png":
        bodies += [
            encoded(noise().convert("L"), "PNG"),
            encoded(noise().quantize(9), "PNG"),
            encoded(noise(), "PNG", transparency=(1, 2, 3)),
            png(4, 4, zlib.compress((b"\0" + b"\x12\x34" * 12) * 4), depth=16),
        ]
    for body in bodies:
        found, _ = stored(body, policy)
        assert found.encoded != body


# -- boxes to blur --------------------------------------------------------------------------------

FACE = (0.5, 0.5, 0.75, 0.9)


def detail(picture, left, upper, right, lower):
    """Standard deviation within a box."""
    pixels = np.asarray(picture, np.float32)
    height, width = pixels.shape[:2]
    return pixels[int(upper * height) : int(lower * height), int(left * width) : int(right * width)].std()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
def test_what_is_in_a_box_is_blurred_whatever_the_mode(mode, kind):
    policy = ImagePolicy(size=200, mode=mode, format=kind, quality=9 if kind == "png" else 95)
    # A square, so that no mode changes where the box is.
    for size in (400, 120):
        body = encoded(noise(size, size), PILLOW_FORMAT[kind])
        _, plain = stored(body, policy)
        found, picture = stored(body, policy, [FACE])
        assert picture.size == plain.size
        assert detail(picture, *FACE) < detail(plain, *FACE) / 4
        assert detail(picture, 0, 0, 0.4, 0.4) > detail(plain, 0, 0, 0.4, 0.4) * 0.9
        assert found.encoded != body


def test_boxes_are_of_the_picture_as_it_was_sent():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    body = encoded(noise(200, 100), "JPEG", exif=exif, quality=100)
    _, picture = stored(body, ImagePolicy(), [(0.0, 0.0, 0.4, 1.0)])
    assert picture.size == (100, 200)
    assert detail(picture, 0, 0, 1, 0.35) < detail(picture, 0, 0.55, 1, 1) / 4


def test_a_box_outside_the_picture_is_a_reason_to_refuse_it():
    found = check_and_resize(encoded(noise()), SMALL, [(100, 120, 180, 200)])
    assert found == Undecodable(outcome=Outcome.UNDECODABLE, message="a box to blur lies outside the picture")


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
    png = encoded(quarters(), "PNG", exif=exif, icc_profile=profile)
    for sent, policy in (
        (body, SMALL),
        (body, ImagePolicy(size=512)),
        (body, ImagePolicy(size=512, format="png", quality=6)),
        (png, ImagePolicy(size=512, format="png", quality=6)),
        (png, ImagePolicy(size=512, format="webp")),
    ):
        found, picture = stored(sent, policy)
        assert b"secret" not in found.encoded
        assert not {"exif", "icc_profile", "comment"} & picture.info.keys()


def test_equal_bytes_give_equal_pictures():
    body = encoded(noise(400, 300))
    assert check_and_resize(body, SMALL) == check_and_resize(body, SMALL)


# -- what must not be decoded ---------------------------------------------------------------------


def png(width, height, data=b"", kind=2, depth=8):
    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
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
