"""Step 3 of DiffSeg: one label per pixel, from proposals; and labels without gaps.

Paper: "Diffuse, Attend, and Segment" (Tian et al., CVPR 2024), section 3.4, "Non-Maximum Suppression".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.labels import count_pixels, relabel
from runtime.pyramid.checks import as_size

if TYPE_CHECKING:
    from numpy.typing import NDArray


def suppress(proposals: NDArray[Any], shape: tuple[int, int], size: tuple[int, int]) -> NDArray[np.int32]:
    """Label every pixel with its strongest proposal (paper, section 3.4, "Non-Maximum Suppression").

    Args:
        proposals: float [P, n].
        shape: (h, w) with h·w = n.
        size: (H, W) of the labels; proposals are interpolated bilinearly, with half-pixel centres.

    Returns:
        int32 [H, W]: index of the largest proposal, the first one on a tie.

    Raises:
        ValueError: if the shapes do not fit each other.
    """
    import cv2

    h, w = shape
    height, width = as_size(size)
    if proposals.ndim != 2 or len(proposals) < 1 or proposals.shape[1] != h * w:
        raise ValueError(
            f"proposals: expected [P, {h * w}] with P ≥ 1 for the grid {h}x{w}, found "
            f"{list(proposals.shape)}; pass the proposals of merge_attention and the same (h, w)"
        )
    maps = np.asarray(proposals, np.float32).reshape(-1, h, w)
    labels = np.zeros((height, width), np.min_scalar_type(len(maps) - 1))  # narrow, for speed

    def at_full_size(index: int) -> NDArray[np.float32]:
        wide = cv2.resize(maps[index], (width, height), interpolation=cv2.INTER_LINEAR)
        return np.asarray(wide, np.float32).reshape(height, width)

    best = at_full_size(0)
    # A running maximum: only one interpolated proposal exists at a time.
    for index in range(1, len(maps)):
        current = at_full_size(index)
        wins = (current > best).astype(labels.dtype)
        wins *= labels.dtype.type(index)
        np.maximum(labels, wins, out=labels)
        np.maximum(best, current, out=best)
    return labels.astype(np.int32)


def renumber(labels: NDArray[Any]) -> tuple[NDArray[np.int32], int]:
    """Number labels without gaps, keeping their order.

    Args:
        labels: integers, any shape, not negative.

    Returns:
        int32 of the same shape with values 0 … count − 1, and count.

    Raises:
        ValueError: if labels are not integers or are negative.
    """
    labels = np.asarray(labels)
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels: expected integers, found {labels.dtype}; pass the labels of segment_attention")
    if labels.size and labels.min() < 0:
        raise ValueError(f"labels: expected numbers from 0, found {labels.min()}; leave out pixels without a label")
    if not labels.size:
        return labels.astype(np.int32), 0
    present = count_pixels(labels) > 0
    if present.all():
        return labels.astype(np.int32), len(present)
    numbers = np.cumsum(present, dtype=np.int32) - 1
    return relabel(labels, numbers), int(present.sum())
