"""Words for segments: an engine's maps of where each word is, one map per word, the segments' shares, and their names.

For each word the score of a segment is the mean of the word's map in the segment ÷ its mean in the frame. A word that
is everywhere has 1 everywhere. The scores over all words, divided by their sum, are the segment's shares; the word with
the largest share is the segment's, unless that share is below a threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from runtime.errors import DiffSegError, shown
from runtime.labels import count_pixels, pieces

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Naming:
    """How the segments of an engine with words are named.

    Attributes:
        words: the engine's, in the order of its maps.
        threshold: a segment whose best share is below it stays without a word, 0 … 1.
        join: neighbours of one word become one segment.

    Raises:
        DiffSegError: if the threshold is out of range.
    """

    words: tuple[str, ...]
    threshold: float = 0.0
    join: bool = False

    def __post_init__(self) -> None:
        number = isinstance(self.threshold, (int, float)) and not isinstance(self.threshold, bool)
        if not number or not 0 <= self.threshold <= 1:  # NaN too
            raise DiffSegError(f"word_threshold: expected a share from 0 to 1, found {shown(self.threshold)}")
        if not isinstance(self.join, bool):
            raise DiffSegError(f"merge_words: expected True or False, found {shown(self.join)}")


@dataclass(frozen=True, slots=True)
class Names:
    """The words of a frame's segments. `names[label]` is a segment's word, or None.

    Attributes:
        words: all that a segment may be called.
        labels: of the segments, ascending.
        shares: float32 [segments, words]; each row sums to 1, or to 0 where no word was seen at all.
        threshold: the least share that gives a segment its word.
    """

    words: tuple[str, ...]
    labels: tuple[int, ...]
    shares: NDArray[np.float32] = field(repr=False)
    threshold: float

    def __getitem__(self, label: int) -> str | None:
        """The word of a segment, given by its label; None where it has none. Raises KeyError for an unknown label."""
        index = self.index(label)
        return self.words[index - 1] if index else None

    def index(self, label: int) -> int:
        """The number of a segment's word, from 1; 0 where it has none. Raises KeyError for an unknown label."""
        shares = self.shares[self._row(label)]
        best = int(shares.argmax())
        return best + 1 if shares[best] >= self.threshold and shares[best] > 0 else 0

    def score(self, label: int) -> float:
        """The largest share of a segment, also where it is below the threshold. Raises KeyError as `index` does."""
        return round(float(self.shares[self._row(label)].max()), 4)

    def indices(self) -> NDArray[np.int32]:
        """int32 [largest label + 1]: `index` of each label; 0 for labels that are not there."""
        found = np.zeros(self.labels[-1] + 1 if self.labels else 0, np.int32)
        found[list(self.labels)] = [self.index(label) for label in self.labels]
        return found

    def describe(self, label: int) -> dict[str, Any]:
        """A segment's `name`, None where it has none, and `score`, for JSON."""
        return {"name": self[label], "score": self.score(label)}

    def _row(self, label: int) -> int:
        row = int(np.searchsorted(self.labels, label))
        if row == len(self.labels) or self.labels[row] != label:
            raise KeyError(f"expected the label of a segment, found {shown(label)}")
        return row


def combine(levels: Sequence[NDArray[Any]], ratios: Sequence[float]) -> NDArray[np.float32]:
    """One map per word: float32 [words, h, w] of the finest resolution, the mean of each is 1.

    `levels`: float [words, h, w] per resolution, finest first. `ratios`: their weights, as for self-attention. Each map
    is interpolated bilinearly, divided by its mean, and added. Raises ValueError where a map has a NaN, an infinity or
    a negative value.
    """
    words, height, width = levels[0].shape
    whole = np.zeros((words, height, width), np.float32)
    for number, (level, ratio) in enumerate(zip(levels, ratios, strict=True)):
        if ratio == 0:
            continue
        if not (np.isfinite(level).all() and level.min() >= 0):
            raise ValueError(f"words[{number}]: expected finite numbers from 0, found others")
        for word, target in zip(level, whole, strict=True):
            wide: Any = cv2.resize(word.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
            mean = float(wide.mean(dtype=np.float64))
            if mean > 0:
                target += np.float32(ratio / mean) * wide
    return whole


def name_segments(labels: NDArray[np.int32], maps: NDArray[np.float32], naming: Naming) -> Names:
    """The words of the segments of labels int [H, W], not negative, by maps [words, h, w] of the whole frame.

    Every pixel has the value of the map's cell that it is in.
    """
    height, width = labels.shape
    count, h, w = maps.shape
    present = np.flatnonzero(count_pixels(labels))
    numbers = np.zeros(int(present[-1]) + 1, np.intp)
    numbers[present] = np.arange(len(present)) * (h * w)
    columns = np.arange(width) * w // width
    cells = np.zeros(len(present) * h * w, np.intp)  # pixels of each segment in each cell
    for part in pieces(labels):
        rows = np.arange(height)[part] * h // height * w
        cells += np.bincount((numbers[labels[part]] + rows[:, None] + columns).ravel(), minlength=len(cells))
    pixels = cells.reshape(len(present), h * w).astype(np.float64)
    flat = maps.reshape(count, h * w).T.astype(np.float64)
    inside = pixels @ flat / pixels.sum(axis=1, keepdims=True)
    frame = pixels.sum(axis=0) @ flat / labels.size
    scores = np.divide(inside, frame, out=np.zeros_like(inside), where=frame > 0)
    total = scores.sum(axis=1, keepdims=True)
    shares = np.divide(scores, total, out=np.zeros_like(scores), where=total > 0)
    return Names(naming.words, tuple(present.tolist()), shares.astype(np.float32), naming.threshold)


def join_neighbours(labels: NDArray[np.int32], indices: NDArray[np.int32]) -> NDArray[np.int32]:
    """int32 [largest label + 1]: for each label the one that it is joined to, the least of its group.

    `labels`: int [H, W], not negative. `indices`: the word of each label, from 1, 0 for none. Segments are joined that
    touch by a pixel's side, and have one word.
    """
    parent = list(range(len(indices)))

    def root(label: int) -> int:
        while parent[label] != label:
            label = parent[label]
        return label

    for one, other in ((labels[:, :-1], labels[:, 1:]), (labels[:-1], labels[1:])):
        differ = one != other
        keys = np.unique(one[differ].astype(np.int64) << 32 | other[differ])
        for key in keys.tolist():
            left, right = key >> 32, key & 0xFFFFFFFF
            if indices[left] == indices[right] > 0:
                first, last = sorted((root(left), root(right)))
                parent[last] = first
    return np.array([root(label) for label in range(len(parent))], np.int32)


def joined_proposals(
    proposals: NDArray[np.float32], areas: NDArray[np.intp], groups: NDArray[np.int32]
) -> NDArray[np.float32]:
    """Proposals [groups, h, w] of joined segments: the mean of theirs, weighted by their areas.

    `proposals`: [segments, h, w]. `groups`: int [segments], the group of each, numbered without gaps.
    """
    weights = np.zeros((int(groups.max()) + 1, len(groups)))
    weights[groups, np.arange(len(groups))] = areas
    weights /= weights.sum(axis=1, keepdims=True)
    return np.asarray(np.tensordot(weights, proposals, 1), np.float32)
