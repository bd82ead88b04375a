import io
import itertools
import os
import tarfile

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from laion_assets.errors import CorruptTar
from laion_assets.formats.tar_headers import Member, NotPlain, read_plain, walk
from laion_assets.formats.webdataset import TarReader, TarWriter, index_tar, is_ours, open_tar

stems = st.text("0123456789abcXYZ_-", min_size=1, max_size=12)
extensions = st.sampled_from(["jpg", "txt", "json", "tar.gz", "PNG"])
archives = st.dictionaries(st.tuples(stems, extensions), st.binary(max_size=1500), max_size=8)


def write(path, archive):
    with open_tar(path) as tar:
        return {name: tar.add(".".join(name), body) for name, body in archive.items()}


def tarred(members, kind=tarfile.PAX_FORMAT, **fields):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=kind) as tar:
        for name, body in members:
            info = tarfile.TarInfo(name)
            info.size = len(body)
            for field, value in fields.items():
                setattr(info, field, value)
            tar.addfile(info, io.BytesIO(body))
    return stream.getvalue()


def bodies(path):
    with path.open("rb") as file:
        return {
            (stem, extension): os.pread(file.fileno(), member.size, member.offset)
            for stem, files in index_tar(path).items()
            for extension, member in files.items()
        }


@settings(deadline=None, max_examples=40)
@given(archives)
def test_tarfile_and_our_index_read_what_was_written(tmp_path_factory, archive):
    path = tmp_path_factory.mktemp("tar") / "00000.tar"
    places = write(path, archive)
    with tarfile.open(path) as tar:
        read = {info.name: (info, tar.extractfile(info).read()) for info in tar}
    assert list(read) == [".".join(name) for name in archive]
    for name, body in archive.items():
        info, found = read[".".join(name)]
        assert (found, info.mtime, info.uid, info.gid, info.mode) == (body, 0, 0, 0, 0o644)
        assert places[name] == Member(offset=info.offset_data, size=len(body))
    assert bodies(path) == {(stem, ext.lower()): body for (stem, ext), body in archive.items()}


@settings(deadline=None, max_examples=30)
@given(archives)
def test_equal_samples_are_equal_bytes(tmp_path_factory, archive):
    folder = tmp_path_factory.mktemp("tar")
    write(folder / "a.tar", archive)
    write(folder / "b.tar", archive)
    assert (folder / "a.tar").read_bytes() == (folder / "b.tar").read_bytes()


@settings(deadline=None, max_examples=30)
@given(archives, st.data())
def test_every_truncation_is_refused(tmp_path_factory, archive, data):
    path = tmp_path_factory.mktemp("tar") / "00000.tar"
    write(path, archive)
    whole = path.read_bytes()
    length = data.draw(st.integers(0, len(whole) - 1))
    path.write_bytes(whole[:length])
    with pytest.raises(CorruptTar, match=r"two empty blocks|a member of"):
        index_tar(path)


def test_every_block_boundary_is_refused_too(tmp_path):
    path = tmp_path / "00000.tar"
    write(path, {("a", "jpg"): b"x" * 700, ("a", "txt"): b"", ("b", "jpg"): b"y"})
    whole = path.read_bytes()
    for length in range(0, len(whole), 512):
        path.write_bytes(whole[:length])
        with pytest.raises(CorruptTar):
            index_tar(path)


@settings(deadline=None, max_examples=40)
@given(
    archives, st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]), st.booleans()
)
def test_what_tarfile_writes_is_indexed(tmp_path_factory, archive, kind, has_float_times):
    # img2dataset's times are floats, which forces a PAX header before each member.
    path = tmp_path_factory.mktemp("tar") / "00000.tar"
    time = 1700000000.25 if has_float_times and kind == tarfile.PAX_FORMAT else 1700000000
    path.write_bytes(tarred([(".".join(name), body) for name, body in archive.items()], kind, mtime=time))
    lowered = {(stem, ext.lower()): body for (stem, ext), body in archive.items()}
    assert bodies(path) == lowered


