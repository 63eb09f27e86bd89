"""Segments of overlapping tiles as segments of the whole picture.

Every segment of every tile is a node. Two nodes of neighbouring tiles are one segment if they share pixels of the
overlap and their attention maps, cut to the overlap and normalised again, diverge little there (D of the paper's
equation 5). One view of the whole picture decides what is doubtful, overrules what is weak, and keeps large segments
apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from runtime.merge.divergence import divergences

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEAST_SHARE = 0.5  # of the smaller node's pixels in the overlap
CONFIDENT = 0.75  # share of a group's pixels in one segment of the view from which it is that segment's
STRONG = 0.8  # strength of a sure link that the view does not overrule, unless it joins two large groups
LARGE = 4  # a large group has so many times the pixels that the view needs to see it
MIDDLE = 0.8  # part of an overlap, around its middle, in which the seam may run: tiles know least at their edges


@dataclass(frozen=True, slots=True)
class Part:
    """What one of two neighbouring tiles has in their overlap.

    Attributes:
        nodes: int32 [H, W], the node of each pixel.
        maps: float32 [K, cells], the maps of the nodes `numbers`, on a grid that both tiles share.
        numbers: int32 [K], nodes, ascending.
    """

    nodes: NDArray[np.int32]
    maps: NDArray[np.float32]
    numbers: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Links:
    """Pairs of nodes in an overlap. int32 [L, 2]; `sure` bool [L]; `strength` float [L], 0 … 1: what comes first."""

    pairs: NDArray[np.int32]
    sure: NDArray[np.bool_]
    strength: NDArray[np.float64]


def link(one: Part, other: Part, threshold: float) -> Links:
    """Which nodes of two tiles may be one segment, by pixels and maps of their overlap.

    A pair is sure if each is the other's largest, they share at least half of the smaller one's pixels, and D is below
    the threshold. It is doubtful if one of the three is not so, but another is.
    """
    rows, columns = np.searchsorted(one.numbers, one.nodes), np.searchsorted(other.numbers, other.nodes)
    shape = len(one.numbers), len(other.numbers)
    common = np.bincount((rows * shape[1] + columns).ravel(), minlength=shape[0] * shape[1]).reshape(shape)
    first, second = common.sum(axis=1), common.sum(axis=0)
    smaller = np.maximum(np.minimum(first[:, None], second), 1)
    share = common / smaller
    apart = divergences(_normalised(one.maps), _normalised(other.maps))
    mutual = (common == common.max(axis=1, keepdims=True)) & (common == common.max(axis=0)) & (common > 0)
    large, near = share >= LEAST_SHARE, apart < threshold
    possible = (common > 0) & ((mutual & large) | (large & near) | (mutual & near))
    i, j = np.nonzero(possible)
    strength = share[i, j] / (1 + np.maximum(apart[i, j], 0) / threshold)
    return Links(
        np.stack([one.numbers[i], other.numbers[j]], axis=1), (mutual & large & near)[i, j], strength.astype(np.float64)
    )


def group(links: Links, seen: NDArray[np.int64], least: float, tile: float) -> NDArray[np.int32]:
    """The segment of every node, by its links, the strongest first, and by the view of the whole picture.

    A doubtful link unites two groups that the view sees in one segment; a sure one those that it does not see in
    different ones, and a strong one these, too, unless both are large: near a border the view errs by more than the
    tiles, but what is large is not only near a border.

    Args:
        links: of all overlaps.
        seen: int64 [nodes, V]: pixels of each node in each segment of the view, far from the view's own borders.
        least: pixels that a group needs there for the view to see it.
        tile: pixels of a tile. A group is large if it has more pixels there than a tile, and than four times `least`.

    Returns:
        int32 [nodes]: groups, numbered without gaps by their first nodes.
    """
    large = max(LARGE * least, tile)
    parent = np.arange(len(seen))
    seen = seen.copy()

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = int(parent[node])
        return node

    def verdict(node: int) -> int:
        """The segment of the view that a group is of; −1 where that is not known."""
        total, best = int(seen[node].sum()), int(seen[node].argmax())
        return best if total >= least and seen[node, best] >= CONFIDENT * total else -1

    for index in np.lexsort((-links.strength, ~links.sure)):
        a, b = root(int(links.pairs[index, 0])), root(int(links.pairs[index, 1]))
        if a == b:
            continue
        one, other = verdict(a), verdict(b)
        agree = one == other != -1
        strong = links.strength[index] > STRONG and min(seen[a].sum(), seen[b].sum()) <= large
        certain = links.sure[index] and (-1 in (one, other) or strong)
        if agree or certain:
            first, last = min(a, b), max(a, b)
            parent[last] = first
            seen[first] += seen[last]
    roots = np.array([root(node) for node in range(len(parent))])
    _, groups = np.unique(roots, return_inverse=True)
    return groups.astype(np.int32)


def join_links(links: list[Links]) -> Links:
    """All of them as one."""
    return Links(
        np.concatenate([np.empty((0, 2), np.int32), *(one.pairs for one in links)]),
        np.concatenate([np.empty(0, bool), *(one.sure for one in links)]),
        np.concatenate([np.empty(0), *(one.strength for one in links)]),
    )


def seam(disagree: NDArray[np.bool_], edges: NDArray[np.float32]) -> NDArray[np.intp]:
    """Where to change from one tile to the next, for every row of their overlap: int [H], a column.

    The path from top to bottom with the fewest pixels on which the tiles disagree, in steps of at most one column
    (Efros and Freeman, "Image Quilting", 2001), within the middle of the overlap. Where they disagree all over, it
    follows edges of the picture.

    Args:
        disagree: bool [H, W].
        edges: float32 [H, W], 0 … 1, how much of an edge the picture has there.
    """
    height, width = disagree.shape
    margin = int(width * (1 - MIDDLE) / 2)
    inner = np.s_[:, margin : width - margin]
    band = disagree[inner] * (1.0 - 0.9 * edges[inner])
    # Of paths that are equally good the one in the middle.
    band += 1e-4 * np.abs(np.arange(band.shape[1]) - band.shape[1] / 2)
    total = np.full((height, band.shape[1] + 2), np.inf)
    total[0, 1:-1] = band[0]
    for y in range(1, height):
        before = total[y - 1]
        total[y, 1:-1] = band[y] + np.minimum(np.minimum(before[:-2], before[1:-1]), before[2:])
    path = np.empty(height, np.intp)
    path[-1] = total[-1].argmin()
    for y in range(height - 2, -1, -1):
        left = path[y + 1] - 1
        path[y] = left + total[y, left : left + 3].argmin()
    return path - 1 + margin


def _normalised(maps: NDArray[np.float32]) -> NDArray[np.float32]:
    return maps / np.maximum(maps.sum(axis=1, keepdims=True), np.float32(1e-30))
