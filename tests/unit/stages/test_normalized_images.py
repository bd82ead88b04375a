import io
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from laion_assets.errors import CorruptInput, CorruptParquet, CorruptTar, MisalignedShard, MissingInput
from laion_assets.formats.parquet import read_table
from laion_assets.formats.publish import Recipe, Tally, done, vouch
from laion_assets.layout import Layout, ShardId
from laion_assets.schema import NORMALIZED_IMAGES, ROWS_SET_ASIDE
from laion_assets.stages.normalized_images import normalize_images

SHARD = ShardId(2)


def picture(colour, size=(12, 8), mode="RGB", kind="JPEG", **options):
    body = io.BytesIO()
    Image.new(mode, size, colour).save(body, kind, **options)
    return body.getvalue()


def row(number, **changes):
    return {
        "caption": f"caption {number}",
        "url": f"http://example.org/{number}",
        "NSFW": "UNLIKELY",
        "similarity": 0.3,
        "LICENSE": "?",
        "key": f"00002{number:04d}",
        "status": "success",
        "error_message": None,
        "width": 12,
        "height": 8,
        "original_width": 24,
        "original_height": 16,
    } | changes


TYPES = {
    "similarity": pa.float64(), "NSFW": pa.string(), "LICENSE": pa.string(), "caption": pa.string(),
    "error_message": pa.string(), "url": pa.string(), "key": pa.string(), "status": pa.string(),
    "width": pa.int32(), "height": pa.int32(), "original_width": pa.int32(), "original_height": pa.int32(),
}  # fmt: skip


def lay_down(root, rows, members, columns=tuple(TYPES)):
    layout = Layout(root)
    layout.images_folder.mkdir(parents=True, exist_ok=True)
    table = pa.table({name: pa.array([entry[name] for entry in rows], TYPES[name]) for name in columns})
    pq.write_table(table, layout.images_table(SHARD))
    with tarfile.open(layout.images_tar(SHARD), "w") as tar:
        for name, body in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    layout.images_stats(SHARD).write_text("{}")
    output = layout.placed_images(SHARD)
    vouch(output, Recipe(code_version="1", settings=str(rows)), lambda: Tally(rows=len(rows)))
    return layout


