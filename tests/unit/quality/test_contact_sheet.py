import pytest
import xxhash
from PIL import Image
from quality_inputs import HOSTILE, SHARDS, copy_root, jpeg, shared_root

from laion_assets.errors import CorruptTar, MissingInput
from laion_assets.formats.checksums import sha256_of
from laion_assets.layout import ShardId
from laion_assets.quality.contact_sheet import draw_contact_sheet

SHARD = SHARDS[0]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    return shared_root(tmp_path_factory)


@pytest.fixture
def root(pristine, tmp_path):
    return copy_root(pristine, tmp_path)


def sheet_of(layout, path, **options):
    drawn = draw_contact_sheet(layout, SHARD, path, **options)
    with Image.open(path) as picture:
        picture.load()
        return drawn, picture.convert("RGB")


def test_each_picture_is_on_the_sheet_where_its_key_says(pristine, tmp_path):
    import io

    drawn, sheet = sheet_of(pristine, tmp_path / "sheet.png")
    assert drawn == 16
    # The first picture, of key 0000000, is 32 x 24 and is not enlarged: its pixels are on the sheet.
    with Image.open(io.BytesIO(jpeg(0))) as picture:
        expected = picture.convert("RGB").crop((2, 2, 30, 22)).tobytes()
    found = [
        (x, y)
        for x in range(10, 210)
        for y in range(40, 300)
        if sheet.crop((x, y, x + 28, y + 20)).tobytes() == expected
    ]
    assert len(found) == 1


def test_limit_and_columns(pristine, tmp_path):
    drawn, wide = sheet_of(pristine, tmp_path / "wide.png", columns=8, limit=5)
    assert drawn == 5
    drawn, tall = sheet_of(pristine, tmp_path / "tall.png", columns=1, limit=3)
    assert drawn == 3
    assert tall.height > wide.height
    assert wide.width > tall.width


def test_equal_shards_are_equal_sheets(pristine, tmp_path):
    for name in ("a.png", "b.png"):
        draw_contact_sheet(pristine, SHARD, tmp_path / name)
    assert sha256_of(tmp_path / "a.png") == sha256_of(tmp_path / "b.png")


@pytest.mark.parametrize("caption", [HOSTILE, "", "x" * 61_192, "\u0301" * 5_000, "日本 🙂", "\n" * 900])
def test_no_caption_breaks_the_sheet_or_leaves_its_cell(root, tmp_path, caption):
    output = root.layout.normalized_images(SHARD)
    _, before = sheet_of(root.layout, tmp_path / "before.png")
    root.rewrite_table(output, output.names[0], lambda rows: rows[0].update(caption=caption))
    drawn, after = sheet_of(root.layout, tmp_path / "after.png")
    assert drawn == 16
    assert after.size == before.size
    # All but the first cell is as it was.
    assert after.crop((220, 0, *after.size)).tobytes() == before.crop((220, 0, *before.size)).tobytes()
    assert after.crop((0, 380, *after.size)).tobytes() == before.crop((0, 380, *before.size)).tobytes()


def test_another_picture_than_the_rows_is_refused(root, tmp_path):
    output = root.layout.normalized_images(SHARD)
    root.rewrite_table(output, output.names[0], lambda rows: rows[0].update(tar_offset=0))
    with pytest.raises(CorruptTar, match="key 0000000"):
        draw_contact_sheet(root.layout, SHARD, tmp_path / "sheet.png")
    root.rewrite_table(output, output.names[0], lambda rows: rows[0].update(tar_bytes=1 << 60))
    with pytest.raises(CorruptTar, match="key 0000000"):
        draw_contact_sheet(root.layout, SHARD, tmp_path / "sheet.png")
    assert not (tmp_path / "sheet.png").exists()


def test_bytes_that_are_no_picture_leave_a_place_for_it(root, tmp_path):

    output = root.layout.normalized_images(SHARD)
    tar = root.layout.images_tar(SHARD).read_bytes()

    def change(rows):
        # The tar's first header: bytes that are there, and no picture.
        rows[0].update(tar_offset=0, tar_bytes=100, image_xxh3=xxhash.xxh3_128_hexdigest(tar[:100]))

    root.rewrite_table(output, output.names[0], change)
    drawn, sheet = sheet_of(root.layout, tmp_path / "sheet.png")
    assert drawn == 16
    assert sheet.getpixel((20, 90)) == (225, 225, 225)


def test_a_shard_without_examples_is_a_header(root, tmp_path):
    output = root.layout.normalized_images(SHARD)
    import pyarrow.parquet as pq

    root.rewrite(output, output.names[0], lambda path: pq.write_table(pq.read_table(path).slice(0, 0), path))
    drawn, sheet = sheet_of(root.layout, tmp_path / "sheet.png")
    assert drawn == 0
    assert sheet.width > 400


def test_a_shard_that_is_not_there_is_named(pristine, tmp_path):
    with pytest.raises(MissingInput, match="images 00002"):
        draw_contact_sheet(pristine, ShardId(2), tmp_path / "sheet.png")
