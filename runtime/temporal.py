"""Identities that stay on their objects from frame to frame: matching, and a memory that moves with the picture.

A tracker keeps one soft mask per identity. Every frame it carries them along the optical flow, matches the frame's
segments with them one to one (KL divergence of their proposals, overlap after motion), and lets the segments vote: an
identity holds a pixel until another one has won it for some frames. So segments that merge and fall apart from frame
to frame do not flicker, and since the memory moves with the picture, borders do not lag either; where the picture shows
what was not there before, nothing is remembered.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from itertools import compress
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from runtime.errors import DiffSegError
from runtime.motion import MotionEstimator

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from runtime.motion import Motion
    from runtime.segmenter import Result, Segmenter

LEAST_OVERLAP = 0.1  # intersection over union that makes a pair by itself
LIKE, LIKE_OVERLAP = 0.7, 0.02  # exp(−D) of proposals, and overlap, that make a pair together
LOST_LIKE, LOST_COLOUR, LOST_WEIGHT = 0.6, 40.0, 0.1  # what brings back an identity that had gone out of sight
FADED = 0.05  # an identity whose mask nowhere exceeds this has gone out of sight
SMALLEST_AREA = 0.001  # of the frame; less is no segment
STAND_IN = 32  # side of the maps that stand in for the proposals of an engine that gives none


@dataclass(frozen=True, slots=True)
class TrackerConfig:
    """Parameters of the tracker.

    Attributes:
        memory: share of the past in a pixel's vote, from 0 (the newest segments alone) to below 1. At 0.85 a new
            segment inside a known one shows after five frames; what enters or is uncovered shows at once.
        patience: frames for which an identity that has gone out of sight can come back.
        side: longer side, in pixels, of the picture on which motion is estimated and masks are kept.

    Raises:
        DiffSegError: if a value is out of range.
    """

    memory: float = 0.85
    patience: int = 30
    side: int = 192

    def __post_init__(self) -> None:
        if not 0 <= self.memory < 1:
            raise DiffSegError(f"memory: expected from 0 to below 1, found {self.memory!r}; 0.85 is the default")
        if self.patience < 0:
            raise DiffSegError(f"patience: expected a number of frames from 0, found {self.patience!r}")
        if self.side < 32:
            raise DiffSegError(f"side: expected at least 32 pixels, found {self.side!r}; 192 is the default")


@dataclass(slots=True)
class _Track:
    """One identity. `mask` float32 [h, w]: its share in every pixel, all tracks' sum to 1; None: out of sight."""

    number: int
    mask: NDArray[np.float32] | None
    proposal: NDArray[np.float32]
    colour: NDArray[np.float32]
    velocity: NDArray[np.float64]
    unseen: int = 0

    def move(self, motion: Motion) -> None:
        """Go with the picture; out of sight, go on as before."""
        if self.mask is not None:
            self.mask = motion.carry(self.mask)
            self.proposal = motion.carry(self.proposal)
            return
        (height, width), (h, w) = motion.x.shape, self.proposal.shape
        dx, dy = self.velocity * (w / width, h / height)
        shift = np.array([[1, 0, dx], [0, 1, dy]], np.float32)
        moved = cv2.warpAffine(self.proposal, shift, (w, h), borderMode=cv2.BORDER_REPLICATE)
        self.proposal = np.asarray(moved, np.float32)


