"""Step 2 of DiffSeg: the iterative merge of attention maps into proposals.

Paper: "Diffuse, Attend, and Segment" (Tian et al., CVPR 2024), section 3.3, "Iterative Attention Merging".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from runtime.merge.aggregate import Aggregation
from runtime.merge.registry import solver_of
from runtime.merge.threads import one_thread
from runtime.pyramid.anchors import anchor_queries
from runtime.pyramid.checks import check_pyramid
from runtime.pyramid.config import MergeConfig, as_config
from runtime.pyramid.weights import resolution_ratios

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Found(NamedTuple):
    """What a solver gives for one frame.

    Attributes:
        proposals: float32 [P, n], each sums to 1.
        scores: float32 [P, n]; a pixel belongs to the proposal with the largest one. For most solvers the proposals.
        alike: int [h, w]; pieces of one segment that the network sees as one have one number. None: not known.
    """

    proposals: NDArray[np.float32]
    scores: NDArray[np.float32]
    alike: NDArray[np.intp] | None = None


def propose(
    pyramid: Sequence[Any],
    config: MergeConfig | None = None,
    *,
    grids: Sequence[Sequence[int]] | None = None,
    layers: Sequence[int] | None = None,
    seeds: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """The proposals of one frame, float32 [P, n]: those of `find`, whose arguments and errors it has."""
    return find(pyramid, config, grids=grids, layers=layers, seeds=seeds).proposals


@one_thread()
def find(
    pyramid: Sequence[Any],
    config: MergeConfig | None = None,
    *,
    grids: Sequence[Sequence[int]] | None = None,
    layers: Sequence[int] | None = None,
    seeds: NDArray[np.float32] | None = None,
) -> Found:
    """The proposals of one frame (paper, sections 3.2 and 3.3), and what its pixels are labelled by.

    They equal those of `merge_attention` on the aggregated attention, which the merge never forms as a whole.
    Arguments and errors are those of `segment_attention`, for maps [n, n].

    `seeds` float32 [S, n] is a warm start for video, which is not in the paper: the proposals of the frame before are
    the first anchors of iteration 0. The grid then only has to find new segments, so that it can be coarse.
    """
    config = as_config(config)
    maps, shapes = check_pyramid(pyramid, grids)
    if maps[0].ndim != 2:
        raise ValueError(f"pyramid: expected the maps [n, n] of one frame, found {list(maps[0].shape)}")
    ratios = resolution_ratios(config.weights, shapes, layers)
    anchor_queries(shapes[0], config.grid)
    n = maps[0].shape[-1]
    if seeds is not None and (seeds.ndim != 2 or seeds.shape[1] != n):
        raise ValueError(f"seeds: expected [S, {n}], found {list(seeds.shape)}; pass proposals of the same engine")
    return solve(Aggregation(maps, shapes, ratios, total=n), config, seeds)


@one_thread()
def merge_attention(aggregated: NDArray[Any], config: MergeConfig, shape: tuple[int, int]) -> NDArray[np.float32]:
    """Merge similar maps into proposals (paper, section 3.3, "Iterative Attention Merging").

    Args:
        aggregated: float [n, n], rows sum to 1; float32 is used without a copy.
        config: thresholds, grid and solver; the weights are not used.
        shape: (h, w) with h·w = n.

    Returns:
        float32 [P, n]: the proposals in the order in which they arise, 1 ≤ P ≤ grid².

    Raises:
        ValueError: if shapes do not fit or the maps have a NaN or an infinity.
    """
    maps = np.asarray(aggregated)
    h, w = shape
    if maps.ndim != 2 or maps.shape != (h * w, h * w):
        raise ValueError(
            f"aggregated: expected [{h * w}, {h * w}] for the grid {h}x{w}, found {list(maps.shape)}; "
            "pass one frame and its (h, w)"
        )
    anchor_queries((h, w), config.grid)
    return solve(Aggregation([maps], [(h, w)], [1.0], total=h * w, name="aggregated"), config).proposals


def solve(source: Aggregation, config: MergeConfig, seeds: NDArray[np.float32] | None = None) -> Found:
    """The proposals of a source whose rows sum to n, by the solver that the config names.

    Raises ValueError where no solver has that name, or a package it needs is not installed.
    """
    found = solver_of(config).load()(source, config, seeds)
    proposals, scores = found if isinstance(found, tuple) else (found, None)
    proposals = proposals / np.float32(source.n)  # a new array: what a solver gives may be scratch memory
    return Found(proposals, proposals if scores is None else scores)
