import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laion_assets.formats import arrow
from laion_assets.schema import vector_type

TEXTS = st.lists(st.none() | st.text(), max_size=20)


@settings(deadline=None)  # pyarrow imports pandas with its first list
@given(TEXTS)
def test_texts_are_those_that_pyarrow_makes_of_them(values):
    made = arrow.column(values, pa.string())
    made.validate(full=True)
    assert made.chunk(0).equals(pa.array(values, pa.string()))


@pytest.mark.parametrize(
    ("type_", "numbers"),
    [(pa.int16(), st.integers(-(2**15), 2**15 - 1)), (pa.int64(), st.integers(-(2**63), 2**63 - 1))],
)
@settings(deadline=None)
@given(data=st.data())
def test_numbers_are_those_that_pyarrow_makes_of_them(type_, numbers, data):
    values = data.draw(st.lists(st.none() | numbers, max_size=20))
    made = arrow.column(values, type_)
    made.validate(full=True)
    assert made.chunk(0).equals(pa.array(values, type_))


@given(TEXTS, st.integers(0, 30))
def test_more_text_than_one_chunk_holds_is_cut_between_values(values, most):
    made = arrow.column(values, pa.string(), most_text_bytes=most)
    made.validate(full=True)
    assert made.to_pylist() == values
    for chunk in made.chunks:
        lengths = [len(value.encode()) for value in chunk.to_pylist() if value is not None]
        assert sum(lengths) <= most or len(chunk) == 1


@pytest.mark.parametrize(
    ("value", "type_", "error"),
    [
        (2**15, pa.int16(), OverflowError),
        (2**64, pa.int64(), OverflowError),
        ("\ud800", pa.string(), UnicodeEncodeError),
    ],
)
def test_what_the_type_cannot_hold_is_refused(value, type_, error):
    with pytest.raises(error):
        arrow.column([None, value], type_)


@pytest.mark.parametrize(("first", "rows"), [(0, 5), (2, 3), (5, 0)])
def test_vectors_become_a_column_and_vectors_again(first, rows):
    vectors = np.random.default_rng(1).standard_normal((5, 8)).astype("<f2")
    column = arrow.vector_column(vectors)
    assert column.type == vector_type(8)
    assert column.to_pylist() == [row.tobytes() for row in vectors]
    found = arrow.vectors_of(column.slice(first, rows))
    assert found.shape == (rows, 8)
    assert np.array_equal(found, vectors[first : first + rows])
