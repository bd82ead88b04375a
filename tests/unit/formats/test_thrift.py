import pytest
from hypothesis import given
from hypothesis import strategies as st

from laion_assets.formats.thrift import (
    BINARY,
    I16,
    I32,
    I64,
    LIST,
    STRUCT,
    binary,
    integer,
    read_struct,
    sequence,
    struct,
)


@given(st.dictionaries(st.integers(1, 15), st.integers(-(2**63), 2**63 - 1)), st.binary())
def test_what_is_written_is_read(fields, more):
    ordered = dict(sorted(fields.items()))
    inner = struct({number: (I64, integer(value)) for number, value in ordered.items()})
    written = struct({3: (I16, integer(7)), 4: (STRUCT, inner), 15: (I32, integer(-1))})
    assert read_struct(written + more, 0) == ({3: 7, 4: ordered, 15: -1}, len(written))


def test_bytes_and_lists_are_as_the_protocol_says():
    # From thrift-compact-protocol.md: a size below 15 stands in the header, and a larger one behind it.
    assert sequence(I32, [integer(1), integer(-1)]) == b"\x25\x02\x01"
    assert sequence(BINARY, [binary(b"a")] * 200) == b"\xf8\xc8\x01" + b"\x01a" * 200
    assert struct({2: (LIST, sequence(I32, []))}) == b"\x29\x05\x00"


@pytest.mark.parametrize("data", [b"", b"\x15", b"\x15\x80", b"\x1c\x15\x02"])
def test_a_struct_that_does_not_end_is_no_struct(data):
    with pytest.raises(IndexError):
        read_struct(data, 0)


@pytest.mark.parametrize(
    ("data", "found"), [(b"\x05\x02\x00", "does not follow"), (b"\x18\x00\x00", "type 8")]
)
def test_what_page_headers_do_not_have_is_refused(data, found):
    with pytest.raises(ValueError, match=found):
        read_struct(data, 0)
