"""DiffSeg on a CPU: from attention maps to labels, with NumPy and OpenCV.

Paper: "Diffuse, Attend, and Segment" (Tian et al., CVPR 2024), sections 3.2 to 3.4. Step 1, the aggregation,
lives in `runtime.aggregate`, step 3, the non-maximum suppression, in `runtime.suppression`; here are step 2, the
iterative merge, and the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from runtime.aggregate import Aggregation, aggregate_attention
from runtime.blas import add_in_threads, one_thread
from runtime.pyramid import Weights, check_pyramid, check_weights, resolution_ratios
from runtime.suppression import check_size, renumber, suppress

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "MergeConfig",
    "aggregate_attention",
    "merge_attention",
    "propose",
    "renumber",
    "segment_attention",
    "suppress",
]

SMALLEST_PROBABILITY = 1e-12  # what a logarithm sees in place of 0
KMEANS_ITERATIONS = 10
TILE, LARGE_TILE = 8, 16  # queries per axis that share a matrix product; small ones leave more anchors out
SCREENING_MARGIN = 1e-4  # far above what float32 may round in D


@dataclass(frozen=True, slots=True)
class MergeConfig:
    """Parameters of the merge; the defaults are the paper's for COCO-Stuff.

    Attributes:
        thresholds: KL threshold τ of every iteration; their number is the number of iterations.
        grid: anchors per axis, from 2 to the shorter side of the finest resolution.
        weights: of the resolutions in the aggregation: "proportional" to the side (the authors' code),
            "per-tensor" (the paper's text), or one number per resolution, finest first.
        refine: "kmeans" replaces the proposals by the cluster means of K-means on the maps, seeded by them.

    Raises:
        ValueError: if a value is out of range.
    """

    thresholds: tuple[float, ...] = (1.1, 1.1, 1.1)
    grid: int = 16
    weights: Weights = "proportional"
    refine: Literal["none", "kmeans"] = "none"

    def __post_init__(self) -> None:
        try:
            thresholds = tuple(float(threshold) for threshold in self.thresholds)
        except (TypeError, ValueError):
            thresholds = ()
        if not thresholds or not all(np.isfinite(threshold) and threshold > 0 for threshold in thresholds):
            raise ValueError(
                "thresholds: expected one finite number above 0 per iteration and at least one, found "
                f"{self.thresholds!r}; give for example (1.1, 1.1, 1.1)"
            )
        if isinstance(self.grid, bool) or not isinstance(self.grid, (int, np.integer)) or self.grid < 2:
            raise ValueError(
                f"grid: expected a whole number of anchors per axis, at least 2, found {self.grid!r}; "
                "give for example 16"
            )
        if self.refine not in ("none", "kmeans"):
            raise ValueError(f"refine: expected 'none' or 'kmeans', found {self.refine!r}; choose one of them")
        object.__setattr__(self, "thresholds", thresholds)
        object.__setattr__(self, "grid", int(self.grid))
        object.__setattr__(self, "weights", check_weights(self.weights))


@one_thread()
def segment_attention(
    pyramid: Sequence[Any],
    config: MergeConfig | None = None,
    *,
    size: tuple[int, int],
    grids: Sequence[Sequence[int]] | None = None,
    layers: Sequence[int] | None = None,
    device: str = "cpu",
) -> NDArray[np.int32]:
    """DiffSeg from attention maps to labels (paper, sections 3.2 to 3.4).

    Args:
        pyramid: float arrays [n, n] or [B, n, n], one per resolution, finest first, as for
            `aggregate_attention`.
        config: parameters of the merge; None = the defaults.
        size: (H, W) of the labels.
        grids: (h, w) of every resolution. Default: square.
        layers: number of layers averaged in every resolution; only weights "per-tensor" need it.
        device: "cpu", or "cuda" or "cuda:N" for the native core (`runtime.native`), which also takes arrays that lie
            on the GPU.

    Returns:
        int32 [H, W] or [B, H, W]: index of the proposal of every pixel. Gaps are possible: see `renumber`.

    Raises:
        ValueError: if an argument is wrong or the maps are not probabilities; the text says what to do.
        DiffSegError: if a GPU is asked for and there is none, or the native core cannot be built.
    """
    config = config or MergeConfig()
    if device != "cpu":
        from runtime import native

        return native.segment(pyramid, config, size, grids, layers, device)
    maps, shapes = check_pyramid(pyramid, grids)
    ratios = resolution_ratios(config.weights, shapes, layers)
    anchor_queries(shapes[0], config.grid)
    height, width = check_size(size)
    n = maps[0].shape[-1]
    frames = [maps] if maps[0].ndim == 2 else [[level[b] for level in maps] for b in range(len(maps[0]))]
    labels = np.empty((len(frames), height, width), np.int32)
    for frame, target in zip(frames, labels, strict=True):
        # One frame at a time: a batch needs no more memory than a frame.
        proposals = _merge(Aggregation(frame, shapes, ratios, total=n), config)
        target[...] = suppress(proposals, shapes[0], (height, width))
    return labels[0] if maps[0].ndim == 2 else labels


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


def anchor_queries(grid_shape: tuple[int, int], grid: int) -> NDArray[np.intp]:
    """Row numbers of the grid × grid anchors, row-major (paper, section 3.3, "sampling grid").

    Raises:
        ValueError: if the grid does not fit the shorter side.
    """
    if not 2 <= grid <= min(grid_shape):
        raise ValueError(
            f"grid: expected 2 to {min(grid_shape)} anchors per axis, the shorter side of the finest "
            f"resolution {grid_shape[0]}x{grid_shape[1]}, found {grid}; "
            "lower the grid or use an engine of larger input"
        )

    def axis(side: int) -> NDArray[np.intp]:
        step = (side - 1) // (grid - 1)
        return (side - 1 - step * (grid - 1)) // 2 + step * np.arange(grid)

    return (axis(grid_shape[0])[:, None] * grid_shape[1] + axis(grid_shape[1])).ravel()


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


def _log(maps: NDArray[np.float32], out: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logarithm of maps that sum to n, clamped at n times the smallest probability."""
    smallest = np.float32(maps.shape[1] * SMALLEST_PROBABILITY)
    if maps.min() >= smallest:  # as nearly always; looking is cheaper than writing
        return np.log(maps, out=out)
    np.maximum(maps, smallest, out=out)
    return np.log(out, out=out)


def _kmeans(maps: NDArray[np.float32], centres: NDArray[np.float32]) -> NDArray[np.float32]:
    """Lloyd's K-means on the maps from the given centres; a centre without a nearest map stays as it is."""
    centres = centres.copy()
    nearest: NDArray[np.intp] | None = None
    for _ in range(KMEANS_ITERATIONS):
        # |map − centre|² without |map|², which is the same for all centres.
        distances = maps @ centres.T
        distances *= -2
        distances += np.einsum("ij,ij->i", centres, centres)
        assigned = distances.argmin(axis=1)
        if nearest is not None and np.array_equal(assigned, nearest):
            break
        nearest = assigned
        members = (assigned == np.arange(len(centres))[:, None]).astype(np.float32)
        counts = members.sum(axis=1)
        filled = counts > 0
        centres[filled] = members[filled] @ maps / counts[filled, None]
    return centres
