"""Holding an engine's labels to those of the merge core on PyTorch's own maps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.merge.aggregate import aggregate_attention
from runtime.merge.segment import segment_attention
from runtime.pyramid.anchors import anchor_queries
from runtime.pyramid.config import MergeConfig

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runtime.engine.base import Engine
    from runtime.engine.spec import EngineSpec

BOUND = 1e-3  # share of pixels (DESIGN: budgets)
HALF_BOUND = 1e-2  # share of pixels whose segment half precision may change
# As for the maps, half precision is held to what PyTorch's own bfloat16 changes in the same labels.
HALF_PRECISION = {"fp16": 1.0, "bf16": 2.0}
HALF_MOST = 0.1  # where bfloat16 changes more than this share, labels in half precision say nothing
LARGE = 0.01  # of the frame: segments that count
ENOUGH = 4  # large segments, without which an agreement says nothing
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
NUDGE = 1e-4  # of a threshold: labels that such a change leaves as they are have margin


@dataclass(frozen=True, slots=True)
class LabelsCheck:
    """An engine's final labels against those of PyTorch's maps and the merge core.

    `differing`: share of pixels; `segments`: of at least 1 % of the frame, the fewest in any frame; `threshold`: the
    one compared at, in every iteration; `margin`: whether labels stay when it moves a little.
    """

    output: str
    differing: float
    bound: float
    segments: int
    threshold: float
    margin: bool = True

    @property
    def passed(self) -> bool:
        """Whether the labels agree within the bound. Without margin a difference is no fault of the engine's."""
        return self.differing <= self.bound or not self.margin

    @property
    def conclusive(self) -> bool:
        """Whether there were segments enough, and margin, for the agreement to mean something."""
        return self.segments >= ENOUGH and self.margin

    def __str__(self) -> str:
        found = f"{self.differing:.3%} of pixels differ (bound {self.bound:.1%}) at threshold {self.threshold:.3g}"
        large = f"{self.segments} segments of at least {LARGE:.0%}"
        note = "" if self.margin else ": these labels change with any rounding, which says nothing of the engine"
        few = ": too few for this to say anything" if self.margin and not self.conclusive else note
        return f"labels: {found}, {large}{few}"


def compare_labels(
    engine: "Engine",
    frames: "NDArray[np.uint8]",
    expected: Sequence["NDArray[Any]"],
    half: Sequence["NDArray[Any]"] | None = None,
    pyramid: Sequence["NDArray[Any]"] | None = None,
) -> LabelsCheck:
    """Labels that `engine` gives for `frames` against the merge core's on PyTorch's maps of them, `expected`.

    `pyramid`: the maps of an attention engine, whose labels are the merge core's too; None for a labels engine.
    `half`: PyTorch's maps in bfloat16, for an engine in half precision; its segments are matched first, because one
    that is born or lost shifts the numbers of all that follow. The thresholds are chosen such that there are segments.
    Raises DiffSegError when the engine fails.
    """
    spec = engine.spec
    threshold, wanted, margin = _choose_threshold(spec, expected)
    if pyramid is not None:
        found = _core(spec, pyramid, threshold)
    else:
        found = engine.infer(frames, (threshold,) * len(spec.thresholds))[0]
    segments = min(_large(labels) for labels in wanted)
    if half is None:
        return LabelsCheck("labels", float((found != wanted).mean()), BOUND, segments, threshold, margin)
    own = differing_when_matched(_core(spec, half, threshold), wanted)
    bound = max(HALF_BOUND, HALF_PRECISION[spec.precision] * own)
    margin = margin and own <= HALF_MOST
    return LabelsCheck("labels", differing_when_matched(found, wanted), bound, segments, threshold, margin)


def differing_when_matched(found: "NDArray[Any]", expected: "NDArray[Any]") -> float:
    """Share of pixels of labels [B, H, W] outside of segments matched one to one, the largest overlap first.

    The best matching leaves no more than this.
    """
    agreeing = 0
    for ours, theirs in zip(found, expected, strict=True):
        columns = int(theirs.max()) + 1
        pairs = np.bincount(ours.astype(np.int64).ravel() * columns + theirs.ravel(), minlength=columns)
        overlaps = np.pad(pairs, (0, -len(pairs) % columns)).reshape(-1, columns)
        while overlaps.any():
            row, column = np.unravel_index(overlaps.argmax(), overlaps.shape)
            agreeing += int(overlaps[row, column])
            overlaps[row] = 0
            overlaps[:, column] = 0
    return 1 - agreeing / expected.size


def _choose_threshold(spec: "EngineSpec", pyramid: Sequence["NDArray[Any]"]) -> tuple[float, "NDArray[np.int32]", bool]:
    """A threshold between the anchors' divergences at which there are segments enough, and the labels it gives.

    Preferred is one with margin: labels that hang on a divergence which is nearly the threshold differ for any reason.
    """
    fallback: tuple[tuple[bool, int], float, NDArray[np.int32]] | None = None
    divergences = _anchor_divergences(spec, [level[0] for level in pyramid])
    for quantile in QUANTILES:
        threshold = max(float(np.quantile(divergences, quantile)), 1e-9)
        labels = _core(spec, pyramid, threshold)
        segments = min(_large(frame) for frame in labels)
        nudged = (_core(spec, pyramid, threshold * (1 + sign * NUDGE)) for sign in (-1, 1))
        margin = all((other != labels).mean() <= BOUND / 10 for other in nudged)
        if segments >= ENOUGH and margin:
            return threshold, labels, margin
        # Next best is margin with few segments: it says little, but what it says is true.
        if fallback is None or (margin, segments) > fallback[0]:
            fallback = (margin, segments), threshold, labels
    assert fallback is not None
    return fallback[1], fallback[2], fallback[0][0]


def _core(spec: "EngineSpec", pyramid: Sequence["NDArray[Any]"], threshold: float) -> "NDArray[np.int32]":
    config = MergeConfig((threshold,) * len(spec.thresholds), spec.grid, spec.weights)  # type: ignore[arg-type]
    grids = [(level.height, level.width) for level in spec.levels]
    layers = [level.layers for level in spec.levels]
    return segment_attention(pyramid, config, size=(spec.height, spec.width), grids=grids, layers=layers)


def _anchor_divergences(spec: "EngineSpec", pyramid: Sequence["NDArray[Any]"]) -> "NDArray[np.float64]":
    grids = [(level.height, level.width) for level in spec.levels]
    layers = [level.layers for level in spec.levels]
    aggregated = aggregate_attention(pyramid, grids=grids, layers=layers, weights=spec.weights)
    maps = aggregated[anchor_queries(grids[0], spec.grid)].astype(np.float64)
    cross = maps @ np.log(np.maximum(maps, 1e-12)).T
    entropy = np.diagonal(cross)
    divergences = (entropy[:, None] + entropy - cross - cross.T) / 2
    return divergences[np.triu_indices(len(maps), 1)]


def _large(labels: "NDArray[np.int32]") -> int:
    """How many segments have at least 1 % of the frame."""
    return int((np.bincount(labels.ravel()) >= LARGE * labels.size).sum())
