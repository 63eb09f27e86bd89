"""Nested segmentations of one frame over a sweep of thresholds, from one pass of the network."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.errors import DiffSegError, shown
from runtime.labels import count_pixels
from runtime.merge.grouping import STEPS, as_sweep, group_proposals
from runtime.stages import Clock

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runtime.stages import Stages


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """Segmentations from fine to coarse: every segment of a level is part of one segment of the next.

    Attributes:
        thresholds: KL threshold τ of every level, ascending.
        counts: number of segments of every level, never ascending.
        groups: int32 [levels, counts[0]]: the segment of a level that each segment of the finest level belongs to.
        finest: int32 [H, W]: labels of the finest level, 0 … counts[0]−1, those of a call with its threshold where
            pieces are kept.
        milliseconds: wall time of the stages of that call, and of the grouping as "hierarchy".

    Only level 0 has the segments that a call with its threshold gives. A coarser level consists of unions of them, and
    often has more segments than a call with its threshold: 23 and 11 for a photograph at 0.6, for example.
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
        if isinstance(level, bool) or not isinstance(level, (int, np.integer)):
            raise IndexError(f"expected a level, which is a whole number, found {shown(level)}")
        if not -self.levels <= level < self.levels:
            raise IndexError(f"expected a level from 0 to {self.levels - 1}, found {level}")
        return np.asarray(self.groups[level][self.finest])


def segment_levels(stages: Stages, frame: NDArray[np.uint8], thresholds: Iterable[float] | None) -> Hierarchy:
    """See `Segmenter.hierarchy`."""
    route = stages.route
    route.check_maps("hierarchy")
    sweep = None if thresholds is None else _sweep(thresholds)
    clock = Clock()
    resized = stages.resize(frame)
    clock("resize")
    output = stages.network(stages.gather([resized]), 1)[0]
    clock("network")
    return merge_levels(stages, output, frame, sweep, clock)


def merge_levels(
    stages: Stages,
    output: Any,
    frame: NDArray[np.uint8],
    thresholds: Iterable[float] | None,
    clock: Clock | None = None,
) -> Hierarchy:
    """The hierarchy of a frame from the network's output for it; thresholds None: the default sweep.

    Raises DiffSegError where the thresholds are invalid or the output has no maps.
    """
    clock = clock or Clock()
    own = stages.route.engine.spec.thresholds[0]
    sweep = _sweep([own * step for step in STEPS] if thresholds is None else thresholds)
    config = replace(stages.route.config, thresholds=(sweep[0],) * len(stages.route.config.thresholds))
    merged = stages.merge(output, config=config, proposals=True)
    clock("merge")
    result = stages.finish(merged, frame, proposals=True, whole=True)
    clock("labels")
    assert result.proposals is not None
    areas = count_pixels(result.labels, result.count)
    # The first level is the result as it is, whatever its proposals' divergences.
    groups = np.empty((len(sweep), result.count), np.int32)
    groups[0] = np.arange(result.count)
    groups[1:] = group_proposals(result.proposals.reshape(result.count, -1), areas, sweep[1:])
    clock("hierarchy")
    counts = tuple(int(group.max()) + 1 for group in groups)
    return Hierarchy(sweep, counts, groups, result.labels, clock.milliseconds())


def _sweep(thresholds: Iterable[float]) -> tuple[float, ...]:
    try:
        return as_sweep(thresholds)
    except ValueError as error:
        raise DiffSegError(str(error)) from None
