"""Small regions given to their neighbours."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

import cv2
import numpy as np

from runtime.labels import count_pixels, relabel

if TYPE_CHECKING:
    from numpy.typing import NDArray


def absorb(labels: NDArray[np.int32], min_area: float) -> NDArray[np.int32]:
    """Give every connected region smaller than `min_area` to the neighbour it shares the longest border with.

    A region is a set of pixels with one label, connected by their sides. A segment may have several regions,
    of which only the small ones go. The smallest goes first, so that small regions side by side may together become
    large enough to stay.

    Args:
        labels: int32 [H, W], not negative.
        min_area: pixels.

    Returns:
        int32 [H, W]: no new labels; a label whose regions were all small is gone.
    """
    regions, owner = connected_regions(labels)
    areas = count_pixels(regions).tolist()
    small = [(area, region) for region, area in enumerate(areas) if area < min_area]
    if not small:
        return labels
    borders = _borders(regions, len(areas))
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


def connected_regions(labels: NDArray[np.int32]) -> tuple[NDArray[np.int32], list[int]]:
    """Number of every pixel's region, int32 [H, W] from 0, and the label of each region.

    Regions are numbered in the order of their labels; those of one label in the order of their first pixels.
    """
    regions = np.empty(labels.shape, np.int32)
    owner: list[int] = []
    for label in np.flatnonzero(count_pixels(labels)).tolist():
        mask = (labels == label).astype(np.uint8)
        x, y, width, height = cv2.boundingRect(mask)
        box = np.s_[y : y + height, x : x + width]
        count, found = cv2.connectedComponents(mask[box], connectivity=4)
        np.copyto(regions[box], found + (len(owner) - 1), where=mask[box].view(bool))
        owner += [label] * (count - 1)
    return regions, owner


def _borders(regions: NDArray[np.int32], count: int) -> list[dict[int, int]]:
    """For every region its neighbours and the length of the border with each, in pixel sides."""
    borders: list[dict[int, int]] = [{} for _ in range(count)]
    for first, second in ((regions[:, :-1], regions[:, 1:]), (regions[:-1], regions[1:])):
        differ = first != second
        codes, lengths = np.unique(first[differ].astype(np.int64) * count + second[differ], return_counts=True)
        for code, length in zip(codes.tolist(), lengths.tolist(), strict=True):
            one, other = divmod(code, count)
            for a, b in ((one, other), (other, one)):
                borders[a][b] = borders[a].get(b, 0) + length
    return borders
