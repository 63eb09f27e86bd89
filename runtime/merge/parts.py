"""Thresholds "auto": the hierarchy of the merge's segments is cut where a criterion is largest, without labels.

The criterion is the modularity of the attention (Newman and Girvan, "Finding and evaluating community structure in
networks", 2004) less a share of the mean KL divergence of maps from the mean map of their segment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from runtime.labels import LEAST_PIECE
from runtime.merge.aggregate import Aggregation
from runtime.merge.divergence import divergences, logarithm, negative_entropy
from runtime.merge.grouping import unions
from runtime.merge.likeness import as_profiles, block_sums, profiles, segment_means
from runtime.merge.proposals import Found, solve
from runtime.merge.registry import DEFAULT
from runtime.merge.threads import one_thread
from runtime.outputs.measure import connected_regions
from runtime.pyramid.checks import check_pyramid
from runtime.pyramid.config import MergeConfig
from runtime.pyramid.weights import resolution_ratios

if TYPE_CHECKING:
    from numpy.typing import NDArray

FINEST = 0.7  # of the usual thresholds: those of the hierarchy's finest segments
ROUNDS = 5  # at most; each halves the thresholds
KL_SHARE = 0.25
LEAST = 0.2  # by which a cut must be better than one segment; networks with communities have a modularity above 0.3
ALIKE = 0.6  # of the usual threshold: pieces of a segment whose mean maps are nearer stay one segment
TIE = 1e-6  # a union that changes the criterion by less is made


class Maps(Protocol):
    """The aggregated attention of one frame, wherever it is, and what is asked of it here. Maps sum to n = h·w."""

    def merged(self, thresholds: Sequence[float]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Sums of all maps and of the merge's proposals in the blocks of their profiles: [n, blocks] and [P, blocks].

        Called before `means`. What the sums of a map add up to is left open.
        """

    def means(self, part: NDArray[np.intp], count: int) -> NDArray[np.float32]:
        """The mean map [count, n] of each part, of int [n], 0 … count−1; none of them is empty."""


