"""D, the symmetric KL divergence of two attention maps, and its clamp: the one place that defines them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


SMALLEST_PROBABILITY = 1e-12  # what a logarithm sees in place of 0


def _log(maps: NDArray[np.float32], out: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logarithm of maps that sum to n, clamped at n times the smallest probability."""
    smallest = np.float32(maps.shape[1] * SMALLEST_PROBABILITY)
    if maps.min() >= smallest:  # as nearly always; looking is cheaper than writing
        return np.log(maps, out=out)
    np.maximum(maps, smallest, out=out)
    return np.log(out, out=out)
