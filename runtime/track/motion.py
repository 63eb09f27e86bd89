"""Motion between two frames of a video: where pixels come from, where that cannot be told, and cuts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

SMALLEST_SIDE = 32  # pixels; the pyramid of the optical flow needs at least these
BLUR = 7  # pixels; frames are blurred before they are compared, since the flow cannot follow fine texture
TOLERANCE = 25.0  # grey levels by which a pixel may differ from its origin
# A cut changes the picture's layout and its colours; a flash changes the colours alone, a fast pan the layout alone.
LEAST_CORRELATION, LEAST_COMMON_COLOURS, MOST_DIFFERENCE = 0.7, 0.65, 20.0


@dataclass(frozen=True, slots=True)
class Motion:
    """Where every pixel of a frame comes from, on a small picture [h, w].

    Attributes:
        x, y: float32 [h, w], position in the frame before, in pixels of the small picture.
        trust: float32 [h, w], 1 where a pixel looks like its origin, near 0 where the origin was hidden or outside.
        cut: whether the two frames belong to different scenes.
    """

    x: NDArray[np.float32]
    y: NDArray[np.float32]
    trust: NDArray[np.float32]
    cut: bool

    def carry(self, picture: NDArray[Any]) -> NDArray[Any]:
        """A picture [h', w'] of the frame before, of any size, moved to where its pixels are now."""
        x, y = self.x, self.y
        shape = picture.shape[:2]
        if shape != x.shape:
            down, across = shape[0] / x.shape[0], shape[1] / x.shape[1]
            x, y = (
                (cv2.resize(axis, shape[::-1], interpolation=cv2.INTER_AREA) + 0.5) * scale - 0.5
                for axis, scale in ((x, across), (y, down))
            )
            x, y = x.astype(np.float32), y.astype(np.float32)
        return cv2.remap(picture, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


class MotionEstimator:
    """Estimates the motion from frame to frame, on pictures whose longer side is `side` pixels at most."""

    def __init__(self, side: int) -> None:
        self.side = side
        self._flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
        self._last: NDArray[np.uint8] | None = None

    def start(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Begin with a frame; returns it small, uint8 [h, w, 3]."""
        self._last = self._shrink(frame)
        return self._last

    def step(self, frame: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], Motion]:
        """The next frame, of the size of the last: small, uint8 [h, w, 3], and how it moved."""
        assert self._last is not None, "start first"
        last, small = self._last, self._shrink(frame)
        self._last = small
        before, now = (cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY) for picture in (last, small))
        # Backwards, from now to before: so every pixel of now has an origin.
        flow = self._flow.calc(now, before, np.zeros((*now.shape, 2), np.float32))
        rows, columns = np.indices(now.shape, dtype=np.float32)
        x, y = columns + flow[..., 0], rows + flow[..., 1]
        carried = cv2.remap(last, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        expected, found = (cv2.blur(picture, (BLUR, BLUR)).astype(np.float32) for picture in (carried, small))
        difference = np.abs(expected - found)
        trust = np.exp(-((difference.max(axis=2) / TOLERANCE) ** 2))
        height, width = now.shape
        trust[(x < -1) | (x > width) | (y < -1) | (y > height)] = 0
        cut = _correlation(expected, found) < LEAST_CORRELATION and (
            float(difference.mean()) > MOST_DIFFERENCE or _common_colours(last, small) < LEAST_COMMON_COLOURS
        )
        return small, Motion(x, y, trust, cut)

    def _shrink(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        height, width = frame.shape[:2]
        scale = min(1.0, self.side / max(height, width))
        size = (max(SMALLEST_SIDE, round(width * scale)), max(SMALLEST_SIDE, round(height * scale)))
        return np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), np.uint8)


def _correlation(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    a, b = a.ravel() - a.mean(), b.ravel() - b.mean()
    scale = float(np.sqrt(float(a @ a) * float(b @ b)))
    return float(a @ b) / scale if scale > 0 else 0.0


def _common_colours(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Intersection of the colour histograms of two pictures, 0…1; neighbouring colours count as near."""
    histograms = []
    for picture in (a, b):
        bins = cv2.blur(picture, (3, 3)).astype(np.intp) >> 4
        numbers = (bins[..., 0] * 16 + bins[..., 1]) * 16 + bins[..., 2]
        counts = np.bincount(numbers.ravel(), minlength=4096)
        histogram = counts.astype(np.float32).reshape(16, 16, 16)
        for axis in range(3):
            histogram = histogram + np.roll(histogram, 1, axis) + np.roll(histogram, -1, axis)
        histograms.append(histogram / histogram.sum())
    return float(np.minimum(*histograms).sum())
