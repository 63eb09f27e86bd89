"""Nested segmentations of one frame over a sweep of thresholds, from one pass of the network."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from runtime.merge.grouping import group_proposals

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runtime.result import Result


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """Segmentations from fine to coarse: every segment of a level lies within one segment of the next.

    Attributes:
        thresholds: KL threshold τ of every level, ascending.
        counts: number of segments of every level, never ascending.
        groups: int32 [levels, counts[0]]: in which segment of a level each segment of the finest one lies.
        finest: int32 [H, W]: labels of the finest level, 0 … counts[0]−1, as a call with its threshold gives them.
        milliseconds: wall time of the stages of that call, and of the rest as "hierarchy".
    """

    thresholds: tuple[float, ...]
    counts: tuple[int, ...]
    groups: NDArray[np.int32] = field(repr=False)
    finest: NDArray[np.int32] = field(repr=False)
    milliseconds: dict[str, float]

    @property
    def levels(self) -> int:
        """How many there are."""
        return len(self.thresholds)

    def labels(self, level: int) -> NDArray[np.int32]:
        """int32 [H, W], 0 … counts[level]−1. Level 0 is the finest. Raises IndexError where there is no such level."""
        return np.asarray(self.groups[level][self.finest])


def build_hierarchy(result: Result, thresholds: tuple[float, ...]) -> Hierarchy:
    """The hierarchy above a result with proposals, which was segmented at the first of the ascending `thresholds`."""
    assert result.proposals is not None
    start = time.perf_counter()
    areas = np.bincount(result.labels.ravel(), minlength=result.count)
    # The first level is the result as it is, whatever its proposals' divergences.
    groups = np.empty((len(thresholds), result.count), np.int32)
    groups[0] = np.arange(result.count)
    groups[1:] = group_proposals(result.proposals.reshape(result.count, -1), areas, thresholds[1:])
    milliseconds = dict(result.milliseconds)
    milliseconds["hierarchy"] = round((time.perf_counter() - start) * 1e3, 3)
    milliseconds["total"] = round(milliseconds["total"] + milliseconds["hierarchy"], 3)
    counts = tuple(int(group.max()) + 1 for group in groups)
    return Hierarchy(thresholds, counts, groups, result.labels, milliseconds)
