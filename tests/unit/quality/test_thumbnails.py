import io

import pytest
from PIL import Image
from quality_inputs import SHARDS, copy_root, shared_root

from laion_assets.errors import CorruptTar
from laion_assets.quality.thumbnails import MOST_BYTES_EACH, draw_thumbnails


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    return shared_root(tmp_path_factory)


def drawn(layout, count):
    png = draw_thumbnails(layout, SHARDS[0], count)
    # The pictures are noise, of which no bytes can be saved.
    assert len(png) <= count * MOST_BYTES_EACH
    with Image.open(io.BytesIO(png)) as picture:
        return picture.convert("RGB")


def test_as_many_as_are_asked_for(pristine):
    # Of the 20 rows every fifth is tagged UNLIKELY, and all of these have a picture.
    assert [drawn(pristine, count).size for count in (1, 2, 12)] == [(64, 64), (132, 64), (268, 64)]
    assert draw_thumbnails(pristine, SHARDS[0], 2) == draw_thumbnails(pristine, SHARDS[0], 2)


def test_only_pictures_tagged_unlikely_are_shown(pristine, tmp_path):
    root = copy_root(pristine, tmp_path)
    output = root.layout.normalized_images(SHARDS[0])

    def tag(rows):
        for row in rows:
            row.update(nsfw="NSFW")

    root.rewrite_table(output, output.names[0], tag)
    assert drawn(root.layout, 12).getcolors() == [(64 * 64, (255, 255, 255))]


def test_another_picture_than_the_rows_is_refused(pristine, tmp_path):
    root = copy_root(pristine, tmp_path)
    output = root.layout.normalized_images(SHARDS[0])
    root.rewrite_table(output, output.names[0], lambda rows: rows[0].update(tar_offset=0))
    with pytest.raises(CorruptTar, match="key 0000000"):
        draw_thumbnails(root.layout, SHARDS[0], 1)
