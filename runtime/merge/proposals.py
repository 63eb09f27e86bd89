"""Step 2 of DiffSeg: the iterative merge of attention maps into proposals.

Paper: "Diffuse, Attend, and Segment" (Tian et al., CVPR 2024), section 3.3, "Iterative Attention Merging".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.merge.aggregate import Aggregation
from runtime.merge.divergence import SMALLEST_PROBABILITY, _log
from runtime.merge.kmeans import _kmeans
from runtime.merge.threads import add_in_threads, one_thread
from runtime.pyramid.anchors import anchor_queries
from runtime.pyramid.checks import check_pyramid
from runtime.pyramid.config import MergeConfig
from runtime.pyramid.weights import resolution_ratios

if TYPE_CHECKING:
    from numpy.typing import NDArray


TILE, LARGE_TILE = 8, 16  # queries per axis that share a matrix product; small ones leave more anchors out


SCREENING_MARGIN = 1e-4  # far above what float32 may round in D


@one_thread()
def propose(
    pyramid: Sequence[Any],
    config: MergeConfig | None = None,
    *,
    grids: Sequence[Sequence[int]] | None = None,
    layers: Sequence[int] | None = None,
    seeds: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """The proposals of one frame (paper, sections 3.2 and 3.3): float32 [P, n], each sums to 1.

    They are those of `merge_attention` on the aggregated attention, which is never formed as a whole.
    Arguments and errors are those of `segment_attention`, for maps [n, n].

    `seeds` float32 [S, n] is a warm start for video, which is not in the paper: the proposals of the frame before stand
    first among the anchors of iteration 0, so that the grid, which then only has to find what is new, can be coarse.
    """
    config = config or MergeConfig()
    maps, shapes = check_pyramid(pyramid, grids)
    if maps[0].ndim != 2:
        raise ValueError(f"pyramid: expected the maps [n, n] of one frame, found {list(maps[0].shape)}")
    ratios = resolution_ratios(config.weights, shapes, layers)
    anchor_queries(shapes[0], config.grid)
    n = maps[0].shape[-1]
    if seeds is not None and (seeds.ndim != 2 or seeds.shape[1] != n):
        raise ValueError(f"seeds: expected [S, {n}], found {list(seeds.shape)}; pass proposals of the same engine")
    return _merge(Aggregation(maps, shapes, ratios, total=n), config, seeds)


@one_thread()
def merge_attention(aggregated: NDArray[Any], config: MergeConfig, grid_shape: tuple[int, int]) -> NDArray[np.float32]:
    """Merge similar maps into proposals (paper, section 3.3, "Iterative Attention Merging").

    Args:
        aggregated: float [n, n], rows sum to 1; float32 is used without a copy.
        config: thresholds, grid and refinement; the weights play no part here.
        grid_shape: (h, w) with h·w = n.

    Returns:
        float32 [P, n]: the proposals in the order in which they arise, 1 ≤ P ≤ grid².

    Raises:
        ValueError: if shapes do not fit or the maps have a NaN or an infinity.
    """
    maps = np.asarray(aggregated)
    h, w = grid_shape
    if maps.ndim != 2 or maps.shape != (h * w, h * w):
        raise ValueError(
            f"aggregated: expected [{h * w}, {h * w}] for the grid {h}x{w}, found {list(maps.shape)}; "
            "pass one frame and its (h, w)"
        )
    anchor_queries((h, w), config.grid)
    return _merge(Aggregation([maps], [(h, w)], [1.0], total=h * w, name="aggregated"), config)


def _merge(source: Aggregation, config: MergeConfig, seeds: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """The proposals of a source whose rows sum to n.

    n·a in place of a multiplies D by n, and centres log(n·a), so that the products in D do not cancel.
    """
    n = source.n
    anchors = anchor_queries(source.shape, config.grid)
    proposals = _merge_around_anchors(source, anchors, config.thresholds[0], seeds)
    for threshold in config.thresholds[1:]:
        proposals = _merge_proposals(proposals, threshold)
    if config.refine == "kmeans":
        proposals = _kmeans(source.full(), proposals)
    proposals /= n
    return proposals


def _merge_around_anchors(
    source: Aggregation, anchors: NDArray[np.intp], threshold: float, seeds: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Iteration 0: every anchor becomes the mean of all maps nearer to it than the threshold.

    Seeds are anchors that are no map of this frame; one without a map near it is left out.

    D = ½[h(a) + h(b) − a·log b − log a·b] is one matrix product of the pairs (a, log a) and (log b, b), taken for
    a tile of neighbouring queries and those anchors that may be near one of them.
    """
    n, (h, w) = source.n, source.shape
    seeded = 0 if seeds is None else len(seeds)
    count = seeded + len(anchors)
    own = np.zeros((count, n), bool)
    own[np.arange(seeded, count), anchors] = True  # D(a, a) is 0, but its products may round
    centres = np.empty((count, 2, n), np.float32)
    pooled = source.pooled[anchors]
    if seeds is not None:
        np.multiply(seeds, n, out=centres[:seeded, 0])
        pooled = np.concatenate([source.pool(centres[:seeded, 0]), pooled])
    source.rows(anchors, centres[seeded:, 0])
    candidates = (_candidates(source.pooled, n, pooled, threshold) | own).reshape(-1, h, w)
    own = own.reshape(candidates.shape)
    side = TILE if candidates.mean() < 0.5 else LARGE_TILE
    _log(centres[:, 0], centres[:, 1])
    centre_entropy = np.einsum("ij,ij->i", centres[:, 0], centres[:, 1])
    corners = [(y, x) for y in range(0, h, side) for x in range(0, w, side)]

    def add_tiles(corners: Sequence[tuple[int, int]]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Sums and numbers of the members in some tiles."""
        sums, counts = np.zeros((count, n), np.float32), np.zeros(count, np.float32)
        # Buffers that are used again: fresh ones of this size would cost more than the arithmetic on them.
        tile_buffer = np.empty((side * side, 2, n), np.float32)
        active_buffer, sums_buffer = np.empty_like(centres), np.empty_like(sums)
        for y, x in corners:
            ys, xs = np.s_[y : y + side], np.s_[x : x + side]
            near = candidates[:, ys, xs].reshape(count, -1)
            active = np.flatnonzero(near.any(axis=1))
            if not len(active):
                continue
            rows = tile_buffer[: near.shape[1]]
            logs, maps = rows[:, 0], rows[:, 1]
            source.block(ys, xs, maps)
            _log(maps, logs)
            entropy = np.einsum("ij,ij->i", maps, logs)
            left = centres
            if len(active) < count:
                left = np.take(centres, active, axis=0, out=active_buffer[: len(active)], mode="clip")
            cross = left.reshape(len(active), -1) @ rows.reshape(len(rows), -1).T
            member = centre_entropy[active, None] + entropy - cross < 2 * n * threshold
            member |= own[:, ys, xs].reshape(near.shape)[active]
            some = member.any(axis=1)
            active, members = active[some], member[some].astype(np.float32)
            counts[active] += members.sum(axis=1)
            sums[active] += np.matmul(members, maps, out=sums_buffer[: len(active)])
        return sums, counts

    sums, counts = add_in_threads(add_tiles, corners)
    if seeded and not counts[:seeded].all():
        sums, counts = sums[counts > 0], counts[counts > 0]
    sums /= counts[:, None]
    return sums


def _candidates(
    pooled: NDArray[np.float32], n: int, anchors: NDArray[np.float32], threshold: float
) -> NDArray[np.bool_]:
    """Which maps may be nearer to an anchor than the threshold, bool [anchors, n]: no member is ever left out.

    D never grows when pixels are summed into blocks (the data-processing inequality), and there it costs next to
    nothing: what is too far even so needs no exact divergence. `pooled` and `anchors` hold maps that sum to n, in equal
    blocks.
    """
    # The smallest probability is added, where the exact logarithm takes a maximum: so the inequality holds at 0.
    cells = pooled.shape[1]

    def terms(maps: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        coarse = maps * np.float32(cells / n)
        coarse += np.float32(n * SMALLEST_PROBABILITY)
        logs = np.log(coarse)
        return coarse, logs, np.einsum("ij,ij->i", coarse, logs)

    (a, log_a, entropy_a), (b, log_b, entropy_b) = terms(anchors), terms(pooled)
    cross = np.hstack((a, log_a)) @ np.hstack((log_b, b)).T
    return (entropy_a[:, None] + entropy_b - cross) / cells < 2 * threshold + SCREENING_MARGIN


def _merge_proposals(proposals: NDArray[np.float32], threshold: float) -> NDArray[np.float32]:
    """Iteration t ≥ 1: in order, each proposal not yet claimed takes the mean of all that are near it."""
    n = proposals.shape[1]
    logs = _log(proposals, np.empty_like(proposals))
    cross = proposals @ logs.T
    entropy = np.diagonal(cross)
    near = entropy[:, None] + entropy - cross - cross.T < 2 * n * threshold
    np.fill_diagonal(near, True)
    claimed = np.zeros(len(proposals), bool)
    keep = []
    for index, members in enumerate(near):
        if not claimed[index]:
            keep.append(index)
            claimed |= members
    members = near[keep].astype(np.float32)
    sums = members @ proposals
    sums /= members.sum(axis=1, keepdims=True)
    return sums
