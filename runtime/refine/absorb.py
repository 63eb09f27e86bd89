"""Small regions given to their neighbours."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

import numpy as np

from runtime.labels import pieces, relabel
from runtime.outputs.measure import connected_regions

if TYPE_CHECKING:
    from numpy.typing import NDArray


def absorb(
    labels: NDArray[np.int32],
    min_area: float,
    heights: NDArray[np.intp] | None = None,
    widths: NDArray[np.intp] | None = None,
) -> NDArray[np.int32]:
    """Give every connected region smaller than `min_area` to the neighbour it shares the longest border with.

    A region is a set of pixels with one label, connected by their sides. A segment may have several regions,
    of which only the small ones go. The smallest goes first, so that small regions side by side may together become
    large enough to stay.

    Args:
        labels: int32 [H, W], not negative.
        min_area: pixels.
        heights: of each row [H], in pixels; None: 1.
        widths: of each column [W]; likewise.

    Returns:
        int32 [H, W]: no new labels; a label whose regions were all small is gone.
    """
    regions, owner = connected_regions(labels)
    heights = np.ones(len(labels), np.intp) if heights is None else heights
    widths = np.ones(labels.shape[1], np.intp) if widths is None else widths
    areas = _areas(regions, heights, widths).tolist()
    small = [(area, region) for region, area in enumerate(areas) if area < min_area]
    if not small:
        return labels
    borders = _borders(regions, len(areas), heights, widths)
    parent = list(range(len(areas)))
    heapq.heapify(small)
    while small:
        area, region = heapq.heappop(small)
        if parent[region] != region or area != areas[region] or not borders[region]:
            continue  # has grown or gone since, or is the whole frame
        # On a tie the smaller one, so that small ones join and no large one collects them all.
        into = min(borders[region], key=lambda other: (-borders[region][other], areas[other], other))
        # What touches the region and has its new label is then one region with it.
        joined = [other for other in borders[region] if owner[other] == owner[into] and other != into]
        for gone in (region, *joined):
            parent[gone] = into
            areas[into] += areas[gone]
            for other, length in borders[gone].items():
                del borders[other][gone]
                if other != into:
                    borders[into][other] = borders[other][into] = borders[into].get(other, 0) + length
            borders[gone] = {}
        if areas[into] < min_area:
            heapq.heappush(small, (areas[into], into))
    for region in range(len(parent)):
        root = region
        while parent[root] != root:
            root = parent[root]
        parent[region] = root
    return relabel(regions, np.asarray(owner, np.int32)[np.asarray(parent)])


def cells_of(labels: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.intp], NDArray[np.intp]]:
    """Labels without the rows and columns that repeat the one before, and the pixels that each of those left has.

    Labels that were enlarged have few, so that what is done to their regions does not take longer for larger frames.

        cells, heights, widths = cells_of(labels)
        np.repeat(np.repeat(cells, widths, axis=1), heights, axis=0)  # the labels
    """
    tops = np.ones(len(labels), bool)
    for part in pieces(labels):
        start, stop = max(part.start, 1), min(part.stop, len(labels))
        tops[start:stop] = (labels[start:stop] != labels[start - 1 : stop - 1]).any(axis=1)
    rows = labels[tops] if not tops.all() else labels
    lefts = np.ones(labels.shape[1], bool)
    lefts[1:] = (rows[:, 1:] != rows[:, :-1]).any(axis=0)
    cells = rows[:, lefts] if not lefts.all() else rows
    heights, widths = (np.diff(np.flatnonzero(first), append=len(first)) for first in (tops, lefts))
    return cells, heights, widths


def _areas(regions: NDArray[np.int32], heights: NDArray[np.intp], widths: NDArray[np.intp]) -> NDArray[np.intp]:
    """Pixels of each region, [N]."""
    count = int(regions.max()) + 1
    areas = np.zeros(count, np.intp)
    for part in pieces(regions):
        sizes = np.multiply.outer(heights[part], widths)
        areas += np.bincount(regions[part].ravel(), sizes.ravel(), count).astype(np.intp)
    return areas


def _borders(
    regions: NDArray[np.int32], count: int, heights: NDArray[np.intp], widths: NDArray[np.intp]
) -> list[dict[int, int]]:
    """For every region its neighbours and the length of the border with each, in pixel sides."""
    borders: list[dict[int, int]] = [{} for _ in range(count)]
    sides = np.broadcast_to(heights[:, None], regions[:, 1:].shape), np.broadcast_to(widths, regions[1:].shape)
    pairs = (regions[:, :-1], regions[:, 1:]), (regions[:-1], regions[1:])
    for (first, second), side in zip(pairs, sides, strict=True):
        differ = first != second
        found, place = np.unique(first[differ].astype(np.int64) * count + second[differ], return_inverse=True)
        lengths = np.bincount(place.ravel(), side[differ], len(found)).astype(np.intp)
        for code, length in zip(found.tolist(), lengths.tolist(), strict=True):
            one, other = divmod(code, count)
            for a, b in ((one, other), (other, one)):
                borders[a][b] = borders[a].get(b, 0) + length
    return borders
