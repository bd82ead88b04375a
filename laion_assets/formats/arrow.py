"""Arrow columns from Python values, and vectors as columns and as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

# Arrow's string offsets are 32-bit (its columnar format, "Variable-size Binary Layout").
_MOST_TEXT_BYTES: Final = 2**31 - 1


def column(
    values: Sequence[Any], type_: pa.DataType, *, most_text_bytes: int = _MOST_TEXT_BYTES
) -> pa.ChunkedArray:
    """What :func:`pyarrow.chunked_array` makes of texts or whole numbers, and without pandas.

    :func:`pyarrow.array` imports pandas with its first list, wherever that is installed, to see whether the
    list is one of its series: 0.4 s and 60 MB for each process that has no other need of it.

    Args:
        values: str or int, as ``type_`` is; None becomes null.
        type_: string, or a whole number.
        most_text_bytes: longest that the texts of one chunk may be together, UTF-8.

    Raises:
        OverflowError: if a number is none of ``type_``'s.
        UnicodeEncodeError: if a text is not valid Unicode.
    """
    validity = np.packbits(np.array([value is not None for value in values], bool), bitorder="little")
    if not pa.types.is_string(type_):
        numbers = np.array([value or 0 for value in values], type_.to_pandas_dtype())
        return _chunk(type_, len(values), [validity, numbers])
    texts = [(value or "").encode() for value in values]
    ends = np.cumsum([0, *map(len, texts)])
    if ends[-1] > most_text_bytes and len(values) > 1:
        half = len(values) // 2
        parts = [
            column(part, type_, most_text_bytes=most_text_bytes) for part in (values[:half], values[half:])
        ]
        return pa.chunked_array([chunk for part in parts for chunk in part.chunks])
    return _chunk(type_, len(values), [validity, ends.astype(np.int32), b"".join(texts)])


def _chunk(type_: pa.DataType, length: int, buffers: Sequence[Any]) -> pa.ChunkedArray:
    array = pa.Array.from_buffers(type_, length, [pa.py_buffer(buffer) for buffer in buffers])
    return pa.chunked_array([array])


def vector_column(vectors: npt.NDArray[np.float16]) -> pa.Array:
    """Vectors (rows, width) as fixed-size binary values (``schema.vector_type``), over the same memory."""
    rows, width = vectors.shape
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(2 * width), rows, [None, pa.py_buffer(vectors)])


def vectors_of(column: pa.Array) -> npt.NDArray[np.float16]:
    """What :func:`vector_column` made a column of, shape (rows, width), over the same memory."""
    width = column.type.byte_width // 2
    flat = np.frombuffer(
        column.buffers()[1], "<f2", count=len(column) * width, offset=2 * width * column.offset
    )
    return flat.reshape(len(column), width)
