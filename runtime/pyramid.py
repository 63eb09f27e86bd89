"""What a pyramid of attention maps has to be, and how its resolutions are weighted."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Grid: TypeAlias = tuple[int, int]
Weights: TypeAlias = Literal["proportional", "per-tensor"] | tuple[float, ...]


def check_weights(weights: Any) -> Weights:
    """Return the weights with lists made tuples; ValueError where they cannot be used for any pyramid."""
    if isinstance(weights, str):
        if weights not in ("proportional", "per-tensor"):
            raise ValueError(
                "weights: expected 'proportional', 'per-tensor' or one number per resolution, found "
                f"{weights!r}; choose one of them"
            )
        return weights  # type: ignore[return-value]
    try:
        values = tuple(float(value) for value in weights)
    except (TypeError, ValueError):
        values = ()
    if not values or not all(np.isfinite(value) and value >= 0 for value in values) or sum(values) <= 0:
        raise ValueError(
            "weights: expected finite numbers that are not negative and not all 0, one per resolution, "
            f"found {weights!r}; give for example (1, 0, 0, 0) for the finest resolution alone"
        )
    return values


def resolution_ratios(weights: Any, grids: Sequence[Grid], layers: Sequence[int] | None = None) -> list[float]:
    """R_r of every resolution, summing to 1 (paper, equation 4).

    Args:
        weights: "proportional" (R_r ∝ side), "per-tensor" (R_r ∝ layers · side) or one number per resolution.
        grids: (h, w) of every resolution; the side of a grid that is not square is √(h·w).
        layers: how many layers were averaged in every resolution; needed for "per-tensor".

    Raises:
        ValueError: if weights or layers do not fit the resolutions.
    """
    chosen = check_weights(weights)
    sides = [float(np.sqrt(h * w)) for h, w in grids]
    if chosen == "proportional":
        values = sides
    elif chosen == "per-tensor":
        if layers is None or len(layers) != len(grids) or any(count < 1 for count in layers):
            raise ValueError(
                f"layers: weights 'per-tensor' expect {len(grids)} numbers of layers, each at least 1, found "
                f"{layers!r}; pass layers= as the engine's sidecar gives them, or use weights 'proportional'"
            )
        values = [count * side for count, side in zip(layers, sides, strict=True)]
    else:
        if len(chosen) != len(grids):
            raise ValueError(
                f"weights: expected {len(grids)} numbers, one per resolution {_sizes(grids)}, found "
                f"{len(chosen)}; give as many weights as there are resolutions (0 leaves one out)"
            )
        values = [float(value) for value in chosen]
    total = sum(values)
    return [value / total for value in values]


def check_pyramid(
    pyramid: Sequence[Any], grids: Sequence[Sequence[int]] | None = None
) -> tuple[list[NDArray[Any]], list[Grid]]:
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
        shapes = [(int(h), int(w)) for h, w in grids]
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


def _square(index: int, n: int) -> Grid:
    side = int(np.sqrt(n) + 0.5)
    if side * side != n:
        raise ValueError(
            f"pyramid[{index}]: expected maps of a square grid, found n = {n}, which is no square; "
            "pass grids= with (h, w) of every resolution"
        )
    return side, side


def _sizes(grids: Sequence[Grid]) -> str:
    return ", ".join(f"{h}x{w}" for h, w in grids)
