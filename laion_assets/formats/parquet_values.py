"""Where single values of a Parquet column lie in the file, so that one can be read without its row group.

Only of columns that can be read like that: values of one size, never null, stored as they are (PLAIN, in
data pages of version 1, without compression), as :func:`laion_assets.formats.parquet.open_writer` stores
vectors. pyarrow skips no page of a row group: one vector of 1 kB costs it the 10 MB that lie around it.

The fields of a page's header, and their numbers, are those of parquet.thrift in apache/parquet-format.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from laion_assets.errors import CorruptParquet
from laion_assets.formats import parquet, thrift

# Fields of a PageHeader and of its DataPageHeader.
_PAGE_TYPE: Final = 1
_PAGE_BYTES: Final = 3
_DATA_PAGE: Final = 5
_VALUES: Final = 1
_ENCODING: Final = 2
# Values of enumerations.
_IS_DATA_PAGE: Final = 0
_PLAIN: Final = 0

# Of a page without statistics; ours take some thirty.
_MOST_HEADER_BYTES: Final = 256


def value_offsets(path: Path, column: str) -> npt.NDArray[np.int64]:
    """Byte of the file at which each row's value of a column begins, shape (rows,).

    The footer is taken at its word, so it has to be one that a checksum vouches for.

    Args:
        path: a file of ours.
        column: name of a column of fixed-size binary values.

    Raises:
        CorruptParquet: if the column is not stored value after value, or its pages are not where and as long
            as they should be.
    """
    with parquet.open_reader(path) as reader, path.open("rb", buffering=0) as file:
        number = reader.schema_arrow.get_field_index(column)
        described = reader.schema.column(number)
        if described.max_definition_level or described.physical_type != "FIXED_LEN_BYTE_ARRAY":
            raise _corrupt(path, f"values of one size in column {column}", str(described.physical_type))
        pages = [np.empty(0, np.int64)]
        for group in range(reader.num_row_groups):
            chunk = reader.metadata.row_group(group).column(number)
            pages += _pages(path, file.fileno(), chunk, described.length)
        return np.concatenate(pages)


def _pages(path: Path, descriptor: int, chunk: Any, size: int) -> list[npt.NDArray[np.int64]]:  # noqa: ANN401 (pyarrow has no types)
    """Offsets of the values of each page of a column of a row group."""
    if chunk.compression != "UNCOMPRESSED" or chunk.dictionary_page_offset is not None:
        raise _corrupt(path, f"{chunk.path_in_schema} as it is", f"it in {chunk.compression}")
    at, left, found = chunk.data_page_offset, chunk.num_values, []
    end = at + chunk.total_compressed_size
    while left:
        try:
            header, header_bytes = thrift.read_struct(os.pread(descriptor, _MOST_HEADER_BYTES, at), 0)
            page = header[_DATA_PAGE]
            is_plain = (header[_PAGE_TYPE], page[_ENCODING]) == (_IS_DATA_PAGE, _PLAIN)
            values, page_bytes = page[_VALUES], header[_PAGE_BYTES]
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise _corrupt(path, f"a data page at byte {at}", f"{type(error).__name__}: {error}") from error
        begin, at = at + header_bytes, at + header_bytes + page_bytes
        if not is_plain or not 0 < values <= left or page_bytes != values * size or at > end:
            raise _corrupt(
                path, f"plain values of {size} bytes from byte {begin} on", f"{values} in {page_bytes} bytes"
            )
        left -= values
        found.append(begin + size * np.arange(values))
    if at != end:
        raise _corrupt(path, f"the pages of {chunk.path_in_schema} to end at byte {end}", f"byte {at}")
    return found


def _corrupt(path: Path, expected: str, found: str) -> CorruptParquet:
    return CorruptParquet(
        path, expected=expected, found=found, remedy="Delete its manifest to have it made again."
    )
