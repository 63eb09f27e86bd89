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
TIE = 1e-12  # steps whose mean agreement differs by less are equal
CELLS = 16  # per axis, at most: maps are averaged in that many blocks


@one_thread()
def stable_thresholds(
    pyramid: Sequence[Any],
    config: MergeConfig,
    *,
    grids: Sequence[Sequence[int]] | None = None,
    layers: Sequence[int] | None = None,
) -> MergeConfig:
    """Scale the thresholds of a config to where the segmentation of this frame is most stable.

    The sweep goes from a quarter of the thresholds to four times the thresholds. At each step only the anchors are
    merged and labelled, on maps that are averaged in blocks: the whole sweep costs less than the merge. Agreement of
    two segmentations is their adjusted Rand index (Hubert and Arabie, "Comparing partitions", 1985). The step that
    agrees best with all others is taken.

    Arguments and errors are those of `runtime.merge.propose`: the maps [n, n] of one frame.
    """
    maps, shapes = check_pyramid(pyramid, grids)
    ratios = resolution_ratios(config.weights, shapes, layers)
    (h, w), n = shapes[0], maps[0].shape[-1]
    queries = anchor_queries((h, w), config.grid)
    rows = Aggregation(maps, shapes, ratios, total=n).rows(queries, np.empty((len(queries), n), np.float32))
    return thresholds_for(rows, (h, w), config)


@one_thread()
def thresholds_for(rows: NDArray[np.float32], shape: tuple[int, int], config: MergeConfig) -> MergeConfig:
    """Do as `stable_thresholds` does, from the anchors' aggregated maps float32 [P, h·w], whose rows sum to h·w."""
    h, w = shape
    queries = anchor_queries((h, w), config.grid)
    down, across = (next(parts for parts in range(min(side, CELLS), 0, -1) if side % parts == 0) for side in (h, w))
    # Rows sum to n. Blocks are means, so that they sum to the number of blocks, as the iterations expect.
    blocks = rows.reshape(len(queries), down, h // down, across, w // across).mean(axis=(2, 4))
    cells = queries // w // (h // down) * across + queries % w // (w // across)
    factor = FACTORS[_most_stable(blocks.reshape(len(queries), -1), cells, config.thresholds)]
    return replace(config, thresholds=tuple(float(factor) * threshold for threshold in config.thresholds))


def _most_stable(maps: NDArray[np.float32], cells: NDArray[np.intp], thresholds: tuple[float, ...]) -> int:
    """Index of the most stable step of the sweep. `cells`: the block of the maps that each anchor is in."""
    found = divergences(maps.astype(np.float64), total=maps.shape[1])
    together = np.zeros((len(FACTORS), len(maps), len(maps)), np.float32)
    for factor, pairs in zip(FACTORS.tolist(), together, strict=True):
        members = (found < factor * thresholds[0]).astype(np.float32)
        if members.sum() == len(maps):
            continue  # no two maps merge: many such steps would agree, but have found no segment
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
    """Adjusted Rand index [S, S] of every two segmentations.

    `together`, 0 or 1 [S, …]: the pairs that each segmentation puts into one segment; `pairs`: how many there are.
    The index is 0 where both put everything into one segment, or each map into its own: they found no segments.
    """
    common = np.matmul(together, together.T).astype(np.float64)
    own = np.diagonal(common)
    chance = np.outer(own, own) / pairs
    room = (own[:, None] + own) / 2 - chance
    return np.divide(common - chance, room, out=np.zeros_like(common), where=room > 0)
