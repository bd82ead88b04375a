"""How good stored pictures are, and what storing them costs at the least. Knows nothing of URLs."""

from __future__ import annotations

import io
import math
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

# Wang, Bovik, Sheikh and Simoncelli (2004): an 11 x 11 Gaussian window of 1.5 pixels, K1 and K2.
_WINDOW: Final = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
_K1, _K2, _RANGE = 0.01, 0.03, 255.0


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """How near a stored picture comes to its original, reduced to its size.

    Attributes:
        ssim: of the grey values, 1 for equal pictures.
        psnr_db: of all three channels.
        is_reduced: whether the original is larger.
    """

    ssim: float
    psnr_db: float
    is_reduced: bool


def compare(stored: bytes, original: bytes) -> Likeness:
    """Hold a stored picture against the whole original, reduced with Lanczos's filter from full size."""
    found = Image.open(io.BytesIO(stored)).convert("RGB")
    reference = Image.open(io.BytesIO(original)).convert("RGB")
    is_reduced = reference.size != found.size
    if is_reduced:
        reference = reference.resize(found.size, Image.Resampling.LANCZOS)
    return Likeness(
        ssim=ssim(_array(found.convert("L")), _array(reference.convert("L"))),
        psnr_db=psnr_db(_array(found), _array(reference)),
        is_reduced=is_reduced,
    )


def ssim(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> float:
    """Mean structural similarity of two grey pictures of one shape, (height, width), from 0 to 255.

    Wang et al. (2004) with the paper's window and constants, where the window lies inside the picture.
    """
    mean_one, mean_other = _blur(one), _blur(other)
    variance_one = _blur(one * one) - mean_one**2
    variance_other = _blur(other * other) - mean_other**2
    covariance = _blur(one * other) - mean_one * mean_other
    c1, c2 = (_K1 * _RANGE) ** 2, (_K2 * _RANGE) ** 2
    above = (2 * mean_one * mean_other + c1) * (2 * covariance + c2)
    below = (mean_one**2 + mean_other**2 + c1) * (variance_one + variance_other + c2)
    return float((above / below).mean())


def psnr_db(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> float:
    """Peak signal to noise ratio in decibels; infinite for equal pictures."""
    error = float(((one - other) ** 2).mean())
    return math.inf if error == 0 else 10 * math.log10(_RANGE**2 / error)


def summarize(found: Sequence[Likeness]) -> dict[str, Any]:
    """Means, of all pictures and of those that were reduced."""
    reduced = [likeness for likeness in found if likeness.is_reduced]
    return {
        "pictures": len(found),
        "ssim": statistics.fmean(likeness.ssim for likeness in found),
        "psnr_db": statistics.fmean(likeness.psnr_db for likeness in found),
        "reduced": len(reduced),
        "reduced_ssim": statistics.fmean(likeness.ssim for likeness in reduced) if reduced else None,
        "reduced_psnr_db": statistics.fmean(likeness.psnr_db for likeness in reduced) if reduced else None,
    }


def bare_cpu_s(bodies: Sequence[bytes], *, size: int, quality: int, threads: int = 1) -> float:
    """CPU seconds that it takes to decode, reduce and encode pictures, with Pillow and nothing around it.

    Args:
        bodies: the pictures.
        size: longest that the shorter side may stay, in pixels.
        quality: of the JPEGs.
        threads: how many do it, all of it each. Where two cores are one core's two threads, as they are on
            most rented machines, the same work takes more CPU time while both are busy.

    Returns:
        The seconds one thread took; the mean of the threads.
    """
    with ThreadPoolExecutor(threads) as pool:
        done = [pool.submit(_convert, bodies, size, quality) for _ in range(threads)]
        return statistics.fmean(thread.result() for thread in done)


def _convert(bodies: Sequence[bytes], size: int, quality: int) -> float:
    start = time.thread_time()
    for body in bodies:
        picture: Image.Image = Image.open(io.BytesIO(body))
        shorter = min(picture.size)
        target = picture.size
        if shorter > size:
            scale = size / shorter
            target = (round(picture.width * scale), round(picture.height * scale))
            picture.draft("RGB", (2 * target[0], 2 * target[1]))
        picture = picture.convert("RGB")
        if picture.size != target:
            picture = picture.resize(target, Image.Resampling.BICUBIC)
        picture.save(io.BytesIO(), "JPEG", quality=quality)
    return time.thread_time() - start


def _array(picture: Image.Image) -> npt.NDArray[np.float64]:
    return np.asarray(picture, np.float64)


def _blur(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    weights = _WINDOW / _WINDOW.sum()
    height, width = (side - len(weights) + 1 for side in values.shape)
    rows = sum(weight * values[first : first + height] for first, weight in enumerate(weights))
    return sum(weight * rows[:, first : first + width] for first, weight in enumerate(weights))
