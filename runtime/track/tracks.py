"""What a tracker knows of one identity, and what it sees of one segment; how alike the two are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import cv2
import numpy as np

from runtime.merge.divergence import divergences

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runtime.result import Result
    from runtime.track.motion import Motion

MOST_OF_IT, FORGET = 0.85, 0.99  # share of the usual area that counts as whole; decay of the usual area per frame
SAME_COLOUR = 45.0  # largest distance between mean BGR colours of one object
REACH = 0.4  # of the longer side: how far from its expected place an object may reappear
SEEN_ENOUGH = 4  # sightings after which an identity may reappear
STAND_IN = 32  # side of the blurred masks used where an engine gives no proposals


@dataclass(frozen=True, slots=True)
class Sighting:
    """One segment of one frame, on the small picture [h, w] of `runtime.track.motion`.

    Attributes:
        mask: float32 [h, w], its share in every pixel.
        proposal: float32 [h', w'], its attention map; or its blurred mask, where the engine gives no maps.
        colour: float32 [3], mean BGR, weighted towards its middle.
        place: float64 [2], its centre (x, y) in pixels.
    """

    mask: NDArray[np.float32]
    proposal: NDArray[np.float32]
    colour: NDArray[np.float32]
    place: NDArray[np.float64]


@dataclass(slots=True, eq=False)
class Track:
    """One identity.

    Attributes:
        number: the identity.
        mask: float32 [h, w], its share in every pixel; all tracks' sum to 1. None: out of sight.
        proposal: float32 [h', w'], carried along the flow and blended.
        portrait: the last sighting at about its full size, by which it is recognised; `age` frames old.
        velocity: pixels (x, y) a frame, mean of the sightings.
        area: of a usual sighting, in pixels.
        unseen: frames since a segment was last matched with it.
        known: frames since it was born.
        seen: number of sightings.
    """

    number: int
    mask: NDArray[np.float32] | None
    proposal: NDArray[np.float32]
    portrait: Sighting
    area: float
    velocity: NDArray[np.float64] = field(default_factory=lambda: np.zeros(2))
    age: int = 0
    unseen: int = 0
    known: int = 0
    seen: int = 1

    def move(self, motion: Motion) -> None:
        """Advance to the next frame: mask and proposal follow the motion."""
        self.age += 1
        self.unseen += 1
        self.known += 1
        if self.mask is not None:
            self.mask = motion.carry(self.mask)
            self.proposal = motion.carry(self.proposal)

    def see(self, sighting: Sighting) -> None:
        """Update it from the segment it was matched with in this frame."""
        self.unseen = 0
        self.seen += 1
        self.proposal = 0.5 * (self.proposal + sighting.proposal)
        area = float(sighting.mask.sum())
        self.area *= FORGET
        if area < MOST_OF_IT * self.area:  # partly hidden: keep the portrait of the whole
            return
        self.area = max(self.area, area)
        if self.age == 1:
            self.velocity = 0.7 * self.velocity + 0.3 * (sighting.place - self.portrait.place)
        self.portrait = replace(sighting, colour=0.7 * self.portrait.colour + 0.3 * sighting.colour)
        self.age = 0

    def resembles(self, sighting: Sighting) -> float:
        """How likely a segment is this identity, which is out of sight: exp(−D) of their proposals.

        The identity's own proposal is moved to the segment's place first. The likeness is 0 if the colours differ, if
        the segment is too far from where the identity should be, or if the identity was seen too rarely.
        """
        portrait = self.portrait
        astray = np.linalg.norm(sighting.place - portrait.place - self.age * self.velocity)
        if (
            self.seen < SEEN_ENOUGH
            or np.linalg.norm(portrait.colour - sighting.colour) > SAME_COLOUR
            or astray > REACH * max(sighting.mask.shape)
        ):
            return 0.0
        (height, width), (h, w) = sighting.mask.shape, sighting.proposal.shape
        dx, dy = (sighting.place - portrait.place) * (w / width, h / height)
        shift = np.array([[1, 0, dx], [0, 1, dy]], np.float32)
        moved = cv2.warpAffine(portrait.proposal, shift, (w, h), borderMode=cv2.BORDER_REPLICATE)
        return float(np.exp(-divergence([np.asarray(moved, np.float32)], [sighting.proposal])[0, 0]))


def sightings(result: Result, small: NDArray[np.uint8]) -> list[Sighting]:
    """Every segment of a result, measured on the small picture uint8 [h, w, 3] of its frame."""
    colours = small.reshape(-1, 3).astype(np.float32)
    places = np.indices(small.shape[:2])[::-1].reshape(2, -1)
    found = []
    for index in range(result.count):
        inside = (result.labels == index).astype(np.float32)
        mask = np.asarray(cv2.resize(inside, small.shape[1::-1], interpolation=cv2.INTER_AREA), np.float32)
        if result.proposals is not None:
            proposal = result.proposals[index]
        else:
            # Blurred, so that the divergence grows with distance and is never infinite.
            proposal = cv2.GaussianBlur(cv2.resize(mask, (STAND_IN, STAND_IN), interpolation=cv2.INTER_AREA), (0, 0), 2)
            proposal = np.asarray(proposal + 0.01, np.float32)
        middle = _middle(mask).ravel()
        middle /= max(float(middle.sum()), 1e-6)
        found.append(Sighting(mask, proposal, middle @ colours, np.asarray(places @ middle, np.float64)))
    return found


def _middle(mask: NDArray[np.float32]) -> NDArray[np.float32]:
    """Weights float32 [h, w] of a segment's pixels; low at its rim, which may show its surroundings."""
    inside = np.pad(mask > 0.5, 1).astype(np.uint8)
    if not inside.any():
        return mask.copy()
    depth = cv2.distanceTransform(inside, cv2.DIST_L2, 3)[1:-1, 1:-1]
    return np.asarray(depth * depth, np.float32)


def divergence(a: Sequence[NDArray[np.float32]], b: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """D(a, b) = ½ Σ (a − b)(log a − log b) of maps, each made to sum to 1: float32 [len(a), len(b)]."""

    def normalised(maps: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        rows = np.stack([one.ravel() for one in maps])
        return np.asarray(rows * (rows.shape[1] / rows.sum(axis=1, keepdims=True)), np.float32)

    p, q = normalised(a), normalised(b)
    return divergences(p, q, total=p.shape[1])
