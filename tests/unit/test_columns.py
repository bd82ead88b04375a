import datetime as dt
import decimal
import json
import math

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laion_assets.columns import (
    extra_field,
    find_columns,
    json_column,
    json_value,
    read_boxes,
    read_digest,
    valid_text,
)
from laion_assets.errors import SettingsError
from laion_assets.settings import Settings


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('extra_columns = ["SHA256"]', "'SHA256' is the name of a column of ours"),
        ('extra_columns = ["md5"]', "a column of ours"),
        ('extra_columns = ["punsafe", "Key"]', "'Key' is the name of a column of ours"),
        ('extra_columns = ["shard"]', "a column of ours"),
        ('extra_columns = ["final_url"]', "a column of ours"),
        ('extra_columns = [" "]', "a column of ours"),
        ('extra_columns = ["a", "A"]', "there twice"),
        ('extra_columns = ["a", "a"]', "there twice"),
        ('digest_column = "url"', "digest_column: 'url'"),
        ('boxes_column = "TEXT"', "boxes_column: 'TEXT'"),
        ('digest_kind = "crc32"', "'sha256', 'md5' or 'sha512'"),
    ],
)
def test_names_that_are_ours_are_refused(tmp_path, line, message):
    file = tmp_path / "laion.toml"
    file.write_text(f"[raw]\n{line}\n")
    with pytest.raises(SettingsError, match=message):
        Settings.load(file)


def test_settings_come_from_file_and_environment(tmp_path, monkeypatch):
    file = tmp_path / "laion.toml"
    file.write_text('[raw]\nextra_columns = ["punsafe"]\ndigest_column = "sha256"\n')
    assert Settings.load(file).raw.carried == ("punsafe", "sha256")
    monkeypatch.setenv("LAION_RAW__EXTRA_COLUMNS", '["hash", "face_bboxes"]')
    monkeypatch.setenv("LAION_RAW__BOXES_COLUMN", "Face_Bboxes")
    assert Settings.load(file).raw.carried == ("hash", "face_bboxes", "sha256")


def test_columns_are_found_whatever_their_case():
    assert find_columns(["punsafe", "Hash", "none"], ["pUnsafe", "hash", "url"]) == {
        "punsafe": "pUnsafe",
        "Hash": "hash",
        "none": None,
    }


def test_a_dictionary_is_spelled_out():
    assert extra_field("a", pa.dictionary(pa.int32(), pa.string())).type == pa.string()


@pytest.mark.parametrize("value", [None, "", "  ", "null", "[]", []])
def test_a_row_without_boxes_has_none(value):
    assert read_boxes(value) == ()


@pytest.mark.parametrize("spell", [lambda boxes: boxes, json.dumps])
def test_boxes_are_read(spell):
    boxes = [[0.1, 0.2, 0.3, 0.4], [0, 0, 1, 1], [-0.02, 0.5, 0.3, 1.01]]
    assert read_boxes(spell(boxes)) == tuple(map(tuple, boxes))


@pytest.mark.parametrize(
    "value",
    [
        "none",
        "[",
        "{}",
        "[" * 100_000,
        '[["0.1", 0.1, 0.2, 0.2]]',
        "[[NaN, 0, 1, 1]]",
        "[[0, 0, Infinity, 1]]",
        "[[0, 0, 1e400, 1]]",
        "[0.1, 0.2, 0.3, 0.4]",
        [[0.1, 0.2, 0.3]],
        [[0.1, 0.2, 0.3, 0.4, 0.5]],
        [[0.1, 0.2, 0.3, None]],
        [[True, False, True, True]],
        [None],
        [[math.nan, 0.0, 1.0, 1.0]],
        [[0.3, 0.2, 0.1, 0.4]],  # its right side is left of its left one
        [[0.1, 0.2, 0.1, 0.4]],  # no width, so nothing would be blurred
        [[120.0, 80.0, 160.0, 130.0]],  # pixels
        [[10**400, 0, 1, 1]],
        [[0.1, 0.1, 0.2, 0.2]] * 1_001,
        {"x": 1},
        7,
        b"[]",
    ],
)
def test_boxes_that_cannot_be_read_are_not_taken_for_none(value):
    with pytest.raises(ValueError, match=r"box|JSON"):
        read_boxes(value)


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(), st.lists))
def test_whatever_is_read_as_boxes_lies_in_the_picture(value):
    try:
        boxes = read_boxes(value)
    except ValueError:
        return
    for left, top, right, bottom in boxes:
        assert max(left, 0) < min(right, 1)
        assert max(top, 0) < min(bottom, 1)


def test_digests_are_read():
    assert [read_digest(value) for value in (None, "", "  ", " ABc ")] == [None, None, None, "ABc"]


def broken(text_type, data=(b"a\xff", b"fine", None)):
    """Text that is no UTF-8, as Parquet files may hold it."""
    array = pa.array(data, pa.large_binary() if text_type == pa.large_string() else pa.binary())
    return pa.Array.from_buffers(text_type, len(data), array.buffers())


def test_what_is_no_utf_8_is_replaced_however_deep():
    for text_type in (pa.string(), pa.large_string()):
        flat = valid_text(pa.chunked_array([broken(text_type)]))
        assert flat.to_pylist() == ["a\ufffd", "fine", None]
        assert flat.type == text_type
    texts = broken(pa.string())
    nested = pa.ListArray.from_arrays(
        pa.array([0, 2, 3], pa.int32()),
        pa.StructArray.from_arrays([texts, pa.array([b"\xff", b"", None])], ["text", "bytes"]),
    )
    found = valid_text(pa.chunked_array([nested]))
    found.validate(full=True)
    assert found.type == nested.type
    assert found.to_pylist() == [
        [{"text": "a\ufffd", "bytes": b"\xff"}, {"text": "fine", "bytes": b""}],
        [{"text": None, "bytes": None}],
    ]
    whole = pa.chunked_array([pa.array([[1.0], None])])
    assert valid_text(whole) is whole


def test_json_holds_every_value():
    values = {
        "nan": math.nan,
        "deep": [[0.5, -math.inf], None],
        "bytes": b"\x00\xff",
        "decimal": decimal.Decimal("1.50"),
        "map": [("a", 1)],
        "text": "<script> ☃",
        "truth": True,
    }
    assert json.loads(json.dumps(json_value(values), allow_nan=False)) == {
        "nan": None,
        "deep": [[0.5, None], None],
        "bytes": "00ff",
        "decimal": "1.50",
        "map": [["a", 1]],
        "text": "<script> ☃",
        "truth": True,
    }


def test_times_are_told_as_text_even_those_that_python_does_not_have():
    times = pa.chunked_array([pa.array([0, 2**62], pa.timestamp("s"))])
    assert json_column(times).to_pylist()[0] == "1970-01-01 00:00:00"
    days = pa.chunked_array([pa.array([[dt.date(2021, 8, 20)]])])
    assert json_column(days).to_pylist() == [["2021-08-20"]]
    assert json_column(pa.chunked_array([pa.array([1])])).type == pa.int64()
