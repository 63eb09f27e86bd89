"""Which segment is which identity: from frame to frame, and between two trackers that have seen the same frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from runtime.errors import DiffSegError
from runtime.track.tracks import Sighting, Track, divergence, sightings

if TYPE_CHECKING:
    from runtime.result import Result

LEAST_OVERLAP = 0.1  # intersection over union that is enough for a match
LIKE, LIKE_OVERLAP = 0.7, 0.02  # exp(−D) of proposals and overlap that together are enough for a match
LOST_LIKE, LOST_WEIGHT = 0.5, 0.1  # likeness at which an identity reappears; its weight beside matches in sight


def check_scipy() -> None:
    """Raise DiffSegError where scipy is missing."""
    try:
        import scipy.optimize  # noqa: F401
    except ImportError:
        raise DiffSegError(
            'identities need scipy: pip install "diffseg[video]", or go without them by --temporal off'
        ) from None


def match(tracks: Sequence[Track], found: Sequence[Sighting]) -> list[Track | None]:
    """The track of everything found, where it has one: one optimal assignment, by overlap and likeness together.

    An identity out of sight has no overlap; it is taken where a segment is left over that resembles it.
    """
    from scipy.optimize import linear_sum_assignment

    nothing = np.zeros_like(found[0].mask)
    masks = np.stack([(nothing if track.mask is None else track.mask).ravel() for track in tracks])
    new = np.stack([sighting.mask.ravel() for sighting in found])
    common = masks @ new.T
    overlap = common / np.maximum(masks.sum(axis=1)[:, None] + new.sum(axis=1) - common, 1e-6)
    likeness = np.exp(-divergence([t.proposal for t in tracks], [sighting.proposal for sighting in found]))
    sure = (overlap > LEAST_OVERLAP) | ((likeness > LIKE) & (overlap > LIKE_OVERLAP))
    gain = np.where(sure, overlap + likeness, 0)
    for row, track in zip(gain, tracks, strict=True):
        if track.mask is None:
            back = np.array([track.resembles(sighting) for sighting in found])
            row[:] = np.where(back > LOST_LIKE, LOST_WEIGHT * back, 0)
    pairs: list[Track | None] = [None] * len(found)
    for index, segment in zip(*linear_sum_assignment(gain, maximize=True), strict=True):
        if gain[index, segment] > 0:
            pairs[segment] = tracks[index]
    return pairs


def join_identities(before: Sequence[Result], after: Sequence[Result], side: int = 192) -> dict[int, int]:
    """Identities of a later part of a clip → those of an earlier part, as two trackers saw them in the same frames.

    Each pair of results is of one frame, in order. The last frame counts first, since the later tracker knows least in
    its first frames; identities that are out of sight in it are matched in the frames before. An identity without a
    match is new. `side`: longer side, in pixels, of the picture on which masks are compared.
    """
    joined: dict[int, int] = {}
    for one, other in zip(reversed(before), reversed(after), strict=True):
        assert one.identities is not None and other.identities is not None
        height, width = one.labels.shape
        scale = min(1.0, side / max(height, width))
        small = np.zeros((max(1, round(height * scale)), max(1, round(width * scale)), 3), np.uint8)
        tracks = [
            Track(number, seen.mask, seen.proposal, seen, float(seen.mask.sum()))
            for number, seen in zip(one.identities.tolist(), sightings(_numbered(one), small), strict=True)
            if number not in joined.values()
        ]
        found = {
            number: seen
            for number, seen in zip(other.identities.tolist(), sightings(_numbered(other), small), strict=True)
            if number not in joined
        }
        if tracks and found:
            pairs = zip(found, match(tracks, list(found.values())), strict=True)
            joined |= {number: track.number for number, track in pairs if track is not None}
    return joined


def _numbered(result: Result) -> Result:
    """A result with the labels 0 … count − 1 in place of identities."""
    assert result.identities is not None
    return replace(result, labels=np.searchsorted(result.identities, result.labels).astype(np.int32))
