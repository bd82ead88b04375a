import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from laion_assets.picture_header import Header, read_header, read_headers

JPEG_CHANNELS = {"L": 1, "RGB": 3, "CMYK": 4}
PNG_CHANNELS = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "P": 4}
SIZES = st.tuples(st.integers(1, 90), st.integers(1, 90))


def encoded(mode, size, kind, **options):
    body = io.BytesIO()
    Image.new(mode, size).save(body, kind, **options)
    return body.getvalue()


@settings(deadline=None, max_examples=60)
@given(
    mode=st.sampled_from(sorted(JPEG_CHANNELS)),
    size=SIZES,
    progressive=st.booleans(),
    comment=st.binary(max_size=300),
)
def test_a_jpeg_is_what_pillow_says(mode, size, progressive, comment):
    body = encoded(mode, size, "JPEG", progressive=progressive, comment=comment)
    assert read_header(body) == Header(*size, JPEG_CHANNELS[mode], 8)
    with Image.open(io.BytesIO(body)) as picture:
        assert (picture.mode, picture.size) == (mode, size)


@settings(deadline=None, max_examples=60)
@given(mode=st.sampled_from(sorted(PNG_CHANNELS)), size=SIZES)
def test_a_png_is_what_pillow_says(mode, size):
    body = encoded(mode, size, "PNG")
    header = read_header(body)
    assert header[:3] == (*size, PNG_CHANNELS[mode])
    assert header.bits == (1 if mode == "P" else 8)


def test_sixteen_bits_are_told():
    assert read_header(encoded("I;16", (5, 3), "PNG")) == Header(5, 3, 1, 16)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "BMP"])
def test_another_format_is_none(kind):
    assert read_header(encoded("RGB", (5, 3), kind)) is None


@given(body=st.binary(max_size=100), kind=st.sampled_from([b"", b"\xff\xd8", b"\x89PNG\r\n\x1a\n"]))
def test_any_bytes_are_a_header_or_none(body, kind):
    found = read_header(kind + body)
    assert found is None or min(found) >= 0


@given(
    first=st.lists(
        st.sampled_from([b"\xff\xd8", b"\xff\xe0\x00\x04ab", b"\xff\xdb\x00\x09", b"\xff", b"\xff\xc8"])
    ),
    then=st.lists(
        st.sampled_from([b"\xff\xc0\x00\x11\x08", b"\x01\x02\x03\x04\x03", b"\xff\xda\x00\x0c", b"\xff\xc2"])
    ),
    cut=st.integers(0, 9),
)
def test_a_usual_beginning_is_no_reason_to_look_elsewhere(first, then, cut):
    body = b"\xff\xd8" + b"".join(first + then)
    body = body[: len(body) - cut]
    found = read_header(body)
    # Fill bytes behind the signature mean nothing, and keep the usual frame out of where it is expected.
    assert found == read_header(b"\xff\xd8" + b"\x00" * 2000 + body[2:])


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_header_cut_short_is_none(kind):
    body = encoded("RGB", (300, 200), kind)
    whole = next(length for length in range(len(body)) if read_header(body[:length]) is not None)
    for length in range(whole):
        assert read_header(body[:length]) is None
    assert read_header(body[:whole]) == read_header(body)


PICTURES = st.builds(
    encoded,
    st.sampled_from(["L", "RGB"]),
    SIZES,
    st.sampled_from(["JPEG", "PNG"]),
    quality=st.sampled_from([50, 95]),
    progressive=st.booleans(),
    comment=st.sampled_from([b"", b"twice \xff\xc0\x00\x11\x08"]),
)


@settings(deadline=None, max_examples=100)
@given(
    pictures=st.lists(st.one_of(PICTURES, st.binary(max_size=40)), max_size=6),
    cuts=st.lists(st.integers(0, 250), min_size=6, max_size=6),
    flips=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), min_size=6, max_size=6),
)
def test_many_headers_are_those_of_each_alone(pictures, cuts, flips):
    changed = []
    for picture, cut, (at, value) in zip(pictures, cuts, flips, strict=False):
        body = bytearray(picture if cut > 200 else picture[: max(cut, 150)])
        if at < len(body) and cut % 2:
            body[at] = value
        changed.append(bytes(body))
    sizes = np.array([len(picture) for picture in changed], np.int64)
    begins = np.cumsum(sizes) - sizes
    found = read_headers(memoryview(b"".join(changed)), begins, sizes)
    assert found.tolist() == [list(read_header(picture) or (0, 0, 0, 0)) for picture in changed]


def test_many_usual_headers_are_read_at_once():
    sizes_in_pixels = [(300 + number, 200 - number) for number in range(50)]
    pictures = [encoded("RGB", size, "JPEG") for size in sizes_in_pixels]
    sizes = np.array([len(picture) for picture in pictures])
    begins = np.cumsum(sizes) - sizes
    found = read_headers(memoryview(b"".join(pictures)), begins, sizes)
    assert found.tolist() == [[*size, 3, 8] for size in sizes_in_pixels]
