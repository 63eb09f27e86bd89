"""The grid of maps that start the merge."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def anchor_queries(grid_shape: tuple[int, int], grid: int) -> NDArray[np.intp]:
    """Row numbers of the grid × grid anchors, row-major (paper, section 3.3, "sampling grid").

    Raises:
        ValueError: if the grid does not fit the shorter side.
    """
    if not 2 <= grid <= min(grid_shape):
        raise ValueError(
            f"grid: expected 2 to {min(grid_shape)} anchors per axis, the shorter side of the finest "
            f"resolution {grid_shape[0]}x{grid_shape[1]}, found {grid}; "
            "lower the grid or use an engine of larger input"
        )

    def axis(side: int) -> NDArray[np.intp]:
        step = (side - 1) // (grid - 1)
        return (side - 1 - step * (grid - 1)) // 2 + step * np.arange(grid)

    return (axis(grid_shape[0])[:, None] * grid_shape[1] + axis(grid_shape[1])).ravel()
