"""The iterations of DiffSeg's merge.

Paper: "Diffuse, Attend, and Segment" (Tian et al., CVPR 2024), section 3.3, "Iterative Attention Merging".
All maps here sum to n, their number of pixels: see `runtime.merge.divergence`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from runtime.merge.aggregate import Aggregation
from runtime.merge.divergence import SMALLEST_PROBABILITY, divergences, logarithm, negative_entropy
from runtime.merge.scratch import scratch
from runtime.merge.threads import add_in_threads

if TYPE_CHECKING:
    from numpy.typing import NDArray

TILE, LARGE_TILE = 8, 16  # queries per axis that share a matrix product; small tiles need fewer anchors each
SCREENING_MARGIN = 1e-4  # far above what float32 may round in D


def merge_around_anchors(
    source: Aggregation, anchors: NDArray[np.intp], threshold: float, seeds: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Iteration 0: every anchor becomes the mean of all maps nearer to it than the threshold, float32 [P, n].

    Args:
        source: aggregated attention.
        anchors: row numbers of the anchors.
        threshold: KL threshold τ.
        seeds: float32 [S, n], each sums to 1: anchors that are not maps of this frame, before the others. A seed that
            has no map near it is left out.

    D is one matrix product of the pairs (a, log a) and (log b, b). It is taken for tiles of neighbouring queries, each
    with those anchors that may be near one of its queries.
    """
    n, (h, w) = source.n, source.shape
    seeded = 0 if seeds is None else len(seeds)
    count = seeded + len(anchors)
    centres = scratch("centres", count, 2, n)
    pooled = source.pooled[anchors]
    if seeds is not None:
        np.multiply(seeds, n, out=centres[:seeded, 0])
        pooled = np.concatenate([source.pool(centres[:seeded, 0]), pooled])
    source.rows(anchors, centres[seeded:, 0])
    logarithm(centres[:, 0], centres[:, 1])
    centre_entropy = negative_entropy(centres[:, 0], centres[:, 1])

    candidates = screen(source.pooled, n, pooled, threshold)
    candidates[np.arange(seeded, count), anchors] = True
    side = TILE if 2 * np.count_nonzero(candidates) < candidates.size else LARGE_TILE
    corners = [(y, x) for y in range(0, h, side) for x in range(0, w, side)]
    active = active_tiles(candidates.reshape(count, h, w), side)
    anchor_y, anchor_x = np.divmod(anchors, w)
    tile_of_anchor = anchor_y // side * -(-w // side) + anchor_x // side
    by_tile = np.argsort(tile_of_anchor, kind="stable")
    inside_tiles = np.split(by_tile, np.searchsorted(tile_of_anchor[by_tile], range(1, len(corners))))
    limits = centre_entropy[:, None] - 2 * n * threshold

    def add_tiles(tiles: Sequence[int]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Sums and numbers of the members in some tiles."""
        # Named by part: one thread may work on two parts, and the sums of both must last.
        sums, counts = scratch(f"sums from {tiles[0]}", count, n), np.zeros(count, np.float32)
        sums.fill(0)
        tile_buffer = scratch("tile", side * side, 2, n)
        active_buffer, sums_buffer = scratch("active", count, 2, n), scratch("tile sums", count, n)
        for tile in tiles:
            near = np.flatnonzero(active[:, tile])
            if not len(near):
                continue
            y, x = corners[tile]
            high, wide = min(side, h - y), min(side, w - x)
            pairs = tile_buffer[: high * wide]
            logs, maps = pairs[:, 0], pairs[:, 1]
            source.block(slice(y, y + high), slice(x, x + wide), maps)
            logarithm(maps, logs)
            entropy = negative_entropy(maps, logs)
            left = centres
            if len(near) < count:
                left = np.take(centres, near, axis=0, out=active_buffer[: len(near)], mode="clip")
            cross = np.matmul(left.reshape(len(near), -1), pairs.reshape(len(pairs), -1).T)
            member = cross > limits[near] + entropy
            inside = inside_tiles[tile]  # D(a, a) is 0, but its products may round
            own = (anchor_y[inside] - y) * wide + anchor_x[inside] - x
            member[np.searchsorted(near, seeded + inside), own] = True
            members = member.astype(np.float32)
            numbers = members.sum(axis=1)
            some = np.flatnonzero(numbers)
            near = near[some]
            counts[near] += numbers[some]
            sums[near] += np.matmul(members[some], maps, out=sums_buffer[: len(near)])
        return sums, counts

    sums, counts = add_in_threads(add_tiles, range(len(corners)))
    if seeded and not counts[:seeded].all():
        sums, counts = sums[counts > 0], counts[counts > 0]
    sums /= counts[:, None]
    return sums


def active_tiles(candidates: NDArray[np.bool_], side: int) -> NDArray[np.bool_]:
    """Which anchors have a candidate in each tile: bool [anchors, tiles] of [anchors, h, w]. `side` is 8 or 16."""
    count, h, w = candidates.shape
    down, across = -(-h // side), -(-w // side)
    if h % side or w % side:
        candidates = np.pad(candidates, ((0, 0), (0, down * side - h), (0, across * side - w)))
    bits = np.packbits(candidates).reshape(count, down, side, across, side // 8)
    lines = functools.reduce(np.bitwise_or, (bits[:, :, line] for line in range(side)))
    return lines.any(axis=3).reshape(count, -1)


def screen(pooled: NDArray[np.float32], n: int, anchors: NDArray[np.float32], threshold: float) -> NDArray[np.bool_]:
    """Which maps may be nearer to an anchor than the threshold, bool [anchors, n]: no member is ever left out.

    D never grows when pixels are summed into blocks (the data-processing inequality), and D of blocks costs little. A
    map that is too far even then needs no exact divergence.

    Args:
        pooled: float32 [n, cells], maps that sum to n, summed in equal blocks.
        n: number of pixels of the maps.
        anchors: float32 [anchors, cells], as `pooled`.
        threshold: KL threshold τ.
    """
    # The smallest probability is added, where the exact logarithm takes a maximum: so the inequality holds at 0.
    cells = pooled.shape[1]

    def pair(maps: NDArray[np.float32], order: int) -> NDArray[np.float32]:
        """(a, log a, h(a), 1), or with `order` −1 (log a, a, −1, −h(a)): their product is minus twice D."""
        terms = scratch(f"screen {order}", len(maps), 2 * cells + 2)
        coarse, logs = (terms[:, :cells], terms[:, cells : 2 * cells])[::order]
        np.multiply(maps, np.float32(cells / n), out=coarse)
        coarse += np.float32(n * SMALLEST_PROBABILITY)
        np.log(coarse, out=logs)
        entropy = negative_entropy(coarse, logs)
        if order == 1:
            terms[:, -2], terms[:, -1] = entropy, 1
        else:
            terms[:, -2], terms[:, -1] = -1, -entropy
        return terms

    minus_twice = scratch("screened", len(anchors), len(pooled))
    np.matmul(pair(anchors, 1), pair(pooled, -1).T, out=minus_twice)
    return np.asarray(minus_twice > -cells * (2 * threshold + SCREENING_MARGIN))


def merge_proposals(proposals: NDArray[np.float32], threshold: float) -> NDArray[np.float32]:
    """Iteration t ≥ 1: in order, each proposal not yet claimed becomes the mean of all that are near it."""
    near = divergences(proposals, total=proposals.shape[1]) < threshold
    members = first_come(len(near), near.__getitem__).astype(np.float32)
    sums = np.matmul(members, proposals)
    sums /= members.sum(axis=1, keepdims=True)
    return sums


def first_come(count: int, near: Callable[[int], NDArray[np.bool_]]) -> NDArray[np.bool_]:
    """Who is near each proposal that no earlier one has claimed, bool [kept, count].

    The proposals are taken in order. One that is not yet claimed is kept, and claims all that are near it, claimed or
    not. `near(i)`, bool [count], is asked for the kept ones only; each is near itself.
    """
    claimed = np.zeros(count, bool)
    kept = []
    for index in range(count):
        if not claimed[index]:
            kept.append(near(index))
            claimed |= kept[-1]
    return np.stack(kept)
