"""Colours of segments: far apart, and the same for the same index in every picture of a clip."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from runtime.labels import count_pixels

if TYPE_CHECKING:
    from numpy.typing import NDArray

# 64 colours, RRGGBB. Each is, of all colours that are neither nearly white, nearly black nor grey, the one farthest
# from those before it (tests/runtime/outputs/palette_search.py finds them). The smallest CIE 1976 differences in CIELAB
# are 63 among the first 8 colours, 40 among 16, 27 among 32 and 20 among all; of CIEDE2000 they are 30, 21, 13 and 9.
_COLOURS = np.frombuffer(
    bytes.fromhex(
        "e11e1e00ff0000b4ff0000f03c5a0fff78f0ffc300ffb4a500f0e1871e4b6978ff783c0000a52dff0078d2e1a50f8787"
        "d2c3ff004b87870096e1780f960f1e9696003ce19669e1ff96699600875ac30ff0ffb469f06969d2e100c31e87a5874b"
        "0087f0ffb4ff0f5a3c694bffff5a0f78c300c32d5ac396005a3c69ffb4d20fa5c3d25aff5a4b0f96e178f01e4bc3693c"
        "5a4ba5ff87b40078a5d2c369ff00c378c3a54b8700b43c00b487e1a55a5aa569008796d2c35a9678781e78965a964ba5"
    ),
    np.uint8,
).reshape(-1, 3)

DISTINCT = 16  # the first colours of the palette differ so much that any two of them may touch
FAR = 40  # CIE 1976 difference in CIELAB that is enough between segments that touch


def palette(count: int) -> NDArray[np.uint8]:
    """uint8 [count, 3] BGR: the colours of the indices 0 to count − 1, the same for the same index always.

    The colours of any 64 indices in a row differ, by at least 20 in CIELAB. After 64 they repeat.

        palette(2)  # [[30, 30, 225], [0, 255, 0]]: red and green
    """
    return _COLOURS[np.arange(count) % len(_COLOURS), ::-1]


class Painter:
    """Colours for the frames of a clip, in which segments that touch have colours far apart.

    An index keeps its palette colour where that is far from those of the segments it touches when it first appears.
    Otherwise it gets the colour farthest from theirs. Once given, a colour stays. Of a picture with at most 16
    segments the colours are the palette's.

        painter = Painter()
        for frame, labels in clip:  # in order; drawing itself may run in other threads
            picture = draw_overlay(frame, labels, colours=painter(labels))
    """

    def __init__(self) -> None:
        self._given = np.arange(DISTINCT)  # index → place in the palette; -1: not seen yet

    def __call__(self, labels: NDArray[np.int32]) -> NDArray[np.uint8]:
        """uint8 [N, 3] BGR: the colours of the indices 0 to N − 1 of labels [H, W], none of them negative."""
        count = int(labels.max(initial=0)) + 1
        if count > len(self._given):
            self._given = np.concatenate([self._given, np.full(count - len(self._given), -1)])
        if count > DISTINCT:
            present = np.flatnonzero(count_pixels(labels, count))
            new = present[self._given[present] < 0]
            if len(new):
                self._give(new, present, labels)
        return _COLOURS[np.maximum(self._given[:count], 0), ::-1]

    def _give(self, new: NDArray[np.int64], present: NDArray[np.int64], labels: NDArray[np.int32]) -> None:
        apart = distances()
        touching = _touching(labels, len(self._given))
        in_sight = set(self._given[present].tolist()) - {-1}
        for index in new.tolist():
            around = self._given[touching.get(index, [])]
            near = apart[:, around[around >= 0]].min(axis=1, initial=FAR)
            own = index % len(_COLOURS)
            if near[own] < FAR or own in in_sight:
                # Of colours that are all far enough from what it touches, the one farthest from the rest.
                rest = apart[:, sorted(in_sight)].min(axis=1, initial=1e3)
                own = int(np.lexsort((rest, near))[-1])
            self._given[index] = own
            in_sight.add(own)


@cache
def distances() -> NDArray[np.float32]:
    """float32 [64, 64]: CIE 1976 differences in CIELAB between the palette's colours. Not to be changed."""
    import cv2

    lab = cv2.cvtColor(_COLOURS[None].astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[0]
    return np.asarray(np.linalg.norm(lab[:, None] - lab[None], axis=-1), np.float32)


def _touching(labels: NDArray[np.int32], count: int) -> dict[int, list[int]]:
    """Index → the indices that it shares a pixel's side with."""
    found: dict[int, list[int]] = {}
    for first, second in ((labels[:, :-1], labels[:, 1:]), (labels[:-1], labels[1:])):
        differ = first != second
        for code in np.unique(first[differ].astype(np.int64) * count + second[differ]).tolist():
            one, other = divmod(code, count)
            found.setdefault(one, []).append(other)
            found.setdefault(other, []).append(one)
    return found
