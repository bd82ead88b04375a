"""Arithmetic on rows of vectors. Knows nothing of files.

All of it is on vectors as they are published, in float16, and in float32 between: a product of two float16
numbers is exact there, and a sum of squares cannot overflow (65,536 elements of 65,504 squared).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

BLOCK_ROWS: Final = 256
"""Rows whose float32 copies stay in a core's cache; twice as fast as all at once."""

# float16 is sign, 5 bits of exponent and 10 of fraction; float32 has 8 and 23, and a bias of 127, not 15.
_SHIFT: Final = 23 - 10
_SIGN_AND_REST: Final = np.int32(-(1 << 31) | (1 << 28) - (1 << _SHIFT))
_BIAS: Final = np.float32(2.0 ** (127 - 15))
_LARGEST: Final = np.float32(65_504)
# The smallest float16 before its exponent is put right: nothing, in a process that a library has told to take
# such numbers for zero.
_SMALLEST: Final = np.array([1 << _SHIFT], np.int32).view(np.float32)[0]


# What is held in memory at once: about 40 MiB of float32 or 20 MiB of float16, twice.
_PIECE_ELEMENTS: Final = 10_000 * 512


def rows_at_a_time(width: int) -> int:
    """How many vectors of ``width`` elements to take at once, so that memory stays flat: 10,000 of 512."""
    return max(1, min(10_000, _PIECE_ELEMENTS // width))


def as_float16(vectors: npt.NDArray[Any]) -> npt.NDArray[np.float16]:
    """Vectors (rows, width) in little-endian float16: themselves if they are.

    What float16 cannot hold becomes infinite, so that the row counts as bad.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return np.ascontiguousarray(vectors, dtype="<f2")


def as_float32(vectors: npt.NDArray[np.float16]) -> npt.NDArray[np.float32]:
    """Vectors (rows, width) in float32, each value the same.

    By their bits, which takes a third of the time of numpy's own cast (2.4).
    """
    found = np.empty(vectors.shape, np.float32)
    for start in range(0, len(vectors), BLOCK_ROWS):
        rows = slice(start, start + BLOCK_ROWS)
        piece = found[rows]
        _widen(vectors[rows], piece)
        if piece.size and max(piece.max(), -piece.min()) > _LARGEST:
            piece[...] = vectors[rows]
    return found


def _widen(vectors: npt.NDArray[np.float16], found: npt.NDArray[np.float32]) -> None:
    """Each value in float32; what is not finite becomes some number beyond the largest float16."""
    if not _SMALLEST * _BIAS:
        found[...] = vectors
        return
    bits = found.view(np.int32)
    # With their sign, which so comes to stand where it belongs, and thrice beside it.
    np.copyto(bits, vectors.view(np.int16))
    bits <<= _SHIFT
    bits &= _SIGN_AND_REST
    # Exact, numbers below the smallest normal one included.
    found *= _BIAS


def norms(vectors: npt.NDArray[np.float16]) -> npt.NDArray[np.float32]:
    """L2 norms of vectors (rows, width), shape (rows,); not finite where any element is not."""
    return np.concatenate([np.sqrt(squares) for _, squares in _blocks(vectors)])


def is_bad(norms: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Whether each norm is of a vector without direction: not finite, or zero."""
    bad: npt.NDArray[np.bool_] = ~np.isfinite(norms) | (norms == 0)
    return bad


def cosines(
    images: npt.NDArray[np.float16], texts: npt.NDArray[np.float16]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Cosine of each pair of rows.

    Args:
        images: vectors (rows, width).
        texts: vectors (rows, width).

    Returns:
        The cosines, shape (rows,), NaN where either vector is bad; and whether either is, shape (rows,).
    """
    pairs = list(zip(_blocks(images), _blocks(texts), strict=True))
    found, bad = (np.concatenate(parts) for parts in zip(*(_cosines(*pair) for pair in pairs), strict=True))
    return found, bad


def _cosines(images: _Block, texts: _Block) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    of_images, of_texts = np.sqrt(images.squares), np.sqrt(texts.squares)
    bad = is_bad(of_images) | is_bad(of_texts)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = _dots(images.vectors, texts.vectors) / (of_images * of_texts)
    return np.where(bad, np.float32(np.nan), found), bad


class _Block(NamedTuple):
    """Vectors in float32 (rows, width), and the sum of each one's squares, shape (rows,)."""

    vectors: npt.NDArray[np.float32]
    squares: npt.NDArray[np.float32]


def _blocks(vectors: npt.NDArray[np.float16]) -> Iterator[_Block]:
    """Pieces of vectors (rows, width) that stay in a core's cache while they are worked on; at least one."""
    for start in range(0, max(len(vectors), 1), BLOCK_ROWS):
        rows = vectors[start : start + BLOCK_ROWS]
        found = np.empty(rows.shape, np.float32)
        _widen(rows, found)
        squares = _dots(found, found)
        # So few numbers tell that all are finite, if none is large.
        if squares.size and squares.max() > _LARGEST**2:
            found[...] = rows
            squares = _dots(found, found)
        yield _Block(found, squares)


def _dots(left: npt.NDArray[np.float32], right: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    with np.errstate(invalid="ignore"):
        # einsum, unlike BLAS, adds in the same order on every processor of one kind.
        found: npt.NDArray[np.float32] = np.einsum("ij,ij->i", left, right)
    return found
