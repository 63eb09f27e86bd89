"""What a pyramid of attention maps has to be."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.errors import shown
from runtime.pyramid.weights import Shape, _sizes

if TYPE_CHECKING:
    from numpy.typing import NDArray


def check_pyramid(
    pyramid: Sequence[Any], grids: Sequence[Sequence[int]] | None = None
) -> tuple[list[NDArray[Any]], list[Shape]]:
    """Check shapes and types of a pyramid; the values are checked while they are aggregated.

    Returns:
        The maps as arrays, all [n, n] or all [B, n, n], and (h, w) of every resolution.

    Raises:
        ValueError: if a shape, a type, the order or a grid is wrong.
    """
    if isinstance(pyramid, np.ndarray) and pyramid.ndim < 4:
        raise ValueError(
            f"pyramid: expected a list of arrays, one per resolution, found one array {pyramid.shape}; "
            "put it into a list"
        )
    if not isinstance(pyramid, Iterable) or isinstance(pyramid, (str, bytes)):
        raise ValueError(f"pyramid: expected a list of arrays, one per resolution, found {pyramid!r}")
    maps = [np.asarray(level) for level in pyramid]
    if not maps:
        raise ValueError("pyramid: expected at least one resolution, found none; pass a list of attention maps")
    for index, level in enumerate(maps):
        if level.ndim not in (2, 3) or level.shape[-1] != level.shape[-2] or level.size == 0:
            raise ValueError(
                f"pyramid[{index}]: expected maps [n, n] or [B, n, n], found shape {level.shape}; "
                "average heads and layers first, one row per query"
            )
        if level.dtype not in (np.float16, np.float32, np.float64):
            raise ValueError(
                f"pyramid[{index}]: expected float16, float32 or float64, found {level.dtype}; convert it first"
            )
        if level.shape[:-2] != maps[0].shape[:-2]:
            raise ValueError(
                f"pyramid[{index}]: expected the batch of the finest resolution {maps[0].shape[:-2]}, found "
                f"{level.shape[:-2]}; give every resolution the same frames"
            )
    if grids is None:
        shapes = [_square(index, level.shape[-1]) for index, level in enumerate(maps)]
    else:
        try:
            shapes = [(int(h), int(w)) for h, w in grids]
        except (TypeError, ValueError):
            raise ValueError(f"grids: expected pairs (h, w), one per resolution, found {shown(grids)}") from None
        if len(shapes) != len(maps):
            raise ValueError(
                f"grids: expected {len(maps)} pairs (h, w), one per resolution, found {len(shapes)}; "
                "pass grids= as the engine's sidecar gives them"
            )
        for index, ((h, w), level) in enumerate(zip(shapes, maps, strict=True)):
            if min(h, w) < 1 or h * w != level.shape[-1]:
                raise ValueError(
                    f"grids[{index}]: expected h·w = {level.shape[-1]}, the size of the maps, found {h}x{w}; "
                    "pass grids= as (h, w), finest first"
                )
    for finer, coarser in pairwise(shapes):
        if coarser == finer or coarser[0] > finer[0] or coarser[1] > finer[1]:
            raise ValueError(
                f"pyramid: expected resolutions finest first, each once, found {_sizes(shapes)}; "
                "sort them from fine to coarse and average those of one resolution"
            )
    return maps, shapes


def _square(index: int, n: int) -> Shape:
    side = int(np.sqrt(n) + 0.5)
    if side * side != n:
        raise ValueError(
            f"pyramid[{index}]: expected maps of a square grid, found n = {n}, which is no square; "
            "pass grids= with (h, w) of every resolution"
        )
    return side, side


def as_size(size: Sequence[int]) -> tuple[int, int]:
    """(H, W) as whole numbers. Raises ValueError where they are not two whole numbers from 1."""
    try:
        whole = len(size) == 2 and all(int(side) == side >= 1 for side in size)
    except (TypeError, ValueError, OverflowError):
        whole = False
    if not whole:
        raise ValueError(f"size: expected (H, W), whole numbers from 1, found {shown(size)}; pass the frame's size")
    return int(size[0]), int(size[1])
