"""Nested segmentations of one frame over a sweep of thresholds, from one pass of the network."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.merge import SMALLEST_PROBABILITY

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runtime.segmenter import Result

STEPS = tuple(2 ** (step / 2) for step in range(-4, 5))  # the default sweep: of the engine's own threshold


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


def group_proposals(
    proposals: NDArray[Any], areas: Sequence[int] | NDArray[Any], thresholds: Sequence[float]
) -> NDArray[np.int32]:
    """Group proposals that are near each other, for every threshold.

    The two groups with the smallest mean divergence D between their members become one, and so on (average linkage;
    D of the paper's equation 5, members weighted by their area). That divergence never falls from one union to the
    next, so a threshold cuts the tree of unions in one place, and groups at a higher one consist of whole groups.

    Args:
        proposals: float [P, n], every one sums to 1.
        areas: of the segments, in pixels, above 0.
        thresholds: ascending; the unions below each are made.

    Returns:
        int32 [len(thresholds), P]: the group of every proposal, numbered without gaps by their first members.
    """
    maps = np.asarray(proposals, np.float64)
    logs = np.log(np.maximum(maps, SMALLEST_PROBABILITY))
    cross = maps @ logs.T
    entropy = np.diagonal(cross)
    divergences = (entropy[:, None] + entropy - cross - cross.T) / 2
    np.fill_diagonal(divergences, np.inf)
    weights = np.asarray(areas, np.float64).copy()
    group = np.arange(len(maps))
    levels = np.empty((len(thresholds), len(maps)), np.int32)
    for level, threshold in enumerate(thresholds):
        while True:
            kept, gone = sorted(divmod(int(divergences.argmin()), len(maps)))
            if not divergences[kept, gone] < threshold:
                break
            share = weights[gone] / (weights[kept] + weights[gone])
            mean = divergences[kept] * (1 - share) + divergences[gone] * share
            divergences[kept] = divergences[:, kept] = mean
            divergences[gone] = divergences[:, gone] = np.inf
            weights[kept] += weights[gone]
            group[group == gone] = kept
        levels[level] = np.unique(group, return_inverse=True)[1]
    return levels


def check_sweep(thresholds: Iterable[float]) -> tuple[float, ...]:
    """The thresholds in ascending order, each once; ValueError where they are none."""
    try:
        values = sorted({float(threshold) for threshold in thresholds})
    except (TypeError, ValueError):
        values = []
    if not values or not all(0 < value < float("inf") for value in values):
        raise ValueError(
            f"thresholds: expected finite numbers above 0, one per level, found {thresholds!r}; give for example "
            "(0.5, 1.0, 2.0)"
        )
    return tuple(values)
