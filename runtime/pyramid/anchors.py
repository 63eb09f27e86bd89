"""The grid of maps that start the merge."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def anchor_queries(shape: tuple[int, int], grid: int) -> NDArray[np.intp]:
    """Row numbers of the grid × grid anchors in maps of (h, w) = `shape`, row-major: int [grid²].

    Paper, section 3.3, "sampling grid".

    Raises:
        ValueError: if the grid does not fit the shorter side.
    """
    if not 2 <= grid <= min(shape):
        raise ValueError(
            f"grid: expected 2 to {min(shape)} anchors per axis, the shorter side of the finest "
            f"resolution {shape[0]}x{shape[1]}, found {grid}; "
            "lower the grid or use an engine of larger input"
        )

    def axis(side: int) -> NDArray[np.intp]:
        step = (side - 1) // (grid - 1)
        return (side - 1 - step * (grid - 1)) // 2 + step * np.arange(grid)

    return (axis(shape[0])[:, None] * shape[1] + axis(shape[1])).ravel()
