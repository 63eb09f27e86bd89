"""Words written on their segments, where each is farthest from its segment's border."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runtime.words import Names

FONT = cv2.FONT_HERSHEY_SIMPLEX
CAPITAL = 22  # pixels that a line of this font takes at scale 1, without its outline
LETTER, SMALLEST = 28, 10  # of a frame's shorter side, this part is a letter's height; but at least so many pixels
ALMOST = 0.95  # of the largest distance from the border
# The outline is the word in eight places around its own: a thicker one would be longer, too, in some fonts of OpenCV.
AROUND = [(dx, dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1) if dx or dy]
SIDE = 384  # pixels of the longer side of the labels in which places are looked for


def write_names(picture: NDArray[np.uint8], labels: NDArray[np.int32], names: Names) -> None:
    """Write the words of the segments of labels int [H, W] into a picture uint8 [H, W, 3], in place.

    White letters with a dark outline. A word shrinks to the width that its segment has there, down to the size that can
    just be read; it is left out where not even half of that fits into the segment's height. OpenCV's fonts have the
    letters of ASCII: accents are left out, and other letters are question marks.
    """
    height, width = labels.shape
    wanted = max(min(height, width) / LETTER, SMALLEST)
    for label, (x, y, radius) in _places(labels, [one for one in names.labels if names[one] is not None]).items():
        if radius < wanted / 4:
            continue
        text = _ascii(names[label] or "")
        scale = wanted / CAPITAL
        (across, _), _ = cv2.getTextSize(text, FONT, scale, 1)
        scale *= float(np.clip(4 * radius / across, SMALLEST / wanted, 1))
        thick = max(1, round(scale * 1.6))
        (across, up), down = cv2.getTextSize(text, FONT, scale, thick)
        left = int(np.clip(x - across / 2, 2, max(2, width - across - 2)))
        base = int(np.clip(y + up / 2, up + 2, max(up + 2, height - down)))
        edge = 1 + round(scale)
        for shift in (*((edge * dx, edge * dy) for dx, dy in AROUND), (0, 0)):
            colour = (255, 255, 255) if shift == (0, 0) else (30, 30, 30)
            cv2.putText(picture, text, (left + shift[0], base + shift[1]), FONT, scale, colour, thick, cv2.LINE_AA)


def _places(labels: NDArray[np.int32], wanted: list[int]) -> dict[int, tuple[float, float, float]]:
    """For each of the labels the x, y of its place and the distance from there to its border, in pixels.

    The frame's edge is a border, too. Labels so small that they are not in the picture at SIDE have no place.
    """
    height, width = labels.shape
    factor = min(1.0, SIDE / max(height, width))
    size = max(1, round(width * factor)), max(1, round(height * factor))
    small = np.asarray(cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST_EXACT))
    found = {}
    for label in wanted:
        mask = np.pad((small == label).astype(np.uint8), 1)
        distance = cv2.distanceTransform(mask, cv2.DIST_L2, 5)
        radius = float(distance.max())
        if radius > 0:  # of places that are almost as far, the one in their middle
            far = np.argwhere(distance >= ALMOST * radius)
            y, x = far[np.square(far - far.mean(axis=0)).sum(axis=1).argmin()].tolist()
            found[label] = ((x - 0.5) / factor, (y - 0.5) / factor, radius / factor)
    return found


def _ascii(text: str) -> str:
    plain = "".join(one for one in unicodedata.normalize("NFKD", text) if not unicodedata.combining(one))
    return plain.encode("ascii", "replace").decode()