def plainly(path, **window):
    """Members as they are found in windows; None where they have to be walked."""
    members, taken = [], []
    with path.open("rb") as file:
        try:
            for names, offsets, sizes, at, body in read_plain(
                file.fileno(), lambda piece: taken.append(bytes(piece)), **window
            ):
                for name, offset, size in zip(names, offsets.tolist(), sizes.tolist(), strict=True):
                    file.seek(offset)
                    assert body[offset - at : offset - at + size] == file.read(size)
                    members.append((name.decode("utf-8", "replace"), Member(offset, size)))
        except NotPlain:
            # What was found until then is so.
            assert not members or walked_at_least(path, len(members)) == members
            return None
    assert b"".join(taken) == path.read_bytes()
    return members


def walked_at_least(path, count):
    with path.open("rb") as file:
        return list(itertools.islice(walk(path, file.fileno()), count))


def walked(path):
    with path.open("rb") as file:
        return list(walk(path, file.fileno()))


@pytest.mark.parametrize("window", [512, 1024, 2048, 4 << 20])
@settings(deadline=None, max_examples=30)
@given(
    archive=st.dictionaries(st.tuples(stems, extensions), st.binary(max_size=1500), min_size=1, max_size=8),
    kind=st.sampled_from([None, tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_headers_are_found_at_once_in_tars_of_the_usual_kinds(tmp_path_factory, archive, kind, window):
    path = tmp_path_factory.mktemp("tar") / "00000.tar"
    if kind is None:
        write(path, archive)
    else:
        time = 1700000000.25 if kind == tarfile.PAX_FORMAT else 1700000000
        path.write_bytes(tarred([(".".join(name), body) for name, body in archive.items()], kind, mtime=time))
    assert plainly(path, window_bytes=window) == walked(path) != []


@settings(deadline=None, max_examples=150)
@given(
    archives, st.booleans(), st.integers(0, 10**6), st.integers(0, 255), st.sampled_from([512, 1024, 4 << 20])
)
def test_what_is_found_at_once_is_what_is_walked(tmp_path_factory, archive, is_pax, position, value, window):
    path = tmp_path_factory.mktemp("tar") / "00000.tar"
    members = [(".".join(name), body) for name, body in archive.items()]
    whole = bytearray(tarred(members, mtime=1.5) if is_pax else tarred(members, tarfile.USTAR_FORMAT))
    whole[position % len(whole)] = value
    path.write_bytes(whole)
    found = plainly(path, window_bytes=window)
    # Where it finds anything, walking finds the same, and no fault.
    assert found is None or found == walked(path)


def test_a_tar_within_a_picture_is_no_part_of_it(tmp_path):
    path = tmp_path / "00000.tar"
    inner = tarred([("b.jpg", b"inner")], tarfile.USTAR_FORMAT)
    write(path, {("a", "jpg"): inner, ("a", "txt"): b"caption"})
    assert plainly(path) is None
    assert bodies(path) == {("a", "jpg"): inner, ("a", "txt"): b"caption"}


def asked(reader):
    """Bytes of each member that was asked for, by its number."""
    return {
        number: bytes(body[begin : begin + size])
        for members, begins, sizes, body in reader.stretches()
        for number, begin, size in zip(members.tolist(), begins.tolist(), sizes.tolist(), strict=True)
    }


@settings(deadline=None, max_examples=40)
@given(archives, st.sampled_from([tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT]), st.booleans())
def test_members_are_read_with_their_headers(tmp_path_factory, archive, kind, is_plain):
    path = tmp_path_factory.mktemp("tar") / "00000.tar"
    members = [(".".join(name), body) for name, body in archive.items()]
    # A name too long for a header has to be walked; what was read before it is not read again.
    rest = [] if is_plain else [(f"{'k' * 180}.png", b"last")]
    path.write_bytes(tarred([*members, *rest], kind if is_plain else tarfile.PAX_FORMAT))
    reader = TarReader(path, extensions=["jpg", "png"])
    expected = {
        number: body
        for number, (name, body) in enumerate([*members, *rest])
        if name.lower().endswith((".jpg", ".png"))
    }
    assert asked(reader) == expected
    names = zip(reader.members["stem"].to_pylist(), reader.members["extension"].to_pylist(), strict=True)
    assert [".".join(name) for name in names] == [
        f"{stem}.{extension.lower()}"
        for stem, extension in (name.split(".", 1) for name, _ in [*members, *rest])
    ]
    assert reader.xxh3_128 == (xxhash.xxh3_128_hexdigest(path.read_bytes()) if is_plain else None)


def test_members_longer_than_what_is_in_memory_at_first_are_read(tmp_path):
    path = tmp_path / "00000.tar"
    archive = {("a", "jpg"): os.urandom(9 << 20), ("a", "txt"): b"caption", ("b", "jpg"): os.urandom(5 << 20)}
    write(path, archive)
    reader = TarReader(path, extensions=["jpg"])
    assert asked(reader) == {0: archive["a", "jpg"], 2: archive["b", "jpg"]}
    assert reader.xxh3_128 == xxhash.xxh3_128_hexdigest(path.read_bytes())


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_are_read(tmp_path, kind):
    path = tmp_path / "00000.tar"
    name = "k" * 180
    path.write_bytes(tarred([(f"{name}.jpg", b"body"), ("b.txt", b"")], kind))
    assert bodies(path) == {(name, "jpg"): b"body", ("b", "txt"): b""}


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 4095), st.integers(0, 255))
def test_a_changed_byte_of_a_header_is_refused_or_harmless(tmp_path_factory, position, value):
    path = tmp_path_factory.mktemp("tar") / "00000.tar"
    write(path, {("a", "jpg"): b"x" * 600, ("a", "txt"): b"caption", ("b", "jpg"): b"y"})
    whole = bytearray(path.read_bytes())
    before = index_tar(path)
    changed = position % len(whole)
    whole[changed] = value
    path.write_bytes(whole)
    try:
        after = index_tar(path)
    except CorruptTar:
        return
    assert after == before  # in a body, or the same byte, or a blank spelled otherwise


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../a.jpg",
        "a/b.jpg",
        "./a.jpg",
        "noextension",
        ".jpg",
        "a..jpg",
        "a.",
        "a b.jpg",
        "ä.jpg",
    ],
)
def test_names_that_lead_elsewhere_are_refused(tmp_path, name):
    path = tmp_path / "00000.tar"
    path.write_bytes(tarred([(name, b"x")]))
    with pytest.raises(CorruptTar, match=r"stem\.extension"):
        index_tar(path)
    with pytest.raises(ValueError, match="cannot name a member"):
        TarWriter(io.BytesIO()).add(name, b"")


