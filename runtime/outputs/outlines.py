"""Outlines of segments along the edges of pixels, as pieces with holes; neighbours share their simplified borders.

Coordinates are x, y in pixels; (0, 0) is the upper left corner of the frame's first pixel.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

# A border goes through the middles of the pixels' edges, which turns stairs into slants. It is then within 1/4 pixel of
# the labels' own border, and at least √⅛ pixels away from every pixel's centre. Simplified by 1/4 pixel it is within
# half a pixel, and no centre changes sides: drawn again, the polygons give the very same labels.
TOLERANCE = 0.25

# The four edges of a pixel, in the directions right, down, left, up, so that the pixel is on the right-hand side.
# Where an edge starts, seen from the pixel's upper left corner (x, y), and its step.
_STARTS = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
_STEPS = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]])
_OUTSIDE = np.array([[0, -1], [1, 0], [0, 1], [-1, 0]])  # the pixel across each edge


def outlines(labels: NDArray[np.int32], tolerance: float = TOLERANCE) -> dict[int, list[list[NDArray[np.float32]]]]:
    """Label → its pieces; a piece is a list of rings float32 [n, 2] of x, y: the outer one first, then its holes.

    A piece is a region whose pixels are connected by their edges. Rings are not closed, and do not touch themselves. In
    x, y with y upwards outer rings are counter-clockwise, holes clockwise (RFC 7946). `labels`: int [H, W], not
    negative. `tolerance`: in pixels; 0 keeps every step.
    """
    padded = np.full((labels.shape[0] + 2, labels.shape[1] + 2), -1, np.int32)
    padded[1:-1, 1:-1] = labels
    junctions = _junctions(padded)
    found: dict[int, list[tuple[NDArray[np.float32], int, int]]] = {}
    for walk, x, y in _walks(padded):
        for ring in _split(walk):
            simple = _simplified(ring, junctions, tolerance)
            found.setdefault(int(labels[y, x]), []).append((simple, x, y))
    return {label: _pieces(labels, label, rings) for label, rings in sorted(found.items())}


def _pieces(
    labels: NDArray[np.int32], label: int, rings: list[tuple[NDArray[np.float32], int, int]]
) -> list[list[NDArray[np.float32]]]:
    """The rings of a label, each with a pixel of its region, by region."""
    if len(rings) == 1:
        return [[rings[0][0]]]
    left, top = np.floor(np.min([ring.min(axis=0) for ring, _, _ in rings], axis=0)).astype(int)
    right, bottom = np.ceil(np.max([ring.max(axis=0) for ring, _, _ in rings], axis=0)).astype(int)
    mask = (labels[top:bottom, left:right] == label).view(np.uint8)
    regions: Any = cv2.connectedComponents(mask, connectivity=4)[1]
    pieces: dict[int, list[NDArray[np.float32]]] = {}
    for ring, x, y in rings:
        pieces.setdefault(int(regions[y - top, x - left]), []).append(ring)
    return [sorted(piece, key=_signed_area, reverse=True) for _, piece in sorted(pieces.items())]


def _junctions(padded: NDArray[np.int32]) -> NDArray[np.bool_]:
    """bool [H+1, W+1]: the corners of pixels where more than two borders meet, and the corners of the frame."""
    a, b, c, d = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    meeting: Any = (a != b).view(np.int8) + (c != d) + (a != c) + (b != d)
    junctions = np.asarray(meeting > 2)
    junctions[:: len(junctions) - 1, :: len(junctions[0]) - 1] = True
    return junctions


def _walks(padded: NDArray[np.int32]) -> list[tuple[NDArray[np.int32], int, int]]:
    """Every closed walk along a segment's border, int32 [n, 2] of corners; and x, y of one of its pixels."""
    height, width = padded.shape
    flat = padded.ravel()
    pixels, sides = [], []
    for number, (dx, dy) in enumerate(_OUTSIDE):
        across = padded[1 + dy : height - 1 + dy, 1 + dx : width - 1 + dx]
        rows, columns = np.divmod(np.flatnonzero(padded[1:-1, 1:-1] != across), width - 2)
        pixels.append((rows + 1) * width + columns + 1)
        sides.append(np.full(len(rows), number))
    pixel, side = np.concatenate(pixels), np.concatenate(sides)
    # At its end an edge goes on around the pixel ahead on the left, the one straight ahead, or its own. Its own comes
    # before the one across the corner, so regions are connected by edges alone.
    step = _STEPS[:, 1] * width + _STEPS[:, 0]
    ahead = pixel + step[side]
    beside = ahead + step[(side + 3) % 4]
    straight = flat[ahead] == flat[pixel]
    left = straight & (flat[beside] == flat[pixel])
    following = np.where(left, beside, np.where(straight, ahead, pixel)) * 4
    following += np.where(left, (side + 3) % 4, np.where(straight, side, (side + 1) % 4))
    names = pixel * 4 + side
    order = np.argsort(names)
    after = order[np.searchsorted(names, following, sorter=order)].tolist()
    xs, ys = pixel % width - 1, pixel // width - 1
    corners = np.stack([xs + _STARTS[side, 0], ys + _STARTS[side, 1]], axis=1).astype(np.int32)
    seen = bytearray(len(after))
    walks = []
    for first in range(len(after)):
        if seen[first]:
            continue
        edges, edge = [], first
        while not seen[edge]:
            seen[edge] = 1
            edges.append(edge)
            edge = after[edge]
        walks.append((corners[edges], int(xs[first]), int(ys[first])))
    return walks


