"""What is done to labels at the frame's own size, after the merge."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING

import numpy as np

from runtime.refine.absorb import absorb
from runtime.refine.snap import snap

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runtime.pyramid.weights import Grid


SPECK = 0.25  # of a token's area: smaller regions are absorbed after a snap


@dataclass(frozen=True, slots=True)
class Refinement:
    """What is done to the labels of a frame at its own size.

    Attributes:
        snap: see `snap`; regions below a quarter of a token are absorbed then.
        min_area: see `absorb`; below 1 a share of the frame, from 1 pixels, 0 for nothing.

    Raises:
        ValueError: if `min_area` is neither.
    """

    snap: bool = False
    min_area: float = 0.0

    def __post_init__(self) -> None:
        area = self.min_area
        number = isinstance(area, Real) and not isinstance(area, bool)
        if not number or not 0 <= area < float("inf") or (area > 1 and area != int(area)):
            raise ValueError(
                f"min_area: expected a share of the frame below 1, or whole pixels from 1, found {area!r}; give for "
                "example 0.002 or 500"
            )

    def __call__(self, labels: NDArray[np.int32], frame: NDArray[np.uint8], grid: Grid) -> NDArray[np.int32]:
        """Labels int32 [H, W] of a frame uint8 [H, W, 3], `grid` the (h, w) of its tokens → labels, no new ones."""
        area = self.min_area * labels.size if self.min_area < 1 else self.min_area
        if self.snap:
            labels = snap(labels, frame, grid)
            # In texture a border frays into specks of some pixels, far below what attention resolves.
            area = max(area, SPECK * labels.size / (grid[0] * grid[1]))
        return absorb(labels, area) if area else labels


def split_refine(refine: str) -> tuple[str, bool]:
    """`--refine` → how the merge refines its proposals ("none" or "kmeans"), and whether labels are snapped.

    Raises ValueError for anything but none, kmeans, snap, or the last two with a comma.
    """
    words = {word.strip() for word in refine.split(",")} if isinstance(refine, str) else set()
    if not words or (words != {"none"} and not words <= {"kmeans", "snap"}):
        raise ValueError(f"refine: expected none, kmeans, snap or kmeans,snap, found {refine!r}; choose one of them")
    return "kmeans" if "kmeans" in words else "none", "snap" in words
