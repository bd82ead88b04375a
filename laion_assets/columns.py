"""Columns of the source beyond LAION's eight: which of them a row takes along, and what two of them mean.

They are data of strangers: of any type Parquet has, and of any value.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, Self

import pyarrow as pa
from pydantic import model_validator

from laion_assets.blur import MOST_BOXES, Box
from laion_assets.policy import Policy
from laion_assets.schema import DIGESTS, IMAGES, RAW, SAMPLES, Digest

_FARTHEST: Final = 1e6
# Columns that views and readers add to ours.
_ADDED: Final = ("shard", "part", "stem", "filename", "row_index")
_BEFORE_IMAGES: Final = frozenset(name.lower() for name in (*RAW.names, *SAMPLES.names, *_ADDED))
_EVERYWHERE: Final = _BEFORE_IMAGES | {name.lower() for name in (*IMAGES.names, *DIGESTS)}

_DESCRIPTION: Final = {"description": "column of the source, as it is there"}


class ColumnPolicy(Policy):
    """Which columns of the source a row takes along; names are matched ignoring case."""

    extra_columns: tuple[str, ...] = ()
    """Columns that stay with their row up to the images: table and tar."""
    digest_column: str | None = None
    """Column of the hexadecimal digests that bodies must have; a row without one is not checked."""
    digest_kind: Digest = "sha256"
    """What the digests in ``digest_column`` are."""
    boxes_column: str | None = None
    """Column of the boxes to blur: lists of [x0, y0, x1, y1] as shares of width and height, or JSON of it."""

    @model_validator(mode="after")
    def _names_are_free(self) -> Self:
        taken: dict[str, str] = {}
        for name in self.extra_columns:
            if name.lower() in _EVERYWHERE or not name.strip():
                raise ValueError(f"extra_columns: {name!r} is the name of a column of ours")
            if taken.setdefault(name.lower(), name) != name or self.extra_columns.count(name) > 1:
                raise ValueError(f"extra_columns: {name!r} is there twice")
        for setting in ("digest_column", "boxes_column"):
            name = getattr(self, setting)
            if name is not None and (name.lower() in _BEFORE_IMAGES or not name.strip()):
                raise ValueError(f"{setting}: {name!r} is the name of a column of ours")
        return self

    @property
    def carried(self) -> tuple[str, ...]:
        """Every column that parts and samples have beside our own, each once."""
        asked = (*self.extra_columns, self.digest_column, self.boxes_column)
        names: dict[str, str] = {}
        for name in asked:
            if name is not None:
                names.setdefault(name.lower(), name)
        return tuple(names.values())


NO_COLUMNS: Final = ColumnPolicy()
"""LAION's own columns alone."""


def find_columns(wanted: Iterable[str], names: Iterable[str]) -> dict[str, str | None]:
    """Wanted name -> the one of ``names`` that is it, ignoring case; None where there is none."""
    found = {name.lower(): name for name in names}
    return {name: found.get(name.lower()) for name in wanted}


def extra_field(name: str, type_: pa.DataType) -> pa.Field:
    """A source's column as our tables declare it: its own type, dictionaries spelled out."""
    plain = type_.value_type if pa.types.is_dictionary(type_) else type_
    return pa.field(name, plain, metadata=_DESCRIPTION)


def is_text(type_: pa.DataType) -> bool:
    """Whether a column's values are texts."""
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_))


def valid_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column with what is no UTF-8 replaced, however deep in lists it is: Parquet files may hold it."""
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        bytes_type = _with_leaves(column.type, lambda leaf: pa.large_binary() if is_text(leaf) else leaf)
        values = [_decoded(value, column.type) for value in column.cast(bytes_type).to_pylist()]
        return pa.chunked_array([pa.array(values, column.type)])
    return column


def valid_texts(table: pa.Table) -> pa.Table:
    """The table, each of its columns as :func:`valid_text` has it."""
    try:
        table.validate(full=True)
    except pa.ArrowInvalid:
        return pa.table([valid_text(column) for column in table.columns], schema=table.schema)
    return table


def json_column(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column with times as text: a Python value cannot hold every time that Arrow's can."""
    text_type = _with_leaves(column.type, lambda leaf: pa.string() if pa.types.is_temporal(leaf) else leaf)
    return column if text_type == column.type else column.cast(text_type)


def json_value(value: object) -> object:
    """A value of a table as JSON knows it: no NaN and no infinity, bytes as hexadecimal digits."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case bytes():
            return value.hex()
        case list() | tuple():
            return [json_value(item) for item in value]
        case dict():
            return {str(name): json_value(item) for name, item in value.items()}
        case None | bool() | int() | str():
            return value
    return str(value)  # Decimal


def read_digest(value: str | None) -> str | None:
    """The digest that a body must have; None where none is given."""
    return (value or "").strip() or None


def read_boxes(value: object) -> Sequence[Box]:
    """The boxes of a row: [x0, y0, x1, y1] from 0 to 1, from left and top, as img2dataset takes them.

    Args:
        value: a list of boxes, JSON of it, or None and blank text where there are none.

    Raises:
        ValueError: if the value is anything else: such a picture must not be stored as it is. So it is
            where a box lies outside of the picture, since nothing would be blurred then (boxes in pixels).
    """
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else None
        except (ValueError, RecursionError):
            raise ValueError("not JSON") from None
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > MOST_BOXES:
        raise ValueError(f"not a list of at most {MOST_BOXES} boxes")
    return tuple(_read_box(box) for box in value)


def _read_box(box: object) -> Box:
    if not isinstance(box, list) or len(box) != 4:
        raise ValueError("not a box of four numbers")
    numbers = [side for side in box if isinstance(side, int | float) and not isinstance(side, bool)]
    if len(numbers) < 4 or not all(abs(side) < _FARTHEST for side in numbers):
        raise ValueError("not a box of four numbers")
    left, top, right, bottom = map(float, numbers)
    if not (max(left, 0) < min(right, 1) and max(top, 0) < min(bottom, 1)):
        raise ValueError("a box outside of the picture")
    return left, top, right, bottom


def _with_leaves(type_: pa.DataType, change: Callable[[pa.DataType], pa.DataType]) -> pa.DataType:
    """The type with what its lists and structs are made of changed."""
    if pa.types.is_list(type_):
        return pa.list_(type_.value_field.with_type(_with_leaves(type_.value_type, change)))
    if pa.types.is_large_list(type_):
        return pa.large_list(type_.value_field.with_type(_with_leaves(type_.value_type, change)))
    if pa.types.is_fixed_size_list(type_):
        inner = type_.value_field.with_type(_with_leaves(type_.value_type, change))
        return pa.list_(inner, type_.list_size)
    if pa.types.is_struct(type_):
        return pa.struct([field.with_type(_with_leaves(field.type, change)) for field in type_])
    return change(type_)


def _decoded(value: object, type_: pa.DataType) -> object:
    """Bytes where the type says text, as that text."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace") if is_text(type_) else value
    if isinstance(value, list):
        return [_decoded(item, type_.value_type) for item in value]
    if isinstance(value, Mapping):
        return {field.name: _decoded(value[field.name], field.type) for field in type_}
    return value
