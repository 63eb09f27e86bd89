"""Identities that stay on their objects from frame to frame: matching, and a memory that moves with the picture.

A tracker keeps one soft mask per identity. Every frame it carries them along the optical flow, matches the frame's
segments with them one to one (KL divergence of their proposals, overlap after motion), and lets the segments vote: an
identity holds a pixel until another one has won it for some frames. So segments that merge and fall apart from frame
to frame do not flicker, and since the memory moves with the picture, borders do not lag either; where the picture shows
what was not there before, nothing is remembered.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, replace
from itertools import compress
from typing import TYPE_CHECKING

import cv2
import numpy as np

from runtime.errors import DiffSegError
from runtime.labels import count_pixels
from runtime.track.match import LOST_LIKE, check_scipy, match
from runtime.track.motion import MotionEstimator
from runtime.track.tracks import Sighting, Track, sightings

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from runtime.result import Result
    from runtime.track.motion import Motion

YOUNG = 12  # frames during which a new identity may still be recognised as an earlier one
SMALLEST_AREA = 0.001  # of the frame; identities below it count as out of sight
NUMBERS = 1 << 16  # identities that fit into a label picture of 16 bits


@dataclass(frozen=True, slots=True)
class TrackerConfig:
    """Parameters of the tracker.

    Attributes:
        memory: share of the past in a pixel's vote, from 0 (the newest segments alone) to below 1. At 0.75 a new
            segment inside a known one shows after three frames; what enters or is uncovered shows at once.
        patience: frames for which an identity that has gone out of sight can come back.
        side: longer side, in pixels, of the picture on which motion is estimated and masks are kept.

    Raises:
        DiffSegError: if a value is out of range.
    """

    memory: float = 0.75
    patience: int = 30
    side: int = 192

    def __post_init__(self) -> None:
        if not 0 <= self.memory < 1:
            raise DiffSegError(f"memory: expected from 0 to below 1, found {self.memory!r}; 0.75 is the default")
        if self.patience < 0:
            raise DiffSegError(f"patience: expected a number of frames from 0, found {self.patience!r}")
        if self.side < 32:
            raise DiffSegError(f"side: expected at least 32 pixels, found {self.side!r}; 192 is the default")


class Tracker:
    """Turns the segments of frame after frame into identities. One for each clip; use it from one thread.

    Identities count up from 0. Only when 65,536 have been given, as many as a label picture holds, are numbers given
    again, first those whose identities have been gone for longest.

    Attributes:
        cut: whether the last frame showed another scene than the one before.
    """

    def __init__(self, config: TrackerConfig | None = None) -> None:
        """Needs the extra `video`. Raises DiffSegError where it is missing, or `config` is something else."""
        check_scipy()
        if not isinstance(config, TrackerConfig | None):
            raise DiffSegError(f"temporal: expected True, False or a TrackerConfig, found {config!r}")
        self.config = config or TrackerConfig()
        self._estimator = MotionEstimator(self.config.side)
        self._tracks: list[Track] = []
        self._size: tuple[int, int] | None = None
        self._next = 0
        self._free: deque[int] = deque()  # numbers of identities that are gone, in the order in which they went
        self._stale = False
        self.cut = False

    def reset(self) -> None:
        """Forget everything but which numbers were given: the next frame begins a new scene."""
        self._retire(self._tracks)
        self._size, self._tracks = None, []

    def update(self, frame: NDArray[np.uint8], result: Result) -> Result:
        """Give the segments of the next frame their identities.

        Args:
            frame: uint8 [H, W, 3] BGR. After a cut, and when its size is not the last one's, all identities are new.
            result: what a Segmenter made of this frame, best with its proposals.

        Returns:
            A result whose labels are identities, `identities` those in sight, `proposals` theirs, and
            `milliseconds` with the stage `track`.
        """
        started = time.perf_counter()
        size = (frame.shape[0], frame.shape[1])
        motion = None
        if size == self._size:
            small, motion = self._estimator.step(frame)
        else:
            small = self._estimator.start(frame)
        found = sightings(result, small)
        # What came before means nothing either where a cut fell on a frame that was propagated.
        fresh = motion is None or motion.cut or self._stale
        self.cut = self._size is not None and (motion is None or motion.cut)
        self._size, self._stale = size, False
        if fresh or motion is None:
            self._retire(self._tracks)
            self._tracks = [self._new(sighting) for sighting in found]
        else:
            self._follow(motion, found)
        return self._show(result, started)

    def propagate(self, frame: NDArray[np.uint8]) -> Result:
        """Labels of a frame that no engine has seen: those of the frame before, carried along the flow.

        After a cut (see the attribute) they mean nothing, until an `update` begins anew.

        Raises DiffSegError before the first `update`, and when the frame has another size.
        """
        from runtime.result import Result

        started = time.perf_counter()
        if self._size is None or frame.shape[:2] != self._size:
            known = "no frame yet" if self._size is None else f"frames of {self._size[0]}x{self._size[1]}"
            raise DiffSegError(
                f"propagate: expected a frame like those segmented, {known}, found "
                f"{frame.shape[0]}x{frame.shape[1]}; segment it and call update"
            )
        _, motion = self._estimator.step(frame)
        self.cut = motion.cut
        self._stale = self._stale or motion.cut
        for track in self._tracks:
            track.move(motion)
        return self._show(Result(np.zeros((1, 1), np.int32), 1, {"total": 0.0}), started)

    def _new(self, sighting: Sighting) -> Track:
        if self._next < NUMBERS:
            number = self._next
            self._next += 1
        elif self._free:
            number = self._free.popleft()
        else:
            raise DiffSegError(f"identities: expected at most {NUMBERS} at a time, found more; use fewer segments")
        return Track(number, sighting.mask, sighting.proposal, sighting, float(sighting.mask.sum()))

    def _retire(self, tracks: Iterable[Track]) -> None:
        self._free.extend(track.number for track in tracks)

    def _follow(self, motion: Motion, found: list[Sighting]) -> None:
        """Move the tracks, match them with what was found, and let that vote."""
        for track in self._tracks:
            track.move(motion)
        memory = self.config.memory * motion.trust
        pairs = match(self._tracks, found)
        for track in self._tracks:
            if track.mask is not None:
                track.mask = track.mask * memory
        for sighting, matched in zip(found, pairs, strict=True):
            vote = (1 - memory) * sighting.mask
            if matched is None:
                self._tracks.append(replace(self._new(sighting), mask=vote))
                continue
            matched.mask = vote if matched.mask is None else matched.mask + vote
            matched.see(sighting)
        for sighting, matched in zip(found, pairs, strict=True):
            if matched is not None and matched.known <= YOUNG:
                self._know_again(matched, sighting)
        in_sight = [track for track in self._tracks if track.mask is not None]
        for track, area in zip(in_sight, _areas(in_sight), strict=True):
            if track.unseen and area < SMALLEST_AREA:
                track.mask = None
        patience = self.config.patience
        self._retire(track for track in self._tracks if track.mask is None and track.unseen > patience)
        self._tracks = [track for track in self._tracks if track.mask is not None or track.unseen <= patience]
        total = np.sum([track.mask for track in self._tracks if track.mask is not None], axis=0)
        for track in self._tracks:
            if track.mask is not None:
                track.mask /= total

    def _know_again(self, track: Track, sighting: Sighting) -> None:
        """Give a young identity the number of the one that it turns out to be, when enough of it has come back."""
        lost = [other for other in self._tracks if other.mask is None and other.unseen >= track.known]
        likeness, index = max(
            ((other.resembles(sighting), index) for index, other in enumerate(lost)), default=(0.0, 0)
        )
        if likeness > LOST_LIKE:
            self._retire([track])
            track.number, track.velocity = lost[index].number, lost[index].velocity
            self._tracks.remove(lost[index])

    def _show(self, result: Result, started: float) -> Result:
        """The result with identities for labels: the largest mask wins, at the frame's own size."""
        assert self._size is not None
        tracks = [track for track in self._tracks if track.mask is not None]
        masks = np.stack([track.mask for track in tracks if track.mask is not None])
        areas = _areas(tracks)
        large = areas >= min(SMALLEST_AREA, areas.max())
        labels = np.zeros(self._size, np.int32)
        best = np.full(self._size, -1, np.float32)
        for track, small in zip(compress(tracks, large), masks[large], strict=True):
            mask = cv2.resize(small, self._size[::-1], interpolation=cv2.INTER_LINEAR)
            np.copyto(labels, track.number, where=mask > best)
            np.maximum(best, mask, out=best)
        identities = np.flatnonzero(count_pixels(labels)).astype(np.int32)
        by_number = {track.number: track for track in tracks}
        proposals = None
        if result.proposals is not None:
            proposals = np.stack([by_number[number].proposal for number in identities.tolist()])
            proposals /= proposals.sum(axis=(1, 2), keepdims=True)
        spent = (time.perf_counter() - started) * 1e3
        milliseconds = result.milliseconds | {"track": round(spent, 3)}
        milliseconds["total"] = round(milliseconds.pop("total", 0.0) + spent, 3)
        return replace(
            result,
            labels=labels,
            count=len(identities),
            milliseconds=milliseconds,
            proposals=proposals,
            identities=identities,
            names=None,  # they were of other labels
        )


def _areas(tracks: list[Track]) -> NDArray[np.float64]:
    """Share of the frame in which the mask of each track in sight wins."""
    winners = np.argmax([track.mask for track in tracks], axis=0)  # type: ignore[arg-type]
    return np.bincount(winners.ravel(), minlength=len(tracks)) / winners.size