@pytest.mark.parametrize("name", [b"\xff\xfe.jpg", b"a.jpg\n", b"a\0b.jpg", b"\n.jpg"])
def test_names_of_other_bytes_are_refused(tmp_path, name):
    path = tmp_path / "00000.tar"
    header = bytearray(MEMBER)
    header[:100] = name.ljust(100, b"\0")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])
    path.write_bytes(header)
    assert plainly(path) is not None
    with pytest.raises(CorruptTar, match=r"stem\.extension"):
        index_tar(path)


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE],
)
def test_links_and_devices_are_refused(tmp_path, kind):
    path = tmp_path / "00000.tar"
    path.write_bytes(tarred([("a.jpg", b"")], type=kind, linkname="/etc/passwd"))
    with pytest.raises(CorruptTar, match="plain files only"):
        index_tar(path)


@pytest.mark.parametrize("names", [("a.jpg", "a.jpg"), ("a.jpg", "a.JPG")])
def test_a_member_that_is_there_twice_is_refused(tmp_path, names):
    path = tmp_path / "00000.tar"
    path.write_bytes(tarred([(name, b"same") for name in names]))
    with pytest.raises(CorruptTar, match="twice"):
        index_tar(path)


def extended(kind, data):
    """A header of a type that tells of the next member, with its data."""
    header = bytearray(tarred([("x.x", data)], tarfile.USTAR_FORMAT)[: 512 + len(data) + -len(data) % 512])
    header[156:157] = kind
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])
    return bytes(header)


def pax(fields):
    records = b"".join(
        next(
            record
            for length in range(len(text) + 2, len(text) + 8)
            if len(record := b"%d %b\n" % (length, text)) == length
        )
        for text in (b"%b=%b" % field for field in fields)
    )
    return extended(b"x", records)


