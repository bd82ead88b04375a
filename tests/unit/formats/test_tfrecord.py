"""TFRecord framing: a round trip, TensorFlow's own bytes, and refusal of any damage."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tfds_inputs import payloads_of

from laion_assets.errors import CorruptRecords
from laion_assets.formats.tfrecord import (
    RecordsSummary,
    check_records,
    frame,
    read_records,
    write_records,
)

_PAYLOADS = st.lists(st.binary(max_size=200), max_size=6)
_ON_FILES = settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@given(payloads=_PAYLOADS)
@_ON_FILES
def test_what_is_written_is_read(tmp_path: Path, payloads: list[bytes]) -> None:
    path = tmp_path / "a.tfrecord"
    summary = write_records(path, [payloads_of(payloads)])
    assert summary == RecordsSummary(records=len(payloads), payload_bytes=sum(map(len, payloads)))
    assert list(read_records(path, expected=summary)) == payloads
    assert check_records(path) == summary
    assert path.stat().st_size == summary.payload_bytes + 16 * summary.records


@given(payloads=st.lists(st.binary(max_size=20), min_size=1, max_size=3), flip=st.integers(1, 255))
@_ON_FILES
def test_every_changed_byte_is_refused(tmp_path: Path, payloads: list[bytes], flip: int) -> None:
    path = tmp_path / "a.tfrecord"
    write_records(path, [payloads_of(payloads)])
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1 :])
        with pytest.raises(CorruptRecords, match=r"a\.tfrecord: expected .* found .*"):
            check_records(path)


@given(payloads=st.lists(st.binary(max_size=20), min_size=1, max_size=3))
@_ON_FILES
def test_every_truncation_is_refused(tmp_path: Path, payloads: list[bytes]) -> None:
    path = tmp_path / "a.tfrecord"
    summary = write_records(path, [payloads_of(payloads)])
    whole = path.read_bytes()
    ends = {0}
    for payload in payloads:
        ends.add(max(ends) + 16 + len(payload))
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CorruptRecords):
            check_records(path, expected=summary)
        if length not in ends:  # between records only the count tells
            with pytest.raises(CorruptRecords):
                check_records(path)


@given(
    payloads=st.lists(st.binary(max_size=20), min_size=1, max_size=3), more=st.binary(min_size=1, max_size=40)
)
@_ON_FILES
def test_trailing_bytes_are_refused(tmp_path: Path, payloads: list[bytes], more: bytes) -> None:
    path = tmp_path / "a.tfrecord"
    write_records(path, [payloads_of(payloads)])
    path.write_bytes(path.read_bytes() + more)
    with pytest.raises(CorruptRecords):
        check_records(path)


def test_a_record_too_many_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tfrecord"
    write_records(path, [payloads_of([b"one", b"two"])])
    with pytest.raises(CorruptRecords, match="1 records of 3 bytes"):
        check_records(path, expected=RecordsSummary(records=1, payload_bytes=3))


@given(rows=st.lists(st.tuples(st.binary(max_size=300), st.binary(max_size=300)), max_size=5))
@_ON_FILES
def test_parts_are_joined_and_records_framed_alike(tmp_path: Path, rows: list[tuple[bytes, bytes]]) -> None:
    parts = [*(pa.array(column, pa.large_binary()) for column in zip(*rows, strict=True))] if rows else []
    parts = parts or [pa.array([], pa.large_binary())]
    between = pa.scalar(b"between", pa.large_binary())
    write_records(tmp_path / "a", [(parts[0], between, *parts[1:])])
    framed = b"".join(frame(b"between".join(row)) for row in rows)
    assert (tmp_path / "a").read_bytes() == framed


@pytest.mark.parametrize("length", [0, 1, 255, 256, 65_535, 65_536, 70_001, 1 << 24])
def test_headers_of_any_length_are_right(tmp_path: Path, length: int) -> None:
    path = tmp_path / "a.tfrecord"
    write_records(path, [payloads_of([bytes(length)])])
    assert path.read_bytes()[:12] == _header(length)


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 2**40])
def test_a_made_up_length_asks_for_no_memory(tmp_path: Path, length: int) -> None:
    path = tmp_path / "a.tfrecord"
    path.write_bytes(_header(length) + b"x" * 100)
    with pytest.raises(CorruptRecords, match=f"record 0 of {length} bytes"):
        check_records(path)


def test_bytes_are_tensorflows(tmp_path: Path) -> None:
    # Written by tf.io.TFRecordWriter of TensorFlow 2.21.
    path = tmp_path / "a.tfrecord"
    write_records(path, [payloads_of([b"hello", b""])])
    assert path.read_bytes().hex() == _TENSORFLOWS


def _header(length: int) -> bytes:
    """The checksum, bit by bit, of a length: crc32c (Castagnoli, reflected), rotated and offset."""
    encoded = length.to_bytes(8, "little")
    crc = 0xFFFFFFFF
    for byte in encoded:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    return encoded + masked.to_bytes(4, "little")


_TENSORFLOWS = "0500000000000000eab2043e68656c6c6fbb1f1c19000000000000000029039807d8ea82a2"
