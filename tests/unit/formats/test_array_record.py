"""ArrayRecord files: a round trip, equal bytes, and refusal of any damage."""

from __future__ import annotations

import errno
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tfds_inputs import payloads_of

from laion_assets.errors import CorruptRecords
from laion_assets.formats.array_record import read_records, write_records
from laion_assets.formats.tfrecord import RecordsSummary

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="array_record exists for Linux only")

_PAYLOADS = st.lists(st.binary(max_size=200), max_size=6)
_ON_FILES = settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@given(batches=st.lists(_PAYLOADS, max_size=3))
@_ON_FILES
def test_what_is_written_is_read(tmp_path: Path, batches: list[list[bytes]]) -> None:
    path = tmp_path / "a.array_record"
    payloads = [payload for batch in batches for payload in batch]
    summary = write_records(path, [payloads_of(batch) for batch in batches])
    assert summary == RecordsSummary(records=len(payloads), payload_bytes=sum(map(len, payloads)))
    assert list(read_records(path)) == payloads


def test_parts_follow_each_other_and_equal_payloads_are_equal_bytes(tmp_path: Path) -> None:
    parts = [bytes([row]) * row for row in range(200)]
    write_records(tmp_path / "a", [payloads_of(parts) + payloads_of(parts)])
    write_records(tmp_path / "b", [payloads_of([part + part for part in parts])])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert list(read_records(tmp_path / "a")) == [part + part for part in parts]


def test_more_records_than_are_read_at_once(tmp_path: Path) -> None:
    payloads = [str(row).encode() for row in range(1000)]
    write_records(tmp_path / "a", [payloads_of(payloads)])
    assert list(read_records(tmp_path / "a")) == payloads


def test_a_changed_byte_is_refused_or_harmless(tmp_path: Path) -> None:
    payloads = [bytes([row]) * 20 for row in range(10)]
    path = tmp_path / "a.array_record"
    write_records(path, [payloads_of(payloads)])
    whole = path.read_bytes()
    # The rest are the zeros to the next 64 kB and the index behind them.
    refusals = []
    for at in [*range(1200), *range(len(whole) - 600, len(whole))]:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        try:
            found = list(read_records(path))
        except CorruptRecords as error:
            refusals.append(str(error))
        else:
            assert found == payloads
    assert len(refusals) > 400
    assert all("a.array_record: expected a whole ArrayRecord file, found" in said for said in refusals)


@pytest.mark.parametrize("length", [0, 1, 63, 64, 500, 65_536, -1])
def test_a_file_cut_short_is_refused(tmp_path: Path, length: int) -> None:
    path = tmp_path / "a.array_record"
    write_records(path, [payloads_of([b"one", b"two"])])
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CorruptRecords):
        list(read_records(path))


def test_a_full_disk_is_the_systems_error() -> None:
    with pytest.raises(OSError, match="No space left") as caught:
        write_records(Path("/dev/full"), [payloads_of([bytes(1 << 22)])])
    assert caught.value.errno == errno.ENOSPC


def test_no_file_is_the_systems_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list(read_records(tmp_path / "none"))
