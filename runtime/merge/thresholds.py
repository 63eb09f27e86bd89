"""Choosing the KL thresholds of a frame without labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.merge.aggregate import Aggregation
from runtime.merge.divergence import divergences
from runtime.merge.iterations import merge_proposals
from runtime.merge.threads import one_thread
from runtime.pyramid.anchors import anchor_queries
from runtime.pyramid.checks import check_pyramid
from runtime.pyramid.config import MergeConfig
from runtime.pyramid.weights import resolution_ratios

if TYPE_CHECKING:
    from numpy.typing import NDArray

FACTORS = np.geomspace(1 / 4, 4, 17)  # the sweep, of the usual thresholds: quarters of an octave
TIE = 1e-12  # of the mean agreement
CELLS = 16  # per axis, at most: maps are summed into so many blocks


@one_thread()
def stable_thresholds(
    pyramid: Sequence[Any],
    config: MergeConfig,
    *,
    grids: Sequence[Sequence[int]] | None = None,
    layers: Sequence[int] | None = None,
) -> MergeConfig:
    """Scale the thresholds of a config to where the segmentation of this frame is most stable.

    The anchors alone are merged and labelled at every step of a sweep, from a quarter of the thresholds to four times
    of them, with their maps summed into blocks: the whole sweep costs less than the merge it is for. Two segmentations
    agree by the adjusted Rand index (Hubert and Arabie, "Comparing partitions", 1985); the one that agrees best with
    all the others is taken.

    Arguments and errors are those of `runtime.merge.propose`: the maps [n, n] of one frame.
    """
    maps, shapes = check_pyramid(pyramid, grids)
    ratios = resolution_ratios(config.weights, shapes, layers)
    (h, w), n = shapes[0], maps[0].shape[-1]
    queries = anchor_queries((h, w), config.grid)
    rows = Aggregation(maps, shapes, ratios, total=n).rows(queries, np.empty((len(queries), n), np.float32))
    down, across = (next(parts for parts in range(min(side, CELLS), 0, -1) if side % parts == 0) for side in (h, w))
    # Rows sum to n; blocks are means, so that theirs sum to the number of blocks, as the merge wants it.
    blocks = rows.reshape(len(queries), down, h // down, across, w // across).mean(axis=(2, 4))
    cells = queries // w // (h // down) * across + queries % w // (w // across)
    factor = FACTORS[_most_stable(blocks.reshape(len(queries), -1), cells, config.thresholds)]
    return replace(config, thresholds=tuple(float(factor) * threshold for threshold in config.thresholds))


def _most_stable(maps: NDArray[np.float32], cells: NDArray[np.intp], thresholds: tuple[float, ...]) -> int:
    """Which step of the sweep; `cells` says in which block of the maps each anchor lies."""
    found = divergences(maps.astype(np.float64), total=maps.shape[1])
    together = np.zeros((len(FACTORS), len(maps), len(maps)), np.float32)
    for factor, pairs in zip(FACTORS.tolist(), together, strict=True):
        members = (found < factor * thresholds[0]).astype(np.float32)
        if members.sum() == len(maps):
            continue  # nothing merges: many such steps would be the same for no merit of theirs
        proposals = np.matmul(members, maps) / members.sum(axis=1, keepdims=True)
        for threshold in thresholds[1:]:
            proposals = merge_proposals(proposals, factor * threshold)
        labels = proposals[:, cells].argmax(axis=0)
        pairs[...] = labels[:, None] == labels
        np.fill_diagonal(pairs, 0)
    pairs_in_all = len(maps) * (len(maps) - 1)
    agreement = _agreement(together.reshape(len(FACTORS), -1), pairs_in_all).mean(axis=1)
    # On a tie, as of a flat frame where no two steps agree on anything, the step nearest to the usual thresholds.
    best = np.flatnonzero(agreement >= agreement.max() - TIE)
    return int(best[np.abs(np.log(FACTORS[best])).argmin()])


def _agreement(together: NDArray[np.float32], pairs: int) -> NDArray[np.float64]:
    """Adjusted Rand index of every two segmentations [S, S], given which `pairs` each keeps together, 0 or 1 [S, …].

    0 where both put everything into one segment, or nothing: they are the same, but have found nothing.
    """
    common = np.matmul(together, together.T).astype(np.float64)
    own = np.diagonal(common)
    chance = np.outer(own, own) / pairs
    room = (own[:, None] + own) / 2 - chance
    return np.divide(common - chance, room, out=np.zeros_like(common), where=room > 0)
