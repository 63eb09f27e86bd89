"""What a Segmenter gives: the result of a frame, its segments, and what lies between merge and labels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Segment:
    """One segment of a result. `area`: pixels; `box`: x, y, width, height in pixels."""

    index: int
    area: int
    box: tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Result:
    """What a Segmenter makes of one frame.

    Attributes:
        labels: int32 [H, W], the segment of every pixel of the frame, numbered 0 … count−1 without gaps.
        count: number of segments.
        milliseconds: wall time of each stage: resize, network, merge, labels, total. With the head labels the merge
            is part of the network and its own stage takes 0.
        proposals: on request, float32 [count, h, w]: the merged attention map of each segment; sums to 1.
        attention: on request, float32 [h·w, h·w]: the aggregated attention; row i is where token i looks.
        identities: from `stream` and a Tracker, int32 [count]: the identities in sight, ascending. Then the labels are
            these numbers, which stay with their objects from frame to frame and have gaps; None: they are 0 … count−1.
        thresholds: with thresholds "auto", those chosen for this frame, one per iteration; otherwise None.
    """

    labels: NDArray[np.int32]
    count: int
    milliseconds: dict[str, float]
    proposals: NDArray[np.float32] | None = field(default=None, repr=False)
    attention: NDArray[np.float32] | None = field(default=None, repr=False)
    identities: NDArray[np.int32] | None = None
    thresholds: tuple[float, ...] | None = None

    def mask(self, index: int) -> NDArray[np.bool_]:
        """bool [H, W]: the pixels of a segment, given by its label. Raises IndexError where there is no such one."""
        if self.identities is not None and index not in self.identities:
            raise IndexError(f"expected an identity in sight, one of {self.identities.tolist()}, found {index}")
        if self.identities is None and not 0 <= index < self.count:
            raise IndexError(f"expected a segment from 0 to {self.count - 1}, found {index}")
        return self.labels == index

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Area and box of every segment, in the order of their labels."""
        width = self.labels.shape[1]
        order = np.argsort(self.labels, axis=None, kind="stable")
        areas = np.bincount(self.labels.ravel())
        segments, start = [], 0
        for index in np.flatnonzero(areas).tolist():
            area = int(areas[index])
            rows, columns = np.divmod(order[start : start + area], width)
            x, y = int(columns.min()), int(rows[0])
            box = (x, y, int(columns.max()) - x + 1, int(rows[-1]) - y + 1)
            segments.append(Segment(index, area, box))
            start += area
        return tuple(segments)


class Merged(NamedTuple):
    """What the merge gives: proposal indices int32 [H, W] at the engine's size; proposals [P, h·w] and aggregated
    attention, or None. `milliseconds`: how long it took, where that was part of the network's stage. `thresholds`:
    where they were chosen for the frame."""

    raw: NDArray[np.int32]
    proposals: NDArray[np.float32] | None
    attention: NDArray[np.float32] | None
    milliseconds: float = 0.0
    thresholds: tuple[float, ...] | None = None
