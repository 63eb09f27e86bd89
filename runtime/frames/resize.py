"""Resizing a frame to the engine's size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def resize_frame(frame: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Resize a frame, uint8 [H, W, 3], to [height, width, 3].

    An axis that shrinks is averaged (INTER_AREA), one that grows is interpolated (INTER_LINEAR). OpenCV's INTER_AREA
    does not average if one of the axes grows, so first both axes shrink, then both grow.
    """
    resized: NDArray[Any] = frame
    smaller = (min(width, frame.shape[1]), min(height, frame.shape[0]))
    if smaller != frame.shape[1::-1]:
        resized = cv2.resize(resized, smaller, interpolation=cv2.INTER_AREA)
    if smaller != (width, height):
        resized = cv2.resize(resized, (width, height), interpolation=cv2.INTER_LINEAR)
    return resized