def normalized(layout, **options):
    manifest = normalize_images(SHARD, layout, **options)
    table, aside = layout.normalized_images(SHARD).names
    folder = layout.normalized_images(SHARD).folder
    return (
        manifest,
        read_table(folder / table, NORMALIZED_IMAGES).to_pylist(),
        read_table(folder / aside, ROWS_SET_ASIDE).to_pylist(),
    )


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_every_row_keeps_its_picture_in_whatever_order_things_lie(tmp_path_factory, data):
    numbers = data.draw(st.lists(st.integers(0, 9_999), max_size=8, unique=True))
    failed = data.draw(st.sets(st.sampled_from(numbers))) if numbers else set()
    bodies = {number: picture((number % 256, number // 256, 99)) for number in numbers}
    rows = [
        row(number, status="failed_to_download", width=None, height=None) if number in failed else row(number)
        for number in numbers
    ]
    in_tar = data.draw(st.permutations([number for number in numbers if number not in failed]))
    layout = lay_down(
        tmp_path_factory.mktemp("shard"),
        rows,
        {f"00002{number:04d}.jpg": bodies[number] for number in in_tar},
    )
    manifest, examples, set_aside = normalized(layout)
    assert [example["key"] for example in examples] == sorted(f"00002{number:04d}" for number in in_tar)
    tar = layout.images_tar(SHARD).read_bytes()
    for example in examples:
        number = int(example["key"][5:])
        body = tar[example["tar_offset"] : example["tar_offset"] + example["tar_bytes"]]
        assert body == bodies[number]
        assert example["image_xxh3"] == xxhash.xxh3_128_hexdigest(body)
        assert example["caption"] == f"caption {number}"
    assert set_aside == []
    counts = manifest.counts
    assert counts["examples"] + counts["set_aside"] + counts["failed"] == counts["rows"] == len(numbers)


def test_local_keys_become_global(tmp_path):
    layout = lay_down(tmp_path, [row(7, key="000000007")], {"000000007.jpg": picture("red")})
    assert [example["key"] for example in normalized(layout)[1]] == ["000020007"]


def test_values_are_normalized_and_counted(tmp_path):
    rows = [
        row(0, caption=None, NSFW=None, similarity=None, LICENSE=None),
        row(1, NSFW="weird", similarity=float("nan"), original_width=None, original_height=None),
    ]
    layout = lay_down(tmp_path, rows, {f"00002000{n}.jpg": picture("red") for n in (0, 1)})
    manifest, examples, _ = normalized(layout)
    assert examples[0] | {"tar_offset": 0} == {
        "key": "000020000",
        "url": "http://example.org/0",
        "caption": "",
        "nsfw": "UNTAGGED",
        "similarity": -1.0,
        "license": "",
        "original_height": 16,
        "original_width": 24,
        "height": 8,
        "width": 12,
        "image_xxh3": xxhash.xxh3_128_hexdigest(picture("red")),
        "tar_offset": 0,
        "tar_bytes": len(picture("red")),
    }
    assert (examples[1]["nsfw"], examples[1]["similarity"]) == ("UNTAGGED", -1.0)
    assert (examples[1]["original_width"], examples[1]["original_height"]) == (12, 8)
    assert manifest.counts["caption:null -> ''"] == 1
    assert manifest.counts["license:null -> ''"] == 1
    assert manifest.counts["nsfw:UNTAGGED"] == manifest.counts["similarity:missing"] == 2
    assert manifest.counts["nsfw:NSFW"] == 0


@pytest.mark.parametrize(
    ("changes", "body", "reason"),
    [
        ({"similarity": 6016.0}, picture("red"), "similarity_above_one"),
        ({"similarity": -0.2}, picture("red"), "similarity_below_zero"),
        ({"url": None}, picture("red"), "missing_url"),
        ({}, None, "missing_image"),
        ({}, b"not a jpeg", "unreadable_image"),
        ({}, b"GIF89a" + bytes(50), "unreadable_image"),
        ({}, picture((1, 2, 3, 4), mode="CMYK"), "not_three_channels"),
        ({}, picture((1, 2, 3, 4), mode="RGBA", kind="PNG"), "not_three_channels"),
        ({"width": 13}, picture("red"), "wrong_size"),
    ],
)
def test_what_cannot_be_an_example_is_set_aside_with_its_reason(tmp_path, changes, body, reason):
    members = {"000020001.jpg": picture("blue"), "000020000.txt": b"caption"}
    if body is not None:
        members["000020000.jpg"] = body
    layout = lay_down(tmp_path, [row(0, **changes), row(1)], members)
    manifest, examples, set_aside = normalized(layout)
    assert [example["key"] for example in examples] == ["000020001"]
    assert [(aside["key"], aside["reason"]) for aside in set_aside] == [("000020000", reason)]
    assert set_aside[0]["detail"]
    assert manifest.counts[f"set_aside:{reason}"] == 1


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (picture((1, 2), mode="LA", kind="PNG"), "not_three_channels"),
        (picture(7, mode="P", kind="PNG"), "not_three_channels"),
        (picture("red", kind="WEBP"), "unreadable_image"),
        (b"", "unreadable_image"),
        (b"\xff\xd8", "unreadable_image"),
        (b"\xff\xd8" + b"\xff" * 1000, "unreadable_image"),
        (b"\xff\xd8" + b"\xff\xe0\x00\x00" * 1000, "unreadable_image"),
        (picture("red")[:30], "unreadable_image"),
        (picture("red", kind="PNG")[:20], "unreadable_image"),
    ],
)
def test_what_tfds_would_not_decode_to_three_channels_is_set_aside(tmp_path, body, reason):
    layout = lay_down(tmp_path, [row(0)], {"000020000.jpg": body})
    _, examples, set_aside = normalized(layout)
    assert (examples, [aside["reason"] for aside in set_aside]) == ([], [reason])


@pytest.mark.parametrize(
    "body",
    [
        picture("red", progressive=True),
        picture("red", comment=b"\xff\xc0\x00\x11\x08\xff\xff\xff\xff\x07" * 20),
        picture("red", exif=b"Exif\0\0" + b"\xff\xc0" * 500),
        picture("red", keep_rgb=True),
        picture("red", restart_marker_blocks=1),
        picture("red")[:2] + b"\xff" * 9 + picture("red")[3:],  # fill bytes before a marker
        picture("red")[:20] + b"junk" + picture("red")[20:],  # which decoders pass over
        picture(7, mode="L"),
        picture(7, mode="L", kind="PNG"),
    ],
)
def test_every_shape_of_a_good_picture_is_an_example(tmp_path, body):
    for decode in (False, True):
        layout = lay_down(tmp_path, [row(0)], {"000020000.jpg": body})
        _, examples, _ = normalized(layout, decode=decode)
        assert [(example["width"], example["height"]) for example in examples] == [(12, 8)]


def test_a_picture_damaged_behind_its_header_is_found_by_decoding(tmp_path):
    members = {"000020000.jpg": picture("red", kind="PNG")[:50], "000020001.jpg": picture("blue")}
    layout = lay_down(tmp_path, [row(0), row(1)], members)
    manifest, examples, _ = normalized(layout)
    assert len(examples) == 2
    decoded, examples, set_aside = normalized(layout, decode=True)
    assert [example["key"] for example in examples] == ["000020001"]
    assert [(aside["key"], aside["reason"]) for aside in set_aside] == [("000020000", "unreadable_image")]
    assert decoded.recipe != manifest.recipe


def test_a_png_is_an_example_and_a_webp_is_set_aside_for_what_it_is(tmp_path):
    members = {
        "000020000.png": picture("red", kind="PNG"),
        "000020001.webp": picture("red", kind="WEBP"),
        "000020001.txt": b"caption",
    }
    layout = lay_down(tmp_path, [row(0), row(1)], members)
    manifest, examples, set_aside = normalized(layout)
    assert [example["key"] for example in examples] == ["000020000"]
    assert set_aside == [
        {"key": "000020001", "reason": "not_tfds_format", "detail": "TFDS decodes jpg, jpeg, png, not webp"}
    ]
    assert manifest.counts["set_aside:not_tfds_format"] == 1
    assert manifest.counts.get("set_aside:missing_image", 0) == 0


def test_columns_that_were_not_saved_are_missing_values(tmp_path):
    columns = ("caption", "url", "key", "status", "width", "height")
    layout = lay_down(tmp_path, [row(0)], {"000020000.jpg": picture("red")}, columns)
    _, (example,), _ = normalized(layout)
    assert (example["nsfw"], example["similarity"], example["license"]) == ("UNTAGGED", -1.0, "")


def test_a_shard_without_success_is_whole(tmp_path):
    layout = lay_down(tmp_path, [row(0, status="failed_to_download")], {})
    manifest, examples, set_aside = normalized(layout)
    assert (examples, set_aside, manifest.rows) == ([], [], 0)
    assert manifest.counts["failed"] == 1


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (lambda layout: layout.images_table(SHARD).write_bytes(b"PAR1"), CorruptParquet),
        (
            lambda layout: layout.images_tar(SHARD).write_bytes(layout.images_tar(SHARD).read_bytes()[:700]),
            CorruptTar,
        ),
        (
            lambda layout: pq.write_table(pa.table({"key": ["a"]}), layout.images_table(SHARD)),
            MisalignedShard,
        ),
    ],
)
def test_a_damaged_shard_is_named(tmp_path, damage, error):
    layout = lay_down(tmp_path, [row(0)], {"000020000.jpg": picture("red")})
    damage(layout)
    vouch(layout.placed_images(SHARD), Recipe(code_version="2"), lambda: Tally(rows=1))
    with pytest.raises(error, match="00002"):
        normalize_images(SHARD, layout)


@pytest.mark.parametrize("name", ["000020000.jpg", "k" * 180 + ".jpg"])
def test_nothing_is_made_of_a_tar_with_a_changed_byte_wherever_it_is(tmp_path, name):
    # The second name makes it a tar that is not read at once.
    layout = lay_down(tmp_path, [row(0)], {"000020000.txt": b"caption", name: picture("red")})
    tar = layout.images_tar(SHARD)
    whole = tar.read_bytes()
    for at in range(7, len(whole), 397):
        tar.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(CorruptInput, match=r"00002\.tar: expected XXH3-128"):
            normalize_images(SHARD, layout)
        assert done(layout.normalized_images(SHARD)) is None
    tar.write_bytes(whole)
    assert normalized(layout)[0].counts["rows"] == 1


def test_a_shard_that_is_not_there_is_named(tmp_path):
    with pytest.raises(MissingInput, match="images 00002"):
        normalize_images(SHARD, Layout(tmp_path))
