"""Labels counted and renumbered piece by piece: NumPy would copy those of the whole frame, as 64-bit numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

PIECE = 1 << 20  # pixels
LEAST_PIECE = 0.004  # share of the frame that a piece has at least, to be a segment of its own: so 250 fit a byte


def pieces(labels: NDArray[Any]) -> Iterator[slice]:
    """Slices of the first axis that cover the labels, each of about PIECE pixels."""
    step = max(1, PIECE // max(1, labels[:1].size))
    return (slice(start, start + step) for start in range(0, len(labels), step))


def count_pixels(labels: NDArray[Any], least: int = 0) -> NDArray[np.intp]:
    """Pixels of each label: [N] of integer labels of any shape, not negative. N is their maximum + 1, or `least`."""
    counts = np.zeros(max(least, int(labels.max()) + 1 if labels.size else 0), np.intp)
    for part in pieces(labels):
        counts += np.bincount(labels[part].ravel(), minlength=len(counts))
    return counts


def relabel(labels: NDArray[Any], numbers: NDArray[np.int32]) -> NDArray[np.int32]:
    """numbers[labels], int32 of the shape of the labels."""
    found = np.empty(labels.shape, np.int32)
    for part in pieces(labels):
        found[part] = numbers[labels[part]]
    return found
