"""Keys of samples as img2dataset writes them: shard number and row, zero-padded.

Its releases differ: newer ones write global keys (``000120034`` is row 34 of shard 12), the one that made
LAION's 2021 files wrote keys local to a shard (``000000034``). Ours are always global.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from laion_assets.errors import MisalignedShard
from laion_assets.layout import ShardId

# img2dataset's `oom_shard_count`, the digits of a shard number.
SHARD_DIGITS: Final = 5

# Of its default of 10,000 rows for each shard.
_USUAL_ROW_DIGITS: Final = 4


def sample_keys(shard: ShardId, rows: int, *, row_digits: int) -> pa.Array:
    """Global keys of a shard's rows, from its first: strings; longer ones where so many rows need them."""
    number = f"{shard.number:0{SHARD_DIGITS}d}".encode()
    numbers, offsets = _row_numbers(rows, len(number), max(row_digits, len(str(rows - 1))))
    keys = numbers.copy()
    for place, digit in enumerate(number):
        keys[:, place] = digit
    # All are of one length; to join them as strings takes ten times as long.
    return pa.StringArray.from_buffers(rows, offsets, pa.py_buffer(keys))


# Most shards have the same number of rows.
@lru_cache(maxsize=2)
def _row_numbers(rows: int, before: int, digits: int) -> tuple[npt.NDArray[np.uint8], pa.Buffer]:
    """Each row's number in ASCII, and room before it: shape (rows, before + digits); where each begins."""
    powers = 10 ** np.arange(before + digits - 1, -1, -1)
    found: npt.NDArray[np.uint8] = (np.arange(rows)[:, None] // powers % 10 + ord("0")).astype(np.uint8)
    return found, pa.py_buffer(np.arange(rows + 1, dtype=np.int32) * found.shape[1])


def spelled_keys(keys: pa.ChunkedArray, stems: Iterable[str]) -> pa.Array:
    """Keys as a tar's members spell them: a tool that made numbers of them has lost their zeros.

    Args:
        keys: strings or integers.
        stems: the tar's own spelling of some of them.
    """
    texts = keys.cast(pa.string()).combine_chunks()
    if not pa.types.is_integer(keys.type):
        return texts
    width = len(next(iter(stems), "")) or SHARD_DIGITS + _USUAL_ROW_DIGITS
    return pc.utf8_lpad(texts, width, "0")


def global_keys(keys: pa.Array, shard: ShardId, path: Path) -> pa.Array:
    """Keys found in a shard's file, each as a global key.

    Args:
        keys: strings, local or global.
        shard: the shard they are in.
        path: the file they are from, for the message.

    Raises:
        MisalignedShard: if a key is null, no number, or of another shard.
    """
    well_formed = pc.fill_null(pc.match_substring_regex(keys, r"^[0-9]{6,18}$"), False)
    if not pc.all(well_formed, min_count=0).as_py():
        raise _misaligned(path, "keys of digits, shard number and row", _first(keys, pc.invert(well_formed)))
    digits = len(str(shard))
    prefix = pc.utf8_slice_codeunits(keys, 0, digits)
    ours = pc.is_in(prefix, value_set=pa.array([str(shard), "0" * digits]))
    if not pc.all(ours, min_count=0).as_py():
        raise _misaligned(path, f"keys of shard {shard}, global or local", _first(keys, pc.invert(ours)))
    return pc.binary_join_element_wise(str(shard), pc.utf8_slice_codeunits(keys, digits), "")


def check_unique(keys: pa.ChunkedArray, path: Path) -> None:
    """Refuse a table in which a key is there twice.

    Raises:
        MisalignedShard: if so.
    """
    if pc.count_distinct(keys).as_py() != len(keys):
        raise _misaligned(path, "each key once", "one of them more than once")


def _first(keys: pa.Array, mask: pa.Array) -> str:
    return repr(str(keys.filter(mask)[0].as_py())[:40])


def _misaligned(path: Path, expected: str, found: str) -> MisalignedShard:
    return MisalignedShard(
        path,
        expected=expected,
        found=found,
        remedy="Remove the shard's files from the folder, or place the ones that belong there.",
    )
