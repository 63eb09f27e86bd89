"""How far two label maps agree when their segments are matched one to one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

# An image counts if it has at least four segments of at least 1 %: agreement on an unsegmented image says nothing.
LARGE, ENOUGH = 0.01, 4


def matched_agreement(found: NDArray[np.int32], expected: NDArray[np.int32]) -> float:
    """Share, 0 to 1, of the pixels of labels [H, W] in segments that are matched one to one, in the best way.

    Raises ValueError when the shapes differ.
    """
    from scipy.optimize import linear_sum_assignment

    if found.shape != expected.shape:
        raise ValueError(f"expected labels of one shape, found {found.shape} and {expected.shape}")
    shape = (int(found.max()) + 1, int(expected.max()) + 1)
    pairs = np.bincount(found.ravel().astype(np.int64) * shape[1] + expected.ravel(), minlength=shape[0] * shape[1])
    overlaps = pairs.reshape(shape)
    return float(overlaps[linear_sum_assignment(overlaps, maximize=True)].sum() / found.size)


def says_something(labels: NDArray[np.int32]) -> bool:
    """Whether labels [H, W] have enough segments, so that an agreement means something."""
    return large_segments(labels) >= ENOUGH


def large_segments(labels: NDArray[np.int32]) -> int:
    """How many segments of labels [H, W] have at least 1 % of the pixels."""
    return int((np.bincount(labels.ravel()) >= LARGE * labels.size).sum())
