"""The merge of one frame again and again, with other thresholds: what does not depend on them is computed once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.merge.aggregate import Aggregation
from runtime.merge.divergence import divergences
from runtime.merge.iterations import merge_proposals
from runtime.merge.threads import one_thread
from runtime.pyramid.anchors import anchor_queries

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runtime.pyramid.weights import Shape


class KeptMaps:
    """Aggregated attention as a whole, and how far every map is from the anchors (paper, sections 3.2 and 3.3).

    Attributes:
        maps: float32 [n, n], rows sum to n.
    """

    @one_thread()
    def __init__(self, pyramid: Sequence[Any], shapes: Sequence[Shape], ratios: Sequence[float], grid: int) -> None:
        """Arguments as of `runtime.merge.aggregate.Aggregation`; `grid`: anchors per axis.

        Raises ValueError where the maps are not probabilities.
        """
        n = shapes[0][0] * shapes[0][1]
        self.maps = Aggregation(pyramid, shapes, ratios, total=n).full()
        anchors = anchor_queries(shapes[0], grid)
        self._divergences = divergences(self.maps[anchors], self.maps, total=n)
        self._divergences[np.arange(len(anchors)), anchors] = 0

    @one_thread()
    def propose(self, thresholds: Sequence[float]) -> NDArray[np.float32]:
        """The proposals float32 [P, n], each sums to 1: those of `propose` but for the rounding of float32."""
        members = (self._divergences < thresholds[0]).astype(np.float32)
        some = np.flatnonzero(members.any(axis=0))
        proposals = (
            np.matmul(members[:, some], self.maps[some])
            if len(some) < len(self.maps)
            else np.matmul(members, self.maps)
        )
        proposals /= members.sum(axis=1, keepdims=True)
        for threshold in thresholds[1:]:
            proposals = merge_proposals(proposals, threshold)
        proposals /= len(self.maps)
        return np.asarray(proposals, np.float32)
