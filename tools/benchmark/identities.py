"""Do identities stay on their objects? Figures for the labels of one clip, and the methods that are compared.

The identity of a pixel is compared with that of the pixel it came from in the frame before. In drawn scenes the motion
is known exactly. In real clips it is an optical flow finer than the tracker's own, where forward and backward flow
agree. An identity that never changes says nothing alone: the covering tells whether the segments are still those of the
scene, and the number of segments tells whether any were given up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.engine.base import Engine

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runtime.segmenter import Segmenter

    Frames = Sequence[NDArray[np.uint8]]
    Labels = list[NDArray[np.int32]]

LONG = 10  # frames over which identities are compared a second time
FRAME_BY_FRAME, FIRST_FLOW, TEMPORAL = "frame by frame", "flow of the first frame", "temporal identity"
MATCHED = "frame by frame, matched"


@dataclass(frozen=True, slots=True)
class Truth:
    """Where the pixels of a clip come from.

    Attributes:
        steps: for every frame after the first: float32 [H, W, 2] (x, y) in the frame before, and bool [H, W]: whether
            that place is known and was visible.
        leaps: the same for every frame from number `LONG`, over that many frames; empty for real clips.
        masks: int32 [H, W] for every frame; empty for real clips.
    """

    steps: list[tuple[NDArray[np.float32], NDArray[np.bool_]]]
    leaps: list[tuple[NDArray[np.float32], NDArray[np.bool_]]]
    masks: list[NDArray[np.int32]]


def kept_share(
    labels: NDArray[np.int32],
    before: NDArray[np.int32],
    origins: NDArray[np.float32],
    known: NDArray[np.bool_],
) -> float:
    """Share of the pixels with a known origin that have the identity of the pixel they came from, 0…1.

    `labels`, `before`: int32 [H, W] of a frame and of the one `origins` points into. `origins`, `known`: as in `Truth`.
    """
    height, width = labels.shape
    x = np.rint(origins[..., 0]).astype(int).clip(0, width - 1)
    y = np.rint(origins[..., 1]).astype(int).clip(0, height - 1)
    return float((before[y, x] == labels)[known].mean()) if known.any() else 1.0


def first_flow(first: NDArray[np.int32], frames: Frames) -> Labels:
    """The first frame's labels, carried along the optical flow of the whole clip."""
    import cv2

    found = [first]
    estimate = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    for before, now in pairwise(frames):
        x, y = _origins(estimate, before, now)
        carried = cv2.remap(found[-1].astype(np.float32), x, y, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)
        found.append(carried.astype(np.int32))
    return found


class RememberingEngine(Engine):
    """An engine that runs once on each frame of a clip, so that all methods see the same maps."""

    def __init__(self, engine: Engine) -> None:
        self.spec, self.device, self.path, self.asked = engine.spec, engine.device, engine.path, engine.asked
        self._engine = engine
        self._seen: dict[bytes, list[np.ndarray]] = {}

    def _infer(self, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        key = b"".join(values.tobytes() for values in inputs.values())
        if key not in self._seen:
            thresholds = inputs["thresholds"].tolist() if "thresholds" in inputs else None
            self._seen[key] = self._engine.infer(inputs["frame"], thresholds)
        return self._seen[key]

    def clone(self) -> RememberingEngine:
        """Itself: a clone would not share what is remembered."""
        return self


def run_methods(segmenter: Segmenter, frames: Frames) -> dict[str, Labels]:
    """Labels of a clip by every method.

    Each frame's own numbers; these, matched by the tracker without its memory; those of the first frame, carried along
    the optical flow; and the identities of `Segmenter.stream`.
    """
    from runtime.track.tracker import Tracker, TrackerConfig

    single = [segmenter(frame, proposals=True) for frame in frames]
    forgetful = Tracker(TrackerConfig(memory=0.0))
    return {
        FRAME_BY_FRAME: [result.labels for result in single],
        MATCHED: [forgetful.update(frame, result).labels for frame, result in zip(frames, single, strict=True)],
        FIRST_FLOW: first_flow(single[0].labels, frames),
        TEMPORAL: [result.labels for result in segmenter.stream(frames)],
    }


def score(labels: Labels, truth: Truth) -> dict[str, float]:
    """Figures of one clip.

    `kept`: mean share of kept identities; `kept_long`: the same over `LONG` frames; `covering`; `segments` per frame;
    `identities` in the whole clip. Figures that need more than `truth` has are left out.
    """
    from tools.evaluate.metrics import contingency, covering

    steps = zip(labels[1:], labels[:-1], truth.steps, strict=True)
    row = {"kept": float(np.mean([kept_share(now, before, *known) for now, before, known in steps]))}
    if truth.leaps:
        leaps = zip(labels[LONG:], labels[:-LONG], truth.leaps, strict=True)
        row["kept_long"] = float(np.mean([kept_share(now, before, *known) for now, before, known in leaps]))
    if truth.masks:
        tables = (contingency(mask, found) for mask, found in zip(truth.masks, labels, strict=True))
        row["covering"] = float(np.mean([covering(table) for table in tables]))
    row["segments"] = float(np.mean([len(np.unique(found)) for found in labels]))
    row["identities"] = float(len(np.unique(np.concatenate([np.unique(found) for found in labels]))))
    return row


def flow_truth(frames: Frames) -> Truth:
    """Origins by a finer flow than the tracker's, at the clip's size.

    An origin is known where the flow back from it ends within a pixel of the start.
    """
    import cv2

    estimate = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    steps = []
    for before, now in pairwise(frames):
        x, y = _origins(estimate, before, now)
        there_x, there_y = _origins(estimate, now, before)
        outside: dict[str, Any] = {"interpolation": cv2.INTER_LINEAR, "borderMode": cv2.BORDER_CONSTANT}
        outside["borderValue"] = -1e6
        back_x, back_y = cv2.remap(there_x, x, y, **outside), cv2.remap(there_y, x, y, **outside)
        rows, columns = np.indices(x.shape, dtype=np.float32)
        steps.append((np.stack([x, y], axis=-1), np.hypot(back_x - columns, back_y - rows) < 1))
    return Truth(steps, [], [])


def _origins(estimate: Any, before: NDArray[np.uint8], now: NDArray[np.uint8]) -> tuple[Any, Any]:
    import cv2

    flow = estimate.calc(*(cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY) for frame in (now, before)), None)
    rows, columns = np.indices(flow.shape[:2], dtype=np.float32)
    return columns + flow[..., 0], rows + flow[..., 1]


def measure_clips(
    segmenter: Segmenter, clips: Mapping[str, tuple[Frames, Truth]], report: Callable[[str], None]
) -> dict[str, Any]:
    """Every method on every clip: the means over the clips, and the figures of each clip.

    `clips`: name → frames and where their pixels come from. `report`: called with the name of each clip.
    """
    from runtime.segmenter import Segmenter

    rows: dict[str, dict[str, dict[str, float]]] = {}
    for clip, (frames, truth) in clips.items():
        report(clip)
        auto = segmenter.stages.route.auto
        remembering = Segmenter(RememberingEngine(segmenter.engine), segmenter.config, auto=auto)
        for name, labels in run_methods(remembering, frames).items():
            rows.setdefault(name, {})[clip] = score(labels, truth)
    return {
        name: {
            key: round(float(np.mean([row[key] for row in found.values()])), 4) for key in next(iter(found.values()))
        }
        | {"clips": {clip: {key: round(value, 4) for key, value in row.items()} for clip, row in found.items()}}
        for name, found in rows.items()
    }