def _split(walk: NDArray[np.int32]) -> list[NDArray[np.int32]]:
    """The rings of a walk, which touch themselves nowhere: it is cut where it comes to a corner again."""
    keys = walk[:, 1].astype(np.int64) * (1 << 32) + walk[:, 0]
    if len(np.unique(keys)) == len(keys):
        return [walk]
    rings: list[NDArray[np.int32]] = []
    path: list[int] = []
    at: dict[int, int] = {}
    for index, key in enumerate(keys.tolist()):
        if key in at:
            start = at[key]
            rings.append(walk[path[start:]])
            for gone in path[start:]:
                del at[int(keys[gone])]
            del path[start:]
        at[key] = len(path)
        path.append(index)
    return [*rings, walk[path]]


def _simplified(ring: NDArray[np.int32], junctions: NDArray[np.bool_], tolerance: float) -> NDArray[np.float32]:
    """The ring with fewer corners. A border between the same two junctions becomes the same line from either side."""
    fixed = np.flatnonzero(junctions[ring[:, 1], ring[:, 0]])
    if len(fixed) == 0:  # an island: its ring starts at the first of its corners
        fixed = np.lexsort((ring[:, 0], ring[:, 1]))[:1]
    ring = np.roll(ring, -int(fixed[0]), axis=0)
    ends = [*(fixed - fixed[0]).tolist(), len(ring)]
    ring = np.concatenate([ring, ring[:1]])
    parts = [_line(ring[start : end + 1], tolerance)[:-1] for start, end in pairwise(ends)]
    return np.concatenate(parts).astype(np.float32) * np.float32(0.5)


def _line(corners: NDArray[np.int32], tolerance: float) -> NDArray[np.int32]:
    """A border from corner to corner, simplified, in half pixels; the same from either end."""
    # Where a line returns to its start, its next corners tell its directions apart.
    turned = (tuple(corners[0]), tuple(corners[1])) > (tuple(corners[-1]), tuple(corners[-2]))
    line = _middles(corners[::-1] if turned else corners) if tolerance else 2 * corners[:: -1 if turned else 1]
    if tuple(line[0]) == tuple(line[-1]):
        far = int(np.argmax(((line - line[0]).astype(np.int64) ** 2).sum(axis=1)))
        line = np.concatenate([_approximated(line[: far + 1], tolerance)[:-1], _approximated(line[far:], tolerance)])
    else:
        line = _approximated(line, tolerance)
    return line[::-1] if turned else line


def _middles(corners: NDArray[np.int32]) -> NDArray[np.int32]:
    """The ends of a line, the middles of its steps, and the corners between two straight parts; in half pixels."""
    straight = (np.diff(corners, 2, axis=0) == 0).all(axis=1)  # at all corners but the ends
    beside = np.concatenate([[False], straight, [False]])
    points = np.empty((2 * len(corners) - 3, 2), np.int32)
    points[::2] = corners[:-1] + corners[1:]
    points[1::2] = 2 * corners[1:-1]
    kept = np.ones(len(points), bool)
    kept[1::2] = ~straight & beside[:-2] & beside[2:]
    return np.concatenate([2 * corners[:1], points[kept], 2 * corners[-1:]])


def _approximated(line: NDArray[np.int32], tolerance: float) -> NDArray[np.int32]:
    """Douglas–Peucker on an open line in half pixels."""
    return np.asarray(cv2.approxPolyDP(np.ascontiguousarray(line)[:, None], 2 * tolerance, False), np.int32)[:, 0]


def _signed_area(ring: NDArray[np.float32]) -> float:
    x, y = ring.astype(np.float64).T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum()) / 2
