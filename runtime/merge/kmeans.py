"""K-means on the attention maps, seeded by the proposals."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


KMEANS_ITERATIONS = 10


def _kmeans(maps: NDArray[np.float32], centres: NDArray[np.float32]) -> NDArray[np.float32]:
    """Lloyd's K-means on the maps from the given centres; a centre without a nearest map stays as it is."""
    centres = centres.copy()
    nearest: NDArray[np.intp] | None = None
    for _ in range(KMEANS_ITERATIONS):
        # |map − centre|² without |map|², which is the same for all centres.
        distances = maps @ centres.T
        distances *= -2
        distances += np.einsum("ij,ij->i", centres, centres)
        assigned = distances.argmin(axis=1)
        if nearest is not None and np.array_equal(assigned, nearest):
            break
        nearest = assigned
        members = (assigned == np.arange(len(centres))[:, None]).astype(np.float32)
        counts = members.sum(axis=1)
        filled = counts > 0
        centres[filled] = members[filled] @ maps / counts[filled, None]
    return centres
