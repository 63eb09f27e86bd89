"""DiffSeg's merge with the Jensen–Shannon divergence in place of the symmetric KL divergence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from runtime.merge.iterations import first_come
from runtime.pyramid.anchors import anchor_queries

if TYPE_CHECKING:
    from numpy.typing import NDArray

# For maps that differ little the symmetric KL ½(KL(a‖b) + KL(b‖a)) is four times the Jensen–Shannon divergence:
# both are quadratic there, ½·Σδ²/a and ⅛·Σδ²/a. A KL threshold is divided by this.
KL_PER_JS = 4.0
CELLS = 64  # blocks that pixels are summed into, to exclude distant maps early


def jensen_shannon(map_: NDArray[np.float32], maps: NDArray[np.float32]) -> NDArray[np.float32]:
    """½KL(a‖m) + ½KL(b‖m), m = ½(a + b), in nats, of `map_` [n] and each of `maps` [M, n]: float32 [M], 0…ln 2."""
    middle = (map_ + maps) * np.float32(0.5)
    ends = (_negative_entropy(map_) + _negative_entropy(maps)) * np.float32(0.5)
    return np.asarray(ends - _negative_entropy(middle), np.float32)


def merge_jensen_shannon(
    maps: NDArray[np.float32], shape: tuple[int, int], grid: int, thresholds: tuple[float, ...]
) -> NDArray[np.float32]:
    """The merge of `runtime.merge.proposals.merge_attention`, with the Jensen–Shannon divergence.

    `maps`: aggregated attention float32 [n, n] over h × w = `shape`. `grid`: anchors per axis. `thresholds`: one per
    iteration. Returns the proposals float32 [P, n] in order. This divergence is not a matrix product, hence slower.
    """
    anchors = anchor_queries(shape, grid)
    blocks = np.array_split(np.arange(maps.shape[1]), min(CELLS, maps.shape[1]))
    # Summing pixels never increases the divergence (data-processing inequality): what is far here is far in the maps.
    coarse = np.add.reduceat(maps, [block[0] for block in blocks], axis=1)
    proposals = np.empty((len(anchors), maps.shape[1]), np.float32)
    for index, anchor in enumerate(anchors):
        near = np.flatnonzero(jensen_shannon(coarse[anchor], coarse) < thresholds[0] + 1e-5)
        members = near[jensen_shannon(maps[anchor], maps[near]) < thresholds[0]]
        proposals[index] = maps[members if anchor in members else np.append(members, anchor)].mean(0)
    for threshold in thresholds[1:]:
        proposals = _merge_proposals(proposals, threshold)
    return proposals


def _merge_proposals(proposals: NDArray[np.float32], threshold: float) -> NDArray[np.float32]:
    """A later iteration, as `runtime.merge.iterations.merge_proposals`."""

    def near(index: int) -> NDArray[np.bool_]:
        members = jensen_shannon(proposals[index], proposals) < threshold
        members[index] = True
        return members

    return np.stack([proposals[members].mean(0) for members in first_come(len(proposals), near)])


def _negative_entropy(maps: NDArray[np.float32]) -> NDArray[np.float32]:
    """Σ x log x of every map, 0 where x is 0."""
    return np.einsum("...i,...i->...", maps, np.log(np.maximum(maps, np.float32(1e-30))))
