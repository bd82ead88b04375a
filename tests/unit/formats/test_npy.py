import hashlib
import io
import os
import pickle
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laion_assets.errors import CorruptNpy, SourceUnavailable
from laion_assets.formats.npy import open_reader, open_vectors

WIDTH = 8


def npy(array, *, version=(1, 0)):
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version=version, allow_pickle=False)
    return file.getvalue()


def vectors(rows, *, dtype="<f2", width=WIDTH):
    return np.random.default_rng(rows).standard_normal((rows, width)).astype(dtype)


def read_all(path, *, width=WIDTH, step=3):
    digest = hashlib.sha256()
    with open_reader(path, width=width, digest=digest) as reader:
        pieces = [reader.read(step) for _ in range(0, reader.rows + 1, step)]
        assert len(reader.read(1)) == 0
        return np.concatenate(pieces), digest.hexdigest()


def header(text, *, version=b"\x01\x00", length=None):
    text = text.encode()
    count = len(text) if length is None else length
    packed = struct.pack("<H", count) if version == b"\x01\x00" else struct.pack("<I", count)
    return b"\x93NUMPY" + version + packed + text


@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(0, 20),
    width=st.integers(1, 9),
    dtype=st.sampled_from(["<f2", "<f4"]),
    version=st.sampled_from([(1, 0), (2, 0), (3, 0)]),
    step=st.integers(1, 25),
)
def test_what_numpy_writes_is_read_as_it_was(tmp_path_factory, rows, width, dtype, version, step):
    path = tmp_path_factory.mktemp("npy") / "a.npy"
    array = vectors(rows, dtype=dtype, width=width)
    path.write_bytes(npy(array, version=version))
    mapped = open_vectors(path, width=width)
    assert mapped.dtype == array.dtype
    assert not mapped.flags.writeable
    assert np.array_equal(mapped, array)
    found, digest = read_all(path, width=width, step=step)
    assert found.tobytes() == array.tobytes()
    assert found.shape == array.shape
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_every_other_length_is_refused(tmp_path):
    path, whole = tmp_path / "a.npy", npy(vectors(3))
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        for read in (open_vectors, lambda path, *, width: read_all(path)):
            with pytest.raises(CorruptNpy):
                read(path, width=WIDTH)
    for extra in (b"\0", b"\0" * 2 * WIDTH, whole):
        path.write_bytes(whole + extra)
        with pytest.raises(CorruptNpy, match="bytes for 3 rows"):
            open_vectors(path, width=WIDTH)


def test_every_changed_byte_of_the_header_is_refused_or_changes_nothing(tmp_path):
    path, array = tmp_path / "a.npy", vectors(5)
    whole = npy(array)
    rng = np.random.default_rng(0)
    read = refused = 0
    for at in range(len(whole) - array.nbytes):
        for byte in {0, 9, 32, 48, 52, 255, *rng.integers(0, 256, 6).tolist()} - {whole[at]}:
            path.write_bytes(whole[:at] + bytes([byte]) + whole[at + 1 :])
            try:
                found = open_vectors(path, width=WIDTH)
            except CorruptNpy:
                refused += 1
            else:
                read += 1
                assert (found.shape, found.dtype) == (array.shape, array.dtype)
                assert found.tobytes() == array.tobytes()
    assert refused > 500
    assert read > 0  # one blank in place of another


@settings(deadline=None, max_examples=50)
@given(junk=st.binary(max_size=300))
def test_junk_is_refused_by_name(tmp_path_factory, junk):
    path = tmp_path_factory.mktemp("npy") / "a.npy"
    for start in (b"", b"\x93NUMPY\x01\x00", b"\x93NUMPY\x03\x00\x76\x00\x00\x00"):
        path.write_bytes(start + junk)
        with pytest.raises(CorruptNpy):
            open_vectors(path, width=WIDTH)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (vectors(4, dtype="<f8"), "'<f8'"),
        (vectors(4, dtype=">f2"), "'>f2'"),
        (vectors(4).view(np.int16), "'<i2'"),
        (vectors(4, width=WIDTH + 1), r"shape \(rows, 8\), found \(4, 9\)"),
        (vectors(4).reshape(-1), r"found \(32,\)"),
        (vectors(4).reshape(2, 2, WIDTH), r"found \(2, 2, 8\)"),
        (np.asfortranarray(vectors(4)), "Fortran order"),
        (np.float16(1), r"found \(\)"),
        (np.zeros(3, dtype=[("a", "<f2")]), "a header of at most|as numpy writes it"),
    ],
)
def test_other_arrays_are_refused_with_what_was_found(tmp_path, array, message):
    path = tmp_path / "a.npy"
    path.write_bytes(npy(np.asarray(array)))
    with pytest.raises(CorruptNpy, match=message) as caught:
        open_vectors(path, width=WIDTH)
    assert caught.value.path == path


@pytest.mark.parametrize(
    "start",
    [
        header("{'descr': '<f2', 'fortran_order': False, 'shape': (268435456, 8), }"),
        header("{'descr': '<f2', 'fortran_order': False, 'shape': (-1, 8), }"),
        header("{'descr': '<f2', 'fortran_order': False, 'shape': (99999999999999999999, 8), }"),
        header("{'descr': '<f2', 'fortran_order': False, 'shape': (1_0, 8), }"),
        header("{'descr': '<f2', 'fortran_order': False, 'shape': (True, 8), }"),
        header("{'descr': '<f2', 'fortran_order': False, 'shape': (2, 8), 'shape': (1, 8), }"),
        header("{'descr': __import__('os').abort(), 'fortran_order': False, 'shape': (1, 8), }"),
        header("(" * 900),
        header("{}", version=b"\x02\x00", length=0xFFFFFFFF),
        header("{}", version=b"\x04\x00"),
        b"\x93NUMPY\x01",
        b"",
    ],
)
def test_hostile_headers_are_refused_at_once(tmp_path, start):
    path = tmp_path / "a.npy"
    path.write_bytes(start + bytes(2 * WIDTH))
    with pytest.raises(CorruptNpy):
        open_vectors(path, width=WIDTH)


def test_no_memory_is_taken_for_a_header_that_claims_gigabytes(tmp_path):
    path = tmp_path / "a.npy"
    path.write_bytes(header("{}", version=b"\x02\x00", length=0xFFFFFFFF))
    with pytest.raises(CorruptNpy, match="at most 1024 bytes, found 4294967295 bytes claimed"):
        open_vectors(path, width=WIDTH)


def test_nothing_is_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "exploded"),))

    path = tmp_path / "a.npy"
    np.save(path, np.array([Bomb()], dtype=object), allow_pickle=True)
    for content in (path.read_bytes(), pickle.dumps(Bomb())):
        path.write_bytes(content)
        with pytest.raises(CorruptNpy):
            open_vectors(path, width=1)
    assert not (tmp_path / "exploded").exists()


def test_a_file_cut_while_it_is_read_is_an_error_and_no_crash(tmp_path):
    path = tmp_path / "a.npy"
    path.write_bytes(npy(vectors(1000)))
    with open_reader(path, width=WIDTH) as reader:
        reader.read(10)
        os.truncate(path, 1000)
        with pytest.raises(CorruptNpy, match="1000 rows, as when it was opened"):
            reader.read(990)


def test_a_file_that_cannot_be_opened_is_named(tmp_path):
    with pytest.raises(SourceUnavailable, match=r"a\.npy"):
        open_vectors(tmp_path / "a.npy", width=WIDTH)
    with pytest.raises(SourceUnavailable), open_reader(tmp_path, width=WIDTH):
        pass
