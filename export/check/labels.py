"""An engine's labels compared with those of the merge core on PyTorch's maps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from export.check.agreement import ENOUGH, LARGE, large_segments, matched_agreement
from export.check.maps import Reference
from runtime.merge.aggregate import aggregate_attention
from runtime.merge.divergence import divergences
from runtime.merge.registry import DEFAULT
from runtime.merge.segment import segment_attention
from runtime.pyramid.anchors import anchor_queries
from runtime.pyramid.config import MergeConfig

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runtime.engine.spec import EngineSpec

BOUND = 1e-3  # share of pixels that may differ in float32
HALF_BOUND = 1e-2  # share of pixels whose segment half precision may change
# As for the maps, the measure for half precision is the share that PyTorch's own bfloat16 changes in the same labels.
HALF_PRECISION = {"fp16": 1.0, "bf16": 2.0}
HALF_MOST = 0.1  # if bfloat16 changes a larger share, labels in half precision say nothing
# Thresholds that are tried, as quantiles of the divergences between anchors, in this order.
QUANTILES = (
    0.02,
    0.05,
    0.1,
    0.15,
    0.2,
    0.3,
    0.4,
    0.5,
    0.015,
    0.012,
    0.01,
    0.008,
    0.006,
    0.004,
    0.003,
    0.002,
    0.001,
    0.6,
    0.75,
    0.9,
)
NUDGE = 1e-4  # relative change of a threshold; labels that it does not change have margin


@dataclass(frozen=True, slots=True)
class LabelsCheck:
    """An engine's final labels compared with those of PyTorch's maps and the merge core.

    `differing`: share of pixels, with its `bound`. `segments`: how many have at least 1 % of the frame, the minimum
    over all frames. `threshold`: of every iteration. `margin`: whether a small change of it leaves the labels the same.
    """

    output: str
    differing: float
    bound: float
    segments: int
    threshold: float
    margin: bool = True

    @property
    def passed(self) -> bool:
        """Whether the labels agree within the bound. Without margin, a difference is not the engine's fault."""
        return self.differing <= self.bound or not self.margin

    @property
    def conclusive(self) -> bool:
        """Whether there were enough segments, and margin, so that the agreement means something."""
        return self.segments >= ENOUGH and self.margin

    @property
    def verdict(self) -> str:
        """ok, FAILED, or inconclusive."""
        return "FAILED" if not self.passed else "ok" if self.conclusive else "inconclusive"

    def __str__(self) -> str:
        found = f"{self.differing:.3%} of pixels differ (bound {self.bound:.1%}) at threshold {self.threshold:.3g}"
        large = f"{self.segments} segments of at least {LARGE:.0%}"
        note = "" if self.margin else ": any rounding changes these labels, so this says nothing about the engine"
        few = ": too few for this to say anything" if self.margin and not self.conclusive else note
        return f"labels: {found}, {large}{few}"


def compare_labels(
    spec: "EngineSpec", labels_at: Callable[[float], "NDArray[Any]"], reference: Reference
) -> LabelsCheck:
    """Compare an engine's labels with the merge core's on PyTorch's maps.

    `labels_at`: the engine's labels [B, H, W] of the reference's frames, with one threshold in all iterations. The
    threshold is chosen such that there are enough segments. Half precision may create or lose a segment, which shifts
    the numbers of all that follow: segments are matched one to one then.
    Raises what `labels_at` raises.
    """
    threshold, wanted, margin = _choose_threshold(spec, reference.expected)
    found = labels_at(threshold)
    segments = min(large_segments(labels) for labels in wanted)
    if reference.half is None:
        return LabelsCheck("labels", float((found != wanted).mean()), BOUND, segments, threshold, margin)
    own = differing_when_matched(core_labels(spec, reference.half, threshold), wanted)
    bound = max(HALF_BOUND, HALF_PRECISION[spec.precision] * own)
    margin = margin and own <= HALF_MOST
    return LabelsCheck("labels", differing_when_matched(found, wanted), bound, segments, threshold, margin)


def core_labels(spec: "EngineSpec", pyramid: Sequence["NDArray[Any]"], threshold: float) -> "NDArray[np.int32]":
    """The merge core's labels int32 [B, H, W] of maps [B, n, n], finest first, with the engine's defaults.

    `threshold`: of every iteration. The solver is the graph's, and for an engine of maps always the merge.
    """
    solver = spec.solver if spec.head == "labels" else DEFAULT
    config = MergeConfig((threshold,) * len(spec.thresholds), spec.grid, spec.weights, solver)  # type: ignore[arg-type]
    grids = [(level.height, level.width) for level in spec.levels]
    layers = [level.layers for level in spec.levels]
    return segment_attention(pyramid, config, size=(spec.height, spec.width), grids=grids, layers=layers)


def differing_when_matched(found: "NDArray[Any]", expected: "NDArray[Any]") -> float:
    """Share of pixels of labels [B, H, W] outside of segments that are matched one to one, in the best way."""
    return 1 - float(np.mean([matched_agreement(*pair) for pair in zip(found, expected, strict=True)]))


def _choose_threshold(spec: "EngineSpec", pyramid: Sequence["NDArray[Any]"]) -> tuple[float, "NDArray[np.int32]", bool]:
    """A threshold with enough segments, the labels that it gives [B, H, W], and whether they have margin.

    A threshold with margin is preferred: if a divergence nearly equals the threshold, rounding changes the labels.
    """
    fallback: tuple[tuple[bool, int], float, NDArray[np.int32]] | None = None
    distances = _anchor_divergences(spec, [level[0] for level in pyramid])
    for quantile in QUANTILES:
        threshold = max(float(np.quantile(distances, quantile)), 1e-9)
        labels = core_labels(spec, pyramid, threshold)
        segments = min(large_segments(frame) for frame in labels)
        nudged = (core_labels(spec, pyramid, threshold * (1 + sign * NUDGE)) for sign in (-1, 1))
        margin = all((other != labels).mean() <= BOUND / 10 for other in nudged)
        if segments >= ENOUGH and margin:
            return threshold, labels, margin
        # The second choice is margin with few segments: such a comparison says little, but it is reliable.
        if fallback is None or (margin, segments) > fallback[0]:
            fallback = (margin, segments), threshold, labels
    assert fallback is not None
    return fallback[1], fallback[2], fallback[0][0]


def _anchor_divergences(spec: "EngineSpec", pyramid: Sequence["NDArray[Any]"]) -> "NDArray[np.float64]":
    grids = [(level.height, level.width) for level in spec.levels]
    layers = [level.layers for level in spec.levels]
    aggregated = aggregate_attention(pyramid, grids=grids, layers=layers, weights=spec.weights)
    maps = aggregated[anchor_queries(grids[0], spec.grid)].astype(np.float64)
    return divergences(maps)[np.triu_indices(len(maps), 1)]