MEMBER = tarred([("a.jpg", b"body")], tarfile.USTAR_FORMAT)


def test_pax_headers_rename_and_resize(tmp_path):
    path = tmp_path / "00000.tar"
    path.write_bytes(pax([(b"path", b"b.png"), (b"size", b"2"), (b"mtime", b"1.5")]) + MEMBER)
    assert bodies(path) == {("b", "png"): b"bo"}


@pytest.mark.parametrize(
    "start",
    [
        pax([(b"path", b"../../b.png")]),
        pax([(b"size", b"99999999999999")]),
        pax([(b"size", b"-4")]),
        pax([(b"size", b"1e3")]),
        pax([(b"GNU.sparse.major", b"1")]),
        pax([(b"path", b"\xff\xfe.jpg")]),
        pax([(b"a", b"b")]).replace(b"6 a=b", b"9 a=b"),
        pax([(b"a", b"b")]).replace(b"6 a=b", b"0 a=b"),
        pax([(b"a", b"b")]).replace(b"6 a=b", b"x a=b"),
        extended(b"L", b"../../b.png\0"),
        extended(b"L", b"k" * 70_000),
        extended(b"K", b"/etc/passwd\0"),
    ],
)
def test_hostile_extended_headers_are_refused(tmp_path, start):
    path = tmp_path / "00000.tar"
    path.write_bytes(start + MEMBER)
    with pytest.raises(CorruptTar):
        index_tar(path)


def test_a_global_header_may_comment_but_not_name(tmp_path):
    path = tmp_path / "00000.tar"
    for fields, is_taken in (({"comment": "made by git"}, True), ({"path": "b.jpg"}, False)):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT, pax_headers=fields) as tar:
            info = tarfile.TarInfo("a.jpg")
            info.size = 4
            tar.addfile(info, io.BytesIO(b"body"))
        path.write_bytes(stream.getvalue())
        if is_taken:
            assert bodies(path) == {("a", "jpg"): b"body"}
        else:
            with pytest.raises(CorruptTar, match="global headers"):
                index_tar(path)


def test_an_extended_header_at_the_end_is_refused(tmp_path):
    path = tmp_path / "00000.tar"
    path.write_bytes(pax([(b"path", b"b.png")]) + bytes(1024))
    with pytest.raises(CorruptTar, match="a member after its extended header"):
        index_tar(path)


@pytest.mark.parametrize("rest", [b"x", MEMBER, bytes(2 << 20)])
def test_nothing_may_follow_the_end(tmp_path, rest):
    path = tmp_path / "00000.tar"
    path.write_bytes(MEMBER[:1024] + bytes(1024) + rest)
    with pytest.raises(CorruptTar, match="nothing after the end"):
        index_tar(path)


def test_a_claimed_size_of_terabytes_is_refused(tmp_path):
    path = tmp_path / "00000.tar"
    header = bytearray(MEMBER)
    header[124:136] = b"\x80" + (1 << 60).to_bytes(11)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])
    path.write_bytes(header)
    with pytest.raises(CorruptTar, match="a member of"):
        index_tar(path)


def test_an_interrupted_tar_is_not_ended(tmp_path):
    path = tmp_path / "00000.tar"
    with pytest.raises(RuntimeError), open_tar(path) as tar:  # noqa: PT012
        tar.add("a.jpg", b"body")
        raise RuntimeError
    with pytest.raises(CorruptTar):
        index_tar(path)


def test_the_writer_of_a_tar_is_told(tmp_path):
    write(tmp_path / "ours.tar", {("a", "jpg"): b"x"})
    (tmp_path / "theirs.tar").write_bytes(MEMBER)
    (tmp_path / "empty.tar").write_bytes(bytes(10_240))
    assert is_ours(tmp_path / "ours.tar")
    assert not is_ours(tmp_path / "theirs.tar")
    assert is_ours(tmp_path / "empty.tar")


def test_a_body_beyond_ustar_is_refused():
    class Endless(bytes):
        def __len__(self):
            return 8**11

    with pytest.raises(ValueError, match="do not fit"):
        TarWriter(io.BytesIO()).add("a.jpg", Endless())
