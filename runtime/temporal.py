"""Identities that stay on their objects from frame to frame: matching, memory along the flow, cuts.

A tracker keeps one soft mask per identity. Every frame it carries them along the optical flow, matches the frame's
segments with them one to one (KL divergence of proposals, overlap after motion), and lets the segments vote: an
identity holds a pixel until another one has won it for a few frames. So borders do not flicker, and since memory moves
with the picture, they do not lag either.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import cv2
import numpy as np

from runtime.errors import DiffSegError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from runtime.segmenter import Result, Segmenter


@dataclass(frozen=True, slots=True)
class TrackerConfig:
    """Parameters of the tracker.

    Attributes:
        memory: share of the past in a pixel's vote, from 0 (the newest segments alone) to below 1.
        patience: frames for which an identity that has gone out of sight can come back.
        side: longer side, in pixels, of the picture on which motion is estimated and masks are kept.
        cut: correlation of a frame with the one before, carried along the flow, below which a new scene begins.

    Raises:
        DiffSegError: if a value is out of range.
    """

    memory: float = 0.75
    patience: int = 30
    side: int = 256
    cut: float = 0.3

    def __post_init__(self) -> None:
        if not 0 <= self.memory < 1:
            raise DiffSegError(f"memory: expected from 0 to below 1, found {self.memory!r}")
        if self.patience < 0:
            raise DiffSegError(f"patience: expected frames, at least 0, found {self.patience!r}")
        if self.side < 32:
            raise DiffSegError(f"side: expected pixels, at least 32, found {self.side!r}")


class Tracker:
    """Turns the segments of frame after frame into identities. One per clip; use it from one thread."""

    def __init__(self, config: TrackerConfig | None = None) -> None:
        self.config = config or TrackerConfig()
        self._next = 0
        self._size: tuple[int, ...] | None = None
        self._flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)

    def reset(self) -> None:
        """Forget all tracked identities; their numbers are not given again."""
        self._size = None

    def update(self, frame: NDArray[np.uint8], result: Result) -> Result:
        """Give the segments of the next frame their identities.

        Args:
            frame: uint8 [H, W, 3] BGR. Another size than the last one's begins a new scene.
            result: what a Segmenter made of it, best with its proposals.

        Returns:
            A result whose labels are identities; its `identities` lists those in sight, ascending.
        """
        grey = self._grey(frame)
        shape = grey.shape
        segments = _soft(result.labels, result.count, shape)
        if self._size != frame.shape[:2] or not self._carry(grey):
            self._size = frame.shape[:2]
            self._numbers = np.arange(self._next, self._next + result.count)
            self._next += result.count
            self._scores = segments
            self._last = grey
            return self._show(result)
        pairs = self._match(segments)
        target = np.full(result.count, -1)
        for track, segment in pairs:
            target[segment] = track
        born = np.flatnonzero(target < 0)
        target[born] = len(self._scores) + np.arange(len(born))
        self._numbers = np.concatenate([self._numbers, np.arange(self._next, self._next + len(born))])
        self._next += len(born)
        scores = np.concatenate([self._scores, np.zeros((len(born), *shape), np.float32)])
        scores *= np.float32(self.config.memory)
        scores[target] += np.float32(1 - self.config.memory) * segments
        alive = scores.reshape(len(scores), -1).max(axis=1) > 0.05
        self._scores, self._numbers = scores[alive], self._numbers[alive]
        self._last = grey
        return self._show(result)

    def propagate(self, frame: NDArray[np.uint8]) -> Result:
        """Labels of a frame that no engine has seen: those of the frame before, carried along the flow.

        Raises:
            DiffSegError: before the first `update`, or when the frame has another size.
        """
        from runtime.segmenter import Result

        if self._size != frame.shape[:2]:
            raise DiffSegError(f"expected a frame of the size last segmented, {self._size}, found {frame.shape[:2]}")
        grey = self._grey(frame)
        self._carry(grey)
        self._last = grey
        return self._show(Result(np.zeros((1, 1), np.int32), 1, {}))

    def _grey(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        height, width = frame.shape[:2]
        scale = min(1.0, self.config.side / max(height, width))
        size = (max(16, round(width * scale)), max(16, round(height * scale)))
        grey: NDArray[np.uint8] = cv2.cvtColor(
            cv2.resize(frame, size, interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2GRAY
        ).astype(np.uint8, copy=False)
        return grey

    def _carry(self, grey: NDArray[np.uint8]) -> bool:
        """Move the masks to where their pixels have gone; False when this is another scene."""
        flow = self._flow.calc(grey, self._last, None)
        rows, columns = np.indices(grey.shape, dtype=np.float32)
        at_x, at_y = columns + flow[..., 0], rows + flow[..., 1]
        came = cv2.remap(self._last, at_x, at_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        a, b = came.ravel().astype(np.float32), grey.ravel().astype(np.float32)
        a, b = a - a.mean(), b - b.mean()
        scale = float(np.sqrt((a @ a) * (b @ b)))
        if scale > 0 and float(a @ b) / scale < self.config.cut:
            return False
        self._scores = np.stack(
            [cv2.remap(m, at_x, at_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE) for m in self._scores]
        )
        return True

    def _match(self, segments: NDArray[np.float32]) -> list[tuple[int, int]]:
        """Pairs (track, segment): the one-to-one assignment of the greatest intersection over union in sum."""
        try:
            from scipy.optimize import linear_sum_assignment
        except ImportError:
            raise DiffSegError('temporal identities need scipy; install it by pip install "diffseg[video]"') from None
        tracks = self._scores.reshape(len(self._scores), -1)
        new = segments.reshape(len(segments), -1)
        common = tracks @ new.T
        union = tracks.sum(axis=1)[:, None] + new.sum(axis=1) - common
        overlap = common / np.maximum(union, 1e-6)
        return [
            (int(track), int(segment))
            for track, segment in zip(*linear_sum_assignment(overlap, maximize=True), strict=True)
            if overlap[track, segment] > 0.1
        ]

    def _show(self, result: Result) -> Result:
        """The result with labels that are identities."""
        assert self._size is not None
        best = cv2.resize(self._scores[0], self._size[::-1], interpolation=cv2.INTER_LINEAR)
        labels = np.zeros(self._size, np.int32)
        for index in range(1, len(self._scores)):
            current = cv2.resize(self._scores[index], self._size[::-1], interpolation=cv2.INTER_LINEAR)
            np.copyto(labels, index, where=current > best)
            np.maximum(best, current, out=best)
        labels = self._numbers.astype(np.int32)[labels]
        identities = np.unique(labels)
        return replace(result, labels=labels, count=len(identities), proposals=None, identities=identities)


def _soft(labels: NDArray[np.int32], count: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """float32 [count, *shape]: the share of every segment in the pixels of a smaller picture."""
    return np.stack(
        [
            cv2.resize((labels == index).astype(np.float32), shape[::-1], interpolation=cv2.INTER_AREA)
            for index in range(count)
        ]
    ).astype(np.float32, copy=False)


def stream(
    segmenter: Segmenter, frames: Iterable[NDArray[np.uint8]], temporal: bool | TrackerConfig, every: int
) -> Iterator[Result]:
    """What `Segmenter.stream` gives; see there."""
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise DiffSegError(f"every: expected a whole number of frames from 1, found {every!r}")
    tracker = Tracker(temporal if isinstance(temporal, TrackerConfig) else None)

    def results() -> Iterator[Result]:
        nonlocal tracker
        size = None
        for number, frame in enumerate(frames):
            if number % every and size == frame.shape:
                yield tracker.propagate(frame)
                continue
            result = segmenter(frame, proposals=temporal is not False)
            size = frame.shape
            if temporal is False:
                if every > 1:
                    tracker = Tracker()
                    tracker.update(frame, result)
                yield result
            else:
                yield tracker.update(frame, result)

    return results()
