"""Tensors of the labels head: aggregated rows, tiles of queries, and indexing that becomes simple operators."""

from collections.abc import Callable

import torch
from torch import Tensor

from runtime.merge.divergence import SMALLEST_PROBABILITY

TILE = 8  # queries per axis that share one tile of the first iteration


class Aggregated:
    """The rows of the aggregated attention, times n, without the whole matrix in memory.

    It keeps the terms of each row: the finest map and the sums of coarser maps, which many queries share.
    """

    def __init__(self, finest: Tensor | None, scale: Tensor | None, parts: list[tuple[Tensor, Tensor]]) -> None:
        """`finest` [n, n] times `scale` [n]; `parts`: pairs of rows [m, n] and the row of each query, int64 [n]."""
        self.finest, self.scale, self.parts = finest, scale, parts

    def rows(self, queries: Tensor) -> Tensor:
        """The rows of some queries, int64 [q] → [q, n]."""
        terms = [take_rows(part, take_rows(source, queries)) for part, source in self.parts]
        if self.finest is not None and self.scale is not None:
            terms.insert(0, take_rows(self.finest, queries) * take_rows(self.scale, queries)[:, None])
        return sum(terms[1:], terms[0])

    def project(self, linear: Callable[[Tensor], Tensor]) -> Tensor:
        """Apply a linear function of maps, [m, n] → [m, …], to all rows; the result is flattened to [n, k]."""
        terms = [take_rows(linear(part).flatten(1), source) for part, source in self.parts]
        if self.finest is not None and self.scale is not None:
            terms.insert(0, linear(self.finest).flatten(1) * self.scale[:, None])
        return sum(terms[1:], terms[0])


def logarithm(maps: Tensor) -> Tensor:
    """log(n·a): the factor n does not change D, and centres the logarithms, so that the products do not cancel."""
    return maps.clamp(min=maps.shape[-1] * SMALLEST_PROBABILITY).log()


def pick(values: Tensor, index: Tensor) -> Tensor:
    """values[index] for an index that is a tensor; plain indexing would make torch.export read its value."""
    return values.index_select(0, index.reshape(1))[0]


def take_rows(values: Tensor, index: Tensor) -> Tensor:
    """values[index] as a Gather; plain indexing is traced to GatherND."""
    return values.index_select(0, index)


def active_first(active: Tensor) -> tuple[Tensor, Tensor]:
    """`active` float [R, P] of 0 and 1 → int64 [R, P], an order that puts the ones of each row first; their number [R].

    The permutation is counted: TensorRT has no Compress, and its TopK takes fewer columns than a fine grid has.
    """
    before = active.cumsum(-1)
    count = before[:, -1]
    columns = torch.arange(active.shape[1])
    places = torch.where(active > 0, before - 1, count[:, None] + columns - before).to(torch.int64)
    order = torch.zeros_like(places).scatter(1, places, columns.expand_as(places))
    return order, count


def sum_where_shared(
    rows: Tensor, shape: tuple[int, int], sums: list[tuple[Tensor, tuple[int, int]]]
) -> list[tuple[Tensor, tuple[int, int]]]:
    """Add to `rows`, of the resolution `shape`, the coarser `sums` whose grid divides it; keep the others."""
    rest = []
    for other, (h, w) in sums:
        if shape[0] % h == 0 and shape[1] % w == 0:
            split = rows.reshape(h, shape[0] // h, w, shape[1] // w, -1)
            rows = (split + other.reshape(h, 1, w, 1, -1)).reshape(rows.shape)
        else:
            rest.append((other, (h, w)))
    return [*rest, (rows, shape)]


def sources(finest: tuple[int, int], shape: tuple[int, int]) -> Tensor:
    """For every query of the finest grid, the query of a coarser grid whose row it takes, int64 [n]."""
    ys, xs = (torch.arange(fine) * coarse // fine for fine, coarse in zip(finest, shape, strict=True))
    return (ys[:, None] * shape[1] + xs).flatten()


def tiles(h: int, w: int) -> tuple[Tensor, Tensor]:
    """Row numbers of each tile's queries, int64 [tiles, TILE²], and which of them no earlier tile has, bool.

    If TILE does not divide the grid, the tiles at its edge overlap their neighbours.
    """
    high, wide = min(TILE, h), min(TILE, w)
    starts = [(min(y, h - high), min(x, w - wide), y, x) for y in range(0, h, high) for x in range(0, w, wide)]
    rows, fresh = [], []
    for top, left, y, x in starts:
        ys, xs = torch.arange(top, top + high)[:, None], torch.arange(left, left + wide)
        rows.append((ys * w + xs).flatten())
        fresh.append(((ys >= y) & (xs >= x)).flatten())
    return torch.stack(rows), torch.stack(fresh)


def blocks(side: int) -> int:
    """Into how many equal parts the screening divides an axis: the largest divisor up to 16."""
    return next(parts for parts in range(min(side, 16), 0, -1) if side % parts == 0)


def block_means(side: int, parts: int) -> Tensor:
    """Matrix [side, parts] that maps an axis to the mean of each part."""
    return torch.eye(parts).repeat_interleave(side // parts, dim=0) / (side // parts)
