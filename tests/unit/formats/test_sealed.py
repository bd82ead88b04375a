import pytest
from hypothesis import given
from hypothesis import strategies as st

from laion_assets.formats.sealed import seal, unseal

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
DOCUMENTS = st.dictionaries(st.text().filter(lambda name: name != "sha256_of_the_rest"), VALUES, max_size=4)


@given(DOCUMENTS)
def test_what_comes_out_is_what_went_in(document):
    assert unseal(seal(document)) == document


def test_equal_documents_are_equal_bytes_and_tuples_are_lists():
    assert seal({"a": (1, 2), "b": {3: "x"}}) == seal({"b": {"3": "x"}, "a": [1, 2]})


@given(DOCUMENTS, st.data())
def test_a_changed_byte_is_refused_or_changes_nothing(document, data):
    whole = seal(document)
    at = data.draw(st.integers(0, len(whole) - 1))
    bit = data.draw(st.integers(0, 7))
    changed = whole[:at] + bytes([whole[at] ^ (1 << bit)]) + whole[at + 1 :]
    try:
        found = unseal(changed)
    except ValueError:
        return
    assert found == document


def test_what_was_written_before_there_were_seals_is_read():
    assert unseal(b'{"format": 1, "rows": 3}') == {"format": 1, "rows": 3}


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"3", b"{}", b'{"a": 1}', b'{"format": 2}', b"\xff\xfe", b'{"sha256_of_the_rest": 3}'],
)
def test_what_was_never_sealed_is_refused(data):
    with pytest.raises(ValueError, match=r".+"):
        unseal(data)
