"""Nested groups of proposals over a sweep of thresholds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.merge.divergence import divergences
from runtime.merge.threads import one_thread

if TYPE_CHECKING:
    from numpy.typing import NDArray


STEPS = tuple(2 ** (step / 2) for step in range(-4, 5))  # the default sweep: of the engine's own threshold


@one_thread()
def group_proposals(
    proposals: NDArray[Any], areas: Sequence[int] | NDArray[Any], thresholds: Sequence[float]
) -> NDArray[np.int32]:
    """Group proposals that are near each other, for every threshold.

    The two groups with the smallest mean divergence D between their members become one, and so on (average linkage;
    D of the paper's equation 5, members weighted by their area). That divergence never falls from one union to the
    next. So every group at a threshold consists of whole groups of the thresholds below it.

    Args:
        proposals: float [P, n], every one sums to 1.
        areas: of the proposals' segments, in pixels, above 0.
        thresholds: ascending; at each, groups nearer to each other than it are united.

    Returns:
        int32 [len(thresholds), P]: the group of every proposal, numbered without gaps by their first members.
    """
    maps = np.asarray(proposals, np.float64)
    distances = divergences(maps)
    np.fill_diagonal(distances, np.inf)
    weights = np.asarray(areas, np.float64).copy()
    group = np.arange(len(maps))
    levels = np.empty((len(thresholds), len(maps)), np.int32)
    for level, threshold in enumerate(thresholds):
        while True:
            kept, gone = sorted(divmod(int(distances.argmin()), len(maps)))
            if not distances[kept, gone] < threshold:
                break
            share = weights[gone] / (weights[kept] + weights[gone])
            mean = distances[kept] * (1 - share) + distances[gone] * share
            distances[kept] = distances[:, kept] = mean
            distances[gone] = distances[:, gone] = np.inf
            weights[kept] += weights[gone]
            group[group == gone] = kept
        levels[level] = np.unique(group, return_inverse=True)[1]
    return levels


def as_sweep(thresholds: Iterable[float]) -> tuple[float, ...]:
    """The thresholds in ascending order, each once. Raises ValueError where one is not a finite number above 0."""
    try:
        if isinstance(thresholds, (str, bytes)):
            raise TypeError
        values = sorted({float(threshold) for threshold in thresholds})
    except (TypeError, ValueError, OverflowError):
        values = []
    if not values or not all(0 < value < float("inf") for value in values):
        raise ValueError(
            f"thresholds: expected finite numbers above 0, one per level, found {thresholds!r}; give for example "
            "(0.5, 1.0, 2.0)"
        )
    return tuple(values)
