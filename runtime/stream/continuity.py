"""What a clip remembers from frame to frame: which frames the network sees, and what becomes of the others.

One state machine for the command line, whose stages overlap, and for `Segmenter.stream`, where they do not.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from enum import Enum
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from runtime.errors import DiffSegError
from runtime.labels import count_pixels
from runtime.stages import check_frame

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runtime.result import Result
    from runtime.stages import Stages
    from runtime.track.tracker import Tracker, TrackerConfig

# Two frames are near-identical when, at the engine's size, they differ by less than this many grey levels on average,
# and nowhere by more than this over a 16th of a side: noise passes, a small thing that moves does not.
SIMILAR_ON_AVERAGE, SIMILAR_ANYWHERE = 1.0, 4.0


class Fate(Enum):
    """What becomes of a frame."""

    SEGMENTED = "the network sees it"
    CARRIED = "labels are carried to it along the optical flow"
    REPEATED = "it is like the last one that was segmented, and takes over its labels"


class Continuity:
    """One clip. `decide` and `settle` each get every frame, in order; `settle` may come some frames later.

    Attributes:
        stages: what segments the frames: those that were given, or `Stages.tracked` of them.
        seeds: the last frame's proposals float32 [S, h, w], for a warm start; None where that is not wanted.
    """

    def __init__(
        self,
        stages: Stages,
        *,
        temporal: bool = True,
        every: int = 1,
        skip_similar: bool = False,
        warm_start: bool = False,
        tracker: TrackerConfig | None = None,
    ) -> None:
        """Begin a clip; see `Segmenter.stream` for the parameters.

        Raises DiffSegError where `every` is below 1, the extra `video` is missing, or an engine without maps is to
        start warm.
        """
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise DiffSegError(f"every: expected a whole number of frames from 1, found {every!r}")
        for name, flag in (("skip_similar", skip_similar), ("warm_start", warm_start)):
            if not isinstance(flag, bool):
                raise DiffSegError(f"{name}: expected True or False, found {flag!r}")
        if warm_start:
            stages.route.check_maps("warm start")
        self.temporal = temporal
        self.seeds: NDArray[np.float32] | None = None
        self.stages = stages.tracked(warm_start) if temporal else stages
        self._every, self._skip_similar = every, skip_similar
        self._warm_start = warm_start and temporal
        self._config = tracker
        self._number = -1
        self._shape: tuple[int, ...] | None = None
        self._seen: NDArray[np.uint8] | None = None  # the frame that the labels shown last belong to, resized
        self._last: Result | None = None
        self._shares: dict[int, NDArray[np.float32]] = {}  # of every label, for words, as it had them last
        self._aside: Stages | None = None
        self._tracker: Tracker | None = self._fresh_tracker() if temporal or every > 1 else None

    @property
    def tracks(self) -> bool:
        """Whether there is anything to follow from frame to frame."""
        return self._tracker is not None

    @property
    def warm_start(self) -> bool:
        """Whether the merge begins from the last frame's proposals, and so waits for them."""
        return self._warm_start

    def decide(self, frame: NDArray[np.uint8]) -> tuple[Fate, NDArray[np.uint8] | None]:
        """What becomes of the next frame; and the frame at the engine's size where it is to be segmented.

        Raises DiffSegError where the frame is invalid.
        """
        check_frame(frame)
        self._number += 1
        if frame.shape != self._shape:  # a new scene
            self._number, self._shape, self._seen = 0, frame.shape, None
        carried = self._number % self._every != 0
        if carried and not self._skip_similar:
            return Fate.CARRIED, None
        resized = self.stages.resize(frame)
        if self._skip_similar:
            if self._seen is not None and are_similar(resized, self._seen):
                return Fate.REPEATED, None
            # After a frame that was carried over, the labels shown last are no longer those of the frame seen last.
            self._seen = None if carried else resized
        return (Fate.CARRIED, None) if carried else (Fate.SEGMENTED, resized)

    def remember(self, result: Result) -> None:
        """Take the proposals of a segmented frame for the next one's warm start."""
        self.seeds = result.proposals if self._warm_start else None

    def settle(self, fate: Fate, frame: NDArray[np.uint8], result: Result | None) -> Result:
        """The result to show for a frame: identities, labels carried along, or the last ones again."""
        if fate is Fate.REPEATED:
            assert self._last is not None
            return self._last
        if fate is Fate.CARRIED:
            assert self._tracker is not None
            result = self._tracker.propagate(frame)
            if self._tracker.cut:  # another scene: there is nothing to carry over. The network is frames ahead.
                self._aside = self._aside or self.stages.clone()
                result = self._identify(frame, self._aside(frame, proposals=self.temporal))
            else:
                result = self._named_as_before(result)
        else:
            assert result is not None
            result = self._identify(frame, result)
        if result.names is not None:
            self._shares.update(zip(result.names.labels, result.names.shares, strict=True))
        self._last = result
        return result

    def _named_as_before(self, result: Result) -> Result:
        """A result whose segments have the words that their labels had last."""
        if self._last is None or self._last.names is None:
            return result
        last = self._last.names
        labels = tuple(np.flatnonzero(count_pixels(result.labels)).tolist())
        nothing = np.zeros(len(last.words), np.float32)
        shares = np.stack([self._shares.get(label, nothing) for label in labels])
        return replace(result, names=replace(last, labels=labels, shares=shares))

    def _identify(self, frame: NDArray[np.uint8], result: Result) -> Result:
        """Identities, or without `temporal` the segments as they are, from which the next frames are carried over."""
        if self._tracker is None:
            return result
        if self.temporal:
            return self.stages.name(self._tracker.update(frame, result))
        self._tracker = self._fresh_tracker()
        self._tracker.update(frame, result)
        return result

    def _fresh_tracker(self) -> Tracker:
        from runtime.track.tracker import Tracker

        return Tracker(self._config)


def follow(frames: Iterable[NDArray[np.uint8]], continuity: Continuity) -> Iterator[Result]:
    """The results of a clip's frames, one after the other in the caller's own thread."""
    for frame in frames:
        start = time.perf_counter()
        fate, resized = continuity.decide(frame)
        decided = round((time.perf_counter() - start) * 1e3, 3)
        result = None
        if fate is Fate.SEGMENTED:
            result = continuity.stages(frame, resized, proposals=continuity.temporal, seeds=continuity.seeds)
            result.milliseconds["resize"] = decided
            result.milliseconds["total"] = round(result.milliseconds["total"] + decided, 3)
            continuity.remember(result)
        yield continuity.settle(fate, frame, result)


def are_similar(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> bool:
    """Whether two frames uint8 [H, W, 3] of one size are near-identical: the same but for noise."""
    difference: Any = cv2.absdiff(one, other)
    if sum(cv2.mean(difference)[:3]) / 3 >= SIMILAR_ON_AVERAGE:
        return False
    side = max(1, min(difference.shape[:2]) // 16)
    return bool(cv2.blur(difference, (side, side)).max() < SIMILAR_ANYWHERE)
