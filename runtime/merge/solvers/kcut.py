"""The solver "kcut": K-way normalised cut of the maps without recursion, begun from the merge's proposals.

It looks for K segments whose normalised association Σ_k q_k / v_k is large: q_k is the affinity within segment k, v_k
the sum of its tokens' degrees (Shi and Malik, "Normalized Cuts and Image Segmentation", PAMI 2000; K minus it is the
value of the K-way cut). Each round gives every token to the segment to which the sum's derivative points.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from runtime.merge.likeness import profiles, segment_means
from runtime.merge.solvers import merge
from runtime.merge.solvers.ncut import ALPHA, affinities

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runtime.merge.aggregate import Aggregation
    from runtime.pyramid.config import MergeConfig

MOST_ROUNDS = 30
MOST_DOUBLINGS = 20  # of the weight that keeps a token where it is


def solve(
    source: Aggregation, config: MergeConfig, seeds: NDArray[np.float32] | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The segments' mean maps, and how like these every map is.

    K and the start are the merge's: its thresholds, grid and seeds count. Arguments and results are otherwise those of
    `runtime.merge.solvers.ncut.solve`; of the cut's numbers alpha is used.
    """
    maps = source.full()
    own = profiles(maps, source.shape)
    begin = profiles(merge.solve(source, config, seeds), source.shape)
    start = np.unique(np.matmul(own, begin.T).argmax(axis=1), return_inverse=True)[1]
    segments = associate(affinities(own, config.alpha or ALPHA), start)
    means = segment_means(maps, segments)
    return means, np.matmul(profiles(means, source.shape), own.T)


def associate(affinity: NDArray[np.float32], segments: NDArray[np.intp]) -> NDArray[np.intp]:
    """Move tokens between segments while Σ q/v grows; no segment becomes empty.

    With X the indicators, G = W X, q_k = x_kᵀ W x_k and v_k = x_kᵀ D x_k, token i goes to the largest μ_ik + τ X_ik,
    where μ_ik = 2 G_ik / v_k − d_i q_k / v_k² is the derivative of the sum. τ is 0 at first, and rises until the sum
    does not fall.

    Args:
        affinity: float32 [n, n], symmetric, not negative, no row of zeros.
        segments: int [n], 0 … K−1, none of them empty.

    Returns:
        int [n], 0 … K−1.
    """
    count = int(segments.max()) + 1
    degrees = np.matmul(affinity, np.ones(len(affinity), np.float32)).astype(np.float64)
    rows = np.arange(len(affinity))

    def state(labels: NDArray[np.intp]) -> tuple[float, NDArray[np.float64]]:
        """Σ q/v, and its derivative [n, K]."""
        members = np.zeros((len(rows), count), np.float32)
        members[rows, labels] = 1
        sums = np.matmul(affinity, members).astype(np.float64)
        within = np.bincount(labels, sums[rows, labels], count)
        volume = np.bincount(labels, degrees, count)
        return float((within / volume).sum()), 2 * sums / volume - degrees[:, None] * (within / volume**2)

    value, pull = state(segments)
    for _ in range(MOST_ROUNDS):
        stay = 0.0
        for _ in range(MOST_DOUBLINGS):
            held = pull.copy()
            held[rows, segments] += stay
            moved = held.argmax(axis=1)
            if np.array_equal(moved, segments):
                return segments
            if len(np.unique(moved)) == count:
                reached, next_pull = state(moved)
                if reached > value:
                    break
            stay = max(2 * stay, float(np.abs(pull).mean()) / 16)
        else:
            return segments
        segments, value, pull = moved, reached, next_pull
    return segments