class HostMaps:
    """The aggregated attention on the host: `Maps`."""

    def __init__(self, source: Aggregation, config: MergeConfig) -> None:
        """`source`: its maps sum to n."""
        self._source, self._config = source, config
        self._maps = source.full()
        self._sums = block_sums(self._maps, source.shape)

    def merged(self, thresholds: Sequence[float]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """See `Maps.merged`."""
        config = replace(self._config, thresholds=tuple(thresholds), solver=DEFAULT)
        return self._sums, block_sums(solve(self._source, config).proposals, self._source.shape)

    def means(self, part: NDArray[np.intp], count: int) -> NDArray[np.float32]:
        """See `Maps.means`."""
        return segment_means(self._maps, part)


@one_thread()
def find_parts(
    pyramid: Sequence[Any],
    config: MergeConfig,
    *,
    grids: Sequence[Sequence[int]] | None = None,
    layers: Sequence[int] | None = None,
) -> Found:
    """The parts of one frame on the host: those of `choose_parts`.

    Arguments and errors are those of `runtime.merge.proposals.find`. The solver of the config is not used.
    """
    maps, shapes = check_pyramid(pyramid, grids)
    n = maps[0].shape[-1]
    source = Aggregation(maps, shapes, resolution_ratios(config.weights, shapes, layers), total=n)
    return choose_parts(HostMaps(source, config), shapes[0], config.thresholds)


@one_thread()
def choose_parts(maps: Maps, shape: tuple[int, int], usual: Sequence[float]) -> Found:
    """The segments of one frame whose number and size follow from its own maps.

    The merge with lower thresholds than usual finds small segments. They are united in pairs, the nearest
    first, until one is left. Of all segments of this hierarchy those are taken, each pixel in one, whose criterion

        Σ_k [w_kk − d_k² − ¼ · (n_k / n) · KL_k]

    is largest: w_kk is the share of all attention that stays within segment k, d_k the share that leaves or enters it
    (their mean), n_k its number of tokens, KL_k the mean divergence of its maps from their mean. Where it keeps
    every small segment, thresholds were too high, and half of them are tried. Where the criterion hardly grows by any
    cut, as for a flat frame, there is one segment. A pixel belongs to the segment whose mean map is most like its own.

    Args:
        maps: of the frame.
        shape: (h, w) of the maps.
        usual: the thresholds of the merge where they are not chosen.
    """
    n = shape[0] * shape[1]
    for step in range(ROUNDS):
        sums = maps.merged([FINEST / 2**step * threshold for threshold in usual])
        own, small = (as_profiles(blocks) for blocks in sums)
        part = np.unique(np.matmul(own, small.T).argmax(axis=1), return_inverse=True)[1]
        sizes = np.bincount(part)
        means = maps.means(part, len(sizes))
        chosen = cut_hierarchy(means, part)
        if len(chosen) > 2 or chosen.max() < len(chosen) - 1:
            break
    firsts = np.unique(chosen[part], return_index=True)[1]
    segment = firsts.argsort().argsort()[chosen]  # of every part; numbered by their first tokens
    share = np.where(segment == np.arange(len(firsts))[:, None], sizes, 0)
    united = np.matmul((share / share.sum(axis=1, keepdims=True)).astype(np.float32), means)
    scores = np.matmul(profiles(united, shape), own.T)
    alike = alike_pieces(scores.argmax(axis=0).reshape(shape), maps, ALIKE * usual[-1])
    return Found(united / np.float32(n), scores, alike)


def alike_pieces(segments: NDArray[np.intp], maps: Maps, apart: float) -> NDArray[np.intp]:
    """Number the pieces of segments, so that pieces of one segment whose mean maps are alike have one number.

    Such pieces are seen as one, as the ground on both sides of a post; others only look alike, as two sheep do.

    Args:
        segments: int [h, w], the segment of each token.
        maps: of the frame.
        apart: D in nats from which the mean maps of two pieces are not alike. Pieces are seen as one, too, where
            others connect them.

    Returns:
        int [h, w], from 0 without gaps.
    """
    regions, owners = connected_regions(segments.astype(np.int32))
    pieces, owner, sizes = regions.ravel(), np.array(owners), np.bincount(regions.ravel())
    number = np.arange(len(owner))
    several = []
    for segment in np.flatnonzero(np.bincount(owner) > 1):
        own = np.flatnonzero(owner == segment)
        own = own[np.argsort(-sizes[own], kind="stable")]
        large = own[sizes[own] >= LEAST_PIECE * len(pieces)]
        number[own] = own[0]  # that of small ones does not count
        if len(large) > 1:
            several.append(large)
    if several:
        part = np.full(len(owner), -1)
        part[np.concatenate(several)] = np.arange(sum(map(len, several)))
        tokens = part[pieces]
        tokens[tokens < 0] = part.max() + 1  # what is left is one part more
        means = maps.means(tokens, int(tokens.max()) + 1)
        for large in several:
            near = divergences(means[part[large]], total=len(pieces)) < apart
            for _ in large:  # pieces that others connect
                near = np.matmul(near, near)
            number[large] = large[near.argmax(axis=1)]
    return np.unique(number[pieces], return_inverse=True)[1].reshape(segments.shape)


def cut_hierarchy(means: NDArray[np.float32], part: NDArray[np.intp]) -> NDArray[np.intp]:
    """Which of the hierarchy's segments each part goes to, int [P].

    Args:
        means: the mean map of each part, float32 [P, n]; each sums to n.
        part: int [n], 0 … P−1: the part that each token is in, the finest segments of the hierarchy.
    """
    count, n = means.shape
    members = (part == np.arange(count)[:, None]).astype(np.float32)
    sizes = members.sum(axis=1)
    sums = means * sizes[:, None]
    attention = np.matmul(sums, members.T).astype(np.float64) / n**2  # between parts; shares of the whole
    attention = (attention + attention.T) / 2

    sums, sizes = [*sums], [*sizes]
    within, degree = [*np.diagonal(attention)], [*attention.sum(axis=1)]
    children: list[tuple[int, int]] = []
    node = np.arange(count)  # of each group: its place in the lists
    for kept, gone, _ in unions(means / np.float32(n), sizes):
        first, second = int(node[kept]), int(node[gone])
        children.append((first, second))
        node[kept] = count + len(children) - 1
        sums.append(sums[first] + sums[second])
        for values in (sizes, degree):
            values.append(values[first] + values[second])
        within.append(within[first] + within[second] + 2 * attention[kept, gone])
        attention[kept] += attention[gone]
        attention[:, kept] += attention[:, gone]

    every = np.stack(sums) / np.array(sizes, np.float32)[:, None]  # the means of all groups
    # The mean KL of maps from their segments' mean is a constant less this, the mean KL of those means from uniform.
    told = negative_entropy(every, logarithm(every)) / n
    value = np.array(within) - np.square(degree) + KL_SHARE * told * np.array(sizes) / n
    whole = np.ones(len(value), bool)  # whether the segment is better than the best of what it consists of
    for index, (first, second) in enumerate(children, count):
        parts = value[first] + value[second]
        whole[index] = value[index] >= parts - TIE
        if index == len(value) - 1:
            whole[index] = value[index] >= parts - LEAST
        value[index] = max(value[index], parts)
    chosen = np.arange(len(value))
    for index in range(len(value) - 1, count - 1, -1):  # from the root down
        for child in children[index - count]:
            if whole[index] or chosen[index] != index:
                chosen[child] = chosen[index]
    return np.unique(chosen[:count], return_inverse=True)[1]
