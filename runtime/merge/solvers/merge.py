"""The solver "merge": DiffSeg's own iterative merge (paper, section 3.3, "Iterative Attention Merging")."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.merge.iterations import merge_around_anchors, merge_proposals
from runtime.pyramid.anchors import anchor_queries

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from runtime.merge.aggregate import Aggregation
    from runtime.pyramid.config import MergeConfig


def solve(source: Aggregation, config: MergeConfig, seeds: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """Proposals float32 [P, n] that sum to n, in the order in which they arise.

    Args:
        source: aggregated attention, its rows sum to n.
        config: thresholds and grid.
        seeds: float32 [S, n], each sums to 1: the first anchors, before those of the grid.
    """
    anchors = anchor_queries(source.shape, config.grid)
    proposals = merge_around_anchors(source, anchors, config.thresholds[0], seeds)
    for threshold in config.thresholds[1:]:
        proposals = merge_proposals(proposals, threshold)
    return proposals
