"""Resizing a frame to the engine's size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def resize_frame(frame: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Resize to [height, width, 3]: INTER_AREA where an axis shrinks, INTER_LINEAR where it grows (DESIGN).

    OpenCV's INTER_AREA does not average when one of the axes grows, so the two go one after the other.
    """
    resized: NDArray[Any] = frame
    smaller = (min(width, frame.shape[1]), min(height, frame.shape[0]))
    if smaller != frame.shape[1::-1]:
        resized = cv2.resize(resized, smaller, interpolation=cv2.INTER_AREA)
    if smaller != (width, height):
        resized = cv2.resize(resized, (width, height), interpolation=cv2.INTER_LINEAR)
    return resized