class Tracker:
    """Turns the segments of frame after frame into identities. One for each clip; use it from one thread.

    Identities count up from 0 and are never given twice by the same tracker.

    Attributes:
        cut: whether the last frame showed another scene than the one before.
    """

    def __init__(self, config: TrackerConfig | None = None) -> None:
        """Needs the extra `video`. Raises DiffSegError where it is missing."""
        try:
            from scipy.optimize import linear_sum_assignment
        except ImportError:
            raise DiffSegError('identities need scipy: pip install "diffseg[video]"') from None
        self.config = config or TrackerConfig()
        self._assign = linear_sum_assignment
        self._estimator = MotionEstimator(self.config.side)
        self._tracks: list[_Track] = []
        self._size: tuple[int, int] | None = None
        self._next = 0
        self._stale = False
        self.cut = False

    def reset(self) -> None:
        """Forget everything but which numbers were given: the next frame begins a new scene."""
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
        found = _describe(result, small)
        # What came before means nothing either where a cut fell on a frame that was propagated.
        fresh = motion is None or motion.cut or self._stale
        self.cut = self._size is not None and (motion is None or motion.cut)
        self._size, self._stale = size, False
        if fresh or motion is None:
            self._tracks = [self._new(*segment) for segment in found]
        else:
            self._follow(motion, found)
        return self._show(result, started)

    def propagate(self, frame: NDArray[np.uint8]) -> Result:
        """Labels of a frame that no engine has seen: those of the frame before, carried along the flow.

        After a cut (see the attribute) they mean nothing, until an `update` begins anew.

        Raises DiffSegError before the first `update`, and when the frame has another size.
        """
        from runtime.segmenter import Result

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

    def _new(self, mask: NDArray[Any], proposal: NDArray[Any], colour: NDArray[Any]) -> _Track:
        self._next += 1
        return _Track(self._next - 1, mask, proposal, colour, np.zeros(2))

    def _follow(self, motion: Motion, found: list[_Segment]) -> None:
        """Move the tracks, match them with the segments that were found, and let those vote."""
        for track in self._tracks:
            track.move(motion)
        memory = self.config.memory * motion.trust
        pairs = self._match(found)
        for track in self._tracks:
            track.unseen += 1
            if track.mask is not None:
                track.mask = track.mask * memory
        for index, (mask, proposal, colour) in enumerate(found):
            matched = pairs.get(index)
            if matched is None:
                matched = self._new(np.zeros_like(mask), proposal, colour)
                self._tracks.append(matched)
            vote = (1 - memory) * mask
            matched.mask = vote if matched.mask is None else matched.mask + vote
            matched.unseen = 0
            matched.proposal = 0.5 * (matched.proposal + proposal)
            matched.colour = 0.7 * matched.colour + 0.3 * colour
            matched.velocity = 0.5 * (matched.velocity + motion.velocity(mask))
        for track in self._tracks:
            if track.mask is not None and track.mask.max() <= FADED:
                track.mask = None
        self._tracks = [
            track for track in self._tracks if track.mask is not None or track.unseen <= self.config.patience
        ]
        total = np.sum([track.mask for track in self._tracks if track.mask is not None], axis=0)
        for track in self._tracks:
            if track.mask is not None:
                track.mask /= total

    def _match(self, found: list[_Segment]) -> dict[int, _Track]:
        """The track of each segment that has one: one optimal assignment, by overlap and likeness together.

        An identity out of sight has no overlap; it is taken where a segment is left over, by likeness and colour.
        """
        nothing = np.zeros_like(found[0][0]).ravel()
        tracked = np.stack([nothing if track.mask is None else track.mask.ravel() for track in self._tracks])
        new = np.stack([mask.ravel() for mask, _, _ in found])
        common = tracked @ new.T
        overlap = common / np.maximum(tracked.sum(axis=1)[:, None] + new.sum(axis=1) - common, 1e-6)
        proposals = np.stack([track.proposal.ravel() for track in self._tracks])
        likeness = np.exp(-_divergence(proposals, np.stack([proposal.ravel() for _, proposal, _ in found])))
        colours = np.stack([track.colour for track in self._tracks])
        distance = np.linalg.norm(colours[:, None] - np.stack([colour for _, _, colour in found]), axis=2)
        lost = np.array([track.mask is None for track in self._tracks])[:, None]
        in_sight = (overlap > LEAST_OVERLAP) | ((likeness > LIKE) & (overlap > LIKE_OVERLAP))
        back = lost & (likeness > LOST_LIKE) & (distance < LOST_COLOUR)
        gain = np.where(in_sight, overlap + likeness, 0) + np.where(back, LOST_WEIGHT * likeness, 0)
        pairs = zip(*self._assign(gain, maximize=True), strict=True)
        return {int(segment): self._tracks[track] for track, segment in pairs if gain[track, segment] > 0}

    def _show(self, result: Result, started: float) -> Result:
        """The result with identities for labels: the largest mask wins, at the frame's own size."""
        assert self._size is not None
        tracks = [track for track in self._tracks if track.mask is not None]
        masks = np.stack([track.mask for track in tracks if track.mask is not None])
        winners = np.bincount(masks.argmax(axis=0).ravel(), minlength=len(masks))
        large = winners >= SMALLEST_AREA * winners.sum()
        large[winners.argmax()] = True
        labels = np.zeros(self._size, np.int32)
        best = np.full(self._size, -1, np.float32)
        for track, small in zip(compress(tracks, large), masks[large], strict=True):
            mask = cv2.resize(small, self._size[::-1], interpolation=cv2.INTER_LINEAR)
            np.copyto(labels, track.number, where=mask > best)
            np.maximum(best, mask, out=best)
        identities = np.flatnonzero(np.bincount(labels.ravel())).astype(np.int32)
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
        )


_Segment = tuple["NDArray[np.float32]", "NDArray[np.float32]", "NDArray[np.float32]"]


def _describe(result: Result, small: NDArray[np.uint8]) -> list[_Segment]:
    """Of every segment: soft mask [h, w] on the small picture, proposal, and mean colour [3]."""
    colours = small.reshape(-1, 3).astype(np.float32)
    segments = []
    for index in range(result.count):
        inside = (result.labels == index).astype(np.float32)
        mask = np.asarray(cv2.resize(inside, small.shape[1::-1], interpolation=cv2.INTER_AREA), np.float32)
        if result.proposals is not None:
            proposal = result.proposals[index]
        else:
            # By the overlap alone, but spread, so that a divergence grows with distance and is never infinite.
            proposal = cv2.GaussianBlur(cv2.resize(mask, (STAND_IN, STAND_IN), interpolation=cv2.INTER_AREA), (0, 0), 2)
            proposal = np.asarray(proposal + 0.01, np.float32)
        segments.append((mask, proposal, mask.ravel() @ colours / max(float(mask.sum()), 1e-6)))
    return segments


def _divergence(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """D(a, b) = ½ Σ (a − b)(log a − log b) of rows [k, n] with rows [l, n], made to sum to 1: [k, l]."""
    a, b = (np.maximum(maps / maps.sum(axis=1, keepdims=True), 1e-12) for maps in (a, b))
    log_a, log_b = np.log(a * a.shape[1]), np.log(b * b.shape[1])  # n·a: see runtime.merge
    own = (a * log_a).sum(axis=1)[:, None] + (b * log_b).sum(axis=1)
    divergence: NDArray[np.float32] = 0.5 * (own - a @ log_b.T - log_a @ b.T)
    return divergence


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
        if tracker is not None and since < every and size == getattr(frame, "shape", None):
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
