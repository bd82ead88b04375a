import io
import json

import pytest
from PIL import Image

from laion_assets.exif import describe_exif, orientation, read_exif


def sent(exif):
    """A picture with this EXIF, as it is opened."""
    stream = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(stream, "JPEG", exif=exif)
    return Image.open(io.BytesIO(stream.getvalue()))


def test_exif_is_kept_as_text():
    exif = Image.Exif()
    exif[0x010F] = "Maker\0"
    exif[0x011A] = 72.0
    exif[0x0112] = 6
    exif.get_ifd(0x8769)[0x829A] = 0.5
    exif.get_ifd(0x8769)[0x927C] = b"maker note" * 100
    found = read_exif(sent(exif))
    tags = json.loads(describe_exif(found))
    assert orientation(found) == 6
    assert tags["Image Make"] == "Maker"
    assert tags["Image Orientation"] == "6"
    assert tags["EXIF ExposureTime"] == "0.5"
    assert not any("MakerNote" in name for name in tags)
    assert all(isinstance(value, str) for value in tags.values())


def test_none_is_an_empty_object():
    found = read_exif(sent(b""))
    assert found is None
    assert (describe_exif(found), orientation(found)) == ("{}", 1)


def test_endless_exif_is_bounded():
    exif = Image.Exif()
    for tag in range(0xC000, 0xC000 + 400):
        exif[tag] = "x" * 120
    exif[0x010F] = "y" * 2000
    text = describe_exif(read_exif(sent(exif)))
    assert len(json.loads(text)) <= 100
    assert len(text) < 40_000


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01" * 60]
)
def test_damaged_exif_is_none_or_some_text(exif):
    found = read_exif(sent(exif))
    assert isinstance(json.loads(describe_exif(found)), dict)
    assert orientation(found) == 1
