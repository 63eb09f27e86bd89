"""Step 1 of DiffSeg: one attention tensor from the attention maps of several resolutions.

Paper: "Diffuse, Attend, and Segment" (Tian et al., CVPR 2024), section 3.2, "Attention Aggregation".
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.merge.scratch import scratch
from runtime.merge.threads import one_thread
from runtime.pyramid.checks import check_pyramid
from runtime.pyramid.weights import Shape, resolution_ratios

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "Aggregation",
    "aggregate_attention",
    "blocks_per_axis",
    "interpolation",
    "resolution_ratios",
    "sum_blocks",
]

IN_CACHE = 1 << 18  # numbers worked on at a time: 1 MB
SMALLEST_SUM = 1e-30  # of a row: one divided by less, times the number of pixels, may be no float32


@one_thread()
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
    if maps[0].ndim == 2:
        return Aggregation(maps, shapes, ratios).full()
    out = np.empty(maps[0].shape, np.float32)
    for frame, target in enumerate(out):
        Aggregation([level[frame] for level in maps], shapes, ratios).full(target)
    return out


class Aggregation:
    """One frame's aggregated attention A, which is computed a block of queries at a time.

    Coarse maps have few distinct rows. Each is interpolated once, here, and the coarse resolutions are summed where
    they share their rows; `block` adds that sum to the finest maps. The sum is in scratch memory: an aggregation must
    not be used after the next one was made in the same thread.

    Args:
        maps, shapes, ratios: as checked by `check_pyramid` and `resolution_ratios`.
        total: what the rows of A sum to.
        name: how messages name the maps; "{}" is replaced by the number of the resolution.

    Attributes:
        pooled: float32 [n, cells], A summed into equal blocks of pixels, `cells_per_axis` of them.

    Raises:
        ValueError: if a map has a NaN, an infinity or a negative value, or sums to 0.
    """

    def __init__(
        self,
        maps: Sequence[NDArray[Any]],
        shapes: Sequence[Shape],
        ratios: Sequence[float],
        total: float = 1.0,
        name: str = "pyramid[{}]",
    ) -> None:
        self.shape = h, w = shapes[0]
        self.n = n = h * w
        self.cells_per_axis = down, across = blocks_per_axis(h), blocks_per_axis(w)
        self._finest = maps[0].reshape(h, w, n)
        self._scale: NDArray[np.float32] | None = None
        self.pooled = np.zeros((n, down * across), np.float32)
        if ratios[0] > 0:
            rows = self._finest.reshape(n, n)
            step = max(1, IN_CACHE // n)
            for start in range(0, n, step):
                part = np.ascontiguousarray(rows[start : start + step], np.float32)
                pooled = self.pooled[start : start + step]
                sum_blocks(part, self.shape, self.cells_per_axis, pooled)
                _check(part, pooled.sum(axis=1), name.format(0))
            self._scale = (ratios[0] * total / self.pooled.sum(axis=1)).reshape(h, w)
            self.pooled *= self._scale.reshape(n, 1)
        levels = [index for index in range(1, len(maps)) if ratios[index] > 0]
        # Queries that share their row in every coarse resolution form one group: per axis, since rows replicate so.
        self._rows, self._row_starts = _groups(tuple(shapes[index][0] for index in levels), h)
        self._columns, self._column_starts = _groups(tuple(shapes[index][1] for index in levels), w)
        groups = len(self._row_starts), len(self._column_starts)
        self._coarse = scratch("coarse", *groups, n) if levels else None
        if self._coarse is None:
            return
        self._coarse.fill(0)
        for index in levels:
            share = ratios[index] * total
            self._add_level(maps[index], shapes[index], share, name.format(index))
        cells = np.empty((*self._coarse.shape[:2], down * across), np.float32)
        for line, target in zip(self._coarse, cells, strict=True):
            sum_blocks(line, self.shape, self.cells_per_axis, target)
        self.pooled += cells[np.ix_(self._rows, self._columns)].reshape(n, -1)

    def _add_level(self, maps: NDArray[Any], shape: Shape, share: float, name: str) -> None:
        """Add a coarse resolution to the groups, every row summing to `share`."""
        assert self._coarse is not None
        h, w = shape
        down, across = _interpolation(h, self.shape[0]), _interpolation(w, self.shape[1])
        # Normalising after the interpolation is the same as weighting every pixel by its share in it.
        pixels = np.outer(down.sum(axis=0), across.sum(axis=0)).ravel()
        row_of_group = self._row_starts * h // self.shape[0]
        column_of_group = self._column_starts * w // self.shape[1]
        step = max(1, IN_CACHE // (w * self.n))
        for y in range(0, h, step):
            lines = maps[y * w : (y + step) * w].astype(np.float32)
            high = len(lines)
            sums = np.matmul(lines, pixels)
            _check(lines, sums, name)
            lines *= (share / sums)[:, None]
            wide = np.matmul(lines.reshape(-1, w), across.T, out=scratch("wide", high * h, len(across)))
            full = np.matmul(down, wide.reshape(high, h, -1), out=scratch("full", high, *self.shape))
            full = full.reshape(-1, w, self.n)
            first, end = np.searchsorted(row_of_group, (y, y + step))
            if first < end:
                _add_repeated(self._coarse[first:end], full, row_of_group[first:end] - y, column_of_group)

    def block(self, ys: slice, xs: slice, out: NDArray[np.float32]) -> NDArray[np.float32]:
        """Write the rows of A of a rectangle of queries into `out` [queries, n], which may be strided by rows."""
        finest = self._finest[ys, xs]
        target = out.reshape(finest.shape)
        if self._scale is None:
            target[...] = 0
        else:
            np.multiply(finest, self._scale[ys, xs, None], out=target, casting="same_kind")
        if self._coarse is not None:
            rows, columns = self._rows[ys], self._columns[xs]
            groups = self._coarse[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            _add_repeated(target, groups, rows - rows[0], columns - columns[0])
        return out

    def rows(self, queries: NDArray[np.intp], out: NDArray[np.float32]) -> NDArray[np.float32]:
        """Write single rows of A into `out` [len(queries), n]."""
        step = max(1, IN_CACHE // 4 // self.n)
        parts = [(queries[start : start + step], out[start : start + step]) for start in range(0, len(queries), step)]
        if self._scale is None:
            out[...] = 0
        else:
            finest, scale = self._finest.reshape(self.n, self.n), self._scale.ravel()
            for part, target in parts:
                np.multiply(finest[part], scale[part, None], out=target, casting="same_kind")
        if self._coarse is not None:
            for part, target in parts:
                ys, xs = np.divmod(part, self.shape[1])
                target += self._coarse[self._rows[ys], self._columns[xs]]
        return out

    def pool(self, maps: NDArray[np.float32]) -> NDArray[np.float32]:
        """Maps [k, n] summed into the blocks of `pooled`: float32 [k, cells]."""
        pooled = np.empty((len(maps), self.pooled.shape[1]), np.float32)
        sum_blocks(np.ascontiguousarray(maps), self.shape, self.cells_per_axis, pooled)
        return pooled

    def full(self, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """A as a whole, float32 [n, n]."""
        h, w = self.shape
        out = np.empty((self.n, self.n), np.float32) if out is None else out
        for y in range(0, h, 2):
            self.block(np.s_[y : y + 2], np.s_[:], out[y * w : (y + 2) * w])
        return out


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


_interpolation = functools.lru_cache(maxsize=32)(interpolation)


@functools.lru_cache(maxsize=32)
def _groups(coarse: tuple[int, ...], fine: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Runs of positions that have the same source in every coarse axis: the run of each position, and their starts."""
    position = np.arange(fine)
    starts = position == 0
    for side in coarse:
        starts |= np.diff(position * side // fine, prepend=0) != 0
    return np.cumsum(starts) - 1, np.flatnonzero(starts)


def _add_repeated(
    target: NDArray[np.float32], source: NDArray[np.float32], rows: NDArray[np.intp], columns: NDArray[np.intp]
) -> None:
    """target [y, x, n] += source[rows, columns]; without a copy of the source where every one repeats equally."""
    (h, w, n), (down, across, _) = target.shape, source.shape
    if (
        h % down == 0
        and w % across == 0
        and np.array_equal(rows, np.arange(h) // (h // down))
        and np.array_equal(columns, np.arange(w) // (w // across))
    ):
        blocks = target.reshape(down, h // down, across, w // across, n)
        blocks += source[:, None, :, None]
    else:
        target += source[np.ix_(rows, columns)]


def sum_blocks(maps: NDArray[np.float32], shape: Shape, cells: Shape, out: NDArray[np.float32]) -> None:
    """Sum the pixels of maps [M, n] in equal blocks, into `out` [M, blocks]."""
    import cv2

    tall = maps.reshape(-1, shape[1])
    area = cv2.resize(tall, (cells[1], len(maps) * cells[0]), interpolation=cv2.INTER_AREA)
    np.multiply(area.reshape(out.shape), shape[0] * shape[1] / (cells[0] * cells[1]), out=out)


def blocks_per_axis(side: int, most: int = 8) -> int:
    """Into how many equal blocks an axis is pooled: the most that divide it, at most `most`."""
    return next(parts for parts in range(min(side, most), 0, -1) if side % parts == 0)


def _check(rows: NDArray[np.float32], sums: NDArray[np.float32], name: str) -> None:
    lowest = rows.min()
    if np.isfinite(sums).all() and sums.min() > SMALLEST_SUM and lowest >= 0:
        return
    finite = np.isfinite(rows).all()
    found = "a NaN or an infinity" if not finite else "a negative value" if lowest < 0 else "a row of zeros, or nearly"
    raise ValueError(
        f"{name}: expected rows of probabilities, finite, not negative and not all 0, found {found}; "
        "check the engine's precision (float16 overflows where float32 or bfloat16 does not)"
    )
