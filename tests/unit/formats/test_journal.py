import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laion_assets.formats.journal import open_journal

ENTRIES = st.lists(st.tuples(st.dictionaries(st.text(), st.integers() | st.text()), st.binary()), max_size=6)


def fill(path, entries, work="w"):
    with open_journal(path, work=work) as journal:
        for fields, body in entries:
            journal.append(fields, body)


def read(path, work="w"):
    with open_journal(path, work=work) as journal:
        data = path.read_bytes()
        return [(entry.fields, data[entry.offset :][: entry.size]) for entry in journal.entries]


@settings(max_examples=50)
@given(ENTRIES, ENTRIES)
def test_it_gives_back_what_was_put_in_over_several_runs(tmp_path_factory, first, second):
    path = tmp_path_factory.mktemp("journal") / "j"
    fill(path, first)
    fill(path, second)
    assert read(path) == [*first, *second]


@settings(max_examples=100)
@given(ENTRIES, st.data())
def test_wherever_it_was_cut_or_damaged_what_it_gives_is_right(tmp_path_factory, entries, data):
    path = tmp_path_factory.mktemp("journal") / "j"
    fill(path, entries)
    whole = path.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    is_cut = data.draw(st.booleans())
    path.write_bytes(whole[:at] if is_cut else whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    found = read(path)
    assert found == entries[: len(found)]
    # What is added from then on is not lost behind the damage.
    fill(path, [({"more": 1}, b"more")])
    assert read(path) == [*found, ({"more": 1}, b"more")]


def test_only_the_torn_entry_is_lost(tmp_path):
    fill(tmp_path / "j", [({"n": n}, b"x" * 100) for n in range(5)])
    os.truncate(tmp_path / "j", (tmp_path / "j").stat().st_size - 1)
    assert [fields["n"] for fields, _ in read(tmp_path / "j")] == [0, 1, 2, 3]


def test_a_journal_of_other_work_is_begun_anew(tmp_path):
    fill(tmp_path / "j", [({"n": 1}, b"x")])
    assert read(tmp_path / "j", work="other") == []
    assert read(tmp_path / "j") == []


def test_no_more_is_unsynced_than_was_added(tmp_path):
    with open_journal(tmp_path / "j", work="w") as journal:
        assert journal.unsynced == 0
        journal.append({})
        journal.append({})
        assert journal.unsynced == 2
        journal.sync()
        assert journal.unsynced == 0


def test_an_entry_that_could_not_be_written_is_written_over(tmp_path):
    import resource

    path = tmp_path / "j"
    with open_journal(path, work="w") as journal:
        journal.append({"n": 1}, b"one")
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 50, limits[1]))
        try:
            with pytest.raises(OSError, match="File too large"):
                journal.append({"n": 2}, b"x" * 10_000)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        journal.append({"n": 3}, b"three")
    assert read(path) == [({"n": 1}, b"one"), ({"n": 3}, b"three")]
