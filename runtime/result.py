"""What a Segmenter gives: the result of a frame and its segments."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Segment:
    """One segment of a result, in pixels.

    Attributes:
        index: its label.
        area: number of pixels.
        box: x, y, width, height of the smallest upright rectangle around it.
        centroid: x, y of its centre of mass; (0, 0) is the centre of the frame's first pixel.
    """

    index: int
    area: int
    box: tuple[int, int, int, int]
    centroid: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Result:
    """What a Segmenter makes of one frame.

    Attributes:
        labels: int32 [H, W], the segment of every pixel of the frame, numbered 0 … count−1 without gaps.
        count: number of segments.
        milliseconds: wall time of each stage: resize, network, merge, labels, total. An engine with the head labels
            merges within the network's stage.
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
        """bool [H, W]: the pixels of a segment, given by its label. Raises IndexError for an unknown label."""
        if self.identities is not None and index not in self.identities:
            raise IndexError(f"expected an identity in sight, one of {self.identities.tolist()}, found {index}")
        if self.identities is None and not 0 <= index < self.count:
            raise IndexError(f"expected a segment from 0 to {self.count - 1}, found {index}")
        return self.labels == index

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Area, box and centroid of every segment, in the order of their labels."""
        present = np.flatnonzero(np.bincount(self.labels.ravel()))
        numbers = np.zeros(int(present[-1]) + 1, np.intp)
        numbers[present] = np.arange(len(present))
        packed = numbers[self.labels]
        # Pixels of each segment in every row, and in every column: all else follows from these.
        height, width = packed.shape
        rows = _counts(packed + np.arange(height)[:, None] * len(present), (height, len(present)))
        columns = _counts(packed + np.arange(width) * len(present), (width, len(present)))
        areas = rows.sum(axis=0)
        (top, bottom, y), (left, right, x) = _extent(rows, areas), _extent(columns, areas)
        return tuple(
            Segment(
                int(index),
                int(areas[i]),
                (int(left[i]), int(top[i]), int(right[i] - left[i]), int(bottom[i] - top[i])),
                (round(float(x[i]), 2), round(float(y[i]), 2)),
            )
            for i, index in enumerate(present)
        )

    def to_json(self) -> dict[str, Any]:
        """For one line of JSON: `segments`, their number, and `regions`, a list of their index, area, box, centroid."""
        line: dict[str, Any] = {
            "segments": self.count,
            "regions": [
                {"index": s.index, "area": s.area, "box": list(s.box), "centroid": list(s.centroid)}
                for s in self.segments
            ],
        }
        if self.identities is not None:
            line["identities"] = self.identities.tolist()
        if self.thresholds is not None:
            line["thresholds"] = list(self.thresholds)
        return line


class Merged(NamedTuple):
    """What the merge gives.

    Attributes:
        raw: int32 [H, W] at the engine's size: the proposal that wins at every pixel.
        proposals: float32 [P, h·w], or None.
        attention: aggregated attention float32 [h·w, h·w], or None.
        thresholds: where they were chosen for the frame.
    """

    raw: NDArray[np.int32]
    proposals: NDArray[np.float32] | None
    attention: NDArray[np.float32] | None
    thresholds: tuple[float, ...] | None = None


def _counts(numbers: NDArray[np.intp], shape: tuple[int, int]) -> NDArray[np.intp]:
    return np.bincount(numbers.ravel(), minlength=shape[0] * shape[1]).reshape(shape)


def _extent(
    counts: NDArray[np.intp], areas: NDArray[np.intp]
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]:
    """First position along an axis, the one behind the last, and the mean, of each segment; counts [length, S]."""
    there = counts > 0
    return there.argmax(axis=0), len(counts) - there[::-1].argmax(axis=0), np.arange(len(counts)) @ counts / areas
