"""Step 1 of DiffSeg: one attention tensor from the attention maps of several resolutions.

Paper: "Diffuse, Attend, and Segment" (Tian et al., CVPR 2024), section 3.2, "Attention Aggregation".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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


def aggregate_attention(
    pyramid: Sequence[Any],
    *,
    grids: Sequence[Sequence[int]] | None = None,
    layers: Sequence[int] | None = None,
    weights: Any = "proportional",
) -> NDArray[np.float32]:
    """Aggregate a pyramid at its finest resolution (paper, section 3.2, equations 3 and 4).

    Args:
        pyramid: float16, float32 or float64 arrays [n, n] or [B, n, n], one per resolution, finest first;
            row i is where query i attends to. Rows are normalised here: rounded sums do no harm.
        grids: (h, w) of every resolution with h·w = n. Default: square.
        layers: number of layers averaged in every resolution; only "per-tensor" needs it.
        weights: see `resolution_ratios`. A resolution of weight 0 is not read.

    Returns:
        float32 [n, n] or [B, n, n] with n = h·w of the finest resolution; every row sums to 1.

    Raises:
        ValueError: if shapes, types, order, grids, layers or weights are wrong, or if a map has a NaN, an
            infinity or a negative value, or sums to 0.
    """
    maps, shapes = check_pyramid(pyramid, grids)
    ratios = resolution_ratios(weights, shapes, layers)
    out = np.empty((*maps[0].shape[:-2], *(2 * [maps[0].shape[-1]])), np.float32)
    if out.ndim == 2:
        aggregate_frame(maps, shapes, ratios, out)
    else:
        for frame, target in enumerate(out):
            aggregate_frame([level[frame] for level in maps], shapes, ratios, target)
    return out


def aggregate_frame(
    maps: Sequence[NDArray[Any]], shapes: Sequence[Grid], ratios: Sequence[float], out: NDArray[np.float32]
) -> None:
    """Write one frame's aggregated attention into `out` [n, n]; arguments as checked by the functions above.

    Coarse maps have few distinct rows: each is interpolated once, the resolutions are summed where they
    share their rows, and only the sum is added to every query row, one query line at a time, in cache.
    """
    h, w = shapes[0]
    lines = out.reshape(h, w, h * w)
    finest = maps[0].reshape(h, w, h * w)
    levels = [
        _Level(index, maps[index], shapes[index], ratios[index], shapes[0])
        for index in range(1, len(maps))
        if ratios[index] > 0
    ]
    columns = np.arange(w)
    # The queries of a line that share their row in every coarse resolution form one group.
    sources = np.array([columns * level.w // w for level in levels], np.intp).reshape(len(levels), w)
    starts = np.concatenate(([True], (np.diff(sources, axis=1) != 0).any(axis=0)))
    groups = np.cumsum(starts) - 1
    coarse = np.zeros((int(groups[-1]) + 1, h * w), np.float32)
    previous: list[int] = []
    for y in range(h):
        target = lines[y]
        if ratios[0] > 0:
            np.copyto(target, finest[y])
            sums = _row_sums(target, np.ones(h * w, np.float32), 0)
            target *= (ratios[0] / sums)[:, None]
        else:
            target[...] = 0
        if not levels:
            continue
        current = [y * level.h // h for level in levels]
        if current != previous:
            coarse[...] = 0
            for level, line, source in zip(levels, current, sources, strict=True):
                _add_rows(coarse, level.line(line), source[starts])
            previous = current
        _add_rows(target, coarse, groups)


@dataclass(slots=True)
class _Level:
    """A coarse resolution whose maps are interpolated one line of queries at a time."""

    index: int
    maps: NDArray[Any]
    shape: Grid
    ratio: float
    finest: Grid
    _line: int = -1
    _interpolated: NDArray[np.float32] | None = None

    @property
    def h(self) -> int:
        return self.shape[0]

    @property
    def w(self) -> int:
        return self.shape[1]

    def line(self, y: int) -> NDArray[np.float32]:
        """The maps of query line y at the finest resolution, float32 [w, n], summing to the level's ratio."""
        if y != self._line or self._interpolated is None:
            down, across = interpolation(self.h, self.finest[0]), interpolation(self.w, self.finest[1])
            rows = self.maps[y * self.w : (y + 1) * self.w].astype(np.float32)
            # Normalising after the interpolation is the same as weighting each pixel by its share in it.
            rows *= (self.ratio / _row_sums(rows, np.outer(down.sum(0), across.sum(0)).ravel(), self.index))[:, None]
            wide = rows.reshape(-1, self.w) @ across.T
            full = np.matmul(down, wide.reshape(self.w, self.h, self.finest[1]))
            self._line, self._interpolated = y, full.reshape(self.w, -1)
        return self._interpolated


def interpolation(source: int, target: int) -> NDArray[np.float32]:
    """Matrix [target, source] of linear interpolation with half-pixel centres and clamped edges."""
    position = (np.arange(target) + 0.5) * source / target - 0.5
    below = np.floor(position).astype(np.intp)
    share = position - below
    matrix = np.zeros((target, source))
    index = np.arange(target)
    np.add.at(matrix, (index, np.clip(below, 0, source - 1)), 1 - share)
    np.add.at(matrix, (index, np.clip(below + 1, 0, source - 1)), share)
    return matrix.astype(np.float32)


def _add_rows(target: NDArray[np.float32], rows: NDArray[np.float32], index: NDArray[np.intp]) -> None:
    """target += rows[index], without the copy where every row repeats equally often."""
    repeat, rest = divmod(len(target), len(rows))
    if rest == 0 and np.array_equal(index, np.arange(len(target)) // repeat):
        target.reshape(len(rows), repeat, -1)[...] += rows[:, None]
    else:
        target += rows[index]


def _row_sums(rows: NDArray[np.float32], shares: NDArray[np.float32], index: int) -> NDArray[np.float32]:
    """Weighted sums of the rows; ValueError if they are not probabilities."""
    sums = rows @ shares
    lowest = rows.min()
    if not (np.isfinite(sums).all() and sums.min() > 0 and lowest >= 0):
        finite = np.isfinite(rows).all()
        found = "a NaN or an infinity" if not finite else "a negative value" if lowest < 0 else "a row of zeros"
        raise ValueError(
            f"pyramid[{index}]: expected rows of probabilities, finite, not negative and not all 0, found "
            f"{found}; check the engine's precision (float16 overflows where float32 or bfloat16 does not)"
        )
    return sums


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
