"""The solver "kmeans": K-means on the maps, started from the proposals of DiffSeg's own merge."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from runtime.merge.solvers import merge

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runtime.merge.aggregate import Aggregation
    from runtime.pyramid.config import MergeConfig

MOST_ROUNDS = 10


def solve(source: Aggregation, config: MergeConfig, seeds: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """The cluster means of K-means, float32 [K, n] that sum to n; K is the number of the merge's proposals.

    Arguments are those of `runtime.merge.solvers.merge.solve`. Needs the aggregated attention as a whole.
    """
    return kmeans(source.full(), merge.solve(source, config, seeds))


def kmeans(maps: NDArray[np.float32], centres: NDArray[np.float32]) -> NDArray[np.float32]:
    """Lloyd's K-means on maps [n, n] from the given centres [K, n]; a centre without a nearest map stays as it is."""
    centres = centres.copy()
    nearest: NDArray[np.intp] | None = None
    for _ in range(MOST_ROUNDS):
        # |map − centre|² without |map|², which is the same for all centres.
        distances = np.matmul(maps, centres.T)
        distances *= -2
        distances += np.einsum("ij,ij->i", centres, centres)
        assigned = distances.argmin(axis=1)
        if nearest is not None and np.array_equal(assigned, nearest):
            break
        nearest = assigned
        members = (assigned == np.arange(len(centres))[:, None]).astype(np.float32)
        counts = members.sum(axis=1)
        filled = counts > 0
        centres[filled] = np.matmul(members[filled], maps) / counts[filled, None]
    return centres
