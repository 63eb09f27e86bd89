"""DiffSeg's merge as NumPy code is usually written: the program that the merge core is compared with."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tools.benchmark.common import GRID

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tools.benchmark.common import Maps


def core_elementwise(
    pyramid: list[Maps], thresholds: tuple[float, ...], size: tuple[int, int]
) -> tuple[NDArray[np.int32], dict[str, float]]:
    """Labels int32 `size` and seconds of processor time by stage: whole arrays, one anchor against all maps at a time.

    Logarithms are taken once and the two large temporaries are used again; divergences are elementwise.
    `pyramid`: float32 [n, n] per resolution, finest first. `thresholds`: one per iteration. `size`: of the labels.
    """
    import cv2
    import numpy as np

    start = time.process_time()
    side = round(len(pyramid[0]) ** 0.5)
    n = side * side
    sides = [round(len(level) ** 0.5) for level in pyramid]
    maps = np.zeros((side, side, n), np.float32)
    for level, small in zip(pyramid, sides, strict=True):
        if small == side:
            full = level / level.sum(axis=1, keepdims=True)
        else:
            full = np.stack([cv2.resize(row.reshape(small, small), (side, side)).ravel() for row in level])
            full /= full.sum(axis=1, keepdims=True)
        full *= small / sum(sides)
        factor = side // small
        # Rows are replicated by broadcasting, which is faster than two np.repeat.
        maps.reshape(small, factor, small, factor, n)[...] += full.reshape(small, 1, small, 1, n)
    maps = maps.reshape(n, n)
    aggregated = time.process_time()

    logs = np.log(np.maximum(maps, 1e-12))
    quotient, product = np.empty_like(maps), np.empty_like(maps)

    def divergence(index: int, maps: Maps, logs: Maps) -> Maps:
        q, p = quotient[: len(maps)], product[: len(maps)]
        np.subtract(logs[index], logs, out=q)
        forward = np.multiply(maps[index], q, out=p).sum(axis=1)
        return 0.5 * forward - 0.5 * np.multiply(maps, q, out=p).sum(axis=1)

    step = (side - 1) // (GRID - 1)
    axis = (side - 1 - step * (GRID - 1)) // 2 + step * np.arange(GRID)
    members = [divergence(anchor, maps, logs) < thresholds[0] for anchor in (axis[:, None] * side + axis).ravel()]
    compared = time.process_time()
    proposals = np.stack([maps[member].mean(axis=0) for member in members])
    averaged = time.process_time()

    for threshold in thresholds[1:]:
        logs = np.log(np.maximum(proposals, 1e-12))
        claimed = np.zeros(len(proposals), bool)
        merged = []
        for index in range(len(proposals)):
            if not claimed[index]:
                member = divergence(index, proposals, logs) < threshold
                merged.append(proposals[member].mean(axis=0))
                claimed |= member
        proposals = np.stack(merged)
    iterated = time.process_time()

    upsampled = np.stack([cv2.resize(proposal.reshape(side, side), size[::-1]) for proposal in proposals])
    labels = upsampled.argmax(axis=0).astype(np.int32)
    end = time.process_time()
    return labels, {
        "aggregate": aggregated - start,
        "KL of iteration 0": compared - aggregated,
        "means of iteration 0": averaged - compared,
        "later iterations": iterated - averaged,
        "suppress": end - iterated,
        "total": end - start,
    }
