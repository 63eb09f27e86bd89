"""Nested groups of proposals over a sweep of thresholds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.errors import shown
from runtime.merge.divergence import divergences
from runtime.merge.threads import one_thread

if TYPE_CHECKING:
    from numpy.typing import NDArray


STEPS = tuple(2 ** (step / 2) for step in range(-4, 5))  # the default sweep: of the engine's own threshold
END = (0, 0, float("inf"))  # no union is left


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
    group = np.arange(len(proposals))
    levels = np.empty((len(thresholds), len(group)), np.int32)
    waiting = unions(proposals, areas)
    kept, gone, divergence = next(waiting, END)
    for level, threshold in enumerate(thresholds):
        while divergence < threshold:
            group[group == gone] = kept
            kept, gone, divergence = next(waiting, END)
        levels[level] = np.unique(group, return_inverse=True)[1]
    return levels


def unions(proposals: NDArray[Any], areas: Sequence[float] | NDArray[Any]) -> Iterator[tuple[int, int, float]]:
    """The two nearest groups become one, again and again (see `group_proposals`): which one stays, which goes, and D.

    A group goes by its first proposal. Arguments are those of `group_proposals`. There are P − 1 unions.
    """
    distances = divergences(np.asarray(proposals, np.float64))
    np.fill_diagonal(distances, np.inf)
    weights = np.asarray(areas, np.float64).copy()
    for _ in range(len(weights) - 1):
        kept, gone = sorted(divmod(int(distances.argmin()), len(weights)))
        yield kept, gone, float(distances[kept, gone])
        share = weights[gone] / (weights[kept] + weights[gone])
        mean = distances[kept] * (1 - share) + distances[gone] * share
        distances[kept] = distances[:, kept] = mean
        distances[gone] = distances[:, gone] = np.inf
        weights[kept] += weights[gone]


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
            f"thresholds: expected finite numbers above 0, one per level, found {shown(thresholds)}; give for example "
            "(0.5, 1.0, 2.0)"
        )
    return tuple(values)
