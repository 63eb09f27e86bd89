"""How like each other tokens and segments are: means of segments, rows of unit length, profiles of maps.

The dot product of two profiles is the Bhattacharyya coefficient Σ √(a·b) of their maps: 1 where they are the same, 0
where they have no pixel in common.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.merge.aggregate import blocks_per_axis, sum_blocks

if TYPE_CHECKING:
    from numpy.typing import NDArray

CELLS = 16  # per axis, at most: finer maps are summed in that many blocks, which changes little and saves much


def profiles(maps: NDArray[np.float32], shape: tuple[int, int]) -> NDArray[np.float32]:
    """The square roots of maps [M, n], summed in at most 16×16 equal blocks of pixels, as rows of unit length."""
    return as_profiles(block_sums(maps, shape))


def profile_cells(shape: tuple[int, int]) -> tuple[int, int]:
    """Into how many blocks of pixels the profiles of maps of (h, w) sum, down and across."""
    return blocks_per_axis(shape[0], CELLS), blocks_per_axis(shape[1], CELLS)


def block_sums(maps: NDArray[np.float32], shape: tuple[int, int]) -> NDArray[np.float32]:
    """Maps [M, n] summed in the blocks of their profiles: float32 [M, blocks]."""
    cells = profile_cells(shape)
    summed = np.empty((len(maps), cells[0] * cells[1]), np.float32)
    sum_blocks(np.ascontiguousarray(maps), shape, cells, summed)
    return summed


def as_profiles(blocks: NDArray[np.float32]) -> NDArray[np.float32]:
    """The profiles of maps of which these are the sums in blocks."""
    return unit_rows(np.sqrt(blocks))


def unit_rows(rows: NDArray[Any]) -> NDArray[np.float32]:
    """Every row [M, d] divided by its length; a row of zeros stays as it is.

    Raises ValueError where a number is not finite.
    """
    rows = np.asarray(rows, np.float32)
    largest = np.abs(rows).max(axis=1, keepdims=True)
    if not np.isfinite(largest).all():
        raise ValueError(
            "features: expected finite numbers, found a NaN or an infinity; check the engine's precision (float16 "
            "overflows where float32 or bfloat16 does not)"
        )
    # By the largest number first, so that no square overflows.
    rows = np.divide(rows, largest, out=np.zeros_like(rows), where=largest > 0)
    lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    rows /= np.maximum(lengths, 1)[:, None]
    return rows


def segment_means(rows: NDArray[np.float32], segments: NDArray[np.intp]) -> NDArray[np.float32]:
    """The mean of the rows [n, d] of each segment: float32 [K, d] of int [n], 0 … K−1."""
    members = (segments == np.arange(segments.max() + 1)[:, None]).astype(np.float32)
    means = np.matmul(members, rows)
    means /= members.sum(axis=1, keepdims=True)
    return means
