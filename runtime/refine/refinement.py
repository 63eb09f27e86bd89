"""What is done to labels at the frame's own size, after the merge."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from runtime.errors import shown
from runtime.labels import LEAST_PIECE, relabel
from runtime.merge import registry as solvers
from runtime.outputs.measure import connected_regions
from runtime.refine import registry
from runtime.refine.absorb import absorb, cells_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runtime.pyramid.weights import Shape

LARGEST = 2048 * 2048  # pixels; a larger frame is refined at this size, which bounds time and memory
PIECES = ("keep", "split", "unlike")
SAMPLES = 2  # per token and axis, that say which tokens a piece consists of


@dataclass(frozen=True, slots=True)
class Refinement:
    """What is done to the labels of a frame at its own size.

        refine = Refinement(("snap",), min_area=0.002)
        labels = refine(labels, frame, (64, 64))

    Attributes:
        names: of refinements that the registry knows. They are applied in the registry's order.
        min_area: see `absorb`; below 1 a share of the frame, from 1 pixels, 0 for nothing.
        pieces: "keep", "split" or "unlike": see `split`.

    Raises:
        ValueError: if a name or the word for pieces is unknown, or `min_area` is neither a share nor whole pixels.
    """

    names: tuple[str, ...] = ()
    min_area: float = 0.0
    pieces: str = "keep"

    def __post_init__(self) -> None:
        known = registry.refinement_names()
        if not isinstance(self.names, tuple) or not set(self.names) <= set(known):
            raise ValueError(
                f"refine: expected names of {', '.join(known)}, found {shown(self.names)}; choose among them"
            )
        area = self.min_area
        number = isinstance(area, Real) and not isinstance(area, bool)
        if not number or not 0 <= area < float("inf") or (area > 1 and area != int(area)):
            raise ValueError(
                f"min_area: expected a share of the frame below 1, or whole pixels from 1, found {shown(area)}; give "
                "for example 0.002 or 500"
            )

        if self.pieces not in PIECES:
            raise ValueError(f"pieces: expected one of {', '.join(PIECES)}, found {shown(self.pieces)}; choose one")

    def __call__(self, labels: NDArray[np.int32], frame: NDArray[np.uint8], tokens: Shape) -> NDArray[np.int32]:
        """Refine labels.

        A frame of more than 4 megapixels is refined at 4 megapixels, where `names` has any: a border then has steps of
        some pixels, and areas are exact to some pixels. Neither time nor memory grow further.

        Args:
            labels: int32 [H, W], not negative.
            frame: uint8 [H, W, 3] BGR.
            tokens: (h, w) of the tokens that the labels come from.

        Returns:
            int32 [H, W]: the same labels; some may be gone.
        """
        area = self._pixels(self.min_area, labels)
        scale = (LARGEST / labels.size) ** 0.5
        if not self.names or scale >= 1:
            return self._refine(labels, frame, tokens, area)
        size = [max(1, round(side * scale)) for side in reversed(labels.shape)]
        small: Any = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST_EXACT)
        seen = np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), np.uint8)
        small = self._refine(small, seen, tokens, area * small.size / labels.size)
        return np.asarray(cv2.resize(small, labels.shape[::-1], interpolation=cv2.INTER_NEAREST_EXACT), np.int32)

    def split(
        self, labels: NDArray[np.int32], view: int | None = None, alike: NDArray[np.intp] | None = None
    ) -> tuple[NDArray[np.int32], NDArray[np.intp]] | None:
        """Make every connected piece of a segment a segment of its own; None where pieces are kept.

        Pieces below `min_area`, or 0.4 % of a view where it is 0, go to their neighbours first. With "unlike", pieces
        that the network sees as one stay one segment.

        Args:
            labels: int32 [H, W], not negative, refined.
            view: pixels that the network saw at once; None: the whole frame.
            alike: int [h, w] of the tokens; pieces of one segment in which most tokens have the same number are seen as
                one. None: none are.

        Returns:
            int32 [H, W], labels from 0 without gaps, and the label that each of them is a piece of, int [N].
        """
        if self.pieces == "keep":
            return None
        least = self._pixels(self.min_area, labels) or LEAST_PIECE * (view or labels.size)
        cells, heights, widths = cells_of(labels)
        regions, owner = connected_regions(absorb(cells, least, heights, widths))
        whole = np.repeat(np.repeat(regions, widths, axis=1), heights, axis=0)
        if alike is None or self.pieces == "split":
            return whole, np.asarray(owner, np.intp)
        numbers = _as_one(whole, owner, alike)
        return relabel(whole, numbers), np.asarray(owner, np.intp)[np.unique(numbers, return_index=True)[1]]

    @property
    def most_pieces(self) -> float:
        """How many segments `split` gives at most, for a frame of any size; 0 where pieces are kept."""
        if self.pieces == "keep":
            return 0
        least = self.min_area or LEAST_PIECE
        return 1 / least if least < 1 else math.inf

    @staticmethod
    def _pixels(area: float, labels: NDArray[np.int32]) -> float:
        return area * labels.size if area < 1 else area

    def _refine(
        self, labels: NDArray[np.int32], frame: NDArray[np.uint8], tokens: Shape, area: float
    ) -> NDArray[np.int32]:
        """Apply the refinements, and absorb regions below `area` pixels or what the refinements leave as specks."""
        steps = [step for step in registry.REFINEMENTS if step.name in self.names]
        area = max(area, *(step.specks * labels.size / (tokens[0] * tokens[1]) for step in steps), 0)
        if area:
            steps += [step for step in registry.REFINEMENTS if step.by_area]
        given = {"frame": frame, "tokens": tokens, "min_area": area}
        for step in steps:
            labels = step.load()(labels, *(given[name] for name in step.inputs))
        return labels


def _as_one(regions: NDArray[np.int32], owner: list[int], alike: NDArray[np.intp]) -> NDArray[np.int32]:
    """New numbers of regions, from 0 in the same order: the same for those of one label that are alike."""
    votes = np.zeros((len(owner), int(alike.max()) + 1), np.intp)
    samples = np.kron(alike, np.ones((SAMPLES, SAMPLES), np.intp))
    seen: Any = cv2.resize(regions, samples.shape[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    np.add.at(votes, (seen, samples), 1)
    number = np.where(votes.any(axis=1), votes.argmax(axis=1), -1 - np.arange(len(owner)))
    first: dict[tuple[int, int], int] = {}
    return np.array([first.setdefault(key, len(first)) for key in zip(owner, number.tolist(), strict=True)], np.int32)


def split_refine(refine: str, solver: str | None = None, default: str = solvers.DEFAULT) -> tuple[str, tuple[str, ...]]:
    """`--refine` → the solver (`default` where no word names another), and the names of the refinements.

    `solver`: what `--solver` names, if anything.

        split_refine("kmeans,snap")  # ("kmeans", ("snap",))

    Raises ValueError for anything but "none", or words with commas between them: at most one solver, and refinements.
    """
    others = tuple(solver.name for solver in solvers.SOLVERS if solver.name != solvers.DEFAULT)
    known = (*others, *registry.refinement_names())
    words = tuple(dict.fromkeys(word.strip() for word in refine.split(","))) if isinstance(refine, str) else ()
    if words == ("none",):
        return solver or default, ()
    if not words or not set(words) <= set(known):
        raise ValueError(
            f"refine: expected none, or one or more of {', '.join(known)} with commas between them, found {refine!r}"
        )
    chosen = [word for word in words if word in others]
    if len(chosen) > 1:
        raise ValueError(f"refine: expected one solver at most, found {', '.join(chosen)}; choose one of them")
    if solver is not None and chosen not in ([], [solver]):
        raise ValueError(f"refine: expected no other solver than {solver!r}, found {chosen[0]}; leave one out")
    return solver or (*chosen, default)[0], tuple(word for word in words if word not in others)
