"""Thrift's compact protocol, as far as Parquet's page headers and footers need it.

Source: thrift-compact-protocol.md in apache/thrift. Written values are given and returned as bytes, so that
what is nested is simply put together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

# Types of fields and of a list's items.
I16: Final = 4
I32: Final = 5
I64: Final = 6
BINARY: Final = 8
LIST: Final = 9
STRUCT: Final = 12

_STOP: Final = 0
_INTEGERS: Final = (I16, I32, I64)
# From so many items on, their number follows the header of a list.
_LONG_LIST: Final = 15


def read_struct(data: bytes, at: int) -> tuple[Mapping[int, Any], int]:
    """A struct of integers and structs: its fields by number, and where it ends.

    Raises:
        IndexError: if it does not end within the data.
        ValueError: if it holds anything else.
    """
    fields: dict[int, Any] = {}
    number = 0
    while (kind := data[at]) != _STOP:
        at += 1
        if not kind >> 4:
            raise ValueError("a field that does not follow the one before")
        number, kind = number + (kind >> 4), kind & 0x0F
        if kind == STRUCT:
            fields[number], at = read_struct(data, at)
        elif kind in _INTEGERS:
            fields[number], at = _read_integer(data, at)
        else:
            raise ValueError(f"a field of type {kind}")
    return fields, at + 1


def _read_integer(data: bytes, at: int) -> tuple[int, int]:
    """A zigzag integer of seven bits a byte, and where it ends."""
    bits, shift = 0, 0
    while data[at] & 0x80:
        bits |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
    bits |= data[at] << shift
    return bits >> 1 ^ -(bits & 1), at + 1


def struct(fields: Mapping[int, tuple[int, bytes]]) -> bytes:
    """A struct of fields by number, ascending and at most 15 apart: the type and the value of each."""
    written = bytearray()
    before = 0
    for number, (kind, value) in fields.items():
        written.append(number - before << 4 | kind)
        written += value
        before = number
    written.append(_STOP)
    return bytes(written)


def sequence(kind: int, items: Sequence[bytes]) -> bytes:
    """A list of values of one type."""
    if len(items) < _LONG_LIST:
        return bytes([len(items) << 4 | kind]) + b"".join(items)
    return bytes([0xF0 | kind]) + _varint(len(items)) + b"".join(items)


def integer(value: int) -> bytes:
    """An integer of any of the three types: zigzag, seven bits a byte."""
    return _varint(value << 1 if value >= 0 else ~(value << 1))


def binary(value: bytes) -> bytes:
    """Bytes, or a text's UTF-8."""
    return _varint(len(value)) + value


def _varint(bits: int) -> bytes:
    written = bytearray()
    while bits > 0x7F:
        written.append(bits & 0x7F | 0x80)
        bits >>= 7
    written.append(bits)
    return bytes(written)
