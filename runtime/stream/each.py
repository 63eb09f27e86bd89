"""Frame after frame of one clip, in the caller's own thread."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from runtime.errors import DiffSegError
from runtime.track.tracker import Tracker, TrackerConfig

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runtime.result import Result
    from runtime.segmenter import Segmenter


def stream(
    segmenter: Segmenter,
    frames: Iterable[NDArray[np.uint8]],
    temporal: bool | TrackerConfig,
    every: int,
    warm_start: bool,
) -> Iterator[Result]:
    """What `Segmenter.stream` gives; see there."""
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise DiffSegError(f"every: expected a whole number of frames from 1, found {every!r}")
    tracking = temporal is not False
    tracker = Tracker(temporal if isinstance(temporal, TrackerConfig) else None) if tracking or every > 1 else None
    return _results(segmenter, frames, tracker, tracking, every, tracking and warm_start)


def _results(
    segmenter: Segmenter,
    frames: Iterable[NDArray[np.uint8]],
    tracker: Tracker | None,
    tracking: bool,
    every: int,
    warm_start: bool,
) -> Iterator[Result]:
    size: tuple[int, ...] | None = None
    seeds = None
    since = 0
    for frame in frames:
        since += 1
        if tracker is not None and size is not None and since < every and size == getattr(frame, "shape", None):
            result = tracker.propagate(frame)
            if not tracker.cut:
                yield result
                continue
        since = 0
        result = segmenter(frame, proposals=tracking, seeds=seeds)
        size = frame.shape
        seeds = result.proposals if warm_start else None
        if tracker is None:
            yield result
        elif tracking:
            yield tracker.update(frame, result)
        else:
            # Every segmented frame for itself; only the frames between hang on it.
            tracker = Tracker()
            tracker.update(frame, result)
            yield result
