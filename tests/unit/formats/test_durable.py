import errno

import pytest

from laion_assets.errors import DeviceFailed, DiskFull, FileTooLong, NotWritable, PlanError, TooManyOpenFiles
from laion_assets.formats.durable import free_bytes, make_folder, naming_storage_errors, write_durably


def test_a_durable_write_replaces_and_leaves_no_draft(tmp_path):
    path = tmp_path / "plan.json"
    write_durably(path, b"old")
    write_durably(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_what_was_there_and_no_draft(tmp_path):
    path = tmp_path / "plan.json"
    write_durably(path, b"old")
    with pytest.raises(TypeError):
        write_durably(path, "text is not bytes")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_folders_are_made_once_and_all_the_way(tmp_path):
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        (errno.ENOSPC, DiskFull, "make room"),
        (errno.EDQUOT, DiskFull, "quota"),
        (errno.EROFS, NotWritable, "read-only"),
        (errno.EACCES, NotWritable, "may not be written"),
        (errno.EPERM, NotWritable, "may not be written"),
        (errno.EMFILE, TooManyOpenFiles, "ulimit -n"),
        (errno.ENFILE, TooManyOpenFiles, "machine's"),
        (errno.EFBIG, FileTooLong, "raise the limit"),
        (errno.EIO, DeviceFailed, "system's log"),
    ],
)
def test_what_the_machine_refuses_is_named_with_what_is_needed(tmp_path, number, kind, words):
    with (
        pytest.raises(kind, match=words) as caught,
        naming_storage_errors("images 00003", tmp_path / "not" / "there"),
    ):
        raise OSError(number, "as the system says", str(tmp_path / "file"))
    assert str(caught.value).startswith("images 00003: ")
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ('IO Error: Could not write file "x": No space left on device', DiskFull),
        ("(sqlite3.OperationalError) database or disk is full", DiskFull),
        ("attempt to write a readonly database", NotWritable),
        ("disk I/O error", DeviceFailed),
    ],
)
def test_libraries_that_tell_it_in_words_are_understood(tmp_path, text, kind):
    with pytest.raises(kind), naming_storage_errors("catalog", tmp_path):
        raise RuntimeError(text)


@pytest.mark.parametrize(
    "error",
    [FileNotFoundError(errno.ENOENT, "no"), ValueError("odd"), PlanError("Permission denied, it says")],
)
def test_other_errors_pass_unchanged(tmp_path, error):
    with pytest.raises(type(error)) as caught, naming_storage_errors("catalog", tmp_path):
        raise error
    assert caught.value is error


def test_room_is_told_of_folders_that_are_not_there_yet(tmp_path):
    assert free_bytes(tmp_path / "a" / "b") > 0
