"""After the merge: borders that follow the image's edges, and small regions given to their neighbours.

Neither is in the paper: its labels come from maps of some dozen pixels a token, and are upsampled to the frame.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runtime.pyramid import Grid

PIXELS_PER_TOKEN = 4  # at which the filter's coefficients are found; its window is one token to each side
EPSILON = 1e-3  # variance of a colour, of 0…1, below which a window counts as flat
SPECK = 0.25  # of a token's area: smaller regions are absorbed after a snap
PAIRS = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))  # a symmetric 3×3 matrix, as six planes


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


def snap(labels: NDArray[np.int32], frame: NDArray[np.uint8], grid: Grid) -> NDArray[np.int32]:
    """Move the borders of segments to edges of the image that are within about a token of them.

    Every segment's mask is filtered by the guided filter with the frame as guide (He, Sun and Tang, "Guided Image
    Filtering", PAMI 2013, equations 14 to 16): in each window the mask becomes the linear function of the colour that
    fits it best. A pixel takes the segment of the largest value. As in "Fast Guided Filter" (He and Sun, 2015) the
    coefficients are found on a smaller picture, and applied to the frame itself.

    Args:
        labels: int32 [H, W], not negative.
        frame: uint8 [H, W, 3], any order of colours.
        grid: (h, w) of the tokens the labels come from; the window reaches one token to each side.

    Returns:
        int32 [H, W]: the same labels; one that wins nowhere is gone.
    """
    present = np.flatnonzero(np.bincount(labels.ravel()))
    if len(present) == 1:
        return labels
    size = tuple(min(side, PIXELS_PER_TOKEN * tokens) for side, tokens in zip(labels.shape, grid, strict=True))
    radii = tuple(max(1, round(side / tokens)) for side, tokens in zip(size, grid, strict=True))
    colours = frame.astype(np.float32)
    colours /= 255
    guide = _shrink(colours, size)
    mean, inverse = _colour_statistics(guide, radii)
    planes = [np.ascontiguousarray(colours[..., channel]) for channel in range(3)]
    refined = labels.copy()
    best = np.zeros(labels.shape, np.float32)  # the values of all masks sum to 1: one is above 0
    for label in present:
        mask = _shrink((labels == label).view(np.uint8) * np.float32(1), size)
        inner = _support(mask, radii)
        window = _crop(inner, size, labels.shape)
        coefficients = _coefficients(mask[inner], guide[inner], mean[inner], inverse[(..., *inner)], radii)
        whole = np.zeros((4, *size), np.float32)
        whole[(..., *inner)] = coefficients
        *slopes, value = (cv2.resize(plane, labels.shape[::-1])[window] for plane in whole)
        for slope, plane in zip(slopes, planes, strict=True):
            slope *= plane[window]
            value += slope
        np.copyto(refined[window], label, where=value > best[window])
        np.maximum(best[window], value, out=best[window])
    return refined


def _support(mask: NDArray[np.float32], radii: tuple[int, ...]) -> tuple[slice, slice]:
    """The rectangle outside of which the filtered mask is 0: two windows are taken, one after the other."""
    x, y, width, height = cv2.boundingRect((mask > 0).view(np.uint8))
    down, across = 2 * radii[0], 2 * radii[1]
    return np.s_[max(0, y - down) : y + height + down, max(0, x - across) : x + width + across]


def _crop(inner: tuple[slice, slice], size: tuple[int, ...], shape: tuple[int, ...]) -> tuple[slice, slice]:
    """The rectangle of the frame that a rectangle of the small picture reaches by interpolation."""
    ys, xs = (
        slice(max(0, (part.start - 1) * whole // small), -(-(part.stop + 1) * whole // small))
        for part, small, whole in zip(inner, size, shape, strict=True)
    )
    return ys, xs


def _shrink(picture: NDArray[np.float32], size: tuple[int, ...]) -> NDArray[np.float32]:
    return np.asarray(cv2.resize(picture, size[::-1], interpolation=cv2.INTER_AREA), np.float32)


def _box(picture: NDArray[np.float32], radii: tuple[int, ...]) -> NDArray[np.float32]:
    """Mean over a window of `radii` (y, x) to each side; a window beyond the frame sees its reflection."""
    window = (2 * radii[1] + 1, 2 * radii[0] + 1)
    return np.asarray(cv2.boxFilter(picture, -1, window, borderType=cv2.BORDER_REFLECT), np.float32)


def _colour_statistics(
    guide: NDArray[np.float32], radii: tuple[int, ...]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean colour of every window, [h, w, 3], and (covariance + ε)⁻¹ of the colours in it, six planes [6, h, w]."""
    mean = _box(guide, radii)
    xx, xy, xz, yy, yz, zz = (
        _box(guide[..., i] * guide[..., j], radii) - mean[..., i] * mean[..., j] + np.float32(EPSILON * (i == j))
        for i, j in PAIRS
    )
    cofactors = (yy * zz - yz * yz, xz * yz - xy * zz, xy * yz - xz * yy, xx * zz - xz * xz, xy * xz - xx * yz)
    inverse = np.stack((*cofactors, xx * yy - xy * xy))
    inverse /= xx * inverse[0] + xy * inverse[1] + xz * inverse[2]
    return mean, inverse


def _coefficients(
    mask: NDArray[np.float32],
    guide: NDArray[np.float32],
    mean: NDArray[np.float32],
    inverse: NDArray[np.float32],
    radii: tuple[int, ...],
) -> list[NDArray[np.float32]]:
    """Three slopes and the offset of mask ≈ slopes · colour + offset, each [h, w], mean over the windows at a pixel."""
    share = _box(mask, radii)
    x, y, z = np.moveaxis(_box(guide * mask[..., None], radii) - mean * share[..., None], -1, 0)
    xx, xy, xz, yy, yz, zz = inverse
    slopes = (xx * x + xy * y + xz * z, xy * x + yy * y + yz * z, xz * x + yz * y + zz * z)
    offset = share - sum(slope * mean[..., channel] for channel, slope in enumerate(slopes))
    return [_box(plane, radii) for plane in (*slopes, offset)]


def absorb(labels: NDArray[np.int32], min_area: float) -> NDArray[np.int32]:
    """Give every connected region smaller than `min_area` to the neighbour it shares the longest border with.

    A region is what is connected by its pixels' sides and has one label: a segment may have several, and only small
    ones go. The smallest goes first, so that small ones side by side may together become large enough to stay.

    Args:
        labels: int32 [H, W], not negative.
        min_area: pixels.

    Returns:
        int32 [H, W]: the same labels; one whose regions were all small is gone.
    """
    regions, owner = _regions(labels)
    areas = np.bincount(regions.ravel()).tolist()
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
    return np.asarray(owner, np.int32)[np.asarray(parent)][regions]


def _regions(labels: NDArray[np.int32]) -> tuple[NDArray[np.int32], list[int]]:
    """Number of every pixel's region, int32 [H, W] from 0, and the label of each region."""
    regions = np.empty(labels.shape, np.int32)
    owner: list[int] = []
    for label in np.flatnonzero(np.bincount(labels.ravel())).tolist():
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
